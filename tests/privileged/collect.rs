//! The collector: what it takes from a namespace makes the same router again, under every shell, and
//! no secret leaves with it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
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
pub(crate) fn collect(netns: &NetnsFd, shell: &[&str], stubs: &Path) -> String {
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
    let warnings = facts.warnings.iter().filter(|warning| warning.matters());
    let matters = warnings.filter(|warning| !is_of_ip(warning));
    read.extend(matters.map(|warning| warning.message.clone()));
    read
}

/// Whether it is about what not every ip(8) shows: policies of IPsec, and all of a policy rule.
fn is_of_ip(warning: &Warning) -> bool {
    warning.message.contains("IPsec") || warning.message.contains("ip(8) of BusyBox")
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
        assert!(lost.iter().all(|warning| is_of_ip(warning)), "{lost:#?}");
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

/// What real tools print of keys when they are asked the wrong way, and files that nobody may read.
const PLANTED: [(&str, &str); 9] = [
    (
        "wireguard/wg0.conf",
        "PrivateKey = 5ec2e7WireguardPrivateKeyOfTheRouter0000000=",
    ),
    (
        "ipsec.secrets",
        "10.0.0.1 10.9.0.1 : PSK \"5ec2e7-ipsec-psk\"",
    ),
    ("swanctl/conf.d/vpn.conf", "secret = 5ec2e7-swanctl"),
    ("snmp/snmpd.conf", "rocommunity 5ec2e7-community 10.0.0.0/8"),
    (
        "snmp/snmpd.local.conf",
        "createUser admin SHA 5ec2e7-snmpv3",
    ),
    ("ppp/chap-secrets", "client * 5ec2e7-chap *"),
    ("openvpn/auth.txt", "user\n5ec2e7-openvpn"),
    ("racoon/psk.txt", "10.9.0.1 5ec2e7-racoon"),
    ("shadow", "root:5ec2e7-hash:19000:0:99999:7:::"),
];

/// wg(8) hides private and preshared keys from `show`, and prints them for `dump`, `showconf` and
/// single words; ip(8) prints the keys of `xfrm state`.
const WG: &str = r#"#!/bin/sh
case "$*" in
show) printf 'interface: wg0\n  public key: PUBLIC=\n  private key: (hidden)\n  listening port: 51820\n\npeer: PEER=\n  preshared key: (hidden)\n  endpoint: 10.9.0.1:51820\n  allowed ips: 10.9.0.0/16\n' ;;
*) printf 'wg0\t5ec2e7WireguardPrivateKey=\tPUBLIC=\t51820\toff\nPresharedKey = 5ec2e7Preshared=\n' ;;
esac
"#;
const IP: &str = r#"#!/bin/sh
case "$*" in
*xfrm*state*|*xfrm*monitor*) printf 'src 10.0.0.1 dst 10.9.0.1\n\tproto esp spi 0x00000100 reqid 0 mode tunnel\n\tauth-trunc hmac(sha256) 0x5ec2e70000000000000000000000000000000000000000000000000000000000 128\n\tenc cbc(aes) 0x5ec2e700112233445566778899aabbcc\n' ;;
*macsec*) printf '1: macsec0: protect on\n    0: PN 1, state on, key 5ec2e7\n' ;;
*) exec REAL "$@" ;;
esac
"#;

#[test]
fn no_key_password_or_community_leaves_the_router() {
    let place = Place::new();
    let netns = place.bed.netns("r");
    let stubs = place.dir.path().join("stubs");
    let etc = place.dir.path().join("etc");
    fs::create_dir(&stubs).unwrap();
    let real = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"];
    let real = real
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap();
    for (name, script) in [("wg", WG.to_owned()), ("ip", IP.replace("REAL", real))] {
        fs::write(stubs.join(name), script).unwrap();
        fs::set_permissions(stubs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    // A copy of /etc, with secrets where programs have them. An ordinary user may not read all of it, and
    // then it is not copied, as it would not be collected.
    let mut copy = Command::new("cp");
    copy.args(["-a", "/etc"]).arg(&etc).stderr(Stdio::null());
    copy.status().unwrap();
    assert!(etc.join("passwd").exists());
    for (file, secret) in PLANTED {
        let file = etc.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, secret).unwrap();
    }
    let mount = format!(
        "mount --bind {} /etc && exec sh -c \"$0\" sh r",
        etc.display()
    );
    let shell = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &mount,
    ];
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(shell[0]);
    command
        .args(&shell[1..])
        .arg(COLLECTOR)
        .env("PATH", format!("{}:{path}", stubs.display()));
    let text = ok(&netns.enter(|| command.output()).unwrap().unwrap());
    for wanted in [
        "public key: PUBLIC=",
        "allowed ips: 10.9.0.0/16",
        "COMPLETE",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(!text.contains("5ec2e7"), "{text}");
}

#[test]
fn what_nft_put_into_a_table_of_iptables_is_in_the_lab() {
    let (real, place) = (Place::new(), Place::new());
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p tcp --dport 22 -j DROP\nCOMMIT\n";
    let router = "\"interfaces\": [{\"name\": \"in\", \"addresses\": [\"10.0.0.1/24\"]},\n\
                  {\"name\": \"out\", \"addresses\": [\"10.9.0.1/24\"]}],\n\
                  \"iptables\": {\"file\": \"rules\"}";
    let facts = real.facts(&[("r", router)]);
    fs::write(facts.join("rules"), rules).unwrap();
    real.up(&facts);
    let native = "add chain ip filter own { type filter hook forward priority 5; }; \
                  add rule ip filter own tcp dport 443 drop";
    tool(&real.router("r"), "nft", &[native]);
    let text = collect(&real.router("r"), &["sh"], real.dir.path());
    let facts = place.dir.path().join("facts");
    fs::create_dir(&facts).unwrap();
    fs::write(facts.join("r_facts.txt"), text).unwrap();
    place.up(&facts);
    for lab in [&real, &place] {
        let said = answers(lab, "10.0.0.50", "10.9.0.60");
        let said: Vec<&str> = said.iter().map(|(_, verdict)| verdict.as_str()).collect();
        assert_eq!(said, ["NO", "YES", "NO", "YES", "YES", "YES"]);
    }
    place.down();
    real.down();
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
