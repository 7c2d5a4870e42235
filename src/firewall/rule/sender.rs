//! Tests of the program that sends a packet: its user, group or control group.

use super::{Alone, Caveat, Match, Rule, Test};

impl Rule {
    /// Makes tests of the sender depend on more than the packet: what a job sends is root's.
    pub fn leave_sender_open(&mut self) {
        for test in &mut self.matches {
            if let Some(detail) = asks_sender(test) {
                test.test = Test::Varies(Caveat::Sender(detail).alone(Alone::Either));
            }
        }
    }

    /// Whether it asks who sends a packet, and does something with it.
    #[must_use]
    pub fn tells_senders_apart(&self) -> bool {
        let asks = self.matches.iter().any(|test| asks_sender(test).is_some());
        asks && (self.decides() || self.changes().next().is_some())
    }
}

/// What a test asks of the sender; none where it asks nothing of it.
fn asks_sender(test: &Match) -> Option<String> {
    const WORDS: [&str; 6] = [
        "owner",
        "cgroup",
        "meta skuid",
        "meta skgid",
        "meta cgroup",
        "socket cgroupv2",
    ];
    let Test::Other { text, .. } = &test.test else {
        return None;
    };
    let asks = |word: &&&str| {
        text.strip_prefix(**word)
            .is_some_and(|rest| !rest.starts_with('-'))
    };
    WORDS.iter().find(asks)?;
    let not = if test.negated { "not " } else { "" };
    Some(format!("{not}{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_ask_for_the_sender_are_found() {
        for (text, asks) in [
            ("-A OUTPUT -m owner --uid-owner 0 -j DROP", true),
            ("-A OUTPUT -m owner ! --uid-owner 33 -j ACCEPT", true),
            ("-A OUTPUT -m cgroup --path app -j DROP", true),
            ("meta skuid 0 drop", true),
            ("socket cgroupv2 level 1 \"app\" accept", true),
            ("-A OUTPUT -m owner --uid-owner 0 -j LOG", false),
            ("-A OUTPUT -p tcp -j DROP", false),
        ] {
            assert_eq!(Rule::of(text).tells_senders_apart(), asks, "{text}");
        }
    }
}
