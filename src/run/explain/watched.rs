//! Packets that a job followed itself: which rules that depend on more than the packet have a part
//! in their end.

use super::{
    ExplainError,
    doubt::{RouterRules, SeenProbe},
    read::{RuleReader, subject, visited},
    reason::{Doubt, Explained, Lots, Reason, notes},
};
use crate::{
    firewall::{
        Caveat,
        nft::{census::Census, is_own, trace::Trail},
        rule::{Field, OpenPorts, Packet, Rewritten, Rule},
        ruletext::{RuleBook, RuleSource, RuleText, is_word},
    },
    lab::omission,
    netlink::object::Family,
    netns::{NetnsFd, tool::Tools},
    run::{
        outside::{Observer, OutsideReason},
        packet::Headers,
    },
};

/// A packet that came to a router.
#[derive(Debug)]
pub(in crate::run) struct Watched<'a> {
    /// Its headers as it came in.
    pub(in crate::run) headers: Headers,
    /// The interface by which it came in.
    pub(in crate::run) ingress: Option<&'a str>,
    /// Its way.
    pub(in crate::run) trail: &'a Trail,
    /// Whether it is the first of its connection.
    pub(in crate::run) is_first: bool,
    /// Why it got lost where no rule stopped it.
    pub(in crate::run) lost: Option<OutsideReason>,
}

/// What was found out of a router's rules, and is the same for all packets.
#[derive(Debug, Default)]
pub(in crate::run) struct WatchedSets {
    /// Whether rules that packets of a family meet ask for sets that rules change.
    asks_changed: Vec<(Family, bool)>,
}

impl WatchedSets {
    /// Reading all rules takes as long as a connection does, so it is done once.
    fn asks_changed(
        &mut self,
        reader: &mut RuleReader<'_>,
        family: Family,
    ) -> Result<bool, ExplainError> {
        let known = self.asks_changed.iter().find(|(of, _)| *of == family);
        if let Some((_, asks)) = known {
            return Ok(*asks);
        }
        let census = Census::read(reader.socket(), family, &Rewritten::NOTHING)?;
        self.asks_changed.push((family, census.asks_changed_sets));
        Ok(census.asks_changed_sets)
    }
}

/// The rules by which a packet like this one may end otherwise, in words; none where it ends alike
/// whatever they say, or where it ended as one that comes alone does. `book` and `sets` are kept as long as
/// the router's rules are the same.
///
/// # Errors
/// [`ExplainError`] when the router's rules cannot be read.
pub(in crate::run) fn varies(
    source: RuleSource<'_>,
    (book, sets): (&mut RuleBook, &mut WatchedSets),
    observer: &mut Observer<'_>,
    watched: &Watched<'_>,
) -> Result<Option<String>, ExplainError> {
    let mut reader = RuleReader::new(std::mem::take(book), source);
    let found = found(&mut reader, sets, observer, watched);
    *book = reader.finish().0;
    Ok(found?.filter(|words| !words.is_empty()))
}

fn found(
    reader: &mut RuleReader<'_>,
    sets: &mut WatchedSets,
    observer: &mut Observer<'_>,
    watched: &Watched<'_>,
) -> Result<Option<String>, ExplainError> {
    let trail = watched.trail;
    let subject = match watched.is_first {
        true => subject(&watched.headers, Some(trail)),
        false => of_any_state(&watched.headers, trail),
    };
    let caveats = reader.caveats(trail, &subject, watched.headers.source_port)?;
    let family = Family::of(watched.headers.destination);
    let asks = watched.is_first || !caveats.is_empty();
    if !asks {
        return Ok(None);
    }
    if caveats.is_empty() && !sets.asks_changed(reader, family)? {
        return Ok(None);
    }
    let reason = match &watched.lost {
        Some(reason) => Reason::Outside(reason.clone()),
        None => reader.reason(trail)?,
    };
    let mut explained = Explained {
        index: 0,
        reason,
        caveats,
        behind: None,
        alone: false,
        doubt: None,
        copied: None,
        led: None,
        steps: Vec::new(),
    };
    if !watched.is_first {
        return Ok(Some(of_later(&explained)));
    }
    let rules = RouterRules::read(reader, family, None)?;
    let met = SeenProbe {
        headers: &watched.headers,
        ingress: watched.ingress,
        trail,
        legacy: None,
        // Hosts of a lab begin with 64, and each router takes one away.
        by_router: watched.headers.ttl < 64,
    };
    explained.doubt = rules.doubt(reader, observer, &met, &explained)?;
    Ok(Some(of_first(&explained)))
}

/// What rules may see of a packet of which nobody knows what connection tracking says.
fn of_any_state(headers: &Headers, Trail { head, .. }: &Trail) -> Packet {
    Packet::of(Family::of(headers.destination))
        .with(Field::Protocol, headers.protocol.number())
        .with(Field::SourcePort, headers.source_port)
        .with(Field::SourcePort, head.source_port)
        .with(Field::DestinationPort, headers.destination_port)
        .with(Field::DestinationPort, head.destination_port)
        .with_address(Field::Source, headers.source)
        .with_address(Field::Source, head.source)
        .with_address(Field::Destination, headers.destination)
        .with_address(Field::Destination, head.destination)
}

/// The first packet of a connection: all its ways were thought out.
fn of_first(explained: &Explained) -> String {
    let passed = matches!(explained.reason, Reason::WentThrough(_));
    let Some(doubt) = &explained.doubt else {
        return of_later(explained);
    };
    // What comes alone is neither stopped by the burst of a job nor let through by it.
    let as_alone = doubt.alone == Some(passed) && !doubt.soon;
    if let Some(several) = lots(doubt, explained) {
        return several;
    }
    if doubt.sure || as_alone {
        return String::new();
    }
    doubt.to_string()
}

/// What to say of a packet that lots lead to one of several targets: this one went to one of them,
/// and only that one's way is known.
fn lots(doubt: &Doubt, explained: &Explained) -> Option<String> {
    let targets = doubt.lots.as_ref()?.targets.as_ref();
    let count = targets.map(Lots::count);
    let one = count.is_some_and(|count| count < 2);
    if one {
        return None;
    }
    let drawn = |(caveat, _): &&(Caveat, RuleText)| matches!(caveat, Caveat::Random(_));
    let by = notes(explained.caveats.iter().filter(drawn));
    let of = count.map_or_else(
        || "targets that are not all known".to_owned(),
        |count| format!("{count} targets"),
    );
    Some(format!(
        "chance decides to which of {of} it goes, and a quick job follows it to each: {by}"
    ))
}

/// A packet whose other ways are not known: rules that let it through or stop it by chance.
fn of_later(explained: &Explained) -> String {
    let passed = matches!(explained.reason, Reason::WentThrough(_));
    let stops = |(caveat, rule): &&(Caveat, RuleText)| {
        let stops = rule.parsed().may_stop() && !(rule.xtables && rule.place.table == "nat");
        matches!(caveat, Caveat::Random(_)) && stops
    };
    let another_time = |(caveat, _): &&(Caveat, RuleText)| {
        caveat.may_be_own_doing() || matches!(caveat, Caveat::Ipsec(_))
    };
    match passed {
        true => notes(explained.caveats.iter().filter(stops)),
        false => notes(explained.doubtful().filter(another_time)),
    }
}

/// The rule by which a packet like this one may end otherwise with another of its open ports, among
/// those that were asked before its end.
///
/// # Errors
/// [`ExplainError`] when the router's rules cannot be read.
pub(in crate::run) fn by_open_port(
    source: RuleSource<'_>,
    book: &mut RuleBook,
    watched: &Watched<'_>,
    (open, passed): (OpenPorts, bool),
) -> Result<Option<RuleText>, ExplainError> {
    let head = watched.trail.head;
    let (sport, dport) = match open {
        OpenPorts::Answered(_) => (Some(head.source_port), None),
        _ => (None, Some(head.destination_port)),
    };
    let mut subject = Packet::of(Family::of(head.destination))
        .with(Field::Protocol, watched.headers.protocol.number())
        .with_address(Field::Source, head.source)
        .with_address(Field::Destination, head.destination);
    for (field, port) in [(Field::SourcePort, sport), (Field::DestinationPort, dport)] {
        subject = port
            .into_iter()
            .fold(subject, |s, port| s.with(field, port));
    }
    let (netns, tools) = (source.netns, source.tools);
    let apart = |parsed: &Rule| parsed.tells_ports_apart(open) && parsed.concerns(&subject);
    let all = asked(source, book, watched, |rule, parsed| {
        let decides = match passed {
            true => parsed.may_stop() && !(rule.xtables && rule.place.table == "nat"),
            false => parsed.decides(),
        };
        (decides && apart(parsed)).then(|| (rule.clone(), parsed.clone()))
    })?;
    let mut apart = all.into_iter().filter(|(rule, parsed)| {
        rule.xtables || !parsed.asks_for_sets() || apart(&with_sets(netns, tools, rule, parsed))
    });
    Ok(apart.next().map(|(rule, _)| rule))
}

/// A rule of nft(8) with what the sets hold that it asks for, as far as its table tells.
fn with_sets(netns: &NetnsFd, tools: &Tools, rule: &RuleText, parsed: &Rule) -> Rule {
    if !is_word(&rule.place.table) {
        return parsed.clone();
    }
    let family = rule.place.family.to_string();
    let list = ["-s", "list", "table", &family, &rule.place.table];
    let listed = netns.enter(|| tools.run("nft", &list, &[]));
    match listed {
        Ok(Ok(printed)) => {
            let table = String::from_utf8_lossy(&printed.stdout);
            omission::with_sets_of(&table, parsed.clone())
        }
        _ => parsed.clone(),
    }
}

/// The rule of nft's tproxy that takes a packet like this one where a program listens, and lets it
/// go on where none does, with the port.
///
/// # Errors
/// [`ExplainError`] when the router's rules cannot be read.
pub(in crate::run) fn proxy(
    source: RuleSource<'_>,
    book: &mut RuleBook,
    watched: &Watched<'_>,
) -> Result<Option<(Option<u16>, RuleText)>, ExplainError> {
    let subject = subject(&watched.headers, Some(watched.trail));
    let all = asked(source, book, watched, |rule, parsed| {
        let port = parsed.proxied_to().filter(|_| !rule.xtables)?;
        parsed.concerns(&subject).then(|| (port, rule.clone()))
    })?;
    Ok(all.into_iter().next())
}

/// What `find` finds of the rules of the router's own that the packet was asked by, before its end.
fn asked<T>(
    source: RuleSource<'_>,
    book: &mut RuleBook,
    watched: &Watched<'_>,
    find: impl Fn(&RuleText, &Rule) -> Option<T>,
) -> Result<Vec<T>, ExplainError> {
    let mut reader = RuleReader::new(std::mem::take(book), source);
    let mut found = Ok(Vec::new());
    for (place, end) in visited(&watched.trail.steps) {
        if is_own(&place.table) {
            continue;
        }
        let chain = match reader.chain(&place) {
            Ok(chain) => chain,
            Err(error) => {
                found = Err(error);
                break;
            }
        };
        let end = end.and_then(|handle| chain.index(handle));
        let asked = end.map_or(chain.rules.len(), |end| end + 1);
        let rules = chain.rules.iter().zip(chain.parsed.iter()).take(asked);
        let here = rules.filter_map(|(rule, parsed)| find(rule, parsed));
        if let Ok(all) = &mut found {
            all.extend(here);
        }
    }
    *book = reader.finish().0;
    found
}
