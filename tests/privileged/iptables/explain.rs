//! Reasons out of the rules of iptables-legacy.

use std::time::Duration;

use tsim::{
    firewall::{
        iptables::Variant,
        rule::{OpenPorts, Rewritten},
    },
    netlink::{object::Family, sysctl},
    run::{
        explain::{ExplainQuestion, Explainer, Explanation, Scrutiny},
        probe::ProbeSocket,
    },
};

use super::bed::{Job, Row, plan};
use crate::support::ifname;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn explain(row: &Row, job: &Job<'_>) -> Explanation {
    let ingress = ifname("in");
    let blocked = job.probes();
    let question = ExplainQuestion {
        netns: &row.router,
        run_id: &job.taps.run_id,
        tags: job.taps.tags,
        ingress: Some(&ingress),
        probes: &blocked,
        scrutiny: &Scrutiny::default(),
        from_itself: false,
        open_ports: OpenPorts::Clients,
        rewritten: &Rewritten::default(),
        pass_on: false,
        notes: None,
        patience: Duration::from_secs(20),
    };
    let open = || ProbeSocket::open_here(job.taps.family);
    let socket = row.source.enter(open).unwrap().unwrap();
    let mut send = |indexes: &[u32]| {
        let wanted: Vec<_> = blocked
            .iter()
            .copied()
            .filter(|probe| indexes.binary_search(&probe.index).is_ok())
            .collect();
        let refused = socket.send(job.taps.tags, &wanted);
        assert!(refused.is_empty(), "{refused:?}");
        Ok(())
    };
    Explainer::new(row.tools.clone())
        .explain(&question, &mut send)
        .unwrap()
}

#[test]
fn rules_and_policies_of_iptables_legacy_are_named() {
    let rules = "*raw\n-A PREROUTING -p tcp -m tcp --dport 22 -j DROP\nCOMMIT\n\
                 *filter\n:FORWARD DROP [0:0]\n:mine - [0:0]\n\
                 -A FORWARD -p tcp -m tcp --dport 80 -j mine\n\
                 -A mine -m limit --limit 1/sec -j LOG\n-A mine -j REJECT\nCOMMIT\n\
                 *mangle\n-A FORWARD -p tcp -m tcp --dport 443 -j DROP\nCOMMIT\n";
    for family in FAMILIES {
        let row = Row::new();
        row.load(Variant::Legacy, family, rules);
        let before = row.ruleset();
        let loggers = ["net/netfilter/nf_log/2", "net/netfilter/nf_log/10"];
        let logger = sysctl::read(&row.router, &loggers).unwrap();
        let job = row.job("why", family);
        let explanation = explain(&row, &job);
        assert_eq!(explanation.warnings, Vec::<String>::new());
        let reasons: Vec<String> = explanation
            .reasons
            .iter()
            .map(ToString::to_string)
            .collect();
        let (ip6, rejected) = match family {
            Family::V4 => ("", "icmp-port-unreachable"),
            Family::V6 => ("ip6 ", "icmp6-port-unreachable"),
        };
        assert_eq!(
            reasons,
            [
                format!(
                    "dropped by rule 1 of chain PREROUTING (table {ip6}raw): \
                     -A PREROUTING -p tcp -m tcp --dport 22 -j DROP"
                ),
                format!(
                    "rejected with {rejected} by rule 2 of chain mine (table {ip6}filter): \
                     -A mine -j REJECT --reject-with {rejected}"
                ),
                format!(
                    "dropped by rule 1 of chain FORWARD (table {ip6}mangle): \
                     -A FORWARD -p tcp -m tcp --dport 443 -j DROP"
                ),
                format!("dropped by the policy of chain FORWARD (table {ip6}filter)"),
            ]
        );
        assert_eq!(row.ruleset(), before);
        assert_eq!(sysctl::read(&row.router, &loggers).unwrap(), logger);
    }
}

#[test]
fn many_services_are_explained_by_several_jobs_at_once() {
    let row = Row::new();
    let rules = "*filter\n-A INPUT -p tcp -m limit --limit 1/hour -j ACCEPT\n\
                 -A INPUT -p tcp -j DROP\nCOMMIT\n";
    row.load(Variant::Legacy, Family::V4, rules);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let row = &row;
            scope.spawn(move || {
                let name = format!("why{number}");
                let job = Job::new(row, &name, Family::V4, "1000-1999/tcp");
                let job = job.to(plan(Family::V4).near);
                // The first packets use up the limit.
                job.send();
                let explanation = explain(row, &job);
                // That others trace meanwhile is all that may be worth a warning.
                let changed = "the ruleset changed while blocked services were explained";
                let mut warnings = explanation.warnings.iter();
                assert!(warnings.all(|w| w == changed), "{:?}", explanation.warnings);
                assert_eq!(explanation.reasons.len(), 1000);
                for explained in explanation.reasons {
                    let text = explained.to_string();
                    assert!(
                        text.contains("rule 2 of chain INPUT (table filter)"),
                        "{text}"
                    );
                    assert!(
                        text.contains("--limit 1/hour"),
                        "the caveat is missing: {text}"
                    );
                    assert!(explained.doubtful().next().is_some());
                }
            });
        }
    });
}
