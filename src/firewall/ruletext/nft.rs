//! The listing of `nft -a -s list ruleset` or of one table, nft(8).

use std::collections::HashMap;

use crate::firewall::{RulePlace, TableFamily};

/// Rules of a listing by place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RuleListing {
    texts: HashMap<RulePlace, String>,
    /// Named limits and quotas, and whether each matches what exceeds it.
    over: HashMap<String, bool>,
}

impl RuleListing {
    /// Reads a listing. What is not understood is left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        let mut table: Option<(TableFamily, String)> = None;
        let mut chain: Option<String> = None;
        let mut rule = String::new();
        let mut object: Option<String> = None;
        for line in text.lines() {
            let begins = ["\tlimit ", "\tquota "]
                .iter()
                .find_map(|word| line.strip_prefix(word));
            if let Some(name) = begins.and_then(|rest| rest.split_whitespace().next()) {
                object = Some(unquoted(name));
            } else if let Some(name) =
                object.take_if(|_| !line.trim().is_empty() && chain.is_none())
            {
                let over = line.split_whitespace().take(2).any(|word| word == "over");
                listing.over.insert(name, over);
            }
            if let Some(header) = line.strip_prefix("table ") {
                table = table_of(header);
                chain = None;
            } else if let Some(header) = line.strip_prefix("\tchain ") {
                chain = header.split_whitespace().next().map(unquoted);
                rule.clear();
            } else if line == "\t}" || line == "}" {
                chain = None;
            } else if let (Some((family, table)), Some(chain)) = (&table, &chain) {
                if rule.is_empty() && is_chain_property(line) {
                    continue;
                }
                // A quoted string may hold a line end.
                if !rule.is_empty() {
                    rule.push('\n');
                }
                rule.push_str(line);
                if let Some((text, handle)) = split_handle(&rule) {
                    let place = RulePlace {
                        family: *family,
                        table: table.clone(),
                        chain: chain.clone(),
                        handle,
                    };
                    listing.texts.insert(place, text.to_owned());
                    rule.clear();
                }
            }
        }
        listing
    }

    /// Whether the limit or quota of this name matches what exceeds it.
    pub(super) fn is_over(&self, name: &str) -> Option<bool> {
        self.over.get(name).copied()
    }

    pub(super) fn text(&self, place: &RulePlace) -> Option<&str> {
        self.texts.get(place).map(String::as_str)
    }
}

/// `inet fw { # handle 2`.
fn table_of(header: &str) -> Option<(TableFamily, String)> {
    let mut words = header.split_whitespace();
    let family = match words.next()? {
        "inet" => TableFamily::INET,
        "ip" => TableFamily::IP,
        "netdev" => TableFamily::NETDEV,
        "bridge" => TableFamily::BRIDGE,
        "ip6" => TableFamily::IP6,
        _ => return None,
    };
    Some((family, unquoted(words.next()?)))
}

fn unquoted(name: &str) -> String {
    name.trim_matches('"').to_owned()
}

/// Lines of a chain that are no rules have no handle; the rules come behind them.
fn is_chain_property(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || ((line.starts_with("type ") || line.starts_with("comment "))
            && !line.contains("# handle "))
}

/// A rule and its handle, which stands at the very end.
fn split_handle(line: &str) -> Option<(&str, u64)> {
    let (text, handle) = line.rsplit_once(" # handle ")?;
    Some((text.trim(), handle.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
table inet fw { # handle 2
\tset s1 { # handle 3
\t\ttype inet_service
\t\telements = { 1, 2, 3 }
\t}

\tchain sub { # handle 1
\t\ttcp dport 81 return # handle 4
\t}

\tchain forward { # handle 2
\t\tcomment \"main\"
\t\ttype filter hook forward priority filter + 10; policy drop;
\t\ttcp dport { 80, 443 } counter accept comment \"x # handle 9\" # handle 8
\t\tlog prefix \"a
b\" drop # handle 10
\t}
}
table ip6 filter { # handle 3
\tchain forward { # handle 1
\t\tdrop # handle 8
\t}
}
";

    fn text(family: TableFamily, table: &str, chain: &str, handle: u64) -> Option<String> {
        let place = RulePlace {
            family,
            table: table.to_owned(),
            chain: chain.to_owned(),
            handle,
        };
        RuleListing::parse(LISTING).text(&place).map(str::to_owned)
    }

    #[test]
    fn rules_are_found_by_handle_and_come_without_it() {
        let inet = TableFamily::INET;
        assert_eq!(
            text(inet, "fw", "forward", 8).as_deref(),
            Some("tcp dport { 80, 443 } counter accept comment \"x # handle 9\"")
        );
        assert_eq!(
            text(inet, "fw", "sub", 4).as_deref(),
            Some("tcp dport 81 return")
        );
        assert_eq!(
            text(inet, "fw", "forward", 10).as_deref(),
            Some("log prefix \"a\nb\" drop")
        );
        assert_eq!(
            text(TableFamily::IP6, "filter", "forward", 8).as_deref(),
            Some("drop")
        );
        for handle in [2, 3, 9] {
            assert_eq!(text(inet, "fw", "forward", handle), None);
        }
    }
}
