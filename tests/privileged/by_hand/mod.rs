//! Jobs against plain hosts, in networks that tsim had no part in making.
//!
//! Each case of `netns-fixtures/by-hand` builds a network with ip(8), nft(8) and iptables(8), has
//! its facts collected as an operator would, and asks both jobs in the lab that comes of them. What
//! is true is measured in the hand-made network itself: a plain host connects, and the frames that
//! come to the destination are captured.

pub(crate) mod network;

use std::{fs, os::unix::fs::symlink, path::Path, process::Output};

use serde::Deserialize;
use serde_json::Value;

use self::network::{Network, Reached};
use crate::{
    beside,
    kernels::{is_debian, unload},
    lab::{Place, fixture},
};

/// Cases of a file: their packets that do not arrive take a second each.
const AT_ONCE: usize = 3;

/// A file of cases; `netns-fixtures/by-hand/README.md` says what the fields mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[expect(dead_code, reason = "for readers of the file, who must be given one")]
    why: String,
    /// Namespaces whose facts are collected.
    routers: Vec<String>,
    network: String,
    /// What stands in `links.toml` beside the facts.
    #[serde(default)]
    links: Option<String>,
    /// `TZ` of who collects the facts.
    #[serde(default)]
    time_zone: Option<String>,
    /// Whether the routers have the ip(8) of BusyBox.
    #[serde(default)]
    busybox: bool,
    /// What the network was made with and no facts may show.
    #[serde(default)]
    secrets: Vec<String>,
    question: Vec<Question>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    ask: String,
    #[serde(default)]
    truth: Option<Truth>,
    quick: Option<String>,
    detailed: Option<String>,
    /// What a quick job's table of routers has of routers that are passed at layer 2.
    bridged: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Truth {
    from: String,
    to: String,
    /// Where it is captured.
    at: String,
    /// The destination as it is there, where it was translated on the way.
    #[serde(default)]
    as_port: Option<u16>,
    /// Whether it is a datagram instead of a connection.
    #[serde(default)]
    udp: bool,
    reached: Reached,
}

#[test]
fn neighbours_that_rules_and_settings_hide() {
    assert_right("neighbours");
}

#[test]
fn proxies_and_networks_numbered_alike() {
    assert_right("proxies");
}

#[test]
fn source_ports_and_targets() {
    assert_right("ports");
}

#[test]
fn what_a_job_makes_up() {
    assert_right("made-up");
}

#[test]
fn packets_longer_than_a_routes_own_mtu() {
    assert_right("mtu");
}

#[test]
fn one_prefix_on_two_wires() {
    assert_right("wires");
}

#[test]
fn addresses_of_a_subnet_that_are_elsewhere() {
    assert_right("away");
}

#[test]
fn firewalls_that_are_only_bridged_through() {
    assert_right("bridges");
}

#[test]
fn links_without_subnets() {
    assert_right("onlink");
}

#[test]
fn answers_by_other_routers_and_senders() {
    assert_right("answers");
}

#[test]
fn own_addresses_by_routes_and_ways_that_fork() {
    assert_right("routes");
}

#[test]
fn who_asks_for_routers_by_arp() {
    assert_right("arp");
}

#[test]
fn times_of_another_time_zone() {
    assert_right("times");
}

#[test]
fn queues_that_drop() {
    assert_right("queues");
}

#[test]
fn sets_and_maps_that_rules_change() {
    assert_right("sets");
}

#[test]
fn rules_at_devices_below() {
    assert_right("devices");
}

#[test]
fn what_is_known_and_need_not_be_left_open() {
    assert_right("known");
}

#[test]
fn headers_that_routers_rewrite() {
    assert_right("headers");
}

/// Kernels of Debian have the modules; others are configured as people like.
#[test]
fn modules_of_vlan_vrf_gre_and_wireguard() {
    if is_debian() {
        assert_right("modules");
        unload(&["ip_gre"]);
    }
}

#[test]
#[ignore = "of the file that TSIM_BY_HAND names"]
fn cases_of_a_file_that_is_named() {
    let file = std::env::var("TSIM_BY_HAND").expect("TSIM_BY_HAND, a file below by-hand or a path");
    assert_right(file.trim_end_matches(".toml"));
}

/// Asks all questions of a file.
fn assert_right(file: &str) {
    let path = fixture("by-hand").join(format!("{file}.toml"));
    let cases: Cases = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    // A module that one case loads makes devices in the networks of all.
    let at_once = if file == "modules" { 1 } else { AT_ONCE };
    let wrong = beside::each(at_once, &cases.case, wrong).concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with the answers of a case.
fn wrong(case: &Case) -> Vec<String> {
    let network = Network::build(&case.network, &case.routers);
    let place = Place::new();
    let facts = place.dir.path().join("facts");
    fs::create_dir(&facts).unwrap();
    for router in &case.routers {
        let text = collected(&place, case, &network.name(router));
        let told = case.secrets.iter().find(|secret| text.contains(*secret));
        assert_eq!(told, None, "{}: the facts of {router} tell it", case.name);
        let text = text.replace(&format!("{}.", network.bed.lab), "");
        fs::write(facts.join(format!("{router}_facts.txt")), text).unwrap();
    }
    if let Some(links) = &case.links {
        fs::write(facts.join("links.toml"), links).unwrap();
    }
    place.up(&facts);
    let mut wrong = Vec::new();
    for question in &case.question {
        wrong.extend(untrue(&network, question));
        wrong.extend(rash(&place, question));
        for (program, want) in [
            (env!("CARGO_BIN_EXE_tsim-quick"), &question.quick),
            (env!("CARGO_BIN_EXE_tsim-detailed"), &question.detailed),
        ] {
            let Some(want) = want else { continue };
            let output = ask(&place, program, &question.ask);
            let got = answers(&output);
            wrong.extend(unlike_bridges(&output, question));
            let contradicts = question.truth.as_ref().is_some_and(|truth| {
                let yes = got.iter().any(|answer| answer.contains(" YES: "));
                yes && truth.reached == Reached::No
            });
            if contradicts || !all_fit(&got, want) {
                let errors = String::from_utf8_lossy(&output.stderr);
                let program = Path::new(program).file_name().unwrap_or_default();
                wrong.push(format!(
                    "{}: {program:?} {}: {got:#?} instead of {want:?} {errors}",
                    case.name, question.ask
                ));
            }
        }
    }
    place.down();
    wrong
}

/// What a table of routers has of those at layer 2, where a question says what that is: a router's name
/// before each answer. Of a detailed job the routers of its answer have no table.
fn unlike_bridges(output: &Output, question: &Question) -> Option<String> {
    let want = question.bridged.as_ref()?;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    report.get("backend")?;
    let rows = report["routers"].as_array().into_iter().flatten();
    let rows = rows.filter(|row| row["bridged"] == true);
    let got: Vec<String> = rows
        .flat_map(|row| {
            let services = row["services"].as_array().into_iter().flatten();
            let name = row["name"].as_str().unwrap_or_default();
            services.map(move |service| format!("{name} {}", answer(service)))
        })
        .collect();
    (!all_fit(&got, want)).then(|| format!("{}: {got:#?} instead of {want}", question.ask))
}

/// What a job that looks into nothing says YES to, where the truth is no.
fn rash(place: &Place, question: &Question) -> Option<String> {
    let truth = question.truth.as_ref()?;
    question.quick.as_ref()?;
    if truth.reached != Reached::No {
        return None;
    }
    let asked = format!("{} --explain never", question.ask);
    let got = answers(&ask(place, env!("CARGO_BIN_EXE_tsim-quick"), &asked));
    let is_yes = |answer: &String| answer.contains(" YES: ");
    (got.is_empty() || got.iter().any(is_yes)).then(|| format!("{asked}: {got:?}"))
}

/// Says where the network itself is not as the case has it.
fn untrue(network: &Network, question: &Question) -> Option<String> {
    let truth = question.truth.as_ref()?;
    let to = truth.to.parse().unwrap();
    let reached = match truth.udp {
        true => network.ask_udp(&truth.from, to, &truth.at),
        false => network.connect(&truth.from, to, &truth.at, truth.as_port),
    };
    (reached != truth.reached).then(|| {
        let (ask, want) = (&question.ask, truth.reached);
        format!("{ask}: the plain host's packet: {reached:?} instead of {want:?}")
    })
}

fn collected(place: &Place, case: &Case, netns: &str) -> String {
    let arguments = ["facts", "collect", "--netns", netns];
    let mut collect = place.command(env!("CARGO_BIN_EXE_tsim"), &arguments);
    collect.envs(case.time_zone.as_ref().map(|zone| ("TZ", zone)));
    if case.busybox {
        let tools = place.dir.path().join("busybox");
        fs::create_dir_all(&tools).unwrap();
        // Another router's may be there already.
        let _ = symlink("/bin/busybox", tools.join("ip"));
        let path = std::env::var("PATH").unwrap();
        collect.env("PATH", format!("{}:{path}", tools.display()));
    }
    let output = collect.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn ask(place: &Place, program: &str, question: &str) -> Output {
    let mut arguments = vec!["--lab", place.name().as_str(), "--json"];
    arguments.extend(question.split(' '));
    place.run(program, &arguments)
}

/// The answers from end to end, e.g. `22/tcp NO: dropped by rule 1`.
fn answers(output: &Output) -> Vec<String> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let ends = report["end_to_end"].as_array();
    ends.into_iter().flatten().map(answer).collect()
}

fn answer(of: &Value) -> String {
    let text = |key: &str| of[key].as_str().unwrap_or_default();
    let (port, protocol) = (&of["port"], text("protocol"));
    format!("{port}/{protocol} {}: {}", text("result"), text("reason"))
}

/// Whether each answer begins as wanted, and has the wanted words in that order.
fn all_fit(got: &[String], want: &str) -> bool {
    let want: Vec<&str> = want.trim().lines().collect();
    got.len() == want.len() && got.iter().zip(want).all(|(got, want)| fits(got, want))
}

fn fits(answer: &str, want: &str) -> bool {
    let (verdict, words) = want.split_once(": ").unwrap_or((want, ""));
    let Some(mut rest) = answer.strip_prefix(&format!("{verdict}: ")) else {
        return false;
    };
    if words == "(nothing)" {
        return rest.is_empty();
    }
    words.split(" … ").all(|part| match rest.split_once(part) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}
