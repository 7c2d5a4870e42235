//! What the kernels offer is what the table in `vagrant/kernels.toml` says.

use std::{collections::BTreeMap, fs, net::UdpSocket, process::Command, sync::LazyLock};

use serde::Deserialize;
use tsim::{
    config::Config,
    doctor::{self, Area, Check, Presence, Report},
    firewall::{
        Runs, TagSpace, Taps,
        nft::{NftSocket, NftTaps, Ownership},
    },
    model::{Dscp, Protocol, RunId},
    netlink::object::Family,
    netns,
};

use crate::support::Bed;

const TABLE: &str = include_str!("../../vagrant/kernels.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "works-on")]
    works_on: BTreeMap<String, String>,
}

/// One examination for all tests: it runs some tools, which is slow on emulated processors.
static EXAMINED: LazyLock<Examined> = LazyLock::new(|| {
    let before = own_namespace();
    let report = doctor::examine(&Config::default());
    Examined {
        before,
        report,
        after: own_namespace(),
    }
});

struct Examined {
    before: (String, usize),
    report: Report,
    after: (String, usize),
}

fn report() -> &'static Report {
    &EXAMINED.report
}

/// Whether the running kernel has owner tables.
pub(crate) fn owner_tables() -> bool {
    report().check(Area::Kernel, "owner_tables").unwrap().state == Presence::Yes
}

/// Whether the running kernel is one of Debian's, whose modules are known.
pub(crate) fn is_debian() -> bool {
    report().kernel_version.contains("Debian")
}

/// Whether the running kernel lets rules write this part of IP's header, `ip6 flowlabel`: a packet that a rule
/// drops behind such a write comes to nobody.
pub(crate) fn lets_write(part: &str) -> bool {
    let (table, itself) = match part.split(' ').next() {
        Some("ip") => ("ip", "127.0.0.1:0"),
        _ => ("ip6", "[::1]:0"),
    };
    // Of one byte and the header of UDP.
    let rule = format!("udp length 9 {part} set 0 drop");
    let rules =
        format!("table {table} t {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}");
    let try_out = || {
        for (tool, arguments) in [("ip", &["link", "set", "lo", "up"][..]), ("nft", &[&rules])] {
            let run = Command::new(tool).args(arguments).output().unwrap();
            assert!(run.status.success(), "{run:?}");
        }
        let socket = UdpSocket::bind(itself).unwrap();
        for packet in [&[1][..], &[1, 2]] {
            let sent = socket.send_to(packet, socket.local_addr().unwrap());
            assert_eq!(sent.unwrap(), packet.len());
        }
        // The second one comes whatever becomes of the first.
        socket.recv(&mut [0; 2]).unwrap() == 2
    };
    netns::in_scratch(try_out).unwrap()
}

/// Unloads modules of tunnels. Tests behind that make namespaces that have but their loopback, and while
/// these modules are there each has `gre0`, `sit0` and the like.
pub(crate) fn unload(modules: &[&str]) {
    let removed = Command::new("modprobe").arg("-r").args(modules).output();
    let removed = removed.unwrap();
    assert!(removed.status.success(), "{removed:?}");
}

/// What a quick job says of each of `routers` on a kernel without owner tables.
pub(crate) fn taps_stay(routers: &[&str]) -> Vec<String> {
    let said = |router: &&str| {
        format!(
            "{router}: taps of this back end stay in the router if the job is killed, until the \
             next job or `tsim reconcile` sweeps them"
        )
    };
    let routers = if owner_tables() { &[] } else { routers };
    routers.iter().map(said).collect()
}

/// What a detailed job says of each of `routers` on a kernel without owner tables.
pub(crate) fn traces_stay(routers: &[&str]) -> Vec<String> {
    let said = |router: &&str| {
        format!(
            "router {router}: traces of this kernel stay in the router if the job is killed, \
             until the next job or `tsim reconcile` sweeps them"
        )
    };
    let routers = if owner_tables() { &[] } else { routers };
    routers.iter().map(said).collect()
}

/// The tables and the number of links of the machine's own namespace.
fn own_namespace() -> (String, usize) {
    let links = fs::read_to_string("/proc/net/dev").unwrap();
    (list_tables(), links.lines().count())
}

fn list_tables() -> String {
    let mut list = Command::new("nft");
    let listing = list.args(["list", "tables"]).output().unwrap();
    assert!(listing.status.success(), "{listing:?}");
    String::from_utf8(listing.stdout).unwrap()
}

/// Major and minor number at the head of a release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

/// The kernel of the table that `release` is judged by.
fn judged_by(table: &Table, release: &str) -> String {
    let kernels = table
        .works_on
        .values()
        .flat_map(|kernels| kernels.split_whitespace());
    kernels
        .filter(|kernel| version(kernel) <= version(release))
        .max_by_key(|kernel| version(kernel))
        .unwrap_or_else(|| panic!("kernel {release} is older than every one of the table"))
        .to_owned()
}

fn kernel_checks(report: &Report) -> impl Iterator<Item = &Check> {
    report
        .checks
        .iter()
        .filter(|check| check.area == Area::Kernel)
}

#[test]
fn every_feature_is_found_to_be_there_or_not() {
    let report = report();
    let unknown: Vec<String> = kernel_checks(report)
        .filter(|check| check.state == Presence::Unknown)
        .map(|check| format!("{}: {}", check.name, check.found))
        .collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The features that were looked for, and whether each is there.
fn found(report: &Report) -> BTreeMap<&str, bool> {
    kernel_checks(report)
        .map(|check| (check.name.as_str(), check.state == Presence::Yes))
        .collect()
}

#[test]
fn the_table_lists_the_features_that_are_looked_for() {
    let report = report();
    let table: Table = toml::from_str(TABLE).unwrap();
    let listed: Vec<&str> = table.works_on.keys().map(String::as_str).collect();
    let looked_for: Vec<&str> = found(report).into_keys().collect();
    assert_eq!(listed, looked_for);
}

#[test]
fn kernels_of_debian_offer_what_the_table_says() {
    let report = report();
    // Others configure their kernels as they like: there is nothing to compare with.
    if !is_debian() {
        return;
    }
    let table: Table = toml::from_str(TABLE).unwrap();
    let kernel = judged_by(&table, &report.kernel);
    let works = |kernels: &str| kernels.split_whitespace().any(|k| k == kernel);
    let found = found(report);
    let differing: Vec<String> = table
        .works_on
        .iter()
        .map(|(name, kernels)| (name, works(kernels)))
        .filter(|(name, works)| found.get(name.as_str()) != Some(works))
        .map(|(name, works)| {
            let words = report.check(Area::Kernel, name).map(|check| &check.found);
            format!("{name}: the table says {works}, the kernel {words:?}")
        })
        .collect();
    assert!(
        differing.is_empty(),
        "kernel {} is not as vagrant/kernels.toml says of {kernel}: {differing:#?}",
        report.kernel
    );
}

/// Whether the taps of a job that died without removing them are gone must be what the kernel
/// offers, and be what the taps said when they were put up.
#[test]
fn taps_go_with_their_job_exactly_where_there_are_owner_tables() {
    let report = report();
    let owner_tables = report.check(Area::Kernel, "owner_tables").unwrap();
    let bed = Bed::new();
    let router = bed.netns("r1");
    let taps = Taps::new(
        RunId::new("dead").unwrap(),
        Family::V4,
        TagSpace::new(Dscp::new(32).unwrap(), 1),
        (1, Runs::new(&[(Protocol::Tcp, 1)])),
    );
    let socket = router.enter(NftSocket::open_here).unwrap().unwrap();
    let installed = NftTaps::install(socket, taps).unwrap();
    let owned = installed.ownership() == Ownership::Owned;
    assert_eq!(owned, owner_tables.state == Presence::Yes);
    assert!(router.enter(list_tables).unwrap().contains("tsim_dead"));
    // What the kernel does when the process dies.
    drop(installed);
    assert_eq!(
        router.enter(list_tables).unwrap().contains("tsim_dead"),
        !owned
    );
}

#[test]
fn the_doctors_probes_leave_nothing_in_the_machines_own_namespace() {
    assert_eq!(EXAMINED.before, EXAMINED.after);
}

#[test]
fn an_unlisted_kernel_is_judged_by_the_newest_before_it() {
    let table: Table = toml::from_str(TABLE).unwrap();
    for (release, kernel) in [
        ("5.10.0-46-cloud-amd64", "5.10"),
        ("6.1.0-56-amd64", "6.1"),
        ("6.8.2", "6.1"),
        ("6.12.117+deb13-cloud-amd64", "6.12"),
        ("7.9.1", "7.2"),
    ] {
        assert_eq!(judged_by(&table, release), kernel, "{release}");
    }
}
