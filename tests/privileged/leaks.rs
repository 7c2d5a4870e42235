//! Many quick jobs one after the other: whatever a job makes, none of it stays.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use tsim::{
    model::{IfName, RouterName},
    netlink::{
        Netlink,
        object::{Family, Neighbour},
    },
    netns::NetnsFd,
};

use crate::{
    quick::TestLab,
    support::{await_links, mounts},
};

const ROUTERS: [&str; 3] = ["r1", "r2", "r3"];

/// What jobs could leave behind, but for links.
#[derive(Debug, PartialEq)]
struct Remains {
    namespaces: Vec<String>,
    mounts: usize,
    neighbours: Vec<Vec<Neighbour>>,
    rulesets: Vec<String>,
    iptables: Vec<String>,
    registry_files: Vec<String>,
}

impl Remains {
    fn of(lab: &TestLab) -> Self {
        let neighbours = |router: &str| {
            let mut netlink = Netlink::open(&netns(lab, router)).unwrap();
            let mut all = netlink.neighbours(Family::V4).unwrap();
            all.extend(netlink.neighbours(Family::V6).unwrap());
            all
        };
        Self {
            namespaces: lab.bed.left().iter().map(ToString::to_string).collect(),
            mounts: mounts(lab.bed.lab.as_str()).len(),
            neighbours: ROUTERS.map(neighbours).into(),
            rulesets: ROUTERS.map(|r| crate::quick::ruleset(lab, r)).into(),
            iptables: ROUTERS.map(|r| iptables_save(lab, r)).into(),
            registry_files: files(lab.config.registry_dir.clone()),
        }
    }
}

fn netns(lab: &TestLab, router: &str) -> NetnsFd {
    let router = RouterName::new(router).unwrap();
    lab.lab.router_netns(&router).unwrap()
}

/// The rules that iptables knows, of either variant.
fn iptables_save(lab: &TestLab, router: &str) -> String {
    let save = || {
        let text = |tool: &str| {
            let output = Command::new(format!("/usr/sbin/{tool}")).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let rules = text.lines().filter(|line| line.starts_with("-A"));
            rules.map(|rule| format!("{rule}\n")).collect::<String>()
        };
        text("iptables-nft-save") + &text("iptables-legacy-save")
    };
    netns(lab, router).enter(save).unwrap()
}

/// All files below `dir`, by path.
fn files(dir: PathBuf) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.display().to_string());
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

fn links(netns: &NetnsFd) -> Vec<IfName> {
    let links = Netlink::open(netns).unwrap().links().unwrap();
    links.into_iter().map(|link| link.name).collect()
}

/// One job of several kinds, told apart by `number`.
fn job(lab: &TestLab, config: &std::path::Path, number: usize) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
    command.arg("--config").arg(config);
    command.args(["--lab", lab.bed.lab.as_str()]);
    command.args(["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "22,23,53/udp"]);
    command.args(["--run-id", &format!("row{number}")]);
    match number % 10 {
        3 => command.args(["--routers", "r2", "--explain", "always"]),
        // Installing through iptables takes ten times as long.
        6 => command.args(["--routers", "r1", "--backend", "iptables-nft"]),
        _ => command.args(["--routers", "r1,r2,r3", "--explain", "never"]),
    };
    command.output().unwrap()
}

fn in_a_row(count: usize) {
    let lab = TestLab::up("small3");
    let config = lab.config_file();
    let segments = lab.lab.segments_netns().unwrap();
    let links = links(&segments);
    // The first jobs make the registry's files, and iptables its empty tables.
    (0..10).for_each(|number| drop(job(&lab, &config, number)));
    let before = Remains::of(&lab);
    for number in 0..count {
        let output = job(&lab, &config, number);
        assert_eq!(output.status.code(), Some(1), "job {number}: {output:?}");
    }
    await_links(&segments, &links);
    assert_eq!(Remains::of(&lab), before);
}

#[test]
fn many_jobs_in_a_row_leave_nothing() {
    in_a_row(50);
}

#[test]
#[ignore = "takes a minute: cargo test --test privileged -- --ignored thousand"]
fn a_thousand_jobs_in_a_row_leave_nothing() {
    in_a_row(1000);
}
