//! The programs that load rulesets, each replaced by one that tries to get out.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use tsim::{
    config::Config,
    lab::{LabError, UpOptions},
    netns::shut_in::landlock_version,
};

use crate::lab::Place;

/// Tries what no loader of rulesets has to do, says how each went, and fails.
const HOSTILE: &str = r#"#!/usr/bin/perl
use Socket;
sub attempt { my ($name, $done) = @_; print STDERR "$name=", ($done ? "done" : "failed"), ";"; }
attempt("read", open(my $a, "<", "DIR/decoy"));
attempt("shadow", open(my $b, "<", "/etc/shadow"));
attempt("append", open(my $c, ">>", "DIR/decoy"));
attempt("create", open(my $d, ">", "DIR/new"));
attempt("tool", open(my $e, ">>", $0));
attempt("remove", unlink("DIR/decoy"));
attempt("rename", rename("DIR/decoy", "DIR/other"));
attempt("mkdir", mkdir("DIR/made"));
attempt("list", opendir(my $f, "DIR"));
attempt("sysctl", open(my $g, ">", "/proc/sys/kernel/hostname"));
attempt("environ", open(my $h, "<", "/proc/PARENT/environ"));
attempt("netns", open(my $i, "<", "/run/netns/LAB.r"));
attempt("localhost", defined gethostbyname("localhost"));
attempt("name", defined gethostbyname("gw.example.org"));
attempt("tcp", socket(my $j, PF_INET, SOCK_STREAM, 0));
attempt("udp", socket(my $k, PF_INET6, SOCK_DGRAM, 0));
attempt("unix", socket(my $l, PF_UNIX, SOCK_STREAM, 0));
socket(my $m, PF_INET, SOCK_RAW, 255);
attempt("connect", $m && connect($m, pack_sockaddr_in(0, inet_aton("127.0.0.1"))));
my $child = fork;
exit 0 if defined $child && $child == 0;
attempt("fork", defined $child);
attempt("run", system("/bin/true") == 0);
attempt("kill", kill(0, PARENT));
my ($none, $run, $tmpfs) = ("none", "/run", "tmpfs");
attempt("mount", syscall(MOUNT, $none, $run, $tmpfs, 0, $none) == 0);
attempt("owner", chown(1, 1, "/run/names.0"));
exit 1;
"#;

/// What only Landlock keeps from succeeding, as root.
const BY_LANDLOCK: [&str; 10] = [
    "read", "shadow", "append", "create", "tool", "remove", "rename", "mkdir", "list", "environ",
];

#[test]
fn no_loader_gets_out() {
    let lacks: &[&str] = match landlock_version() {
        Some(6..) => &[],
        Some(_) => &["kill"],
        None => &BY_LANDLOCK,
    };
    let with = |key, legacy| {
        (
            key,
            UpOptions {
                legacy,
                ..UpOptions::default()
            },
        )
    };
    for (key, options) in [
        with("ipset", false),
        with("nft", false),
        with("iptables", false),
        with("ip6tables", false),
        with("iptables", true),
        with("ip6tables", true),
    ] {
        let said = what_a_hostile_loader_says(key, options);
        let attempts: Vec<_> = said.split(';').filter_map(|a| a.split_once('=')).collect();
        assert_eq!(attempts.len(), 23, "{said}");
        for (name, how) in attempts {
            let name = name.rsplit([' ', '\n']).next().unwrap_or(name);
            let allowed = lacks.contains(&name) || (name == "kill" && lacks.len() > 1);
            assert!(how == "failed" || allowed, "{key}: {name} {how}: {said}");
        }
    }
}

fn what_a_hostile_loader_says(key: &str, options: UpOptions) -> String {
    let mut place = Place::new();
    let dir = place.dir.path().to_owned();
    fs::write(dir.join("decoy"), "as it was").unwrap();
    place.config = with_hostile_tools(&place, &dir.join("tools"));
    let text = match key {
        "ipset" => "create a hash:ip\n",
        "nft" => "table ip x {\n}\n",
        _ => "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n",
    };
    let facts = place.facts(&[(
        "r",
        &format!("\"{key}\": {}", serde_json::Value::from(text)),
    )]);
    let said = match place.up_with(&facts, options) {
        Err(LabError::NotMade {
            cause, failures, ..
        }) => {
            assert!(failures.is_empty(), "{failures:?}");
            cause.to_string()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(fs::read_to_string(dir.join("decoy")).unwrap(), "as it was");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    names.retain(|name| name != "labs" && name != "registry");
    assert_eq!(names, ["decoy", "facts", "tools"]);
    place.assert_nothing_left();
    said
}

fn with_hostile_tools(place: &Place, tools: &Path) -> Config {
    fs::create_dir(tools).unwrap();
    let text = HOSTILE
        .replace("DIR", &place.dir.path().display().to_string())
        .replace("MOUNT", &libc::SYS_mount.to_string())
        .replace("PARENT", &std::process::id().to_string())
        .replace("LAB", place.name().as_str());
    for name in [
        "ipset",
        "nft",
        "iptables-nft-restore",
        "ip6tables-nft-restore",
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
    ] {
        let file = tools.join(name);
        fs::write(&file, &text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Config {
        tool_dirs: vec![tools.to_owned()],
        ..place.config.clone()
    }
}
