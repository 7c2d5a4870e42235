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
        )
    })
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
