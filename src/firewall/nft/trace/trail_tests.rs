use super::*;
use crate::model::Dscp;

/// What a packet looks like at an event, and what the event is.
struct Packet {
    network: Vec<u8>,
    transport: Vec<u8>,
    id: u32,
}

fn tags() -> TagSpace {
    TagSpace::new(Dscp::new(40).unwrap(), 0x1234_5678_9abc_def1)
}

impl Packet {
    fn new(index: u32, id: u32) -> Self {
        let mut network = vec![0; 20];
        network[0] = 0x45;
        network[3] = 60;
        network[8] = 64;
        network[9] = 6;
        network[12..16].copy_from_slice(&[10, 0, 1, 2]);
        network[16..20].copy_from_slice(&[10, 0, 2, 2]);
        let mut transport = vec![0; 20];
        transport[3] = 80;
        transport[4..8].copy_from_slice(&tags().tag(index).to_be_bytes());
        Self {
            network,
            transport,
            id,
        }
    }

    fn event<'a>(
        &'a self,
        table: &'a str,
        chain: &'a str,
        kind: StepKind,
        decision: TraceDecision,
    ) -> TraceEvent<'a> {
        TraceEvent {
            id: self.id,
            family: TableFamily::IP,
            table,
            chain,
            handle: u64::from(kind == StepKind::Rule) * 5,
            kind,
            decision,
            iif: 2,
            oif: 0,
            mark: 0,
            network: Some(&self.network),
            transport: Some(&self.transport),
        }
    }

    fn marker<'a>(&'a self, chain: &'a str) -> TraceEvent<'a> {
        self.event("trace", chain, StepKind::Rule, TraceDecision::Accept)
    }

    fn rule(&self, decision: TraceDecision) -> TraceEvent<'_> {
        self.event("filter", "FORWARD", StepKind::Rule, decision)
    }

    /// It came in and is at FORWARD.
    fn forwarded(&self) -> [TraceEvent<'_>; 3] {
        ["prerouting_first", "prerouting_last", "forward_first"].map(|chain| self.marker(chain))
    }
}

fn trails() -> Trails {
    let own = Own {
        table: "trace".to_owned(),
        taps: "taps".to_owned(),
    };
    Trails::new(own, tags())
}

/// The trail of service 3 after these events.
fn trail<'a>(events: impl IntoIterator<Item = TraceEvent<'a>>) -> Trail {
    let mut trails = trails();
    for event in events {
        assert!(trails.add(&event));
    }
    trails.take().remove(&3).unwrap()
}

#[test]
fn how_far_a_probe_came_says_where_it_was_lost() {
    let p = Packet::new(3, 1);
    let all = p.forwarded();
    assert_eq!(
        trail(all[..1].to_vec()).stopped_by(),
        StoppedBy::Within(HookPoint::Prerouting)
    );
    assert_eq!(
        trail(all[..2].to_vec()).stopped_by(),
        StoppedBy::After(HookPoint::Prerouting)
    );
    assert_eq!(
        trail(all.to_vec()).stopped_by(),
        StoppedBy::Within(HookPoint::Forward)
    );
}

#[test]
fn what_other_jobs_send_is_told_apart() {
    let mut trails = trails();
    let ours = Packet::new(3, 1);
    let mut theirs = Packet::new(3, 2);
    theirs.transport[4] ^= 0xff;
    assert!(trails.add(&ours.marker("prerouting_first")));
    assert!(!trails.add(&theirs.marker("prerouting_first")));
    // Later events of a packet may show no headers.
    let mut later = ours.rule(TraceDecision::Drop);
    (later.network, later.transport) = (None, None);
    assert!(trails.add(&later));
    later.id = theirs.id;
    assert!(!trails.add(&later));
    later.id = ours.id;
    later.table = "tsimtrace_other";
    assert!(!trails.add(&later));
    assert_eq!(trails.take().len(), 1);
}

#[test]
fn only_a_last_verdict_that_ends_the_way_is_blamed() {
    let p = Packet::new(3, 1);
    for (decision, blamed) in [
        (TraceDecision::Drop, true),
        (TraceDecision::Stolen, true),
        (TraceDecision::Queue(3), true),
        (TraceDecision::Accept, false),
        (TraceDecision::Return, false),
        (TraceDecision::Continue, false),
    ] {
        let trail = trail(p.forwarded().into_iter().chain([p.rule(decision.clone())]));
        let by_rule = matches!(trail.stopped_by(), StoppedBy::Rule(step) if step.place.handle == 5);
        assert_eq!(by_rule, blamed, "{decision:?}");
    }
}

#[test]
fn a_policy_behind_a_return_is_blamed_and_ends_of_chains_are_no_steps() {
    let p = Packet::new(3, 1);
    let mut end = p.rule(TraceDecision::Continue);
    end.handle = 0;
    let events = [
        p.rule(TraceDecision::Jump("sub".to_owned())),
        p.event("filter", "sub", StepKind::Rule, TraceDecision::Return),
        end,
        p.event("filter", "FORWARD", StepKind::Policy, TraceDecision::Drop),
    ];
    let trail = trail(p.forwarded().into_iter().chain(events));
    assert_eq!(trail.steps.len(), 3);
    let StoppedBy::Policy(step) = trail.stopped_by() else {
        panic!("{trail:?}");
    };
    assert_eq!(
        (step.hook, &*step.place.chain),
        (HookPoint::Forward, "FORWARD")
    );
}

#[test]
fn a_packet_that_a_queues_listener_gave_back_goes_on() {
    let p = Packet::new(3, 1);
    let events = [p.rule(TraceDecision::Queue(3)), p.marker("forward_last")];
    let trail = trail(p.forwarded().into_iter().chain(events));
    assert_eq!(trail.stopped_by(), StoppedBy::After(HookPoint::Forward));
}

#[test]
fn the_last_chains_and_the_jobs_taps_are_the_way_out() {
    let p = Packet::new(3, 1);
    for (table, chain, exit) in [
        ("trace", "postrouting_last", ProbeExit::Out),
        ("taps", "out", ProbeExit::Out),
        ("trace", "input_last", ProbeExit::Local),
    ] {
        let first = if exit == ProbeExit::Out {
            "postrouting_first"
        } else {
            "input_first"
        };
        let events = [
            p.marker(first),
            p.event(table, chain, StepKind::Rule, TraceDecision::Drop),
        ];
        let trail = trail(p.forwarded().into_iter().chain(events));
        assert_eq!(trail.stopped_by(), StoppedBy::Nothing(exit), "{chain}");
        assert!(trail.steps.is_empty());
    }
}

#[test]
fn a_copy_that_the_router_sends_is_not_the_probe() {
    let (p, copy) = (Packet::new(3, 1), Packet::new(3, 2));
    let leave = |chain| {
        let decision = TraceDecision::Drop;
        copy.event("trace", chain, StepKind::Rule, decision)
    };
    let copied = [copy.marker("postrouting_first"), leave("postrouting_last")];
    let events = p.forwarded().into_iter().chain(copied);
    let trail = trail(events.chain([p.rule(TraceDecision::Drop)]));
    assert!(matches!(trail.stopped_by(), StoppedBy::Rule(_)));
    assert_eq!(trail.copies, 1);
}

#[test]
fn numbers_of_packets_may_be_used_again() {
    let (first, second) = (Packet::new(3, 1), Packet::new(4, 1));
    let mut trails = trails();
    for p in [&first, &second] {
        for event in &p.forwarded() {
            trails.add(event);
        }
        let mut end = p.event("filter", "FORWARD", StepKind::Policy, TraceDecision::Drop);
        (end.network, end.transport) = (None, None);
        trails.add(&end);
    }
    let all = trails.take();
    assert_eq!(all.len(), 2);
    let policies = all.values().map(Trail::stopped_by);
    assert!(
        policies
            .into_iter()
            .all(|by| matches!(by, StoppedBy::Policy(_)))
    );
}

#[test]
fn a_probe_sent_again_begins_a_new_trail() {
    let p = Packet::new(3, 1);
    let stopped = p
        .forwarded()
        .into_iter()
        .chain([p.rule(TraceDecision::Drop)]);
    let again = p.forwarded();
    let trail = trail(stopped.chain(again));
    assert!(trail.steps.is_empty());
    assert_eq!(trail.stopped_by(), StoppedBy::Within(HookPoint::Forward));
}

#[test]
fn foreign_packets_are_ignored() {
    let mut p = Packet::new(3, 1);
    p.transport[4] ^= 0x80;
    let mut trails = trails();
    for event in &p.forwarded() {
        trails.add(event);
    }
    assert!(trails.take().is_empty());
}
