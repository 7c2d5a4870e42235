//! The collector: what it takes from a namespace makes the same router again, under every shell, and
//! no secret leaves with it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tsim::{
    lab::{
        facts::{COLLECTOR, load_file},
        topology::Warning,
    },
    netns::{NetnsDir, NetnsFd},
};

use crate::lab::{Place, fixture, tool};

fn ok(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs the script in `netns` by `shell`, with the tools of `stubs` before all others.
fn collect(netns: &NetnsFd, shell: &[&str], stubs: &Path) -> String {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(shell[0]);
    command
        .args(&shell[1..])
        .args(["-c", COLLECTOR, "sh", "r"])
        .env("PATH", format!("{}:{path}", stubs.display()));
    ok(&netns.enter(|| command.output()).unwrap().unwrap())
}

/// What is read from the script's output: interfaces, routes, policy rules, settings, rulesets.
fn read(dir: &Path, text: &str) -> Vec<String> {
    let file = dir.join("r_facts.txt");
    fs::write(&file, text).unwrap();
    let facts = load_file(&file).unwrap();
    let mut read = Vec::new();
    for interface in &facts.interfaces {
        let addresses: Vec<_> = interface
            .addresses
            .iter()
            .map(|a| a.local.to_string())
            .collect();
        let addresses = addresses.join(" ");
        read.push(format!("{} {} {addresses}", interface.name, interface.up));
    }
    // Not every ip(8) says which routes the kernel made from the addresses; it makes them anyway.
    let routes = facts.routes.iter();
    let made = routes.filter(|route| route.next_hops.iter().any(|hop| hop.via.is_some()));
    read.extend(made.map(|route| route.to_string()));
    read.extend(facts.rules.iter().map(|rule| rule.to_string()));
    read.extend(facts.sysctls.iter().map(|setting| format!("{setting:?}")));
    read.extend(facts.rulesets.iter().map(|ruleset| ruleset.text.clone()));
    // Not every ip(8) shows policies of IPsec.
    let warnings = facts.warnings.iter().filter(|warning| warning.matters());
    let matters = warnings.filter(|warning| !warning.message.contains("IPsec"));
    read.extend(matters.map(|warning| warning.message.clone()));
    read
}

#[test]
fn every_shell_collects_the_same_and_no_secret_leaves() {
    let place = Place::new();
    let netns = place.bed.netns("r");
    let stubs = place.dir.path();
    // Shows what the script asks of wg(8), whose other words print private keys.
    let wg = stubs.join("wg");
    fs::write(&wg, "#!/bin/sh\necho \"wg was asked: $*\"\n").unwrap();
    fs::set_permissions(&wg, fs::Permissions::from_mode(0o755)).unwrap();

    let run = |arguments: &str| tool(&netns, "ip", &arguments.split(' ').collect::<Vec<_>>());
    run("link add eth0 type veth peer name far");
    run("addr add 10.0.0.1/24 dev eth0");
    run("link set eth0 up");
    run("link set far up");
    run("route add default via 10.0.0.254");
    run("rule add fwmark 0x1 lookup 100 priority 5");
    run("route add 10.9.0.0/16 via 10.0.0.253 table 100");
    run(
        "xfrm policy add src 10.0.0.0/24 dst 10.9.0.0/24 dir out tmpl src 10.0.0.1 dst 10.9.0.1 proto \
        esp mode tunnel",
    );
    const SECRET: &str = "5ec2:5ec2:5ec2:5ec2:5ec2:5ec2:5ec2:5ec2";
    const COOKIE: &str = "5ec2e75e-c2e75ec2-e75ec2e7-5ec2e7f0";
    let set = |key: &str, value: &str| {
        let written = netns.enter(|| fs::write(format!("/proc/sys/net/{key}"), value));
        written.unwrap().unwrap();
    };
    set("ipv6/conf/eth0/stable_secret", SECRET);
    set("ipv4/tcp_fastopen_key", COOKIE);

    let first = collect(&netns, &["sh"], stubs);
    for shell in [&["dash"][..], &["busybox", "sh"], &["bash"]] {
        let text = collect(&netns, shell, stubs);
        assert_eq!(read(stubs, &text), read(stubs, &first), "{shell:?}");
        let (lab, facts) = (Place::new(), stubs.join(shell[0]));
        fs::create_dir(&facts).unwrap();
        fs::write(facts.join("r_facts.txt"), text).unwrap();
        let warnings = lab.up(&facts).lab.warnings.clone();
        let lost: Vec<_> = warnings
            .iter()
            .filter(|warning| warning.matters())
            .collect();
        let of_ipsec = |w: &&&Warning| w.message.contains("IPsec");
        assert_eq!(
            lost.iter().filter(of_ipsec).count(),
            lost.len(),
            "{lost:#?}"
        );
        lab.down();
    }
    for wanted in [
        "# Hostname: r\n",
        "10.9.0.0/16 via 10.0.0.253",
        "src 10.0.0.0/24 dst 10.9.0.0/24",
        "wg was asked: show\n",
        "net.ipv4.ip_forward = ",
        "COMPLETE",
    ] {
        assert!(first.contains(wanted), "{wanted}: {first}");
    }
    for secret in [SECRET, COOKIE, "5ec2"] {
        assert!(!first.contains(secret), "{secret}: {first}");
    }
    // What would print keys or read files of passwords.
    for word in [
        "xfrm state",
        "showconf",
        "dump",
        "private",
        "secrets",
        "snmp",
        "swanctl",
    ] {
        let code = COLLECTOR.lines().filter(|line| !line.starts_with('#'));
        assert!(!code.into_iter().any(|line| line.contains(word)), "{word}");
    }
}

/// What decides on a router, in the words of the tools.
fn decides(netns: &NetnsFd) -> Vec<(&'static str, Vec<String>)> {
    let lines = |tool_name: &str, arguments: &[&str]| {
        let text = tool(netns, tool_name, arguments);
        let says = |line: &&str| !line.starts_with('#') && !line.trim().is_empty();
        // Policies show counters; hash sizes follow the number of elements.
        let plain = |line: &str| {
            let line = line.split(" [").next().unwrap_or(line).trim().to_owned();
            line.split(" initval").next().unwrap_or_default().to_owned()
        };
        let mut lines: Vec<String> = text.lines().filter(says).map(plain).collect();
        if tool_name != "iptables-save" {
            lines.sort();
        }
        lines
    };
    vec![
        ("iptables", lines("iptables-save", &[])),
        ("ipset", lines("ipset", &["save"])),
        ("rules", lines("ip", &["rule", "show"])),
        (
            "routes",
            lines("ip", &["-o", "route", "show", "table", "all"]),
        ),
        ("addresses", lines("ip", &["-br", "addr", "show"])),
    ]
}

/// The answers of a quick job, from end to end.
fn answers(place: &Place, from: &str, to: &str) -> Vec<(Value, String)> {
    let output = place.run(
        env!("CARGO_BIN_EXE_tsim-quick"),
        &[
            "--lab",
            place.name().as_str(),
            "-s",
            from,
            "-d",
            to,
            "-P",
            "22,80,443,3306/tcp,53,161/udp",
            "--json",
        ],
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ends = report["end_to_end"].as_array().unwrap();
    ends.iter()
        .map(|end| {
            (
                end["port"].clone(),
                end["result"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

#[test]
fn what_is_collected_from_a_lab_makes_the_same_lab() {
    let (first, second) = (Place::new(), Place::new());
    let up = first.up(&fixture("corp10"));
    let facts = second.dir.path().join("facts");
    fs::create_dir(&facts).unwrap();
    let names: Vec<String> = up
        .lab
        .routers
        .iter()
        .map(|router| router.name.to_string())
        .collect();
    for name in &names {
        let netns = first.bed.name(name).to_string();
        let text = ok(&first.tsim(&["facts", "collect", "--netns", &netns]));
        fs::write(facts.join(format!("{name}_facts.txt")), text).unwrap();
    }
    let again = second.up(&facts);
    let lost: Vec<_> = again
        .lab
        .warnings
        .iter()
        .filter(|warning| warning.matters())
        .collect();
    assert!(lost.is_empty(), "{lost:#?}");
    for name in &names {
        for (one, other) in decides(&first.router(name))
            .iter()
            .zip(decides(&second.router(name)))
        {
            assert_eq!(*one, other, "{name}");
        }
    }
    for (from, to) in [
        ("10.3.10.50", "10.2.1.60"),
        ("10.1.10.50", "10.2.5.60"),
        ("10.2.5.50", "10.1.11.60"),
    ] {
        for (one, other) in answers(&first, from, to)
            .iter()
            .zip(answers(&second, from, to))
        {
            // What the first lab lacks of its facts, the second one never had.
            assert!(
                *one == other || one.1 == "UNKNOWN",
                "{from} {to}: {one:?} {other:?}"
            );
        }
    }
    second.down();
    first.down();
}

#[test]
fn a_new_user_comes_from_nothing_to_a_verdict() {
    let place = Place::new();
    let bin = Path::new(env!("CARGO_BIN_EXE_tsim")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("sh");
    command
        .arg(fixture("new-user.sh"))
        .arg("--config")
        .arg(place.config_file())
        .env("PATH", format!("{}:{path}", bin.display()));
    let output = command.output().unwrap();
    let text = ok(&output);
    for wanted in [
        "1 routers: 0 that can change verdicts",
        "443/tcp arrives",
        "22/tcp stops first at fw",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let names = NetnsDir::default().list().unwrap();
    assert!(
        !names.iter().any(|name| name.as_str().contains("by-hand")),
        "{names:?}"
    );
}
