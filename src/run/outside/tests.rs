use super::*;
use crate::model::Protocol;

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

fn way(kind: LookupKind, dev: Option<&str>) -> Lookup {
    Lookup {
        kind,
        errno: None,
        dev: dev.map(|dev| dev.parse().unwrap()),
        via: None,
        prefsrc: None,
        table: 254,
        matched: None,
    }
}

/// A packet that nothing is wrong with.
fn fine() -> Observed {
    Observed {
        after: Some(HookPoint::Prerouting),
        head: head(),
        iif: Some("i0".parse().unwrap()),
        way: Some(LookupKind::Unicast),
        out: Some(("o0".parse().unwrap(), 1500)),
        unchecked: Some(LookupKind::Unicast),
        back: Some(way(LookupKind::Unicast, Some("i0"))),
        settings: Settings {
            forwarding: true,
            ..Settings::default()
        },
        down: None,
        iif_up: true,
        rose: Counters::default(),
    }
}

fn shown(observed: &Observed) -> String {
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
        let observed = Observed {
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
    let mut observed = Observed {
        way: Some(LookupKind::Unreachable),
        ..fine()
    };
    observed.settings.forwarding = false;
    let i0 = Some("i0".parse().unwrap());
    assert_eq!(judge(&observed), OutsideReason::ForwardingOff(i0));
}

#[test]
fn one_errno_stands_for_blackhole_martian_and_rp_filter() {
    let mut observed = Observed {
        way: Some(LookupKind::Refused),
        unchecked: Some(LookupKind::Blackhole),
        ..fine()
    };
    let to = observed.head.destination;
    assert_eq!(judge(&observed), OutsideReason::Blackhole(to));

    observed.unchecked = Some(LookupKind::Unicast);
    observed.back = Some(way(LookupKind::Local, Some("lo")));
    let source = observed.head.source;
    assert_eq!(judge(&observed), OutsideReason::MartianSource(source));

    observed.back = Some(way(LookupKind::Unicast, Some("o0")));
    observed.settings.rp_filter = 1;
    assert_eq!(
        shown(&observed),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 leads to o0"
    );

    // Nothing is wrong with the source: a policy rule that looks at the incoming interface.
    for (rp_filter, back) in [(0, "o0"), (1, "i0"), (2, "o0")] {
        observed.settings.rp_filter = rp_filter;
        observed.back = Some(way(LookupKind::Unicast, Some(back)));
        assert_eq!(judge(&observed), OutsideReason::Blackhole(to));
    }
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
    let observed = Observed {
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
    let observed = Observed {
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
    let observed = Observed {
        after: None,
        ..fine()
    };
    assert_eq!(shown(&observed), "did not come in at the router");
}
