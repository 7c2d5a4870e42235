use super::*;
use crate::{firewall::TableFamily, netlink::object::Family};

fn place(chain: &str) -> RulePlace {
    RulePlace {
        family: TableFamily::IP,
        table: "filter".to_owned(),
        chain: chain.to_owned(),
        handle: 0,
    }
}

fn base(chain: &str, hook: HookPoint, policy_drops: bool) -> Base {
    Base {
        place: place(chain),
        hook,
        priority: 0,
        policy_drops,
    }
}

/// A chain: its name, its rules, what each said.
type Written<'a> = (&'a str, &'a [&'a str], &'a [Option<bool>]);

/// A program of these chains.
fn program(forward_drops: bool, chains: &[Written<'_>]) -> Program {
    let mut program = Program {
        bases: vec![
            base("PREROUTING", HookPoint::Prerouting, false),
            base("FORWARD", HookPoint::Forward, forward_drops),
        ],
        ..Program::default()
    };
    for (name, rules, said) in chains {
        program.add(ChainRules {
            place: place(name),
            rules: rules.iter().map(|rule| Rule::of(rule)).collect(),
            said: said.to_vec(),
            led: BTreeMap::new(),
            visited: !said.is_empty(),
        });
    }
    program
}

fn seen(changed: &[Field]) -> SeenPacket {
    SeenPacket {
        by_router: false,
        packet: Packet::of(Family::V4)
            .with(Field::Protocol, 6u32)
            .with(Field::DestinationPort, 80u32)
            .with(Field::Mark, 0u32)
            .with_device(Field::Outgoing, "eth1"),
        local: false,
        sent: false,
        ended_by: None,
        changed: changed.iter().copied().collect(),
    }
}

fn fates(program: &Program, seen: &SeenPacket, suppose: Suppose) -> Vec<WalkEnd> {
    let ways = program.walk(seen, suppose, &mut |_| RoutedTo::Same);
    ways.fates.into_iter().collect()
}

const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);

#[test]
fn a_mark_by_rate_makes_the_end_vary_through_the_rule_that_reads_it() {
    let rules: Written<'_> = (
        "PREROUTING",
        &["-m limit --limit 1/sec -j MARK --set-xmark 0x1/0xffffffff"],
        &[NO],
    );
    let forward: &[&str] = &["-m mark --mark 0x1 -j ACCEPT"];
    let program = program(true, &[rules, ("FORWARD", forward, &[NO])]);
    assert_eq!(fates(&program, &seen(&[]), Suppose::Alone), [WalkEnd::Out]);
    let ways = program.walk(&seen(&[]), Suppose::Anything, &mut |_| RoutedTo::Same);
    assert_eq!(
        ways.fates.into_iter().collect::<Vec<_>>(),
        [WalkEnd::Same, WalkEnd::Out]
    );
    assert_eq!(ways.varying.into_iter().collect::<Vec<_>>(), [(0, 0)]);
    assert_eq!(ways.readers.into_iter().collect::<Vec<_>>(), [(1, 0)]);
    // A mark that leads elsewhere.
    let ways = program.walk(&seen(&[]), Suppose::Alone, &mut |packet| {
        assert_eq!(packet.number(Field::Mark), Some(1));
        RoutedTo::By("isp2".to_owned())
    });
    assert_eq!(
        ways.fates.into_iter().collect::<Vec<_>>(),
        [WalkEnd::Elsewhere]
    );
}

#[test]
fn a_rule_that_varies_without_consequence_makes_nothing_vary() {
    let rules: &[&str] = &["-m recent --update -j LD", "-p tcp --dport 80 -j DROP"];
    let chains: [Written<'_>; 3] = [
        ("PREROUTING", &[], &[]),
        ("FORWARD", rules, &[NO, YES]),
        ("LD", &["-j LOG", "-j DROP"], &[]),
    ];
    let program = program(true, &chains);
    let any = fates(&program, &seen(&[]), Suppose::Anything);
    assert_eq!(any, [WalkEnd::Same, WalkEnd::Stopped]);
    let log: &[&str] = &["-m limit --limit 1/sec -j LOG", "-j ACCEPT"];
    let chains: [Written<'_>; 1] = [("FORWARD", log, &[NO, YES])];
    let program = self::program(true, &chains);
    assert_eq!(
        fates(&program, &seen(&[]), Suppose::Anything),
        [WalkEnd::Same]
    );
}

#[test]
fn excess_that_lets_through_does_not_let_one_through() {
    let rules: &[&str] = &["limit rate over 10/second burst 5 packets accept"];
    let chains: [Written<'_>; 1] = [("FORWARD", rules, &[YES])];
    let program = program(true, &chains);
    assert_eq!(
        fates(&program, &seen(&[]), Suppose::Alone),
        [WalkEnd::Stopped]
    );
    assert_eq!(
        fates(&program, &seen(&[]), Suppose::Fixed((0, 0), true)),
        [WalkEnd::Same]
    );
}

#[test]
fn what_is_behind_on_another_way_and_not_understood_stays_open() {
    let rules: &[&str] = &[
        "-m limit --limit 1/sec -j RETURN",
        "-m set --match-set x src -j DROP",
        "-j ACCEPT",
    ];
    let said = [YES, None, None];
    let chains: [Written<'_>; 1] = [("FORWARD", rules, &said)];
    let program = program(false, &chains);
    let any = fates(&program, &seen(&[]), Suppose::Anything);
    assert_eq!(any, [WalkEnd::Same, WalkEnd::Out, WalkEnd::Stopped]);
    assert_eq!(fates(&program, &seen(&[]), Suppose::Alone), [WalkEnd::Same]);
}

#[test]
fn chance_that_only_chooses_among_equals_decides_nothing() {
    let rules: &[&str] = &["numgen random mod 2 vmap { 0 : goto a, 1 : goto b }"];
    let chains: [Written<'_>; 4] = [
        ("PREROUTING", rules, &[YES]),
        ("a", &["dnat to 10.0.0.1:80"], &[YES]),
        ("b", &["dnat to 10.0.0.2:80"], &[]),
        ("FORWARD", &["-p tcp -j ACCEPT"], &[YES]),
    ];
    let program = program(true, &chains);
    let seen = seen(&[Field::Destination]);
    assert_eq!(fates(&program, &seen, Suppose::Anything), [WalkEnd::Out]);
}

#[test]
fn a_walk_of_too_many_ways_is_given_up() {
    let rules: Vec<String> = (0..40)
        .map(|n| {
            format!(
                "-m statistic --mode random --probability 0.5 -j MARK --set-xmark {:#x}/{:#x}",
                1u64 << (n % 31),
                1u64 << (n % 31)
            )
        })
        .collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let said = vec![NO; rules.len()];
    let chains: [Written<'_>; 1] = [("FORWARD", &rules, &said)];
    let program = program(false, &chains);
    assert!(fates(&program, &seen(&[]), Suppose::Anything).contains(&WalkEnd::Open));
}

#[test]
fn what_a_rate_lets_return_meets_what_comes_behind_the_jump() {
    let lim: &[&str] = &[
        "-A lim -m limit --limit 1/sec --limit-burst 2 -j RETURN",
        "-A lim -j ACCEPT",
    ];
    let forward: &[&str] = &["-A FORWARD -p tcp -j lim", "-A FORWARD -p tcp -j DROP"];
    let chains: [Written<'_>; 2] = [("FORWARD", forward, &[YES, None]), ("lim", lim, &[NO, YES])];
    let program = program(false, &chains);
    assert_eq!(
        fates(&program, &seen(&[]), Suppose::Alone),
        [WalkEnd::Stopped]
    );
    let any = fates(&program, &seen(&[]), Suppose::Anything);
    assert_eq!(any, [WalkEnd::Same, WalkEnd::Stopped]);
}

#[test]
fn where_a_map_led_the_packet_what_stands_there_is_asked() {
    let forward: &[&str] = &["tcp dport vmap @whole", "drop"];
    let chains: [Written<'_>; 2] = [
        ("FORWARD", forward, &[YES, None]),
        (
            "lucky",
            &["numgen random mod 9 0 drop", "accept"],
            &[NO, YES],
        ),
    ];
    let mut program = program(true, &chains);
    let walk = |program: &Program| fates(program, &seen(&[]), Suppose::Anything);
    assert_eq!(walk(&program), [WalkEnd::Open]);
    let led = Led::To(RuleVerdict::Jump("lucky".to_owned()));
    program.chains[0].led.insert(0, led);
    assert_eq!(walk(&program), [WalkEnd::Same, WalkEnd::Stopped]);
}

#[test]
fn lots_lead_to_targets_and_only_those_that_rewrite_decide_nothing_else() {
    let rules: &[&str] = &[
        "dnat ip to numgen random mod 2 map { 0 : 10.0.0.1 . 80, 1 : 10.0.0.2 . 8080 }",
        "numgen random mod 2 vmap { 0 : goto a, 1 : goto b }",
        "dnat to jhash ip saddr . tcp sport mod 2 seed 0x1 map @m",
        "jhash ip saddr . ip daddr mod 2 seed 0x1 vmap { 0 : goto a, 1 : goto b }",
    ];
    let chains: [Written<'_>; 3] = [
        ("PREROUTING", rules, &[YES, None, None, None]),
        ("a", &["dnat to 10.0.0.3"], &[]),
        ("b", &["drop"], &[]),
    ];
    let program = program(false, &chains);
    assert_eq!(
        [0, 1, 2].map(|rule| program.only_chooses((0, rule))),
        [true, false, true]
    );
    let varies = |rule: usize| program.chains[0].rules[rule].varying().next().is_some();
    assert_eq!([0, 1, 2, 3].map(varies), [true, true, true, false]);
    let seen = seen(&[Field::Destination]);
    let ways = program.walk(&seen, Suppose::Alone, &mut |_| RoutedTo::Same);
    let targets: Vec<_> = ways
        .targets
        .iter()
        .map(|t| (t.destination.to_string(), t.ports))
        .collect();
    let target = |to: &str, port| (to.to_owned(), Some((port, port)));
    assert_eq!(
        targets,
        [target("10.0.0.1/32", 80), target("10.0.0.2/32", 8080)]
    );
    assert!(!ways.elsewhere);
}

#[test]
fn a_list_that_the_packet_itself_was_put_into_is_not_empty() {
    let set: &[&str] = &["-m recent --name r --set", "-m recent --name other --set"];
    for (asks, fate) in [
        (
            "-m recent --name r --update --seconds 60 -j ACCEPT",
            WalkEnd::Same,
        ),
        (
            "-m recent --name r --rcheck --hitcount 1 -j ACCEPT",
            WalkEnd::Same,
        ),
        (
            "-m recent --name r --rcheck --hitcount 2 -j ACCEPT",
            WalkEnd::Stopped,
        ),
        ("-m recent --name q --rcheck -j ACCEPT", WalkEnd::Stopped),
        ("-m recent --name r ! --rcheck -j ACCEPT", WalkEnd::Stopped),
    ] {
        let forward: &[&str] = &[asks];
        let chains: [Written<'_>; 2] = [
            ("PREROUTING", set, &[YES, YES]),
            ("FORWARD", forward, &[YES]),
        ];
        let program = program(true, &chains);
        assert_eq!(
            fates(&program, &seen(&[]), Suppose::Alone),
            [fate],
            "{asks}"
        );
    }
}

#[test]
fn what_all_senders_are_like_chooses_nothing_from_a_map() {
    let walk = |rule: &str| {
        let forward: &[&str] = &[rule, "accept"];
        let chains: [Written<'_>; 2] = [("FORWARD", forward, &[YES, YES]), ("a", &["drop"], &[])];
        let program = program(true, &chains);
        let mut seen = seen(&[]);
        let ttl = |ttl: u32| Packet::of(Family::V4).with(Field::Ttl, ttl);
        seen.packet = ttl(63).with(Field::Ttl, 127u32);
        seen.packet = seen.packet.with(Field::DestinationPort, 80u32);
        fates(&program, &seen, Suppose::Anything)
    };
    assert_eq!(
        walk("ip ttl > 1 tcp dport vmap { 80 : accept, 22 : jump a }"),
        [WalkEnd::Same]
    );
    assert_ne!(
        walk("ip ttl > 63 tcp dport vmap { 80 : accept, 22 : jump a }"),
        [WalkEnd::Same]
    );
}
