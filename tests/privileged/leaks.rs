//! Many quick jobs one after the other: whatever a job makes, none of it stays.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tsim::{
    model::{IfName, RouterName},
    netlink::{
        Netlink,
        object::{Family, Neighbour},
    },
    netns::NetnsFd,
    registry::RegistryManager,
};

use crate::{
    quick::TestLab,
    support::{await_links, mounts},
};

const ROUTERS: [&str; 3] = ["r1", "r2", "r3"];

/// What jobs could leave behind, but for links.
#[derive(Debug, PartialEq)]
pub(crate) struct Remains {
    namespaces: Vec<String>,
    mounts: usize,
    pub(crate) neighbours: Vec<Vec<Neighbour>>,
    rulesets: Vec<String>,
    iptables: Vec<String>,
    pub(crate) registry_files: Vec<String>,
}

impl Remains {
    pub(crate) fn of(lab: &TestLab) -> Self {
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
pub(crate) fn iptables_save(lab: &TestLab, router: &str) -> String {
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
fn job(lab: &TestLab, config: &Path, number: usize) -> Output {
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
    log_balances(&lab, &config);
}

/// Whatever the log says that a run took, it says that the same run gave back: each host, lease and
/// neighbour entry, the routers as one, and one DSCP value.
fn log_balances(lab: &TestLab, config: &Path) {
    let lab_name = lab.bed.lab.as_str();
    let detailed = Command::new(env!("CARGO_BIN_EXE_tsim-detailed"))
        .arg("--config")
        .arg(config)
        .args(["--lab", lab_name, "-s", "10.81.1.10", "-d", "10.81.3.10"])
        .args(["-P", "22", "--routers", "r1", "--run-id", "detailed"])
        .output()
        .unwrap();
    assert_eq!(detailed.status.code(), Some(0), "{detailed:?}");
    let registry = RegistryManager::open(&lab.config).unwrap();
    let mut taken = BTreeMap::new();
    for entry in registry.log_tail(usize::MAX).unwrap() {
        let (object, verb) = entry.operation.split_once('.').unwrap();
        let change = match verb {
            "register" | "acquire" | "allocate" | "lock" => 1,
            "unregister" | "release" | "unlock" => -1,
            _ => continue,
        };
        let mut what = entry.details;
        what.as_object_mut().unwrap().remove("mode");
        let run = entry.run_id.unwrap().to_string();
        let key = (run, format!("{object} {what}"));
        let (times, balance) = taken.entry(key).or_insert((0, 0));
        *times += usize::from(change > 0);
        *balance += change;
    }
    let odd: Vec<_> = taken
        .iter()
        .filter(|(_, (_, balance))| *balance != 0)
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    let of = |run: &str, object: &str| {
        let of_run = taken
            .iter()
            .filter(|((of, what), _)| of == run && what.starts_with(object));
        of_run.map(|(_, (times, _))| *times).sum::<usize>()
    };
    assert_eq!(
        (of("row6", "dscp"), of("row6", "router")),
        (2, 2),
        "two jobs of that name"
    );
    assert_eq!((of("detailed", "dscp"), of("detailed", "router")), (0, 1));
    assert!(of("detailed", "neighbor_lease") + of("detailed", "host_lease") > 0);
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
