use super::*;
use crate::netlink::object::Family;

fn packet() -> Packet {
    Packet::of(Family::V4)
        .with(Field::Protocol, 6u32)
        .with(Field::DestinationPort, 80u32)
        .with_address(
            Field::Source,
            "10.0.0.2".parse::<std::net::IpAddr>().unwrap(),
        )
        .with_address(
            Field::Destination,
            "10.9.0.2".parse::<std::net::IpAddr>().unwrap(),
        )
        .with(Field::TcpFlags, 0x02u32)
        .with_state(TrackingState::New)
        .with_state(TrackingState::Untracked)
}

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
        assert_eq!(Rule::of(text).rejected_with(), want, "{text}");
    }
}

#[test]
fn a_rule_that_remembers_packets_says_where() {
    for (text, want) in [
        ("-A f -j SET --add-set bad src", vec!["set bad"]),
        (
            "-A f -m recent --set --name ssh --rsource",
            vec!["recent list ssh"],
        ),
        ("-A f -m recent --rcheck --name ssh -j DROP", vec![]),
        ("-A f -m recent --update --name ssh -j DROP", vec![]),
        (
            "update @seen { ip saddr timeout 1m } accept",
            vec!["set seen"],
        ),
        (
            "update @m { ip saddr limit rate 1/second burst 3 packets } log",
            vec!["set m"],
        ),
        (
            "add @m { ip saddr limit rate over 1/second } add @d { ip saddr } drop",
            vec!["set m", "set d"],
        ),
        ("ip saddr @seen drop", vec![]),
    ] {
        assert_eq!(
            Rule::of(text).remembers().collect::<Vec<_>>(),
            want,
            "{text}"
        );
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
        let rule = Rule::of(text);
        assert_eq!(
            (rule.may_stop(), rule.may_pass()),
            (stops, passes),
            "{text}"
        );
        assert_eq!(rule.decides(), stops || passes, "{text}");
    }
    assert!(Rule::of("dnat to numgen inc mod 2 map { 0 : 10.0.0.1 }").only_rewrites());
    assert!(!Rule::of("numgen inc mod 2 0 drop").only_rewrites());
    assert!(Rule::of("tcp dport 80 fwd to \"out\"").sends_on());
}

#[test]
fn queues_proxies_and_translations_are_told_from_drops() {
    let queue = |text| Rule::of(text).queue();
    assert_eq!(queue("-A f -j NFQUEUE --queue-num 7"), Some(7));
    assert_eq!(queue("-A f -j NFQUEUE --queue-balance 3:5"), Some(3));
    assert_eq!(queue("-A f -j NFQUEUE"), Some(0));
    assert_eq!(queue("queue flags bypass to 1-3"), Some(1));
    assert_eq!(queue("-A f -j DROP"), None);
    assert!(Rule::of("-A f -p tcp -j SYNPROXY --mss 1460").answers_itself());
    assert!(
        Rule::of("tcp dport 80 synproxy mss 1460 wscale 7 timestamp sack-perm").answers_itself()
    );
    assert!(!Rule::of("-A f -j DROP").answers_itself());
    for text in [
        "-A p -i eth0 -p tcp -j TPROXY --on-port 12345 --on-ip 0.0.0.0 --tproxy-mark 0x1/0xffffffff",
        "tcp dport 80 tproxy to :12345 meta mark set 0x1 accept",
    ] {
        assert_eq!(Rule::of(text).proxied_to(), Some(Some(12345)), "{text}");
    }
    for (text, to, ports) in [
        (
            "-A p -j DNAT --to-destination 10.0.0.1:8080",
            "10.0.0.1/32",
            Some((8080, 8080)),
        ),
        ("dnat to 10.0.0.1:8080", "10.0.0.1/32", Some((8080, 8080))),
        (
            "dnat ip6 to [2001:db8::1]:80-81",
            "2001:db8::1/128",
            Some((80, 81)),
        ),
        (
            "-A p -j DNAT --to-destination 2001:db8::1",
            "2001:db8::1/128",
            None,
        ),
    ] {
        let rule = Rule::of(text);
        let found = rule.translation().unwrap();
        let net = to.parse().ok();
        assert_eq!(found.to, [Goal { net, ports }], "{text}");
    }
    let here = Rule::of("-A p -p tcp -j REDIRECT --to-ports 3128");
    assert!(here.translation().unwrap().here);
    let port = here.translation().unwrap().to.first().unwrap().ports;
    assert_eq!(port, Some((3128, 3128)));
}

/// A rule that is not read does not translate.
#[test]
fn a_rule_that_translates_names_who_does() {
    for text in [
        "-A p -j DNAT --to-destination 10.0.0.1",
        "-A p -j \"SNAT\" --to-source 10.0.0.1",
        "-A p -o eth0 -j MASQUERADE",
        "-A p -j SAME --to 10.0.0.1",
        "-A p -p tcp -j REDIRECT --to-ports 3128",
        "-A p -d 10.0.0.0/24 -j NETMAP --to 10.1.0.0/24",
        "ip daddr 10.0.0.2 dnat to 10.0.0.1",
        "tcp dport 80 redirect to :3128;",
        "snat ip to ip saddr map { 10.0.0.1 : 10.0.0.2 }",
        "oifname \"eth0\" masquerade;",
        "{ oifname \"eth0\" masquerade}",
        "oifname \"eth0\" counter packets 0 bytes 0 xt target \"MASQUERADE\"",
    ] {
        assert!(may_translate(text), "{text}");
    }
    for text in ["-A p -p tcp --dport 80 -j ACCEPT", "tcp dport 80 accept"] {
        assert!(!may_translate(text) && Rule::of(text).translation().is_none());
    }
    for (names, action) in table::ACTIONS {
        for name in *names {
            for text in [format!("-A p -j {name}"), format!("{name} to :1")] {
                let translates = Rule::of(&text).translation().is_some();
                assert!(!translates || may_translate(&text), "{text}: {action:?}");
            }
        }
    }
}

#[test]
fn what_only_changes_a_packet_says_what() {
    for (text, field, sent) in [
        ("-A f -j MARK --set-xmark 0x1/0xff", Field::Mark, false),
        (
            "-A f -j CONNMARK --restore-mark --nfmask 0xffffffff",
            Field::Mark,
            false,
        ),
        ("-A f -j CT --notrack", Field::Tracking, false),
        (
            "-A f -p tcp -j TCPMSS --clamp-mss-to-pmtu",
            Field::TcpOptions,
            true,
        ),
        ("-A f -j HL --hl-set 64", Field::Ttl, true),
        ("-A f -j DSCP --set-dscp 0x0a", Field::Tos, true),
        ("meta mark set 0x00000001", Field::Mark, false),
        (
            "meta mark set meta mark & 0xffffff00 | 0x01 accept",
            Field::Mark,
            false,
        ),
        ("ip dscp set cs1", Field::Tos, true),
        ("tcp option maxseg size set rt mtu", Field::TcpOptions, true),
        ("ct helper set \"ftp\"", Field::Tracking, false),
        ("notrack", Field::Tracking, false),
    ] {
        let rule = Rule::of(text);
        assert_eq!(
            rule.changes().collect::<Vec<_>>(),
            [field],
            "{text}: {rule:?}"
        );
        assert_eq!(rule.changes().any(Field::is_sent), sent, "{text}");
    }
    let mark = Rule::of("-A f -j MARK --set-xmark 0x1/0xff").does;
    let set = |mask, value| Does::Set {
        field: Field::Mark,
        mask,
        value: Some(value),
    };
    assert_eq!(mark, [set(0xff, 1)]);
    assert_eq!(Rule::of("meta mark set 0x2").does, [set(u32::MAX, 2)]);
    for text in [
        "-A f -j CHECKSUM --checksum-fill",
        "log prefix \"drop\" level info",
        "counter packets 1 bytes 2",
    ] {
        assert_eq!(Rule::of(text).does, [Does::Note], "{text}");
    }
}

fn shown(text: &str) -> String {
    let rule = Rule::of(text);
    rule.caveat().map_or_else(String::new, ToString::to_string)
}

#[test]
fn iptables_matches_that_depend_on_more_than_the_packet() {
    for (text, want) in [
        (
            "-A f -p tcp -m limit --limit 5/sec --limit-burst 9 -j ACCEPT",
            "rate-limited: 5/sec burst 9",
        ),
        (
            "-A f -m limit --limit 5/sec -j ACCEPT",
            "rate-limited: 5/sec",
        ),
        (
            "-A f -m hashlimit --hashlimit-upto 3/min --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name a -j ACCEPT",
            "rate-limited: 3/min burst 5",
        ),
        (
            "-A f -m quota --quota 1000 -j ACCEPT",
            "limited by a quota: 1000",
        ),
        (
            "-A f -m statistic --mode random --probability 0.5 -j DROP",
            "decided by chance or turn: 0.5",
        ),
        (
            "-A f -m statistic --mode nth --every 3 --packet 0 -j DROP",
            "decided by chance or turn: 3",
        ),
        (
            "-A f -m time --timestart 08:00:00 -j ACCEPT",
            "depends on the time: time",
        ),
        (
            "-A f -m recent --rcheck --name x --rsource -j DROP",
            "depends on what was seen before: recent",
        ),
        ("-A f -m recent --set --name x --rsource -j DROP", ""),
        (
            "-A f -p tcp -m connlimit --connlimit-above 2 -j DROP",
            "depends on what was seen before: connlimit",
        ),
        (
            "-A f -m policy --dir in --pol ipsec -j ACCEPT",
            "depends on IPsec, and probes come in plain: policy --dir in --pol ipsec",
        ),
        ("-A f -j SET --add-set bad src", ""),
        ("-A f -m limit --limit 5/min -j LOG", ""),
        (
            "-A f -m limit --limit 5/min -j MARK --set-mark 1",
            "rate-limited: 5/min",
        ),
        ("-A f -p tcp -m conntrack --ctstate NEW -j ACCEPT", ""),
        ("-A f -m set --match-set bad src -j DROP", ""),
        (
            "-A f -m comment --comment \"-m limit --limit 5/sec\" -j DROP",
            "",
        ),
    ] {
        assert_eq!(shown(text), want, "{text}");
    }
}

#[test]
fn pairs_of_type_and_code_are_types_of_icmpv6() {
    let asks = |kind: u32, pairs: &str| {
        let rule = Rule::of(&format!("icmpv6 type . icmpv6 code {pairs} accept"));
        let packet = Packet::of(Family::V6).with(Field::Protocol, 58_u8);
        rule.may_match(&packet.with(Field::Icmpv6Type, kind))
    };
    let some = "{ packet-too-big . no-route, parameter-problem . admin-prohibited, nd-neighbor-solicit . 0 }";
    assert_eq!(asks(135, some), Truth::Yes);
    assert_eq!(asks(136, some), Truth::No);
    assert_eq!(asks(135, "{ nd-neighbor-solicit . 1 }"), Truth::CannotTell);
    assert_eq!(asks(135, "@kinds"), Truth::CannotTell);
}

#[test]
fn nft_expressions_that_depend_on_more_than_the_packet() {
    for (text, want) in [
        (
            "udp dport 53 limit rate 5/second burst 3 packets accept",
            "rate-limited: 5/second burst 3",
        ),
        (
            "limit rate over 10/minute drop",
            "rate-limited: over 10/minute",
        ),
        (
            "limit rate 1 mbytes/second burst 9 kbytes accept",
            "rate-limited: 1 mbytes/second burst 9",
        ),
        (
            "limit name \"l1\" accept",
            "rate-limited: limit name \"l1\"",
        ),
        (
            "tcp dport 5 meter m1 size 65535 { ip saddr limit rate 1/second } accept",
            "depends on what was seen before: meter m1",
        ),
        (
            "add @m { ip saddr limit rate over 3/minute } drop",
            "rate-limited: over 3/minute",
        ),
        ("update @seen { ip saddr timeout 1m } accept", ""),
        (
            "add @conns { ip saddr ct count over 20 } reject",
            "depends on what was seen before: ct count over 20",
        ),
        (
            "quota over 25 mbytes drop",
            "limited by a quota: over 25 mbytes",
        ),
        (
            "numgen random mod 10 < 5 drop",
            "decided by chance or turn: numgen random mod 10",
        ),
        (
            "meta random < 5 drop",
            "decided by chance or turn: meta random",
        ),
        (
            "meta hour \"08:00\"-\"18:00\" accept",
            "depends on the time: meta hour \"08:00\"-\"18:00\"",
        ),
        (
            "ct count over 2 drop",
            "depends on what was seen before: ct count over",
        ),
        (
            "ct original bytes > 100000 drop",
            "depends on what was seen before: ct original bytes >",
        ),
        (
            "meta secpath exists accept",
            "depends on IPsec, and probes come in plain: meta secpath exists",
        ),
        (
            "ipsec in reqid 1 accept",
            "depends on IPsec, and probes come in plain: ipsec in reqid 1",
        ),
        (
            "rt ipsec missing drop",
            "depends on IPsec, and probes come in plain: rt ipsec missing",
        ),
        ("numgen random mod 1 vmap { 0 : goto ep-1 }", ""),
        (
            "numgen random mod 2 vmap { 0 : goto ep-1, 1 : goto ep-2 }",
            "decided by chance or turn: numgen random mod 2",
        ),
        ("ct state new tcp dport 22 accept", ""),
        ("tcp dport 22 drop comment \"limit rate 5/second\"", ""),
        ("ip saddr @blocked drop", ""),
    ] {
        assert_eq!(shown(text), want, "{text}");
    }
}

#[test]
fn what_a_packet_that_comes_alone_meets() {
    for (text, want) in [
        ("-m limit --limit 5/sec -j ACCEPT", Alone::Matches),
        (
            "-m hashlimit --hashlimit-above 5/sec --hashlimit-name x -j ACCEPT",
            Alone::Fails,
        ),
        ("-m quota ! --quota 5 -j ACCEPT", Alone::Fails),
        ("-m connlimit --connlimit-above 3 -j ACCEPT", Alone::Fails),
        ("-m connlimit --connlimit-upto 3 -j ACCEPT", Alone::Matches),
        (
            "-m recent --rcheck --hitcount 5 -j MARK --set-mark 1",
            Alone::Fails,
        ),
        (
            "-m statistic --mode random --probability 0.5 -j DROP",
            Alone::Either,
        ),
        ("-m time --timestart 08:00:00 -j DROP", Alone::AsMeasured),
        (
            "limit rate over 10/second burst 5 packets accept",
            Alone::Fails,
        ),
        (
            "add @m { ip saddr limit rate over 1/second } accept",
            Alone::Fails,
        ),
        ("quota over 1000 bytes accept", Alone::Fails),
        ("quota until 1000 bytes accept", Alone::Matches),
        ("ct count over 3 drop", Alone::Fails),
        (
            "numgen inc mod 2 vmap { 0 : accept, 1 : drop }",
            Alone::Chooses,
        ),
    ] {
        let rule = Rule::of(text);
        assert_eq!(rule.varying().next().map(|v| v.alone), Some(want), "{text}");
    }
}

#[test]
fn a_rule_for_another_host_protocol_or_state_does_not_concern() {
    for (text, want) in [
        ("-A f -s 10.0.0.0/24 -m limit --limit 1/sec -j ACCEPT", true),
        (
            "-A f -s 10.7.0.0/24 -m limit --limit 1/sec -j ACCEPT",
            false,
        ),
        ("-A f -s 10.7.0.0/255.255.0.0 -j ACCEPT", false),
        ("-A f -d 10.9.0.3/32 -j ACCEPT", false),
        ("-A f -p icmp -m limit --limit 1/sec -j ACCEPT", false),
        (
            "-A f -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            false,
        ),
        ("-A f -m conntrack --ctstate RELATED,NEW -j ACCEPT", true),
        (
            "-A f -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK RST -m limit --limit 1/sec -j RETURN",
            false,
        ),
        (
            "-A f -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN",
            true,
        ),
        ("-A f ! -s 10.0.0.0/24 -j DROP", false),
        ("ip saddr 10.0.0.2 limit rate 1/second accept", true),
        ("ip saddr 10.7.0.0/16 limit rate 1/second accept", false),
        ("ip saddr 10.7.0.1-10.7.0.9 accept", false),
        (
            "ip saddr { 10.7.0.1, 10.0.0.2 } limit rate 1/second accept",
            true,
        ),
        (
            "ip saddr { 10.7.0.1, 10.0.0.3 } limit rate 1/second accept",
            false,
        ),
        ("ip saddr @trusted limit rate 1/second accept", true),
        ("ip6 saddr 2001:db8::1 accept", false),
        ("meta l4proto icmp limit rate 1/second accept", false),
        ("meta l4proto tcp limit rate 1/second accept", true),
        ("icmp type echo-request limit rate 1/second accept", false),
        (
            "udp sport 53 meta l4proto udp limit rate 1/second drop",
            false,
        ),
        (
            "ct state established,related limit rate 1/second accept",
            false,
        ),
        ("ct state vmap { established : accept, new : jump x }", true),
        (
            "ct state vmap { established : accept, invalid : drop }",
            false,
        ),
        ("ct state new limit rate 1/second accept", true),
        ("tcp flags & (fin | syn | rst | ack) == rst drop", false),
        ("tcp flags & (fin|syn|rst|ack) == syn drop", true),
        ("tcp flags syn / fin,syn,rst,ack drop", true),
        ("tcp flags rst drop", false),
        ("tcp flags != syn drop", false),
    ] {
        assert_eq!(
            Rule::of(text).concerns(&packet()),
            want,
            "{text}: {:?}",
            Rule::of(text)
        );
    }
}

#[test]
fn a_rule_for_another_port_or_protocol_does_not_concern() {
    for (text, want) in [
        (
            "-A f -p tcp -m tcp --dport 80 -m limit --limit 5/sec -j ACCEPT",
            true,
        ),
        ("-A f -p tcp -m tcp --dport 81 -j ACCEPT", false),
        ("-A f -p tcp --dport 81 -j ACCEPT", false),
        ("-A f -p udp -m udp --dport 80 -j ACCEPT", false),
        ("-A f -p tcp -m tcp --dport 79:81 -j ACCEPT", true),
        ("-A f -p tcp -m multiport --dports 22,79:81 -j ACCEPT", true),
        ("-A f -p tcp -m multiport --dports 22,443 -j ACCEPT", false),
        ("-A f -p tcp -m multiport ! --dports 22,443 -j ACCEPT", true),
        ("-A f -p tcp -m tcp ! --dport 80 -j DROP", false),
        ("-A f -p tcp -m newmatch --what 80 -j DROP", true),
        ("-A f -m limit --limit 5/sec -j ACCEPT", true),
        ("tcp dport 80 accept", true),
        ("tcp dport { 22, 79-81 } accept", true),
        ("tcp dport { 22, 443 } accept", false),
        ("udp dport 80 accept", false),
        ("th dport 80 accept", true),
        ("tcp dport @web accept", true),
        ("tcp dport != 22 drop", true),
        ("tcp dport != 80 drop", false),
        ("tcp dport >= 1024 drop", false),
        ("something new 80 drop", true),
        ("limit rate 5/second accept", true),
    ] {
        assert_eq!(
            Rule::of(text).concerns(&packet()),
            want,
            "{text}: {:?}",
            Rule::of(text)
        );
    }
    let rewritten = packet().with(Field::DestinationPort, 8080u32);
    assert!(Rule::of("tcp dport 8080 accept").concerns(&rewritten));
}

#[test]
fn a_rule_surely_matches_only_what_it_understands() {
    for (text, want) in [
        ("tcp dport 80 accept", Truth::Yes),
        (
            "-A f -p tcp -m multiport --dports 22,80 -j ACCEPT",
            Truth::Yes,
        ),
        ("counter packets 3 bytes 180 accept", Truth::Yes),
        ("iifname \"eth0\" accept", Truth::CannotTell),
        ("-A f -i eth0 -j ACCEPT", Truth::CannotTell),
        ("meta mark 0x1 accept", Truth::CannotTell),
        ("limit rate 5/second accept", Truth::CannotTell),
        (
            "ip saddr . tcp dport { 10.0.0.2 . 80 } accept",
            Truth::CannotTell,
        ),
        (
            "-A f -m policy --dir in --pol none -j ACCEPT",
            Truth::CannotTell,
        ),
    ] {
        assert_eq!(
            Rule::of(text).may_match(&packet()),
            want,
            "{text}: {:?}",
            Rule::of(text)
        );
    }
    let known = packet()
        .with_device(Field::Incoming, "eth0")
        .with(Field::Mark, 0x11u32);
    for (text, want) in [
        ("-A f -i eth+ -j ACCEPT", Truth::Yes),
        ("-A f -i eth1 -j ACCEPT", Truth::No),
        ("iifname { \"eth1\", \"eth0\" } accept", Truth::Yes),
        ("-A f -m mark --mark 0x1/0xf -j ACCEPT", Truth::Yes),
        ("meta mark & 0x0000000f == 0x00000002 accept", Truth::No),
    ] {
        assert_eq!(
            Rule::of(text).may_match(&known),
            want,
            "{text}: {:?}",
            Rule::of(text)
        );
    }
    // A left-out rule may concern all packets of a net.
    let net = Packet::of(Family::V4)
        .with_address(Field::Source, "10.0.0.0/8".parse::<ipnet::IpNet>().unwrap());
    assert_eq!(
        Rule::of("ip saddr 10.7.0.0/16 drop").may_match(&net),
        Truth::CannotTell
    );
    assert_eq!(
        Rule::of("ip saddr 192.0.2.0/24 drop").may_match(&net),
        Truth::No
    );
    assert!(Rule::unknown().may_stop() && Rule::unknown().concerns(&net));
}
