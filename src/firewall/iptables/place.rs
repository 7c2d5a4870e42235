//! Where a tap must stand so that nothing behind it can change what it says.
//!
//! iptables has its hooks in a fixed order, and no table of a job's own:
//!
//! ```text
//! PREROUTING   raw → (conntrack) → mangle → nat
//! INPUT        mangle → filter → security → nat
//! POSTROUTING  mangle → nat
//! ```
//!
//! A tap at the head of a chain sees every packet that comes to it; one at the end sees those that
//! no rule took out of the chain, to drop or to accept them. So the place follows from what the
//! user's rules can do there:
//!
//! | the last table of the hook whose rules can stop a packet | the tap stands |
//! |---|---|
//! | none | at the head of the first table |
//! | not the last table | at the head of the last table |
//! | the last table, and no rule ends the walk through it by accepting | at its end |
//! | the last table, with rules of both kinds | at both ends; in between is undecided |
//! | the last table, by its policy | at its head, and all is undecided |
//!
//! `nat` cannot hold a tap: untracked packets do not pass it, and using it would switch connection
//! tracking on. It cannot stop packets either, unless by a queue or a policy; then all is
//! undecided.

use std::collections::BTreeSet;

use super::save::{IptablesSave, TableSave};
use crate::firewall::rule::RuleVerdict;

/// `NF_INET_LOCAL_IN`, linux/netfilter.h.
pub(super) const HOOK_INPUT: u32 = 1;
/// `NF_INET_POST_ROUTING`.
pub(super) const HOOK_POSTROUTING: u32 = 4;

/// Where in its chain a tap stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spot {
    /// Before all other rules.
    Head,
    /// Behind all other rules.
    End,
    /// At both ends: a packet seen only at the head was either dropped or accepted in between.
    Both {
        /// Why that is not known.
        reason: String,
    },
    /// Before all other rules, and it proves nothing.
    Undecided {
        /// Why.
        reason: String,
    },
}

/// The table and the spot of one tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TapPlace {
    pub(super) table: &'static str,
    pub(super) spot: Spot,
}

/// Where probes come in: before anything else that iptables has.
pub(super) fn arrival(save: &IptablesSave) -> TapPlace {
    // The raw table only where it has rules: with ip_tables, looking into a table makes it.
    let raw = save.tables.get("raw").is_some_and(|raw| {
        raw.chain("PREROUTING").any(|rule| !super::is_ours(rule))
            || raw.policy("PREROUTING") != "ACCEPT"
    });
    TapPlace {
        table: if raw { "raw" } else { "mangle" },
        spot: Spot::Head,
    }
}

/// Where probes go out.
pub(super) fn out(save: &IptablesSave) -> TapPlace {
    last(save, "POSTROUTING", &["mangle"])
}

/// Where probes end that go to the router itself.
pub(super) fn local(save: &IptablesSave) -> TapPlace {
    last(save, "INPUT", &["mangle", "filter", "security"])
}

fn last(save: &IptablesSave, hook: &'static str, tables: &[&'static str]) -> TapPlace {
    let place = |table, spot| TapPlace { table, spot };
    let walks: Vec<Walk> = tables.iter().map(|t| Walk::of(save, t, hook)).collect();
    let (Some(&first), Some(&end)) = (tables.first(), tables.last()) else {
        return place("mangle", Spot::Head);
    };
    if let Some(what) = Walk::of(save, "nat", hook).stops {
        let reason = format!("behind the tap in nat {hook}: {what}");
        return place(end, Spot::Undecided { reason });
    }
    let Some(at) = walks.iter().rposition(|walk| walk.stops.is_some()) else {
        return place(first, Spot::Head);
    };
    if at + 1 < tables.len() {
        return place(end, Spot::Head);
    }
    let walk = &walks[at];
    let stops = walk.stops.as_deref().unwrap_or_default();
    let spot = match &walk.accepts {
        _ if walk.policy_drops => Spot::Undecided {
            reason: format!("the policy of {end} {hook} drops, and iptables has nothing behind it"),
        },
        None => Spot::End,
        Some(accepts) => Spot::Both {
            reason: format!(
                "stopped or let through early in {end} {hook}, which has rules for both: \
                 {stops}; {accepts}"
            ),
        },
    };
    place(end, spot)
}

/// What the user's rules in one built-in chain, and in the chains it leads to, can do.
#[derive(Debug, Default)]
struct Walk {
    /// A rule that can stop a packet, in words.
    stops: Option<String>,
    /// A rule that can end the walk through the table and let the packet go on.
    accepts: Option<String>,
    policy_drops: bool,
}

impl Walk {
    fn of(save: &IptablesSave, table: &str, chain: &str) -> Self {
        let mut walk = Self::default();
        if let Some(rules) = save.tables.get(table) {
            walk.policy_drops = rules.policy(chain) != "ACCEPT";
            if walk.policy_drops {
                walk.stops = Some(format!("policy {} of {chain}", rules.policy(chain)));
            }
            walk.enter(rules, chain, true, &mut BTreeSet::new());
        }
        walk
    }

    /// Looks at a chain. `top` is set where leaving the chain means leaving the table.
    fn enter(
        &mut self,
        table: &TableSave,
        chain: &str,
        top: bool,
        seen: &mut BTreeSet<(String, bool)>,
    ) {
        if !seen.insert((chain.to_owned(), top)) {
            return;
        }
        for saved in table.chain(chain).filter(|rule| !super::is_ours(rule)) {
            let rule = saved.parsed();
            let words = || format!("-A {chain} {}", saved.spec);
            for verdict in rule.verdicts() {
                match verdict {
                    RuleVerdict::Jump(name) => {
                        match table.chains.iter().find(|c| c.name == *name) {
                            Some(next) => self.enter(table, &next.name, false, seen),
                            // A target that nobody here has heard of.
                            None => self.either(words),
                        }
                    }
                    // A chain gone to does not come back: behind its end comes what follows here.
                    RuleVerdict::Goto(name) => {
                        if top {
                            self.accepts.get_or_insert_with(words);
                        }
                        self.enter(table, name, top, seen);
                    }
                    RuleVerdict::Accept => _ = self.accepts.get_or_insert_with(words),
                    // From a built-in chain it leads to the policy, past all that follows.
                    RuleVerdict::Return if top => _ = self.accepts.get_or_insert_with(words),
                    RuleVerdict::Return => {}
                    RuleVerdict::Drop | RuleVerdict::Reject(_) => {
                        self.stops.get_or_insert_with(words);
                    }
                    _ => self.either(words),
                }
            }
            if rule.translation().is_some() {
                self.accepts.get_or_insert_with(words);
            }
        }
    }

    fn either(&mut self, words: impl Fn() -> String) {
        self.stops.get_or_insert_with(&words);
        self.accepts.get_or_insert_with(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(rules: &str) -> IptablesSave {
        IptablesSave::parse(rules)
    }

    fn spot(rules: &str) -> Spot {
        out(&save(&format!("*mangle\n{rules}"))).spot
    }

    #[test]
    fn a_tap_stands_where_nothing_behind_it_decides() {
        assert_eq!(out(&IptablesSave::default()).spot, Spot::Head);
        assert_eq!(
            spot("-A POSTROUTING -j TOS --set-tos 0x20/0x3f"),
            Spot::Head
        );
        assert_eq!(spot("-A POSTROUTING -p tcp -j ACCEPT"), Spot::Head);
        assert_eq!(spot("-A POSTROUTING -p tcp -j DROP"), Spot::End);
        let both = spot("-A POSTROUTING -s 10.0.0.1/32 -j ACCEPT\n-A POSTROUTING -j DROP");
        let Spot::Both { reason } = both else {
            panic!("{both:?}");
        };
        assert!(
            reason.contains("-A POSTROUTING -s 10.0.0.1/32 -j ACCEPT"),
            "{reason}"
        );
    }

    #[test]
    fn chains_are_followed_and_a_return_counts_where_it_leaves_the_table() {
        let mine = ":mine - [0:0]\n";
        let through = |rules| spot(&format!("{mine}{rules}"));
        assert_eq!(
            through("-A POSTROUTING -j mine\n-A mine -j DROP"),
            Spot::End
        );
        assert_eq!(
            through("-A POSTROUTING -j mine\n-A mine -p udp -j RETURN\n-A mine -j DROP"),
            Spot::End
        );
        let leaves = "-A POSTROUTING -p udp -j RETURN\n-A POSTROUTING -j DROP";
        assert!(matches!(spot(leaves), Spot::Both { .. }));
        let gone = through("-A POSTROUTING -g mine\n-A mine -p tcp -j DROP");
        assert!(matches!(gone, Spot::Both { .. }), "{gone:?}");
        // A loop, which the kernel would refuse, must not hang us.
        assert_eq!(
            through("-A POSTROUTING -j mine\n-A mine -j mine"),
            Spot::Head
        );
        // A chain that nothing leads to decides nothing.
        assert_eq!(through("-A mine -j DROP"), Spot::Head);
    }

    #[test]
    fn what_cannot_be_known_is_undecided() {
        for rules in [
            ":POSTROUTING DROP [0:0]",
            "-A POSTROUTING -j NFQUEUE --queue-num 1\n*nat\n-A POSTROUTING -j NFQUEUE",
        ] {
            let spot = spot(rules);
            assert!(matches!(spot, Spot::Undecided { .. }), "{rules}: {spot:?}");
        }
        assert!(matches!(
            spot("-A POSTROUTING -j NEWTARGET"),
            Spot::Both { .. }
        ));
        let masquerade = save("*nat\n-A POSTROUTING -o eth0 -j MASQUERADE");
        assert_eq!(out(&masquerade).spot, Spot::Head);
    }

    #[test]
    fn a_local_tap_moves_behind_the_filter_table_where_that_decides() {
        let at = |rules| local(&save(rules));
        assert_eq!(at("*filter\n:INPUT ACCEPT [0:0]").table, "mangle");
        for rules in ["*filter\n:INPUT DROP [0:0]", "*filter\n-A INPUT -j REJECT"] {
            assert_eq!(at(rules).table, "security");
            assert_eq!(at(rules).spot, Spot::Head);
        }
        let security = at("*security\n-A INPUT -j DROP");
        assert_eq!((security.table, security.spot), ("security", Spot::End));
    }

    #[test]
    fn arrivals_are_seen_in_raw_only_where_it_has_rules() {
        assert_eq!(arrival(&IptablesSave::default()).table, "mangle");
        assert_eq!(
            arrival(&save("*raw\n:PREROUTING ACCEPT [0:0]")).table,
            "mangle"
        );
        assert_eq!(arrival(&save("*raw\n-A PREROUTING -j DROP")).table, "raw");
        assert_eq!(arrival(&save("*raw\n:PREROUTING DROP [0:0]")).table, "raw");
    }

    #[test]
    fn taps_of_other_jobs_decide_nothing() {
        let other = "-A POSTROUTING -p tcp -m comment --comment \"TSIM_KSMS=r2:o:dscp=33:pid=7\" -j TSIM_r2_o\n\
                     :TSIM_r2_o - [0:0]\n\
                     -A TSIM_r2_o -m comment --comment \"TSIM_KSMS=r2:o:dscp=33:pid=7\" -j DROP";
        assert_eq!(spot(other), Spot::Head);
    }
}
