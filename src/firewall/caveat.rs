//! Rules whose outcome depends on more than the packet: rate, quota, chance, time, history.
//!
//! Recognised in the rule's text, as nft(8) or iptables-save(8) prints it. What a connection's
//! state says about its first packet is no such thing: that packet is always new.

use std::{fmt, time::Duration};

use super::{
    effect::decides,
    text::{is_xtables, words},
};

/// What the outcome of a rule depends on beside the packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caveat {
    /// How many packets came before, per time; with the limit as the rule states it.
    RateLimited(String),
    /// How much went through before.
    Quota(String),
    /// Chance, or turn.
    Random(String),
    /// The clock.
    TimeOfDay(String),
    /// What was seen before, or is open now.
    History(String),
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, detail) = match self {
            Self::RateLimited(detail) => ("rate-limited", detail),
            Self::Quota(detail) => ("limited by a quota", detail),
            Self::Random(detail) => ("decided by chance or turn", detail),
            Self::TimeOfDay(detail) => ("depends on the time", detail),
            Self::History(detail) => ("depends on what was seen before", detail),
        };
        write!(f, "{what}: {detail}")
    }
}

impl Caveat {
    /// Whether earlier probes of the same job may have brought the outcome about.
    #[must_use]
    pub fn may_be_own_doing(&self) -> bool {
        match self {
            Self::RateLimited(_) | Self::Quota(_) | Self::Random(_) => true,
            Self::TimeOfDay(_) => false,
            Self::History(detail) => ["recent", "meter"]
                .iter()
                .any(|kind| detail.starts_with(kind)),
        }
    }

    /// How long it takes until the rate allows one packet more; none where there is no rate, or
    /// one in bytes or of a named object.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        let Self::RateLimited(rate) = self else {
            return None;
        };
        let rate = rate.trim_start_matches("over ").split(' ').next()?;
        let (count, unit) = rate.split_once('/')?;
        let seconds = match unit {
            _ if unit.starts_with('s') => 1.0,
            _ if unit.starts_with('m') => 60.0,
            _ if unit.starts_with('h') => 3600.0,
            _ if unit.starts_with('d') => 86_400.0,
            _ if unit.starts_with('w') => 604_800.0,
            _ => return None,
        };
        let count: f64 = count.parse().ok().filter(|count| *count > 0.0)?;
        Duration::try_from_secs_f64(seconds / count).ok()
    }
}

/// What the outcome of the rule `text` depends on beside the packet; the first such thing in it.
/// A rule that decides nothing, such as one that logs a few packets per minute, has no outcome.
///
/// `text` is what follows `-A CHAIN` in iptables-save(8), with or without that, or a rule as
/// nft(8) lists it.
#[must_use]
pub fn caveat(text: &str) -> Option<Caveat> {
    if !decides(text) {
        return None;
    }
    let words = words(text);
    let found = if is_xtables(&words) {
        xtables_at
    } else {
        nft_at
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    (0..words.len()).find_map(|i| found(&words, i))
}

/// A match of iptables-extensions(8) that begins at word `i`.
fn xtables_at(words: &[&str], i: usize) -> Option<Caveat> {
    let option = |name: &str| {
        let at = words[i..].iter().position(|word| *word == name)?;
        words.get(i + at + 1).map(ToString::to_string)
    };
    let first = |names: &[&str]| names.iter().find_map(|name| option(name));
    let module = match words[i] {
        "-m" | "--match" | "-j" | "--jump" | "-g" => *words.get(i + 1)?,
        _ => return None,
    };
    let named = || module.to_owned();
    Some(match module {
        "limit" => Caveat::RateLimited(rate(option("--limit")?, option("--limit-burst"))),
        "hashlimit" => {
            let limit = first(&["--hashlimit-upto", "--hashlimit-above", "--hashlimit"])?;
            Caveat::RateLimited(rate(limit, option("--hashlimit-burst")))
        }
        "rateest" | "RATEEST" => Caveat::RateLimited(named()),
        "quota" | "quota2" => Caveat::Quota(first(&["--quota"]).unwrap_or_else(named)),
        "connbytes" => Caveat::Quota(format!("connbytes {}", option("--connbytes")?)),
        "statistic" | "random" => {
            Caveat::Random(first(&["--probability", "--every"]).unwrap_or_else(named))
        }
        "time" => Caveat::TimeOfDay(named()),
        "recent" | "connlimit" | "condition" | "nfacct" | "hashroute" => Caveat::History(named()),
        _ => return None,
    })
}

fn rate(limit: String, burst: Option<String>) -> String {
    match burst {
        Some(burst) => format!("{limit} burst {burst}"),
        None => limit,
    }
}

/// An expression or statement of nft(8) that begins at word `i`.
fn nft_at(words: &[&str], i: usize) -> Option<Caveat> {
    let rest = &words[i..];
    let after = |n: usize| rest.get(n).copied().unwrap_or_default();
    let tail = |n: usize| rest.iter().take(n).copied().collect::<Vec<_>>().join(" ");
    Some(match rest[0] {
        "limit" if after(1) == "name" => Caveat::RateLimited(tail(3)),
        "limit" => Caveat::RateLimited(nft_rate(rest)?),
        "quota" if after(1) == "name" => Caveat::Quota(tail(3)),
        "quota" => Caveat::Quota(tail(4).trim_start_matches("quota ").to_owned()),
        "numgen" => Caveat::Random(tail(4)),
        "meta" if after(1) == "random" => Caveat::Random("meta random".to_owned()),
        "meta" if matches!(after(1), "time" | "hour" | "day") => Caveat::TimeOfDay(tail(3)),
        "ct" if matches!(after(1), "count" | "bytes" | "packets" | "avgpkt") => {
            Caveat::History(tail(3))
        }
        "ct" if matches!(after(2), "bytes" | "packets" | "avgpkt") => Caveat::History(tail(4)),
        "meter" => Caveat::History(format!("meter {}", after(1))),
        "add" | "update" | "delete" if after(1).starts_with('@') => dynamic(rest)?,
        _ => return None,
    })
}

/// What a statement that changes a set holds within its braces. One without a limit, a quota or a
/// count always does the same.
fn dynamic(rest: &[&str]) -> Option<Caveat> {
    let at = |word: &str| rest.iter().position(|w| *w == word);
    if let Some(limit) = at("limit") {
        return Some(Caveat::RateLimited(nft_rate(&rest[limit..])?));
    }
    let end = at("}").unwrap_or(rest.len());
    let held = at("quota").or_else(|| at("ct").filter(|ct| rest.get(ct + 1) == Some(&"count")))?;
    let words = rest.get(held..end)?.join(" ");
    Some(match rest[held] {
        "quota" => Caveat::Quota(words.trim_start_matches("quota ").to_owned()),
        _ => Caveat::History(words),
    })
}

/// `limit rate [over] N/unit [burst N packets|bytes]`.
fn nft_rate(rest: &[&str]) -> Option<String> {
    let mut words = rest.iter().copied().skip(1);
    if words.next()? != "rate" {
        return None;
    }
    let mut text = words.next()?.to_owned();
    if text == "over" {
        text = format!("over {}", words.next()?);
    }
    let mut more: Vec<&str> = words.take(4).collect();
    // Bytes: `1 mbytes/second`.
    if more.first().is_some_and(|word| word.contains("bytes/")) {
        text = format!("{text} {}", more.remove(0));
    }
    match more[..] {
        ["burst", number, ..] => Some(format!("{text} burst {number}")),
        _ => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        caveat(text).map_or_else(String::new, |caveat| caveat.to_string())
    }

    #[test]
    fn a_rate_says_when_the_next_packet_may_pass() {
        for (rate, millis) in [
            ("200/second burst 1", Some(5)),
            ("over 5/sec", Some(200)),
            ("3/min", Some(20_000)),
            ("limit name \"l1\"", None),
            ("1 mbytes/second", None),
        ] {
            let interval = Caveat::RateLimited(rate.to_owned()).interval();
            assert_eq!(interval, millis.map(Duration::from_millis), "{rate}");
        }
        assert_eq!(Caveat::Quota("5/sec".to_owned()).interval(), None);
    }

    #[test]
    fn iptables_matches_that_depend_on_more_than_the_packet() {
        for (text, want) in [
            (
                "-A f -p tcp -m limit --limit 5/sec --limit-burst 9 -j ACCEPT",
                "rate-limited: 5/sec burst 9",
            ),
            (
                "-A f -m limit --limit 5/sec -j ACCEPT",
                "rate-limited: 5/sec",
            ),
            (
                "-A f -m hashlimit --hashlimit-upto 3/min --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name a -j ACCEPT",
                "rate-limited: 3/min burst 5",
            ),
            (
                "-A f -m quota --quota 1000 -j ACCEPT",
                "limited by a quota: 1000",
            ),
            (
                "-A f -m statistic --mode random --probability 0.5 -j DROP",
                "decided by chance or turn: 0.5",
            ),
            (
                "-A f -m statistic --mode nth --every 3 --packet 0 -j DROP",
                "decided by chance or turn: 3",
            ),
            (
                "-A f -m time --timestart 08:00:00 -j ACCEPT",
                "depends on the time: time",
            ),
            (
                "-A f -m recent --rcheck --name x --rsource -j DROP",
                "depends on what was seen before: recent",
            ),
            (
                "-A f -p tcp -m connlimit --connlimit-above 2 -j DROP",
                "depends on what was seen before: connlimit",
            ),
            ("-A f -j SET --add-set bad src", ""),
            ("-A f -m limit --limit 5/min -j LOG", ""),
            ("-A f -p tcp -m conntrack --ctstate NEW -j ACCEPT", ""),
            ("-A f -m set --match-set bad src -j DROP", ""),
            (
                "-A f -m comment --comment \"-m limit --limit 5/sec\" -j DROP",
                "",
            ),
        ] {
            assert_eq!(shown(text), want, "{text}");
        }
    }

    #[test]
    fn nft_expressions_that_depend_on_more_than_the_packet() {
        for (text, want) in [
            (
                "udp dport 53 limit rate 5/second burst 3 packets accept",
                "rate-limited: 5/second burst 3",
            ),
            (
                "limit rate over 10/minute drop",
                "rate-limited: over 10/minute",
            ),
            (
                "limit rate 1 mbytes/second burst 9 kbytes accept",
                "rate-limited: 1 mbytes/second burst 9",
            ),
            (
                "limit name \"l1\" accept",
                "rate-limited: limit name \"l1\"",
            ),
            (
                "tcp dport 5 meter m1 size 65535 { ip saddr limit rate 1/second } accept",
                "depends on what was seen before: meter m1",
            ),
            (
                "add @m { ip saddr limit rate over 3/minute } drop",
                "rate-limited: over 3/minute",
            ),
            ("update @seen { ip saddr timeout 1m } accept", ""),
            (
                "add @conns { ip saddr ct count over 20 } reject",
                "depends on what was seen before: ct count over 20",
            ),
            (
                "quota over 25 mbytes drop",
                "limited by a quota: over 25 mbytes",
            ),
            (
                "numgen random mod 10 < 5 drop",
                "decided by chance or turn: numgen random mod 10",
            ),
            (
                "meta random < 5 drop",
                "decided by chance or turn: meta random",
            ),
            (
                "meta hour \"08:00\"-\"18:00\" accept",
                "depends on the time: meta hour \"08:00\"-\"18:00\"",
            ),
            (
                "ct count over 2 drop",
                "depends on what was seen before: ct count over",
            ),
            (
                "ct original bytes > 100000 drop",
                "depends on what was seen before: ct original bytes >",
            ),
            ("ct state new tcp dport 22 accept", ""),
            ("tcp dport 22 drop comment \"limit rate 5/second\"", ""),
            ("ip saddr @blocked drop", ""),
        ] {
            assert_eq!(shown(text), want, "{text}");
        }
    }
}
