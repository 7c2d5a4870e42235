use super::*;
use crate::{
    model::Protocol,
    netlink::object::{Family, Route, RuleAction},
};

fn head() -> PacketHead {
    PacketHead {
        source: "10.0.1.2".parse().unwrap(),
        destination: "10.0.2.2".parse().unwrap(),
        protocol: Protocol::Tcp,
        source_port: 40_000,
        destination_port: 80,
        tos: 0,
        ttl: 64,
        length: 60,
        mark: 0,
        iif: 2,
        oif: 0,
    }
}

/// A decision for a unicast route in table main by `dev`.
fn by(dev: &str) -> FibDecision {
    let rules = PolicyRule::kernel_defaults(Family::V4);
    let gateway = "192.0.2.1".parse().unwrap();
    FibDecision {
        rule: rules.into_iter().nth(1),
        route: Some(Route::via(
            "0.0.0.0/0".parse().unwrap(),
            gateway,
            dev.parse().unwrap(),
        )),
    }
}

fn of(kind: RouteKind) -> FibDecision {
    FibDecision {
        route: Some(Route::without_hops("0.0.0.0/0".parse().unwrap(), kind)),
        ..by("o0")
    }
}

fn rule(action: RuleAction) -> PolicyRule {
    PolicyRule {
        fwmark: Some((0x3d00, 0x3f00)),
        ..PolicyRule::new(Family::V4, 2061, action)
    }
}

/// Decided by a rule of the router's own.
fn ruled(action: RuleAction, decision: FibDecision) -> FibDecision {
    FibDecision {
        rule: Some(rule(action)),
        ..decision
    }
}

fn back(decision: FibDecision) -> Option<Back> {
    Some(Back {
        from: head().destination,
        decision,
    })
}

/// A packet that nothing is wrong with.
fn fine() -> LostPacket {
    LostPacket {
        after: Some(HookPoint::Prerouting),
        head: head(),
        iif: Some("i0".parse().unwrap()),
        way: Some(LookupKind::Unicast),
        out: Some(("o0".parse().unwrap(), 1500)),
        route_mtu: None,
        decision: None,
        back: back(by("i0")),
        settings: Settings {
            forwarding: true,
            ..Settings::default()
        },
        down: None,
        iif_up: true,
        iif_addressed: true,
        rose: Counters::default(),
    }
}

fn shown(observed: &LostPacket) -> String {
    judge(observed).to_string()
}

#[test]
fn what_cannot_be_explained_is_said_with_the_hook() {
    assert_eq!(
        shown(&fine()),
        "dropped outside netfilter: cause unknown, after prerouting"
    );
    assert!(!judge(&fine()).is_known());
}

#[test]
fn the_look_up_says_what_kind_of_route_it_is() {
    for (kind, want) in [
        (LookupKind::NoRoute, "no route to 10.0.2.2"),
        (LookupKind::Blackhole, "blackhole route to 10.0.2.2"),
        (LookupKind::Unreachable, "unreachable route to 10.0.2.2"),
        (LookupKind::Prohibit, "prohibit route to 10.0.2.2"),
    ] {
        let observed = LostPacket {
            way: Some(kind),
            ..fine()
        };
        assert_eq!(
            shown(&observed),
            format!("dropped outside netfilter: {want}")
        );
    }
}

#[test]
fn forwarding_switched_off_is_not_taken_for_an_unreachable_route() {
    let mut observed = LostPacket {
        way: Some(LookupKind::Unreachable),
        ..fine()
    };
    observed.settings.forwarding = false;
    let i0 = Some("i0".parse().unwrap());
    assert_eq!(judge(&observed), OutsideReason::ForwardingOff(i0));
}

#[test]
fn a_policy_rule_that_ends_a_packet_is_named_and_one_that_chose_the_table_too() {
    for (kind, action) in [
        (LookupKind::Blackhole, RuleAction::Blackhole),
        (LookupKind::Refused, RuleAction::Blackhole),
        (LookupKind::NoRoute, RuleAction::Unreachable),
        (LookupKind::Prohibit, RuleAction::Prohibit),
    ] {
        let observed = LostPacket {
            way: Some(kind),
            decision: Some(ruled(action.clone(), FibDecision::default())),
            ..fine()
        };
        let want = format!(
            "dropped outside netfilter: policy rule 2061: from all fwmark 0x3d00/0x3f00 {action}"
        );
        assert_eq!(shown(&observed), want);
    }
    let observed = LostPacket {
        way: Some(LookupKind::Blackhole),
        decision: Some(ruled(RuleAction::Table(100), of(RouteKind::Blackhole))),
        ..fine()
    };
    assert_eq!(
        shown(&observed),
        "dropped outside netfilter: blackhole route to 10.0.2.2 \
         (policy rule 2061: from all fwmark 0x3d00/0x3f00 lookup 100)"
    );
}

#[test]
fn one_errno_stands_for_blackhole_martian_and_rp_filter() {
    let mut observed = LostPacket {
        way: Some(LookupKind::Refused),
        decision: Some(of(RouteKind::Blackhole)),
        ..fine()
    };
    let to = observed.head.destination;
    let blackhole = OutsideReason::DeadEnd {
        kind: RouteKind::Blackhole,
        to,
        by: None,
    };
    assert_eq!(judge(&observed), blackhole);

    observed.decision = Some(by("o0"));
    observed.back = back(of(RouteKind::Local));
    let source = observed.head.source;
    assert_eq!(judge(&observed), OutsideReason::MartianSource(source));
    observed.settings.accept_local = true;
    assert!(!judge(&observed).is_known());

    observed.back = back(by("o0"));
    observed.settings.rp_filter = 1;
    assert_eq!(
        shown(&observed),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 leads to o0"
    );
    observed.back = back(ruled(RuleAction::Table(2), by("o0")));
    assert_eq!(
        shown(&observed),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 (from 10.0.2.2) \
         leads to o0 (policy rule 2061: from all fwmark 0x3d00/0x3f00 lookup 2)"
    );
}

#[test]
fn a_refusal_that_neither_blackhole_nor_source_explains_has_no_invented_cause() {
    let mut observed = LostPacket {
        way: Some(LookupKind::Refused),
        decision: Some(by("o0")),
        ..fine()
    };
    for (rp_filter, dev) in [(0, "o0"), (1, "i0"), (2, "o0")] {
        observed.settings.rp_filter = rp_filter;
        observed.back = back(by(dev));
        assert!(!judge(&observed).is_known(), "{rp_filter} {dev}");
    }
}

#[test]
fn a_loose_rp_filter_refuses_where_there_is_no_way_back_or_no_address() {
    let mut observed = LostPacket {
        way: Some(LookupKind::Refused),
        decision: Some(by("o0")),
        back: back(FibDecision::default()),
        ..fine()
    };
    observed.settings.rp_filter = 2;
    assert_eq!(
        shown(&observed),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 does not exist"
    );
    observed.back = back(by("o0"));
    observed.iif_addressed = false;
    assert!(shown(&observed).ends_with("leads to o0"));
}

#[test]
fn addresses_that_are_never_routed_are_martians() {
    for (source, destination, martian) in [
        ("127.0.0.1", "10.0.2.2", "source 127.0.0.1"),
        ("224.0.0.1", "10.0.2.2", "source 224.0.0.1"),
        ("0.1.2.3", "10.0.2.2", "source 0.1.2.3"),
        ("255.255.255.255", "10.0.2.2", "source 255.255.255.255"),
        ("10.0.1.2", "127.0.0.1", "destination 127.0.0.1"),
        ("10.0.1.2", "0.0.0.1", "destination 0.0.0.1"),
        ("::1", "2001:db8::1", "source ::1"),
    ] {
        let mut observed = fine();
        observed.head.source = source.parse().unwrap();
        observed.head.destination = destination.parse().unwrap();
        assert_eq!(
            shown(&observed),
            format!("dropped outside netfilter: martian {martian}")
        );
    }
}

#[test]
fn ttl_counts_only_where_the_packet_is_forwarded() {
    let mut observed = fine();
    observed.head.ttl = 1;
    assert_eq!(judge(&observed), OutsideReason::TtlExceeded(1));
    observed.way = Some(LookupKind::Local);
    assert!(!judge(&observed).is_known());
}

#[test]
fn a_packet_that_does_not_fit_is_named_with_the_interface() {
    let observed = LostPacket {
        out: Some(("o0".parse().unwrap(), 59)),
        ..fine()
    };
    assert_eq!(
        shown(&observed),
        "dropped outside netfilter: 60 bytes exceed the MTU 59 of o0"
    );
}

#[test]
fn an_interface_that_is_down_explains_a_missing_route() {
    let observed = LostPacket {
        way: Some(LookupKind::NoRoute),
        down: Some("o0".parse().unwrap()),
        ..fine()
    };
    assert_eq!(
        judge(&observed),
        OutsideReason::InterfaceDown("o0".parse().unwrap())
    );
}

#[test]
fn a_probe_that_was_not_seen_is_not_called_dropped() {
    let observed = LostPacket {
        after: None,
        ..fine()
    };
    assert_eq!(shown(&observed), "did not come in at the router");
}
