//! What an attempt means: from packets, counters and the client's experience to a result.

use std::net::IpAddr;

use super::{Bench, Counters};
use crate::{
    firewall::nft::trace::{Exit, StoppedBy, flow::FlowPacket},
    run::detailed::{
        DetailedError,
        attempt::Tried,
        connect::Experience,
        evidence::{EvidenceError, Rules},
        judge::{Facts, Fate, Judged, is_settled, judge},
        millis,
        result::{Direction, Measured, RouterTest, Status},
        site::Task,
        way,
    },
};

/// A result that waiting longer may change.
pub(super) struct Undecided {
    pub(super) task: Task,
    pub(super) test: RouterTest,
    pub(super) request: Fate,
    pub(super) answer: Fate,
}

impl Bench<'_> {
    /// What an attempt means, and whether that is the last word.
    pub(super) fn examine(
        &mut self,
        task: Task,
        tried: &Tried,
        before: &Counters,
        attempts: u32,
    ) -> Result<(Undecided, bool), DetailedError> {
        let at = |error: EvidenceError| self.setup.at(self.site)(error);
        let packets = &tried.packets;
        let (mut request, mut answer) = (Fate::NotSeen, Fate::NotSeen);
        let (mut rules, mut trace, mut nat) = (Rules::default(), Vec::new(), Vec::new());
        if let Some(watch) = &mut self.watch {
            let socket = watch.tracer().control();
            request = self
                .clerk
                .fate(socket, packets, Direction::Request)
                .map_err(at)?;
            answer = self
                .clerk
                .fate(socket, packets, Direction::Answer)
                .map_err(at)?;
            let counters = (&before.nft, &self.counters.nft);
            rules = self.clerk.rules(socket, packets, counters).map_err(at)?;
            trace = way::ways(&mut self.clerk, socket, packets).map_err(at)?;
            nat = way::nat(&self.clerk, packets);
        }
        self.add_legacy(before, &mut rules, &mut request, tried);
        let facts = self.facts(tried.experience.as_ref(), &request, &answer, packets, tried);
        let judged = judge(&facts);
        let settled = self.setup.patient || is_settled(&facts);
        let mut test = self.test(task, tried, judged);
        test.attempts = attempts;
        test.trace = trace;
        test.nat = nat;
        test.allowing = rules.allowing;
        test.blocking = rules.blocking;
        test.touched = rules.touched;
        test.other_traffic = rules.other_traffic;
        if tried.overrun {
            let lost = "trace events were lost: what the trace shows may be incomplete";
            test.warnings.push(lost.to_owned());
        }
        self.warn_of_other_traffic(&mut test);
        let undecided = Undecided {
            task,
            test,
            request,
            answer,
        };
        Ok((undecided, settled))
    }

    pub(super) fn facts<'f>(
        &'f self,
        experience: Option<&'f Experience>,
        request: &Fate,
        answer: &Fate,
        packets: &[FlowPacket],
        tried: &Tried,
    ) -> Facts<'f> {
        let left = |p: &FlowPacket| p.stopped_by() == StoppedBy::Nothing(Exit::Out);
        Facts {
            experience,
            traced: self.watch.is_some() && !tried.overrun,
            request: request.clone(),
            answer: answer.clone(),
            own_left: packets.iter().any(|p| p.is_own() && left(p)),
            arrived: tried.arrived.is_some(),
            destination: self
                .site
                .target
                .sink
                .address()
                .unwrap_or(self.setup.destination),
            router: &self.addresses,
        }
    }

    /// What iptables-legacy's counters add; a rule of it that stopped the request ends the search.
    fn add_legacy(&self, before: &Counters, rules: &mut Rules, request: &mut Fate, tried: &Tried) {
        let legacy = self.counters.legacy.since(&before.legacy);
        let undecided = matches!(request, Fate::NotSeen | Fate::Within(_) | Fate::Lost(_));
        let answered = matches!(tried.experience, Some(Experience::Answered(_)));
        if let Some(rule) = legacy.blocking.first().filter(|_| undecided && !answered) {
            let position = rule
                .position
                .map_or("the policy".to_owned(), |p| format!("rule {p}"));
            *request = Fate::Stopped {
                by: format!(
                    "{position} of chain {} (table {}, iptables-legacy): {}",
                    rule.chain, rule.table, rule.rule
                ),
                rejects_with: crate::firewall::rule::Rule::of(&rule.rule)
                    .rejected_with()
                    .map(str::to_owned),
            };
        }
        rules.allowing.extend(legacy.allowing);
        rules.blocking.extend(legacy.blocking);
        rules.touched.extend(legacy.touched);
    }

    fn test(&self, task: Task, tried: &Tried, judged: Judged) -> RouterTest {
        let latency = match tried.experience {
            Some(Experience::Answered(time) | Experience::Mute(time)) => Some(millis(time)),
            _ => None,
        };
        let icmp = match tried.experience {
            Some(Experience::Icmp(icmp)) => Some(icmp),
            _ => None,
        };
        let mut test =
            RouterTest::not_made(&self.setup.way(self.site), judged.status, judged.message);
        if let (Status::Ok, Some(latency)) = (test.status, latency) {
            test.message = format!("answered in {latency} ms");
        }
        let behind = task.moves > 0;
        if behind && let Some(at) = self.site.target.listen_at(&task) {
            test.message = format!("{}; the router sends it to {at}", test.message);
        }
        test.source_host = Some(self.site.source.id.host.clone());
        test.latency_ms = latency;
        test.measured = Measured::Singly;
        test.icmp = icmp;
        test.refused_by = judged.refused_by;
        test
    }

    /// Warns of other traffic in tables that the service's packets pass, too.
    fn warn_of_other_traffic(&self, test: &mut RouterTest) {
        let elsewhere = match self.setup.source {
            IpAddr::V4(_) => "ip6",
            IpAddr::V6(_) => "ip",
        };
        let others = test.other_traffic.iter().filter(|r| r.family != elsewhere);
        let (rules, packets) = others.fold((0, 0), |(n, sum), r| (n + 1, sum + r.unexplained));
        if rules > 0 {
            test.warnings.push(format!(
                "other traffic passed the router meanwhile: {} that saw none of this service's \
                 packets counted {}",
                plural(rules, "rule"),
                plural(packets, "packet")
            ));
        }
    }

    /// The last word about a service that was tried twice.
    pub(super) fn decide(&self, undecided: Undecided, tried: &Tried) -> RouterTest {
        let Undecided {
            mut test,
            request,
            answer,
            task,
        } = undecided;
        test.attempts += 1;
        test.measured = Measured::Together;
        if tried.experience.is_some() || tried.arrived.is_some() {
            let experience = tried.experience.as_ref();
            let facts = self.facts(experience, &request, &answer, &[], tried);
            let second = self.test(task, tried, judge(&facts));
            test.status = second.status;
            test.message = format!("{}, at the second attempt", second.message);
            test.latency_ms = second.latency_ms;
            test.icmp = second.icmp;
            test.refused_by = second.refused_by;
        }
        test
    }
}

/// `1 rule`, `2 rules`.
fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}
