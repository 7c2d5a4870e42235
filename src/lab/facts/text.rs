//! Facts of one router from a sectioned file; see [the parent](super) for the sections.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv6Net};

use super::{
    FactsError, LostRoute, LostRule, RouterFacts, addr, all_tables, away, busybox, connected,
    device_hooks,
    firewall::{self, PreparedRuleset},
    ip_json, link_layer, links, listing,
    nexthops::{self, NextHops},
    nft_json, proxy, return_path, route, rule,
    section::{Section, routing_table, sections},
    sets,
    shared::{self, ShownTables},
    signs::{doubt, without_nft},
    sysctl, vrf,
    whole::{self, of_section},
    words::{TableNames, Words, not_read, number},
};
use crate::{
    lab::{
        omission::{self, Nets, Omission, OmissionKind, PacketSet, RulesetMaps},
        topology::{At, Clock, Origin, Ruleset, RulesetKind, Warning},
    },
    model::RouterName,
    netlink::object::{Family, Route, Scope},
};

/// What the collector writes and no lab needs.
pub(in crate::lab) const NOT_NEEDED: [&str; 17] = [
    "interface_stats",
    "kernel_version",
    "loaded_modules",
    "netfilter_modules",
    "conntrack",
    "conntrack_info",
    "conntrack_unavailable",
    "hostname",
    "iptables_info",
    "iptables_filter",
    "iptables_nat",
    "iptables_mangle",
    "iptables_warning",
    "iptables_missing",
    "ipset_list",
    "ipset_warning",
    "ipset_missing",
];

/// What tells whether the router's kernel has a time zone of its own.
const CLOCK: &str = "clock";

/// Reads the facts of router `name` from `text`; `file` names it in messages.
///
/// # Errors
/// [`FactsError`] when the text is no facts file or was cut.
pub(super) fn read(name: RouterName, file: &str, text: &str) -> Result<RouterFacts, FactsError> {
    let sections = sections(file, text)?;
    let parts = all_tables::parts(&sections);
    let mut sections = all_tables::in_parts(sections, &parts);
    let dumps = sections.iter_mut().filter(|s| s.name == "nft_ruleset");
    for (_, line) in dumps.flat_map(|section| &mut section.body) {
        *line = firewall::without_handle(line);
    }
    let has = |wanted: &str| sections.iter().any(|s| s.name == wanted);
    for needed in [
        &["interfaces"][..],
        &["routing_table", "routing_table_main"],
    ] {
        if !needed.iter().any(|n| has(n)) {
            return Err(FactsError::Lacks {
                file: file.to_owned(),
                section: needed.join("` or `"),
            });
        }
    }
    let tables = table_names(&sections);
    let mut reader = Reader {
        facts: RouterFacts::new(name, file),
        tables,
        next_hops: nexthops::read(&sections),
        saved: shared::saved(&sections),
        legacy: legacy_families(&sections),
        has_nft: has("nft_ruleset"),
        kernel_in_utc: kernel_in_utc(&sections),
        empty: BTreeSet::new(),
        broadcasts: Vec::new(),
        broadcast_routes: Vec::new(),
        told: BTreeMap::new(),
    };
    reader.check_hostname(text)?;
    let (lacks, second) = whole::check(text, &sections);
    for lack in lacks {
        match lack.omission {
            Some(omission) => reader.omit(lack.line, lack.message, omission),
            None => reader.notice(lack.line, lack.message),
        }
    }
    for section in sections.iter().filter(|s| !second.contains(&s.line)) {
        reader.section(section);
    }
    reader.complete(&sections);
    Ok(reader.facts)
}

/// Families whose tables of iptables-legacy a section of their own shows.
fn legacy_families(sections: &[Section<'_>]) -> BTreeSet<Family> {
    let family = |section: &Section<'_>| match section.name {
        name if !name.contains("legacy") => None,
        name if name.contains("ip6tables") => Some(Family::V6),
        name if name.contains("iptables") => Some(Family::V4),
        _ => None,
    };
    sections.iter().filter_map(family).collect()
}

/// Whether the router's kernel has no time zone of its own. Who starts a machine gives it the local one;
/// systemd does only where the hardware's clock has local time.
fn kernel_in_utc(sections: &[Section<'_>]) -> bool {
    let has = |wanted: &[&str]| {
        let mut clocks = sections.iter().filter(|section| section.name == CLOCK);
        clocks.any(|section| section.body.iter().any(|(_, line)| wanted.contains(line)))
    };
    has(&["zone UTC", "started by systemd"]) && !has(&["hardware clock LOCAL"])
}

/// Whether a command has the tool that it runs print times in UTC.
fn prints_utc(command: &str) -> bool {
    let mut words = command.split_whitespace();
    words.any(|word| ["TZ=UTC0", "TZ=UTC"].contains(&word))
}

/// Names from `rt_tables`, and those that only the sections' names and titles give.
fn table_names(sections: &[Section<'_>]) -> TableNames {
    let mut tables = TableNames::default();
    for section in sections {
        if section.name == "rt_tables" {
            for (_, line) in &section.body {
                let mut words = Words::new(line.split('#').next().unwrap_or(""));
                if let (Some(id), Some(name)) = (words.next().and_then(number), words.next()) {
                    tables.insert(name, id);
                }
            }
        } else if let Some((_, table)) = routing_table(section.name)
            && let Some(id) = number_in_title(section)
        {
            tables.insert(table, id);
        }
    }
    tables
}

/// `IP Routing Table Priority Table (100)`, `/sbin/ip route show table 100`.
fn number_in_title(section: &Section<'_>) -> Option<u32> {
    let title = section.title.strip_suffix(')');
    let from_title = title.and_then(|t| t.rsplit_once('(')).map(|(_, n)| n);
    let from_command = || section.command.rsplit_once("table ").map(|(_, n)| n);
    from_title
        .and_then(number)
        .or_else(|| from_command().and_then(number))
}

struct Reader {
    facts: RouterFacts,
    tables: TableNames,
    /// Next hops that routes have by number.
    next_hops: NextHops,
    /// Tables that saved rulesets of iptables have.
    saved: ShownTables,
    /// Families of which a section has the tables of iptables-legacy.
    legacy: BTreeSet<Family>,
    /// Whether a section has what nft(8) printed.
    has_nft: bool,
    /// Whether the router's kernel has no time zone of its own.
    kernel_in_utc: bool,
    /// Kinds of rulesets whose tool said that there is none.
    empty: BTreeSet<RulesetKind>,
    /// Broadcast addresses of IPv4 that the router has, with their lines.
    broadcasts: Vec<(usize, IpAddr)>,
    /// The routes of table local to them, each with its line.
    broadcast_routes: Vec<(usize, IpAddr, String)>,
    /// Settings that a section told, by path.
    told: BTreeMap<String, String>,
}

impl Reader {
    fn warn(&mut self, line: usize, message: impl Into<String>) {
        let warning = Warning::new(self.facts.origin(line), &self.facts.name, message);
        self.facts.warnings.push(warning);
    }

    fn notice(&mut self, line: usize, message: impl Into<String>) {
        let warning = Warning::notice(self.facts.origin(line), &self.facts.name, message);
        self.facts.warnings.push(warning);
    }

    fn omit(&mut self, line: usize, message: impl Into<String>, omission: Omission) {
        let origin = self.facts.origin(line);
        let warning = Warning::omission(origin, &self.facts.name, message, omission);
        self.facts.warnings.push(warning);
    }

    /// The file's name is the router's; a head that names another router is worth a word.
    fn check_hostname(&mut self, text: &str) -> Result<(), FactsError> {
        let head = (1..)
            .zip(text.lines())
            .take_while(|(_, l)| !l.starts_with("==="));
        let found = head
            .filter_map(|(n, l)| Some((n, l.strip_prefix("# Hostname:")?.trim())))
            .find(|(_, name)| !name.is_empty());
        let Some((line, hostname)) = found else {
            return Ok(());
        };
        let hostname = RouterName::new(hostname).map_err(|source| FactsError::Name {
            origin: Origin {
                line,
                ..self.facts.origin(0)
            },
            source,
        })?;
        if hostname != self.facts.name {
            let name = self.facts.name.clone();
            self.notice(
                line,
                format!("the host is called {hostname}; the lab goes by the file and says {name}"),
            );
        }
        Ok(())
    }

    fn section(&mut self, section: &Section<'_>) {
        if !self.usable(section) {
            return;
        }
        match section.name {
            "interfaces" => self.interfaces(section),
            "policy_rules" => self.rules(section, Family::V4),
            "ipv6_policy_rules" => self.rules(section, Family::V6),
            "ip_forwarding" => self.forwarding(section, "net/ipv4/ip_forward"),
            "ipv6_forwarding" => self.forwarding(section, "net/ipv6/conf/all/forwarding"),
            "sysctl" => self.sysctls(section),
            "iptables_save" => self.ruleset(section, RulesetKind::Iptables),
            "ip6tables_save" => self.ruleset(section, RulesetKind::Ip6tables),
            "ipset_save" => self.ruleset(section, RulesetKind::Ipset),
            "nft_ruleset" => self.ruleset(section, RulesetKind::Nft),
            "rt_tables" => self.table_names(section),
            name if links::is_section(name) || [nexthops::SECTION, CLOCK].contains(&name) => {}
            other => match routing_table(other) {
                Some((family, table)) => self.routes(section, family, table),
                None if NOT_NEEDED.contains(&other) => {}
                None => match firewall::unread(section) {
                    Some((message, omission)) => self.omit(section.line, message, omission),
                    None if firewall::LOOKED_AT.contains(&other) => {}
                    None => self.notice(section.line, format!("section `{other}` is not read")),
                },
            },
        }
    }

    /// Whether the section's command worked; says so where it did not.
    fn usable(&mut self, section: &Section<'_>) -> bool {
        if !section.divided && !NOT_NEEDED.contains(&section.name) {
            let name = section.name;
            let message = format!(
                "section `{name}`: no line `---` tells where the command's output begins; it is left out"
            );
            self.omit(section.line, message, of_section(name));
            return false;
        }
        let code = section.exit_code.unwrap_or(0);
        if code == 0 || NOT_NEEDED.contains(&section.name) {
            return true;
        }
        // ip-route(8) on a table without routes.
        if routing_table(section.name).is_some()
            && section
                .body
                .iter()
                .any(|(_, l)| l.contains("FIB table does not exist"))
        {
            return true;
        }
        let name = section.name;
        let denied = section.body.iter().any(|(_, l)| l.contains("must be root"));
        let hint = if denied { " (it needs root)" } else { "" };
        let message = format!(
            "section `{name}`: its command failed with exit code {code}{hint}; it is left out"
        );
        match links::is_section(name) {
            // As if it were not there: what it would tell of links is said where they stand alone.
            true => self.notice(section.line, message),
            false => self.omit(section.line, message, of_section(name)),
        }
        false
    }

    fn interfaces(&mut self, section: &Section<'_>) {
        let told = section.body.iter();
        self.broadcasts
            .extend(told.filter_map(|(line, text)| Some((*line, broadcast_of(text)?))));
        let parsed = addr::parse(&section.body);
        for (line, reason) in parsed.refused {
            self.omit(
                line,
                format!("left out of the interfaces: {reason}"),
                Omission::of_everything(OmissionKind::Interface),
            );
        }
        for (line, message) in parsed.notices {
            self.notice(line, message);
        }
        for (line, text) in parsed.unknown {
            self.notice(line, not_read(text));
        }
        for (line, name) in parsed.no_carrier {
            self.facts.without_carrier(line, name);
        }
        for (line, address) in parsed.unused {
            let net = address.trunc();
            self.omit(
                line,
                format!(
                    "{address} was not in use: another machine may have it (IPv6 asks for that)"
                ),
                Omission::of_packets(
                    OmissionKind::Address,
                    [PacketSet::to(net), PacketSet::from(net)],
                ),
            );
        }
        if parsed.interfaces.is_empty() {
            self.omit(
                section.first_line(),
                "no interface can be read here: the output of `ip addr show` is wanted",
                Omission::of_everything(OmissionKind::Interface),
            );
        }
        self.facts.interfaces.extend(parsed.interfaces);
    }

    fn rules(&mut self, section: &Section<'_>, family: Family) {
        self.facts.rule_families.insert(family);
        let rules = match ip_json::is_json(&section.body) {
            true => ip_json::read(&section.body, ip_json::rule),
            false => {
                let lines = section.body.iter();
                Ok(lines
                    .map(|(line, text)| (*line, (*text).to_owned()))
                    .collect())
            }
        };
        let rules = rules.unwrap_or_else(|(line, reason)| {
            let message = format!("policy rules left out: {reason}");
            self.omit(
                line,
                message,
                Omission::of_family(OmissionKind::PolicyRule, family),
            );
            Vec::new()
        });
        let of_busybox = section.command.contains("BusyBox");
        let mut told = false;
        for (line, text) in rules {
            if text.trim().is_empty() {
                continue;
            }
            if of_busybox && !told && !rule::is_of_kernel(&text) {
                told = true;
                let message =
                    "ip(8) of BusyBox prints no `not`, ports, protocols and `oif` of policy rules";
                let omission = Omission::of_family(OmissionKind::PolicyRule, family);
                self.omit(line, message, omission);
            }
            match rule::parse(&text, family, &self.tables) {
                Ok(rule) => self.facts.rules.push(At::new(line, rule)),
                Err(refused) => {
                    let reason = refused.reason;
                    self.facts.lost_rules.push(LostRule {
                        line,
                        message: format!("policy rule left out: {reason}: {}", text.trim()),
                        rule: *refused.known,
                        of_users: refused.of_users,
                    });
                }
            }
        }
    }

    fn routes(&mut self, section: &Section<'_>, family: Family, table: &str) {
        let Some(id) = self.tables.id(table) else {
            self.omit(
                section.line,
                format!("routing table `{table}` left out: neither title nor rt_tables numbers it"),
                Omission::of_family(OmissionKind::Route, family),
            );
            return;
        };
        self.facts.tables.insert((family, id));
        let routes = match ip_json::is_json(&section.body) {
            true => ip_json::read(&section.body, ip_json::route),
            false => Ok(joined(&section.body)),
        };
        let routes = routes.unwrap_or_else(|(line, reason)| {
            let message = format!("routes left out: {reason}");
            self.omit(
                line,
                message,
                Omission::of_family(OmissionKind::Route, family),
            );
            Vec::new()
        });
        for (line, text) in routes {
            if id == Route::LOCAL && is_made_by_kernel(&text) {
                self.own_route(line, family, &text);
                continue;
            }
            let text = self.next_hops.filled(&text);
            let hidden = family == Family::V4 && busybox::hides_gateway(section, &text);
            self.route(line, &text, (family, id), hidden);
        }
    }

    /// Takes a route of a table over, unless its gateway is hidden.
    fn route(&mut self, line: usize, text: &str, (family, id): (Family, u32), hidden: bool) {
        match route::parse(text, Some(family), id, &self.tables) {
            Ok(parsed) if hidden => self.facts.lost_routes.push(LostRoute {
                line,
                message: format!("route left out: {}: {}", busybox::NO_GATEWAY, text.trim()),
                route: Some(parsed.route),
            }),
            Ok(parsed) => {
                for name in parsed.no_carrier {
                    self.facts.without_carrier(line, name);
                }
                if parsed.has_realm {
                    self.facts.realms.push(line);
                }
                if !parsed.ignored.is_empty() {
                    let ignored = parsed.ignored.join(", ");
                    self.notice(line, format!("the route is made without {ignored}"));
                }
                self.facts.routes.push(At::new(line, parsed.route));
            }
            // The kernel makes them per interface, of addresses that it takes for its own.
            Err(_) if is_to_groups(text) || is_made_by_kernel(text) => {
                self.notice(line, format!("route left out: {}", text.trim()));
            }
            Err(refused) if [route::DEAD, route::EXPIRED].contains(&refused.reason.as_str()) => {
                self.notice(line, format!("route left out: {}", refused.reason));
            }
            Err(refused) => self.facts.lost_routes.push(LostRoute {
                line,
                message: format!("route left out: {}: {}", refused.reason, text.trim()),
                route: refused.known.map(|route| *route),
            }),
        }
    }

    /// A route of table local that the kernel made.
    fn own_route(&mut self, line: usize, family: Family, text: &str) {
        let broadcast = text.strip_prefix("broadcast ");
        let broadcast = broadcast.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        if let Some(address) = broadcast {
            self.broadcasts.push((line, address));
            self.broadcast_routes.push((line, address, text.to_owned()));
        }
        let own = own_address(text).map(|own| At::new(line, own));
        self.facts.own.extend(own);
        if text.starts_with("local ") {
            self.facts.own_listed.insert(family);
        }
    }

    /// Names that could not be read; which routes lack them shows where they are used.
    fn table_names(&mut self, section: &Section<'_>) {
        for (line, text) in &section.body {
            let entry = text.split('#').next().unwrap_or("");
            let mut words = Words::new(entry);
            let (id, name) = (words.next(), words.next());
            if id.is_some() && (id.and_then(number).is_none() || name.is_none()) {
                self.notice(*line, format!("`{}` is no `number name`", text.trim()));
            }
        }
    }

    fn forwarding(&mut self, section: &Section<'_>, key: &str) {
        for (line, text) in section.body.iter().skip(1) {
            self.notice(*line, not_read(text));
        }
        let first = section.body.first().map_or("nothing", |(_, text)| *text);
        // `sysctl net.ipv4.ip_forward` names what it shows.
        let named = sysctl::parse(first).filter(|(named, _)| named.ends_with(key));
        match named.as_ref().map_or(first, |(_, value)| value.as_str()) {
            value @ ("0" | "1") => self.setting(section.first_line(), key, value),
            _ => {
                let family = match key.starts_with("net/ipv6") {
                    true => Family::V6,
                    false => Family::V4,
                };
                let omission = Omission::of_family(OmissionKind::Sysctl, family).of_passed();
                let message =
                    format!("`{first}` is neither 0 nor 1; taken as 1: a router forwards");
                self.omit(section.first_line(), message, omission);
            }
        }
    }

    /// Takes a setting over, and doubts it where the file tells it twice.
    fn setting(&mut self, line: usize, key: &str, value: &str) {
        let before = self.told.insert(key.to_owned(), value.to_owned());
        if let Some(before) = before.filter(|before| before != value) {
            let message = format!("{key} is {value} here and {before} before");
            self.omit(line, message, omission::of_sysctl(key));
        }
        self.facts.set_sysctl(key, value);
    }

    fn sysctls(&mut self, section: &Section<'_>) {
        for &(line, text) in &section.body {
            match sysctl::parse(text) {
                Some((key, value)) if sysctl::matters(&key) && !value.is_empty() => {
                    self.setting(line, &key, &value);
                }
                Some((key, _)) if !sysctl::names_one(&key) => {}
                _ => {
                    let message = format!("`{text}` is no `key = value` that is known; left out");
                    match whole::of_setting(text) {
                        Some(omission) => self.omit(line, message, omission),
                        None => self.warn(line, message),
                    }
                }
            }
        }
    }

    fn ruleset(&mut self, section: &Section<'_>, kind: RulesetKind) {
        self.other_tables(section, kind);
        if section.body.iter().all(|(_, line)| is_comment(line)) {
            self.empty.insert(kind);
            return;
        }
        let mut origin = self.facts.origin(section.first_line());
        let mut whole = firewall::text_of(section, kind);
        let in_one_line = kind == RulesetKind::Nft && whole.starts_with('{');
        let mut not_known = Vec::new();
        if in_one_line {
            match nft_json::convert(&whole) {
                Ok(converted) => (whole, not_known) = (converted.text, converted.lost),
                Err(reason) => {
                    let message = format!("no JSON as `nft -j list ruleset` prints it: {reason}");
                    let omission = Omission::of_everything(OmissionKind::Section);
                    return self.omit(section.first_line(), message, omission);
                }
            }
        }
        let prepared = match kind {
            RulesetKind::Nft => firewall::nft(&whole, &self.saved).without(not_known),
            RulesetKind::Ipset => firewall::sets(section),
            RulesetKind::Iptables | RulesetKind::Ip6tables => {
                if listing::is_listing(section) {
                    whole = listing::from_listing(section);
                    origin.line -= 1;
                }
                if self.has_nft {
                    whole = firewall::without_artefacts(&whole);
                }
                whole = firewall::without_complaints(&whole);
                let lost = firewall::strange(&whole);
                let text = firewall::without(&whole, &lost);
                PreparedRuleset { text, lost }
            }
        };
        let mut ruleset = Ruleset {
            kind,
            text: whole,
            origin,
            in_one_line,
            clock: Clock {
                prints_utc: prints_utc(section.command),
                kernel_in_utc: self.kernel_in_utc,
            },
        };
        self.lost_lines(&ruleset, &prepared.lost);
        if kind == RulesetKind::Nft && whole::is_stateless(section.command) {
            self.doubt_quotas(&ruleset);
        }
        ruleset.text = prepared.text;
        if kind == RulesetKind::Nft {
            let older = firewall::older_tables(&section.body, &self.saved);
            self.facts.rulesets.extend(cut_off(&mut ruleset, older));
        }
        self.facts.rulesets.push(ruleset);
    }

    /// Says of each line of `ruleset` that cannot be loaded which packets it can concern.
    fn lost_lines(&mut self, ruleset: &Ruleset, lost: &[(usize, String)]) {
        let maps = RulesetMaps::new(std::slice::from_ref(ruleset));
        let family = match ruleset.kind {
            RulesetKind::Ip6tables => Family::V6,
            _ => Family::V4,
        };
        for (at, reason) in lost {
            let text = ruleset.text.lines().nth(*at).unwrap_or_default().trim();
            let omission = match ruleset.kind {
                RulesetKind::Nft => maps.omission(ruleset, &[*at]),
                // Rules that refer to a set that is not there say so themselves.
                RulesetKind::Ipset => Omission::of_packets(OmissionKind::Set, []),
                _ => Omission::of_family(OmissionKind::Rule, family),
            };
            let line = ruleset.origin_of(*at).line;
            self.omit(line, format!("not loaded: {reason}: {text}"), omission);
        }
    }

    /// Says which packets the rules with a quota can concern of which `nft -s` does not tell how much is used.
    fn doubt_quotas(&mut self, ruleset: &Ruleset) {
        let maps = RulesetMaps::new(std::slice::from_ref(ruleset));
        for (at, line) in ruleset.text.lines().enumerate() {
            let rule = line.trim();
            // `quota NAME {` makes one, which rules name.
            let asks = rule.split_whitespace().any(|word| word == "quota") && !rule.ends_with('{');
            if asks && !rule.contains(" used ") && !rule.starts_with('#') {
                let omission = maps.omission(ruleset, &[at]);
                let message = format!("`nft -s` tells not how much of the quota is used: {rule}");
                self.omit(ruleset.origin_of(at).line, message, omission);
            }
        }
    }

    /// iptables-nft says where the kernel has tables of the other variant, too.
    fn other_tables(&mut self, section: &Section<'_>, kind: RulesetKind) {
        let family = match kind {
            RulesetKind::Iptables => Family::V4,
            RulesetKind::Ip6tables => Family::V6,
            _ => return,
        };
        let told =
            |(_, l): &&(usize, &str)| l.starts_with("# Warning:") && l.contains("legacy tables");
        let told = section.body.iter().find(told);
        if let Some((line, _)) = told.filter(|_| !self.legacy.contains(&family)) {
            let message = "there are tables of iptables-legacy, too, and no section has them";
            self.omit(
                *line,
                message,
                Omission::of_family(OmissionKind::Section, family),
            );
        }
        // It prints no more of such a table, and `nft list ruleset` does.
        let partly =
            |(_, l): &&(usize, &str)| l.starts_with("# Table `") && l.contains("incompatible");
        if let Some((line, note)) = section.body.iter().find(partly).filter(|_| !self.has_nft) {
            let message =
                format!("section `nft_ruleset` is missing, and would have the rest: {note}");
            let omission = Omission::of_family(OmissionKind::Section, family);
            self.omit(*line, message, omission);
        }
    }

    /// Says of which family no ruleset is there, or perhaps not all, although the router has addresses
    /// of it.
    fn rulesets_there(&mut self, sections: &[Section<'_>]) {
        let has = |name: &str| sections.iter().any(|s| s.name == name);
        match without_nft(sections) {
            Some((message, true)) => {
                self.omit(0, message, Omission::of_everything(OmissionKind::Section));
            }
            Some((message, false)) => self.notice(0, message),
            None => {}
        }
        for (family, section, called) in [
            (Family::V4, "iptables_save", "IPv4"),
            (Family::V6, "ip6tables_save", "IPv6"),
        ] {
            let interfaces = || self.facts.interfaces.iter();
            let mut addresses = interfaces().flat_map(|interface| &interface.addresses);
            let speaks = addresses.any(|address| {
                Family::of(address.local.addr()) == family && address.scope == Scope::Global
            });
            if speaks && has(section) {
                let kind = match family {
                    Family::V4 => RulesetKind::Iptables,
                    Family::V6 => RulesetKind::Ip6tables,
                };
                let doubt = self.empty.contains(&kind).then(|| doubt(sections, family));
                if let Some(Some(why)) = doubt {
                    let message = format!("section `{section}` has no rules, {why}");
                    let omission = Omission::of_family(OmissionKind::Section, family);
                    self.omit(0, message, omission);
                }
            } else if speaks && !self.has_nft {
                let message = format!(
                    "no section `{section}` or `nft_ruleset`: the router lets all {called} pass"
                );
                self.omit(
                    0,
                    message,
                    Omission::of_family(OmissionKind::Section, family),
                );
            }
        }
    }

    /// Where no policy rules are shown, tables that only they lead to say that there are some.
    fn without_rules(&mut self) {
        for (family, section) in [
            (Family::V4, "policy_rules"),
            (Family::V6, "ipv6_policy_rules"),
        ] {
            if self.facts.rule_families.contains(&family) {
                continue;
            }
            let own = [Route::MAIN, Route::LOCAL, Route::DEFAULT];
            let routes = self.facts.routes.iter();
            let others: Vec<IpNet> = routes
                .filter(|at| {
                    !own.contains(&at.table) && Family::of(at.destination.addr()) == family
                })
                .map(|at| at.destination)
                .collect();
            let message = format!("no section `{section}`: the kernel's own rules are taken");
            if !others.is_empty() {
                let packets = others.into_iter().map(PacketSet::to);
                let omission = Omission::of_packets(OmissionKind::PolicyRule, packets);
                self.omit(
                    0,
                    message + ", and there are tables that others lead to",
                    omission,
                );
            } else if family == Family::V4 {
                self.notice(0, message);
            }
        }
    }

    /// Where no routes of IPv6 are shown, and there are addresses, nobody knows where packets go but
    /// for those to own subnets.
    fn without_routes(&mut self) {
        let own = self.facts.interfaces.iter().flat_map(|i| &i.addresses);
        let own = own.filter(|a| a.local.addr().is_ipv6() && a.scope == Scope::Global);
        let except: Vec<IpNet> = own.map(|address| address.local.trunc()).collect();
        if !except.is_empty() && !self.facts.tables.contains(&(Family::V6, Route::MAIN)) {
            let within = IpNet::V6(Ipv6Net::default());
            let elsewhere = PacketSet {
                to: Some(Nets { within, except }),
                ..PacketSet::of_family(Family::V6)
            };
            let message = "no section `ipv6_routing_table`: only routes to own subnets are taken";
            let omission = Omission::of_packets(OmissionKind::Route, [elsewhere]);
            self.omit(0, message.to_owned(), omission);
        }
    }

    /// Says of settings that are those of an interface but for the case of its name.
    fn strange_settings(&mut self) {
        let names = || self.facts.interfaces.iter().map(|i| i.name.as_str());
        let strange = |key: &String| {
            let name = key.split('/').nth(3).unwrap_or_default();
            let alike = |known: &str| known.eq_ignore_ascii_case(name);
            !names().any(|known| known == name) && names().any(alike)
        };
        let keys = self.facts.sysctls.iter().map(|(key, _)| key);
        let found: Vec<String> = keys.filter(|key| strange(key)).cloned().collect();
        for key in found {
            if let Some(omission) = whole::of_setting(&key) {
                self.omit(0, format!("no interface is called as in `{key}`"), omission);
            }
        }
    }

    /// Broadcast addresses that people gave an interface: the lab's have those of their subnets, and a host's
    /// address may look like one of the others.
    fn given_broadcasts(&mut self) {
        let mut told = std::mem::take(&mut self.broadcasts);
        told.sort_by_key(|(line, address)| (*address, *line));
        told.dedup_by_key(|(_, address)| *address);
        let addresses = || self.facts.interfaces.iter().flat_map(|i| &i.addresses);
        let nets = || addresses().flat_map(|address| [Some(address.local), address.peer]);
        // No router forwards what is for these.
        let nowhere = |address: IpAddr| {
            address.is_loopback() || address.is_unspecified() || address == Ipv4Addr::BROADCAST
        };
        let usual = |address: IpAddr| {
            let mut nets = nets().flatten();
            nets.any(|net| net.broadcast() == address || net.network() == address)
        };
        told.retain(|(_, address)| !nowhere(*address) && !usual(*address));
        for (line, address) in told {
            let message = format!(
                "{address} is a broadcast address here, and the lab has only those of subnets"
            );
            let packets = [PacketSet::to(address.into())];
            let omission = Omission::of_packets(OmissionKind::Address, packets).of_passed();
            self.omit(line, message, omission);
        }
    }

    /// Kernels before 5.14 make a broadcast route to the first address of a subnet, too, where later ones let a host
    /// have it. The lab gets what the router has.
    fn first_addresses(&mut self) {
        let told = std::mem::take(&mut self.broadcast_routes);
        let interfaces = self.facts.interfaces.iter();
        let nets = interfaces.flat_map(|interface| &interface.addresses);
        let nets: Vec<IpNet> = nets.map(|address| address.local).collect();
        let is_first = |address: IpAddr| {
            let mut nets = nets.iter().filter(|net| net.prefix_len() < 31);
            nets.any(|net| net.network() == address)
        };
        let told = told.into_iter();
        for (line, _, text) in told.filter(|(_, address, _)| is_first(*address)) {
            self.route(line, &text, (Family::V4, Route::LOCAL), false);
        }
    }

    /// Says what a router usually has and this file does not, and puts in what that means.
    fn complete(&mut self, sections: &[Section<'_>]) {
        let key = "net/ipv6/conf/all/forwarding";
        let v6 = sections.iter().any(|s| {
            s.name == "ipv6_forwarding" || s.name == "sysctl" && s.text().contains("ipv6.conf.all.")
        });
        if let Some(v4) = self.facts.sysctl("net/ipv4/ip_forward").map(str::to_owned)
            && !v6
        {
            self.facts.set_sysctl(key, &v4);
        }
        if !self.told.contains_key("net/ipv4/ip_forward") {
            let message = "no section `ip_forwarding` or `sysctl` says whether the router forwards: \
                           it is taken to";
            self.notice(0, message);
        }
        for (line, message, omission) in busybox::doubts(sections) {
            self.omit(line, message, omission);
        }
        self.given_broadcasts();
        self.first_addresses();
        self.strange_settings();
        self.rulesets_there(sections);
        self.without_rules();
        self.without_routes();
        device_hooks::name_devices(&mut self.facts);
        self.facts.order_rulesets();
        self.facts.add_kernels_rules();
        links::complete(&mut self.facts, sections);
        link_layer::model(&mut self.facts, sections);
        vrf::model(&mut self.facts);
        connected::normalise(&mut self.facts);
        connected::doubt_broadcasts(&mut self.facts);
        connected::doubt_disowned(&mut self.facts);
        connected::doubt_lost(&mut self.facts);
        sets::doubt_cut(&mut self.facts, sections);
        return_path::doubt_unknown_filter(&mut self.facts, sections);
        proxy::model(&mut self.facts, sections);
        away::model(&mut self.facts);
    }
}

fn is_comment(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

/// Takes the first `many` lines out of a ruleset, where they hold anything; the others keep their
/// numbers.
fn cut_off(ruleset: &mut Ruleset, many: usize) -> Option<Ruleset> {
    let lines = || ruleset.text.split_inclusive('\n');
    let text: String = lines().take(many).collect();
    let rest: String = lines().skip(many).collect();
    let holds = text.lines().any(|line| !is_comment(line));
    let first = holds.then(|| Ruleset {
        text,
        ..ruleset.clone()
    })?;
    ruleset.text = "\n".repeat(many) + &rest;
    Some(first)
}

/// Whether the kernel makes this route of table local by itself: one to an address of an interface,
/// and what belongs to its subnet.
fn is_made_by_kernel(text: &str) -> bool {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let to_itself = |src: &[&str]| matches!(src, ["src", own] if words.get(1) == Some(own));
    // Of a subnet's broadcast address the route has the router's own one for its source.
    let of_subnet = words.first() == Some(&"broadcast") && words.contains(&"src");
    of_subnet
        || is_to_groups(text)
        || words.windows(2).any(|pair| {
            // Old kernels have no word for who made an anycast route.
            let of_old = pair == ["proto", "none"] || pair == ["metric", "0"];
            pair == ["proto", "kernel"]
                || to_itself(pair)
                || words.first() == Some(&"anycast") && of_old
        })
}

/// Whether this is a route of type multicast to multicast addresses: no packet that goes to one host takes
/// it. People can make one to other addresses, and then the kernel takes these for martian.
fn is_to_groups(text: &str) -> bool {
    let rest = text.strip_prefix("multicast ");
    let to = rest.and_then(|rest| rest.split([' ', '/']).next()?.parse::<IpAddr>().ok());
    to.is_some_and(|to| to.is_multicast())
}

/// The broadcast address of an address as `ip addr show` prints it: `inet 10.1.0.1/24 brd 10.1.0.255`.
fn broadcast_of(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "inet")?;
    words.find(|word| *word == "brd")?;
    words.next()?.parse().ok()
}

/// The address of the router's own that such a route is for, where an interface has it.
fn own_address(text: &str) -> Option<IpAddr> {
    let address = text.strip_prefix("local ")?.split_whitespace().next()?;
    let address: IpAddr = address.parse().ok()?;
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    (!address.is_loopback() && !is_link_local).then_some(address)
}

/// Routes whose next hops stand on lines of their own, each as one line.
fn joined(body: &[(usize, &str)]) -> Vec<(usize, String)> {
    let noise = |l: &str| {
        l.trim().is_empty()
            || l.contains("FIB table does not exist")
            || ["Dump terminated", busybox::TOS].contains(&l)
    };
    let mut routes: Vec<(usize, String)> = Vec::new();
    for &(line, text) in body.iter().filter(|(_, l)| !noise(l)) {
        match routes.last_mut() {
            // Any other line that is set off is a route, of a listing that was pasted.
            Some((_, route)) if text.starts_with([' ', '\t']) && route::is_more(text) => {
                route.push(' ');
                route.push_str(text.trim());
            }
            _ => routes.push((line, text.replace('\\', " "))),
        }
    }
    routes
}

/// The router that a file is named after: `hq-gw_facts.txt` and `hq-gw.txt` are both hq-gw.
pub(super) fn router_of(file_name: &str) -> &str {
    let stem = file_name.strip_suffix(".txt").unwrap_or(file_name);
    stem.strip_suffix("_facts").unwrap_or(stem)
}
