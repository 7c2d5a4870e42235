//! What an empty ruleset means, and one that is missing.
//!
//! `iptables-save` that prints nothing and ends well has found no table of its own variant. That is
//! a router without a firewall only if nothing is in nf_tables and nothing in the other variant: an
//! `nft_ruleset` beside it tells the first, as does a list of modules in which nf_tables is missing.

use super::section::Section;
use crate::netlink::object::Family;

/// Modules that iptables-legacy loads with its tables; each begins so.
fn tables_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptable_",
        Family::V6 => "ip6table_",
    }
}

/// Why rules of `family` may be there, although its section of iptables-save has none; none where
/// all that is known says that there are none.
pub(super) fn doubt(sections: &[Section<'_>], family: Family) -> Option<String> {
    let usable = |section: &&Section<'_>| section.exit_code.unwrap_or(0) == 0;
    let of = |name: &str| sections.iter().filter(usable).find(|s| s.name == name);
    if family == Family::V4 {
        let listings = ["iptables_filter", "iptables_nat", "iptables_mangle"];
        if let Some(listing) = listings
            .iter()
            .filter_map(|name| of(name))
            .find(|l| has_rules(l))
        {
            let name = listing.name;
            return Some(format!("but section `{name}` shows some"));
        }
    }
    let modules = modules(sections);
    let legacy = |section: &Section<'_>| {
        let six = section.name.contains("ip6tables");
        section.name.contains("legacy") && six == (family == Family::V6)
    };
    let table = modules
        .iter()
        .find(|module| module.starts_with(tables_of(family)));
    if let Some(module) = table.filter(|_| !sections.iter().any(legacy)) {
        return Some(format!(
            "but module {module} is loaded: iptables-legacy may have tables, and no section has them"
        ));
    }
    let none_in_nft =
        of("nft_ruleset").is_some() || !modules.is_empty() && !modules.contains(&"nf_tables");
    (!none_in_nft).then(|| {
        "and nothing tells whether nf_tables has some: `nft_ruleset` is missing".to_owned()
    })
}

/// The modules that lists of them name, those that others are used by included.
fn modules<'a>(sections: &[Section<'a>]) -> Vec<&'a str> {
    let lists = ["loaded_modules", "netfilter_modules"];
    let lists = sections
        .iter()
        .filter(|section| lists.contains(&section.name) && section.exit_code.unwrap_or(0) == 0);
    lists
        .flat_map(|section| &section.body)
        .flat_map(|(_, line)| line.split([' ', '\t', ',']))
        .collect()
}

/// What is to be said where rules of iptables are shown and `nft_ruleset` is missing; none where nothing
/// is in nf_tables. Some modules are loaded for rules of nft(8) alone, and then there are, or were, some.
pub(super) fn without_nft(sections: &[Section<'_>]) -> Option<(String, bool)> {
    const OF_NFT: [&str; 6] = [
        "nft_ct",
        "nft_fib",
        "nft_reject_inet",
        "nft_flow_offload",
        "nft_quota",
        "nft_redir",
    ];
    let saved = ["iptables_save", "ip6tables_save"];
    let has = |names: &[&str]| sections.iter().any(|s| names.contains(&s.name));
    let modules = modules(sections);
    let nothing = !modules.is_empty() && !modules.contains(&"nf_tables");
    if has(&["nft_ruleset"]) || !has(&saved) || nothing {
        return None;
    }
    let module = modules.iter().find(|module| OF_NFT.contains(module));
    Some(match module {
        Some(module) => (
            format!(
                "no section `nft_ruleset`, and module {module} is loaded: nftables may have rules, and \
                 no section has them"
            ),
            true,
        ),
        None => (
            "no section `nft_ruleset`: nftables is taken to have no rules but those of iptables"
                .to_owned(),
            false,
        ),
    })
}

/// Whether `iptables -L` shows a rule, or a policy that drops.
fn has_rules(listing: &Section<'_>) -> bool {
    listing.body.iter().any(|(_, line)| {
        let line = line.trim();
        let head = line.starts_with("Chain ") || line.contains("prot opt") || line.starts_with('#');
        line.contains("(policy DROP") || !head && !line.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::super::section::sections;
    use super::*;

    fn text(facts: &[(&str, &str)]) -> String {
        facts
            .iter()
            .map(|(name, body)| {
                format!(
                    "=== TSIM_SECTION_START:{name} ===\n---\n{body}\nEXIT_CODE: 0\n\
                     === TSIM_SECTION_END:{name} ===\n"
                )
            })
            .collect()
    }

    fn said(facts: &[(&str, &str)]) -> Option<String> {
        doubt(&sections("f", &text(facts)).unwrap(), Family::V4)
    }

    #[test]
    fn nothing_in_one_place_is_no_rule_only_if_nothing_is_in_the_others() {
        let empty = ("iptables_save", "");
        let said = |more: &[(&str, &str)]| said(&[&[empty], more].concat());
        assert_eq!(said(&[("nft_ruleset", "")]), None);
        assert_eq!(said(&[("loaded_modules", "veth\nbridge")]), None);
        let head =
            "Chain FORWARD (policy ACCEPT)\ntarget     prot opt source               destination";
        assert_eq!(
            said(&[("nft_ruleset", ""), ("iptables_filter", head)]),
            None
        );
        for (more, why) in [
            (&[][..], "nft_ruleset"),
            (&[("loaded_modules", "veth\nnf_tables 1 0")], "nft_ruleset"),
            (
                &[
                    ("nft_ruleset", ""),
                    ("loaded_modules", "iptable_filter 16384 1"),
                ],
                "iptable_filter is loaded",
            ),
            (
                &[
                    ("nft_ruleset", ""),
                    ("iptables_filter", "Chain INPUT (policy DROP)"),
                ],
                "`iptables_filter` shows some",
            ),
            (
                &[
                    ("nft_ruleset", ""),
                    ("iptables_nat", "DNAT tcp -- anywhere anywhere"),
                ],
                "`iptables_nat` shows some",
            ),
        ] {
            let found = said(more).unwrap_or_default();
            assert!(found.contains(why), "{found}");
        }
        let legacy = ("iptables_legacy_save", "*filter\nCOMMIT");
        let loaded = ("loaded_modules", "iptable_filter 16384 1");
        assert_eq!(said(&[("nft_ruleset", ""), loaded, legacy]), None);
    }

    #[test]
    fn only_a_list_of_modules_tells_of_rules_of_nft_that_nobody_shows() {
        let said = |modules: &[&str], nft: bool| {
            let lists = modules.iter().map(|list| ("loaded_modules", *list));
            let nft = nft.then_some(("nft_ruleset", ""));
            let facts: Vec<_> = lists
                .chain(nft)
                .chain([("iptables_save", "*filter")])
                .collect();
            without_nft(&sections("f", &text(&facts)).unwrap()).map(|(_, lacks)| lacks)
        };
        assert_eq!(said(&[], false), Some(false));
        assert_eq!(said(&["nf_tables\nnft_compat"], false), Some(false));
        assert_eq!(
            said(&["nf_tables 303104 2 nft_fib,nft_ct"], false),
            Some(true)
        );
        assert_eq!(said(&["nf_tables\nnft_ct"], true), None);
        assert_eq!(said(&["veth\nip_tables"], false), None);
    }
}
