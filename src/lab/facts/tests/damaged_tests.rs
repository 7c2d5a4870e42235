//! Facts that lack something by what their own file says.

use super::*;
use crate::lab::omission::Extent;

/// Facts with one section more, whose command this was.
fn with(name: &str, command: &str, body: &str) -> RouterFacts {
    let section = section(name, "", body).replace("COMMAND: x", &format!("COMMAND: {command}"));
    read(&(minimal("") + &section))
}

/// The omissions of some facts that the same without a doubt have not.
fn doubts(facts: &RouterFacts) -> Vec<String> {
    let matter = facts
        .warnings
        .iter()
        .filter(|w| w.matters() && w.origin.line > 0);
    matter.map(ToString::to_string).collect()
}

#[test]
fn what_a_damaged_file_may_have_had_is_missing() {
    let save = section("iptables_save", "", "*filter\n:FORWARD DROP [0:0]\nCOMMIT");
    let nft = section("nft_ruleset", "", "");
    assert_eq!(doubts(&read(&(minimal("") + &save + &nft))), [""; 0]);
    let indented: String = save.lines().map(|line| format!("    {line}\n")).collect();
    let quoted: String = save.lines().map(|line| format!("> {line}\n")).collect();
    for (text, why) in [
        (indented + &nft, "mark of a section"),
        (quoted + &nft, "mark of a section"),
        (
            save.replace("EXIT_CODE: 0", "EXIT_CODE: 0\n*mangle") + &nft,
            "behind EXIT_CODE",
        ),
        (
            save.replace("EXIT_CODE: 0", "EXIT_CODE: x") + &nft,
            "no line of iptables-save",
        ),
        (
            save.clone() + &nft + &save.replace("DROP", "ACCEPT"),
            "a second section `iptables_save`",
        ),
    ] {
        let said = doubts(&read(&(minimal("") + &text)));
        assert!(said.iter().any(|said| said.contains(why)), "{text}{said:?}");
    }
    assert_eq!(
        doubts(&read(&(minimal("") + &save + &save + &nft))),
        [""; 0]
    );
    // A message of the day is no section.
    let greeting = read(&("Welcome\n".to_owned() + &minimal("") + &save + &nft));
    assert_eq!(doubts(&greeting), [""; 0]);
    assert!(
        messages(&greeting, Severity::Notice)
            .iter()
            .any(|n| n.contains("outside"))
    );
}

#[test]
fn what_the_collector_promised_as_its_last_line_is_wanted() {
    let head = COLLECTOR
        .lines()
        .find(|line| line.contains("# Hostname"))
        .unwrap();
    let head = head
        .split('\'')
        .nth(1)
        .unwrap()
        .replace("\\n", "\n")
        .replace("%s", "r");
    let whole = head + &minimal("") + "=== TSIM_FACTS_COLLECTION_COMPLETE ===\n";
    assert_eq!(doubts(&read(&whole)), [""; 0]);
    let cut = whole.replace("=== TSIM_FACTS_COLLECTION_COMPLETE ===\n", "");
    assert!(doubts(&read(&cut))[0].contains("the file was cut"));
}

#[test]
fn a_command_that_shows_a_part_leaves_the_rest_unknown() {
    let nft = "table inet t {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}";
    let save = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT";
    for (name, command, body) in [
        ("nft_ruleset", "nft list chains", nft),
        ("nft_ruleset", "sudo nft list table inet t", nft),
        ("nft_ruleset", "nft list ruleset inet", nft),
        ("nft_ruleset", "nft -t list ruleset", nft),
        ("nft_ruleset", "nft list ruleset -nt", nft),
        ("nft_ruleset", "nft list ruleset | head -50", nft),
        ("iptables_save", "iptables-save -t filter", save),
        ("iptables_save", "iptables-save | grep FORWARD", save),
        ("iptables_save", "iptables -S FORWARD", "-P FORWARD ACCEPT"),
        ("iptables_save", "iptables -S", "-P FORWARD ACCEPT"),
        (
            "routing_table_100",
            "ip route show table 100 proto static",
            "",
        ),
        ("policy_rules", "ip rule show table 100", ""),
        ("policy_rules", "ip rule | /bin/grep 100", ""),
    ] {
        let said = doubts(&with(name, command, body));
        assert!(
            said.iter().any(|said| said.contains("a part")),
            "{command}: {said:?}"
        );
    }
    for (name, command, body) in [
        ("nft_ruleset", "ssh r 'nft -a -s list ruleset' 2>&1", nft),
        ("nft_ruleset", "nft -t list ruleset", "table inet t {\n}"),
        ("iptables_save", "sudo iptables-save -c | tee x", save),
        (
            "routing_table_100",
            "/sbin/ip -4 -o route show table 100",
            "",
        ),
        ("policy_rules", "ip -4 rule show", ""),
    ] {
        assert_eq!(doubts(&with(name, command, body)), [""; 0], "{command}");
    }
}

#[test]
fn the_tables_that_a_listing_does_not_show_are_known_from_elsewhere_or_missing() {
    let listing = section(
        "iptables_save",
        "",
        "-P FORWARD ACCEPT -c 12 34\n-N x -c 1 2\n-A FORWARD -p tcp -c 3 4 -j x",
    );
    let read = |more: &[(&str, &str)]| {
        let more: String = more
            .iter()
            .map(|(name, body)| section(name, "", body))
            .collect();
        read(&(minimal("") + &listing + &more))
    };
    for (more, known) in [
        (
            vec![(
                "nft_ruleset",
                "table ip filter {\n\tchain FORWARD {\n\t}\n}",
            )],
            true,
        ),
        (vec![("loaded_modules", "ip_tables\niptable_filter")], true),
        (
            vec![("loaded_modules", "iptable_filter\niptable_nat")],
            false,
        ),
        (vec![("nft_ruleset", "")], false),
    ] {
        let facts = read(&more);
        let said = doubts(&facts);
        let part = said.iter().any(|said| said.contains("has one table"));
        assert_eq!(part, !known, "{said:?}");
        let text = &facts.rulesets[0].text;
        let want = "*filter\n:FORWARD ACCEPT [0:0]\n:x - [0:0]\n-A FORWARD -p tcp -j x\nCOMMIT\n";
        assert_eq!(text, want);
    }
}

#[test]
fn sets_that_a_listing_does_not_show_whole_are_not_made() {
    let set = |name: &str, end: &str| {
        format!(
            "Name: {name}\nType: hash:net\nRevision: 7\nHeader: family inet\nSize in memory: 9\n\
                 References: 1\n{end}\n\n"
        )
    };
    let body = set(
        "whole",
        "Number of entries: 1\nMembers:\n10.1.0.0/24 comment \"x\"",
    ) + &set("old", "Members:\n10.1.0.0/24")
        + &set("cut", "Number of entries: 3\nMembers:\n10.1.0.0/24")
        + &set("terse", "Number of entries: 3");
    let facts = with("ipset_save", "ipset list", &body);
    let made: Vec<&str> = facts.rulesets[0]
        .text
        .lines()
        .filter(|l| !l.is_empty())
        .collect();
    let want = [
        "create whole hash:net family inet",
        "add whole 10.1.0.0/24 comment \"x\"",
        "create old hash:net family inet",
        "add old 10.1.0.0/24",
    ];
    assert_eq!(made, want);
    let lost: Vec<_> = facts
        .warnings
        .iter()
        .filter(|w| w.message.contains("elements of set"))
        .collect();
    let said = |at: usize, what: &str| assert!(lost[at].message.contains(what), "{}", lost[at]);
    said(0, "1 of 3 elements of set cut");
    said(1, "0 of 3 elements of set terse");
}

#[test]
fn forwarding_that_cannot_be_read_is_not_taken_for_granted() {
    let named = with(
        "ip_forwarding",
        "sysctl net.ipv4.ip_forward",
        "net.ipv4.ip_forward = 0",
    );
    assert_eq!(named.sysctl("net/ipv4/ip_forward"), Some("0"));
    assert_eq!(doubts(&named), [""; 0]);
    for (name, text) in [
        ("ip_forwarding", "0 (disabled)"),
        ("ip_forwarding", "net.ipv4.tcp_syncookies = 0"),
        ("sysctl", "/proc/sys/net/ipv4/ip_forward:0"),
        (
            "sysctl",
            "sysctl: permission denied on key net.ipv4.conf.all.rp_filter",
        ),
    ] {
        assert_eq!(doubts(&with(name, "x", text)).len(), 1, "{text}");
    }
    let secret = "sysctl: permission denied on key 'net.ipv4.tcp_fastopen_key'";
    assert_eq!(doubts(&with("sysctl", "sysctl -a", secret)), [""; 0]);
}

#[test]
fn what_a_terminal_adds_is_taken_away() {
    let rules = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT";
    let whole = minimal("10.9.0.0/16 via 10.0.0.2 dev eth0") + &section("iptables_save", "", rules);
    let coloured = whole.replace("10.9.0.0/16", "\u{1b}[01;35m10.9.0.0/16\u{1b}[0m\u{1b}[K");
    let coloured = coloured.replace("eth0:", "\u{1b}[36meth0: \u{1b}[m");
    for text in [
        coloured,
        whole.replace('\n', "\r\n"),
        whole.replace('\n', "\r\r\n"),
        whole.replace(rules, &rules.replace('\n', "\r")),
    ] {
        let dir = dir_with(&[("r.txt", text.as_bytes())]);
        let facts = load_file(&dir.path().join("r.txt")).unwrap();
        assert_eq!(facts.rulesets[0].text.trim_end(), rules, "{text:?}");
        assert_eq!(
            (facts.routes.len(), facts.interfaces.len()),
            (1, 2),
            "{text:?}"
        );
    }
    // Other sequences do more than to colour, and stay to be refused.
    let dir = dir_with(&[(
        "r.txt",
        whole.replace("-j ACCEPT", "\u{1b}[2J -j ACCEPT").as_bytes(),
    )]);
    let facts = load_file(&dir.path().join("r.txt")).unwrap();
    assert!(facts.rulesets[0].text.contains('\u{1b}'));
}

#[test]
fn a_route_whose_destination_cannot_be_read_may_lead_anywhere() {
    let facts = read(&minimal(
        "10.7.0.0/16x via 10.0.0.2 dev eth0\nblackhole 10.8.0.0/16 via x",
    ));
    let known: Vec<_> = facts
        .lost_routes
        .iter()
        .map(|lost| lost.route.as_ref())
        .collect();
    assert_eq!(known[0], None, "its gateway is no destination");
    assert_eq!(known[1].unwrap().destination.to_string(), "10.8.0.0/16");
}

#[test]
fn a_program_of_an_interface_is_seen_in_every_form() {
    for form in ["xdp/id:15", "xdpgeneric/id:7", "xdp", "xdpoffload/id:2"] {
        let text = minimal("").replace(
            "eth1: <BROADCAST,UP> mtu 1500",
            &format!("eth1: <BROADCAST,UP> mtu 1500 {form} qdisc mq"),
        );
        let said = doubts(&read(&text));
        assert!(
            said.len() == 1 && said[0].contains("eth1"),
            "{form}: {said:?}"
        );
    }
    let shown = with(
        "bpftool_net",
        "bpftool net show",
        "xdp:\neth0(2) driver id 15\n\ntc:\n",
    );
    assert!(doubts(&shown)[0].contains("BPF"));
    let none = with(
        "bpftool_net",
        "bpftool net show",
        "xdp:\n\ntc:\n\nflow_dissector:\n",
    );
    assert_eq!(doubts(&none), [""; 0]);
}

#[test]
fn a_route_into_a_tunnel_of_its_own_is_missed_by_its_packets_alone() {
    // iproute2 6.1 prints a second `dst` into the same object.
    let json = r#"[{"dst":"10.9.8.0/24","gateway":"10.0.0.3","dev":"eth0","flags":[]},
        {"dst":"10.9.0.0/16","encap":"ip","id":7,"src":"0.0.0.0","dst":"10.0.0.77","ttl":0,"tos":0,
        "gateway":"10.0.0.2","dev":"eth0","flags":[]}]"#;
    let text = |encap: &str| {
        format!(
            "10.9.8.0/24 via 10.0.0.3 dev eth0\n10.9.0.0/16  encap {encap} via 10.0.0.2 dev eth0 "
        )
    };
    for routes in [
        json.to_owned(),
        text("ip id 7 src 0.0.0.0 dst 10.0.0.77 ttl 0 tos 0"),
        text("mpls  100/200"),
        text("seg6 mode encap segs 1 [ fc00::9 ]"),
        text("seg6local action End.DX4 nh4 10.0.0.77"),
        text("bpf in object-file x section y"),
    ] {
        let topology = crate::lab::topology::build(vec![read(&minimal(&routes))]);
        let mut about = topology
            .warnings
            .iter()
            .filter(|w| w.message.contains("encap"));
        let omission = about.next().unwrap().omission.as_ref().unwrap();
        let Ok([Extent::Packets(packets)]) = <&[Extent; 1]>::try_from(&omission.concern.0[..])
        else {
            panic!("{routes}: {omission:?}");
        };
        let to = packets.to.as_ref().unwrap();
        assert_eq!(to.within.to_string(), "10.9.0.0/16", "{routes}");
        assert_eq!(to.except.len(), 1, "{to:?}");
        assert_eq!(to.except[0].to_string(), "10.9.8.0/24", "{routes}");
        assert_eq!((packets.protocol, &packets.from), (None, &None));
        assert_eq!(about.next(), None);
    }
}

#[test]
fn routes_that_were_set_off_are_routes_of_their_own() {
    let facts = read(&minimal(
        "  10.7.0.0/16 via 10.0.0.2 dev eth0\n  10.8.0.0/16\n  \tnexthop via 10.0.0.2 dev eth0 weight 1\n  \t\
         nexthop via 10.0.0.3 dev eth0 weight 1\n  blackhole 10.9.0.0/16",
    ));
    let shown: Vec<_> = facts
        .routes
        .iter()
        .map(|route| (route.destination.to_string(), route.next_hops.len()))
        .collect();
    let want = [("10.7.0.0/16", 1), ("10.8.0.0/16", 2), ("10.9.0.0/16", 0)];
    assert_eq!(shown, want.map(|(to, hops)| (to.to_owned(), hops)));
}
