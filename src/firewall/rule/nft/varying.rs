//! What expressions of nft(8) depend on beyond the packet.

use crate::firewall::rule::{
    Alone, Caveat, Field, Varying,
    table::{self, About},
};

/// What a statement that changes a set holds within its braces. One without a limit, a quota or a
/// count always does the same.
pub(super) fn held(words: &[&str]) -> Option<Varying> {
    let at = |word: &str| words.iter().position(|w| *w == word);
    if let Some(limit) = at("limit") {
        return Some(rate(&words[limit..]));
    }
    if let Some(at) = at("quota") {
        return Some(quota(&words[at..]));
    }
    let count = at("ct").filter(|ct| words.get(ct + 1) == Some(&"count"))?;
    let over = words.get(count + 2) == Some(&"over");
    let limit = words.get(count + 2 + usize::from(over));
    let limit: Option<u32> = limit.and_then(|limit| limit.parse().ok());
    let matches = limit.map(|limit| if over { limit < 1 } else { limit >= 1 });
    let alone = matches.map_or(Alone::Either, Alone::if_matches);
    Some(Caveat::History(words[count..].join(" ")).alone(alone))
}

/// The key of what such a statement holds: all words before its time or another statement.
pub(super) fn key_of(element: &[&str]) -> String {
    const BEHIND: [&str; 6] = ["timeout", "expires", "counter", "limit", "quota", "last"];
    let is_count = |at: usize| element.get(at..at + 2) == Some(&["ct", "count"]);
    let mut words = element.iter().enumerate();
    let end = words.position(|(at, word)| BEHIND.contains(word) || is_count(at));
    let key = element.get(..end.unwrap_or(element.len()));
    key.unwrap_or_default().join(" ")
}

/// `limit rate [over] N/unit [burst N packets|bytes]`, `limit name "x"`.
pub(super) fn rate(words: &[&str]) -> Varying {
    let mut rest = words.iter().copied().skip(1);
    if rest.next() == Some("name") {
        let text = words.iter().take(3).copied().collect::<Vec<_>>().join(" ");
        return Caveat::RateLimited(text).alone(Alone::Either);
    }
    let mut text = rest.next().unwrap_or_default().to_owned();
    let over = text == "over";
    if over {
        text = format!("over {}", rest.next().unwrap_or_default());
    }
    let mut more: Vec<&str> = rest.take(4).collect();
    // Bytes: `1 mbytes/second`.
    if more.first().is_some_and(|word| word.contains("bytes/")) {
        text = format!("{text} {}", more.remove(0));
    }
    if let ["burst", number, ..] = more[..] {
        text = format!("{text} burst {number}");
    }
    Caveat::RateLimited(text).alone(Alone::if_matches(!over))
}

/// `quota [over|until] N unit`, `quota name "x"`.
pub(super) fn quota(words: &[&str]) -> Varying {
    let text = |n: usize| {
        words
            .iter()
            .skip(1)
            .take(n)
            .copied()
            .collect::<Vec<_>>()
            .join(" ")
    };
    match words.get(1) {
        Some(&"name") => Caveat::Quota(format!("quota {}", text(2))).alone(Alone::Either),
        Some(&"over") => Caveat::Quota(text(3)).alone(Alone::Fails),
        Some(&"until") => Caveat::Quota(text(3)).alone(Alone::Matches),
        _ => Caveat::Quota(text(2)).alone(Alone::Matches),
    }
}

/// The first two words of a key, which say what it is about; `ct original bytes` is `ct bytes`.
pub(super) fn two(key: &str) -> &str {
    let mut words = key.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("ct"), Some("original" | "reply"), Some("bytes")) => "ct bytes",
        (Some("ct"), Some("original" | "reply"), Some("packets")) => "ct packets",
        (Some("ct"), Some("original" | "reply"), Some("avgpkt")) => "ct avgpkt",
        (Some("meta" | "ct" | "rt" | "tcp"), Some(second), _) => {
            let name = key.find(second).and_then(|at| key.get(..at + second.len()));
            name.filter(|name| is_listed(name))
                .unwrap_or_else(|| key.split(' ').next().unwrap_or_default())
        }
        (Some("time" | "hour" | "day" | "random" | "secpath"), None, _) => bare(key),
        (Some(first), ..) => first,
        _ => key,
    }
}

fn is_listed(name: &str) -> bool {
    table::about(name) != About::Packet(&[Field::Other])
}

/// Keys of `meta` that may be written without that word.
fn bare(key: &str) -> &str {
    match key {
        "random" => "meta random",
        "secpath" => "meta secpath",
        _ => "meta time",
    }
}

pub(super) fn varies(key: &str) -> Option<Varying> {
    match about(key) {
        About::Packet(_) => None,
        About::Chance => Some(Caveat::Random(key.to_owned()).alone(Alone::Either)),
        About::Clock => Some(Caveat::TimeOfDay(key.to_owned()).alone(Alone::AsMeasured)),
        About::IpsecPolicy => Some(Caveat::Ipsec(key.to_owned()).alone(Alone::Either)),
        About::System => Some(Caveat::System(key.to_owned()).alone(Alone::Either)),
        _ => Some(Caveat::History(key.to_owned()).alone(Alone::Either)),
    }
}

/// What a match of iptables depends on whose options are not known.
pub(in crate::firewall::rule) fn by_name(name: &str) -> Option<Caveat> {
    let name_of = || name.to_owned();
    Some(match table::about(name) {
        About::Packet(_) => return None,
        About::Rate => Caveat::RateLimited(name_of()),
        About::Quota | About::Moved => Caveat::Quota(name_of()),
        About::Chance => Caveat::Random(name_of()),
        About::Clock => Caveat::TimeOfDay(name_of()),
        About::Seen | About::Open | About::Outside => Caveat::History(name_of()),
        About::IpsecPolicy => Caveat::Ipsec(name_of()),
        About::System => Caveat::System(name_of()),
    })
}

/// Expressions of nft(8) that make a number.
pub(super) const NUMBER_SOURCES: [&str; 3] = ["numgen", "jhash", "symhash"];

/// What a key is about. A number may be one of chance.
pub(super) fn about(key: &str) -> About {
    match key.split(' ').next() {
        Some(first) if NUMBER_SOURCES.contains(&first) && is_drawn(key) => About::Chance,
        Some(first) if NUMBER_SOURCES.contains(&first) => table::about("jhash"),
        _ => table::about(two(key)),
    }
}

/// Whether a question fixes all parts of a key, so that a map has one and the same value for its packets.
pub(super) fn is_fixed(key: &str) -> bool {
    match key.split(' ').next() {
        Some(first) if NUMBER_SOURCES.contains(&first) => !is_drawn(key),
        _ => key.split(" . ").all(is_of_question),
    }
}

/// Whether a question fixes this part of a key: its ends, its protocol and the port asked for.
fn is_of_question(part: &str) -> bool {
    const FIXED: [&str; 5] = ["saddr", "daddr", "dport", "protocol", "l4proto"];
    let last = part.rsplit(' ').next();
    last.is_some_and(|field| FIXED.contains(&field))
}

/// Whether a number is one of chance. It is not where there is only one (`mod 1`), and where it is a
/// hash with a seed of its own over what a question fixes. Without a seed the kernel draws one.
pub(super) fn is_drawn(source: &str) -> bool {
    let words: Vec<&str> = source.split(' ').collect();
    let behind = |word: &str| {
        let at = words.iter().position(|w| *w == word)?;
        words.get(at + 1).copied()
    };
    if behind("mod") == Some("1") {
        return false;
    }
    let over = source
        .strip_prefix("jhash ")
        .and_then(|rest| rest.split_once(" mod "));
    let Some((over, _)) = over.filter(|_| behind("seed").is_some()) else {
        return true;
    };
    !over.split(" . ").all(is_of_question)
}

/// Whether a map from numbers below N has all N of them.
pub(super) fn is_total(key: &str, elements: usize) -> bool {
    let modulus = key.split(' ').skip_while(|word| *word != "mod").nth(1);
    key.split(' ')
        .next()
        .is_some_and(|word| NUMBER_SOURCES.contains(&word))
        && modulus.and_then(|n| n.parse().ok()) == Some(elements)
}
