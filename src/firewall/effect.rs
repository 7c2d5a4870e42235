//! What a rule does beside letting through or not, read in its text.

use super::text::{after, is_xtables, words};

/// What the rule answers with when it rejects, e.g. `icmp-port-unreachable`; none when it does not
/// reject.
#[must_use]
pub fn rejected_with(text: &str) -> Option<String> {
    let words = words(text);
    if is_xtables(&words) {
        let target = after(&words, "-j")?;
        let with = after(&words, "--reject-with");
        return (target == "REJECT").then(|| with.unwrap_or("icmp-port-unreachable").to_owned());
    }
    let at = words.iter().position(|word| word == "reject")?;
    let rest: Vec<&str> = words[at + 1..].iter().map(String::as_str).collect();
    Some(match rest[..] {
        ["with", "tcp", "reset", ..] => "tcp reset".to_owned(),
        ["with", family, "type", code, ..] | ["with", family, code, ..] => {
            format!("{family} {code}")
        }
        _ => "port-unreachable".to_owned(),
    })
}

/// The queue that a rule of iptables hands packets to; 0 is what it takes where none is named.
#[must_use]
pub fn queued_to(text: &str) -> Option<u16> {
    let words = words(text);
    let target = after(&words, "-j").filter(|target| matches!(*target, "NFQUEUE" | "QUEUE"));
    let named = after(&words, "--queue-num").or_else(|| after(&words, "--queue-balance"));
    let first = named.and_then(|range| range.split(':').next());
    target.map(|_| first.and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// Whether a rule answers packets itself instead of letting them go on: SYNPROXY opens a connection
/// to the server only when the client has shown that it exists.
#[must_use]
pub fn answers_itself(text: &str) -> bool {
    let words = words(text);
    if is_xtables(&words) {
        return after(&words, "-j") == Some("SYNPROXY");
    }
    words.iter().any(|word| word == "synproxy")
}

/// Where the rule remembers a packet that matches: a set, or a list of `recent`.
#[must_use]
pub fn entry_left(text: &str) -> Option<String> {
    let words = words(text);
    if is_xtables(&words) {
        let set = after(&words, "--add-set").map(|set| format!("set {set}"));
        let recent = words.iter().any(|word| word == "recent");
        let changes = words
            .iter()
            .any(|word| word == "--set" || word == "--update");
        let list = || after(&words, "--name").unwrap_or("DEFAULT");
        return set.or_else(|| (recent && changes).then(|| format!("recent list {}", list())));
    }
    let statement = |pair: &[String]| {
        let changes = matches!(pair[0].as_str(), "add" | "update");
        let set = pair[1].strip_prefix('@')?;
        changes.then(|| format!("set {set}"))
    };
    words.windows(2).find_map(statement)
}

/// Whether the rule can end a packet's way or change it; one that only logs, counts or marks
/// cannot.
#[must_use]
pub fn decides(text: &str) -> bool {
    const ONLY_NOTES: [&str; 12] = [
        "LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "SET", "TRACE", "AUDIT", "TOS", "DSCP", "TTL",
        "CLASSIFY",
    ];
    let words = words(text);
    if is_xtables(&words) {
        let target = after(&words, "-j").or_else(|| after(&words, "-g"));
        return target.is_some_and(|target| !ONLY_NOTES.contains(&target));
    }
    words.iter().any(|word| {
        let verdict = word.trim_end_matches(',');
        matches!(
            verdict,
            "accept"
                | "drop"
                | "reject"
                | "jump"
                | "goto"
                | "return"
                | "queue"
                | "synproxy"
                | "vmap"
                | "dnat"
                | "snat"
                | "redirect"
                | "masquerade"
                | "tproxy"
                | "fwd"
        )
    })
}

/// Whether the rule can stop a packet that it matches.
#[must_use]
pub fn may_stop(text: &str) -> bool {
    let words = words(text);
    if is_xtables(&words) {
        let target = after(&words, "-j").or_else(|| after(&words, "-g"));
        let passes = |target: &str| target == "ACCEPT" || target == "RETURN" || rewrites(target);
        return decides(text) && !target.is_none_or(passes);
    }
    const STOP: [&str; 9] = [
        "drop", "reject", "jump", "goto", "queue", "synproxy", "vmap", "fwd", "tproxy",
    ];
    words.iter().any(|word| STOP.contains(&plain(word)))
}

/// Whether the rule can let a packet through that it matches: end the walk, or lead it elsewhere.
#[must_use]
pub fn may_pass(text: &str) -> bool {
    let words = words(text);
    if is_xtables(&words) {
        let target = after(&words, "-j").or_else(|| after(&words, "-g"));
        return decides(text) && target.is_some_and(|t| !matches!(t, "DROP" | "REJECT"));
    }
    const ONLY_STOP: [&str; 2] = ["drop", "reject"];
    decides(text) && !words.iter().any(|word| ONLY_STOP.contains(&plain(word)))
        || words.iter().any(|word| plain(word) == "accept")
}

/// Whether all that the rule does is to rewrite addresses or ports.
#[must_use]
pub fn only_rewrites(text: &str) -> bool {
    let words = words(text);
    if is_xtables(&words) {
        return after(&words, "-j").is_some_and(rewrites);
    }
    let some = words
        .iter()
        .any(|word| matches!(plain(word), "dnat" | "snat" | "masquerade"));
    some && !may_stop(text)
}

/// Whether the rule sends packets out of another device at once, past all of IP.
#[must_use]
pub fn forwards_on_device(text: &str) -> bool {
    let words = words(text);
    !is_xtables(&words) && words.iter().any(|word| word == "fwd")
}

fn rewrites(target: &str) -> bool {
    matches!(target, "DNAT" | "SNAT" | "MASQUERADE" | "NETMAP")
}

fn plain(word: &str) -> &str {
    word.trim_end_matches(',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejecting_rule_says_with_what() {
        for (text, want) in [
            ("-A f -j REJECT --reject-with tcp-reset", Some("tcp-reset")),
            ("-A f -j REJECT", Some("icmp-port-unreachable")),
            ("-A f -j DROP -m comment --comment \"-j REJECT\"", None),
            ("tcp dport 99 reject", Some("port-unreachable")),
            ("reject with tcp reset", Some("tcp reset")),
            (
                "reject with icmp type host-prohibited",
                Some("icmp host-prohibited"),
            ),
            (
                "reject with icmpx admin-prohibited comment \"x\"",
                Some("icmpx admin-prohibited"),
            ),
            ("drop comment \"reject\"", None),
        ] {
            assert_eq!(rejected_with(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn a_rule_that_remembers_packets_says_where() {
        for (text, want) in [
            ("-A f -j SET --add-set bad src", Some("set bad")),
            (
                "-A f -m recent --set --name ssh --rsource",
                Some("recent list ssh"),
            ),
            ("-A f -m recent --rcheck --name ssh -j DROP", None),
            (
                "update @seen { ip saddr timeout 1m } accept",
                Some("set seen"),
            ),
            ("ip saddr @seen drop", None),
        ] {
            assert_eq!(entry_left(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn a_rule_may_stop_or_pass_or_both() {
        for (text, stops, passes) in [
            ("-A f -m limit --limit 1/sec -j ACCEPT", false, true),
            ("-A f -m limit --limit 1/sec -j DROP", true, false),
            ("-A f -m limit --limit 1/sec -j mine", true, true),
            ("-A f -j DNAT --to-destination 10.0.0.1", false, true),
            ("-A f -m limit --limit 1/sec -j LOG", false, false),
            ("limit rate 1/second accept", false, true),
            ("limit rate over 1/second drop", true, false),
            ("tcp dport vmap { 1 : accept, 2 : drop }", true, true),
            ("dnat to numgen inc mod 2 map { 0 : 10.0.0.1 }", false, true),
            ("ip dscp set cs1", false, false),
        ] {
            assert_eq!((may_stop(text), may_pass(text)), (stops, passes), "{text}");
        }
        assert!(only_rewrites(
            "dnat to numgen inc mod 2 map { 0 : 10.0.0.1 }"
        ));
        assert!(!only_rewrites("numgen inc mod 2 0 drop"));
        assert!(forwards_on_device("tcp dport 80 fwd to \"out\""));
    }

    #[test]
    fn queues_and_proxies_are_told_from_drops() {
        let queue = |text| queued_to(text);
        assert_eq!(queue("-A f -j NFQUEUE --queue-num 7"), Some(7));
        assert_eq!(queue("-A f -j NFQUEUE --queue-balance 3:5"), Some(3));
        assert_eq!(queue("-A f -j NFQUEUE"), Some(0));
        assert_eq!(queue("-A f -j DROP"), None);
        assert!(answers_itself("-A f -p tcp -j SYNPROXY --mss 1460"));
        assert!(!answers_itself("-A f -j DROP"));
    }

    #[test]
    fn logging_and_marking_decide_nothing() {
        for (text, want) in [
            (
                "-A f -m limit --limit 5/min -j LOG --log-prefix \"drop \"",
                false,
            ),
            ("-A f -m limit --limit 5/min -j ACCEPT", true),
            ("-A f -m limit --limit 5/min -j mychain", true),
            ("-A f -m limit --limit 5/min", false),
            ("limit rate 5/minute log prefix \"drop\"", false),
            ("limit rate 5/minute accept", true),
            ("tcp dport vmap { 22 : accept, 23 : drop }", true),
        ] {
            assert_eq!(decides(text), want, "{text}");
        }
    }
}
