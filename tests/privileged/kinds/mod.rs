//! Facts of many kinds of networks, as the collector wrote them, each with its ways.
//!
//! `netns-fixtures/kinds/README.md` says what the files of a kind are. What a kind's ways are was
//! measured in the hand-made network itself, by plain hosts and captures in all of its nodes. Here the
//! facts alone are asked: no answer may contradict what was measured, and each names the routers that
//! saw the request, in their order.

mod follow;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::follow::Followed;
use crate::{
    beside,
    by_hand::network::{Network, Reached},
    kernels::{is_debian, unload},
    lab::{Place, fixture},
};

/// What people write of a kind, `kind.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    #[expect(dead_code, reason = "for readers of the file, who must be given one")]
    why: String,
    /// Modules of the kernel that its network needs, and that kernels of Debian alone surely have.
    #[serde(default)]
    needs: Vec<String>,
    routers: Vec<String>,
    network: String,
    /// What stands in `links.toml` beside the facts.
    #[serde(default)]
    links: Option<String>,
    /// What the network was made with and no facts may show.
    #[serde(default)]
    secrets: Vec<String>,
    way: Vec<Way>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Way {
    from: String,
    at: String,
    /// The question, as arguments.
    ask: String,
    /// How often the host connects, where one way of several is taken by chance.
    #[serde(default = "once")]
    tries: usize,
    /// Words of the answer, where the facts do not tell what is true.
    #[serde(default)]
    unknown: Option<String>,
    /// The same of a detailed job alone: a quick one asks about the request.
    #[serde(default)]
    detailed_unknown: Option<String>,
    /// Words of a warning beside the answer.
    #[serde(default)]
    says: Option<String>,
}

fn once() -> usize {
    1
}

/// What was measured of a kind, `measured.toml`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    way: Vec<MeasuredWay>,
}

#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct MeasuredWay {
    ask: String,
    reached: Reached,
    /// The last node that the request was addressed to.
    end: String,
    /// The routers that the request was addressed to, in order; several lists where the host's
    /// connections took several ways.
    routers: Vec<Vec<String>>,
    /// Routers that only passed its frame on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bridged: Vec<String>,
}

fn kinds() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixture("kinds")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut kinds: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
    kinds.sort();
    kinds
}

fn kind_of(dir: &Path) -> Kind {
    let text = fs::read_to_string(dir.join("kind.toml")).unwrap();
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

/// Does `one` with each kind, several at a time; what is wrong with them.
fn each_kind(wanted: impl Fn(&Kind) -> bool, one: impl Fn(&Path, &Kind) -> Vec<String> + Sync) {
    let named = std::env::var("TSIM_KIND").unwrap_or_default();
    let kinds: Vec<(PathBuf, Kind)> = kinds()
        .into_iter()
        .filter(|dir| {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&named)
        })
        .map(|dir| (kind_of(&dir), dir))
        .map(|(kind, dir)| (dir, kind))
        .filter(|(_, kind)| wanted(kind))
        .collect();
    assert!(!kinds.is_empty(), "no kind is to be tried");
    let wrong = beside::each(4, &kinds, |(dir, kind)| {
        let name = dir.file_name().unwrap().to_string_lossy();
        let found = one(dir, kind).into_iter();
        found
            .map(|what| format!("{name}: {what}"))
            .collect::<Vec<String>>()
    });
    let wrong = wrong.concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_are_thirty() {
    assert!(kinds().len() >= 30, "{:?}", kinds());
}

#[test]
fn facts_of_every_kind_have_the_ways_that_were_measured() {
    each_kind(|_| true, wrong);
}

/// Kernels of Debian build the networks of all kinds; others are asked for those without modules.
#[test]
fn networks_of_kinds_with_modules_are_as_they_were_measured() {
    if is_debian() {
        each_kind(|kind| !kind.needs.is_empty(), unlike_measured);
        unload(&["ip6_gre", "ip_gre", "ip6_tunnel", "sit", "ipip"]);
    }
}

#[test]
#[ignore = "half a minute more for what seldom changes; netns-fixtures/generators/kinds.sh runs it"]
fn networks_are_as_they_were_measured() {
    each_kind(|kind| kind.needs.is_empty(), unlike_measured);
}

/// Writes the facts and `measured.toml` of each kind anew, below the directory `TSIM_COLLECT_TO`; with
/// `TSIM_KIND`, of those whose names begin so.
#[test]
#[ignore = "writes netns-fixtures/kinds; netns-fixtures/generators/kinds.sh runs it"]
fn collected_anew() {
    let to = PathBuf::from(std::env::var("TSIM_COLLECT_TO").expect("TSIM_COLLECT_TO"));
    each_kind(
        |kind| kind.needs.is_empty() || is_debian(),
        |dir, kind| {
            let to = to.join(dir.file_name().unwrap());
            fs::create_dir_all(&to).unwrap();
            let network = Network::build(&kind.network, &kind.routers);
            let ways: Vec<MeasuredWay> =
                kind.way.iter().map(|way| measure(&network, way)).collect();
            // Behind the connections: routers know their neighbours then.
            let mut told = Vec::new();
            for router in &kind.routers {
                let text = collected(&network, router);
                let secrets = kind.secrets.iter().filter(|secret| text.contains(*secret));
                told.extend(secrets.map(|_| format!("the facts of {router} tell a secret")));
                fs::write(to.join(format!("{router}_facts.txt")), text).unwrap();
            }
            if let Some(links) = &kind.links {
                fs::write(to.join("links.toml"), links).unwrap();
            }
            let text = toml::to_string(&Measured { way: ways }).unwrap();
            let head =
                "# Measured in the network of kind.toml by netns-fixtures/generators/kinds.sh.\n\n";
            fs::write(to.join("measured.toml"), format!("{head}{text}")).unwrap();
            told
        },
    );
}

fn measure(network: &Network, way: &Way) -> MeasuredWay {
    let Followed {
        reached,
        end,
        routers,
        bridged,
    } = follow::ways(network, way);
    MeasuredWay {
        ask: way.ask.clone(),
        reached,
        end,
        routers,
        bridged,
    }
}

fn measured(dir: &Path, kind: &Kind) -> Vec<MeasuredWay> {
    let text = fs::read_to_string(dir.join("measured.toml")).unwrap();
    let measured: Measured = toml::from_str(&text).unwrap();
    let asked = measured.way.iter().map(|way| &way.ask);
    assert!(
        asked.eq(kind.way.iter().map(|way| &way.ask)),
        "{}",
        dir.display()
    );
    measured.way
}

fn unlike_measured(dir: &Path, kind: &Kind) -> Vec<String> {
    let network = Network::build(&kind.network, &kind.routers);
    let mut unlike = Vec::new();
    for (way, then) in kind.way.iter().zip(measured(dir, kind)) {
        let now = measure(&network, way);
        // Of several ways chance may show some.
        let some = now.routers.iter().all(|way| then.routers.contains(way));
        let end = match then.routers.len() {
            1 => now.end.clone(),
            _ => then.end.clone(),
        };
        let now = MeasuredWay {
            routers: then.routers.clone(),
            end,
            ..now
        };
        if !some || now != then {
            unlike.push(format!("{now:?} instead of {then:?}"));
        }
    }
    unlike
}

/// What the collector prints in a node, without what is only of this machine, this time, or read by
/// nobody: most settings.
fn collected(network: &Network, router: &str) -> String {
    let place = Place::new();
    let netns = network.name(router);
    let output = place.tsim(&["facts", "collect", "--netns", &netns]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.replace(&format!("{}.", network.bed.lab), "");
    let mut section = "";
    let mut kept = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("=== TSIM_SECTION_START:") {
            section = name;
        }
        let unread = |line: &str| {
            let deciding = [
                ".forwarding",
                "ip_forward ",
                "force_forwarding",
                "rp_filter",
                "src_valid_mark",
                "proxy_arp",
                "proxy_ndp",
                "arp_announce",
                "arp_filter",
                "arp_ignore",
                "fib_multipath_hash",
                "bridge-nf",
                "disable_ipv6",
                "accept_local",
                "icmp_echo_ignore_all",
                "route_localnet",
                "nonlocal_bind",
                "l3mdev",
                "tcp_loose",
                "tcp_be_liberal",
            ];
            section.starts_with("sysctl")
                && line.starts_with("net.")
                && !deciding.iter().any(|part| line.contains(part))
        };
        match line.split_once("TIMESTAMP: ") {
            Some(_) => kept += "TIMESTAMP: 2026-01-01 00:00:00\n",
            None if unread(line) => {}
            None => {
                kept += line.trim_end();
                kept.push('\n');
            }
        }
    }
    kept
}

/// What is wrong with the answers from the facts.
fn wrong(dir: &Path, kind: &Kind) -> Vec<String> {
    let place = Place::new();
    place.up(dir);
    let mut wrong = Vec::new();
    for (way, measured) in kind.way.iter().zip(measured(dir, kind)) {
        for program in [
            env!("CARGO_BIN_EXE_tsim-quick"),
            env!("CARGO_BIN_EXE_tsim-detailed"),
        ] {
            let mut arguments = vec!["--lab", place.name().as_str(), "--json"];
            arguments.extend(way.ask.split(' '));
            let output = place.run(program, &arguments);
            let is_quick = program.ends_with("quick");
            if let Some(what) = contradiction(&output, is_quick, way, &measured) {
                let job = Path::new(program).file_name().unwrap().to_string_lossy();
                wrong.push(format!("{job} {}: {what}, measured: {measured:?}", way.ask));
            }
        }
    }
    place.down();
    wrong
}

/// How a job's answer is not what was measured.
fn contradiction(
    output: &Output,
    is_quick: bool,
    way: &Way,
    measured: &MeasuredWay,
) -> Option<String> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let end = &report["end_to_end"][0];
    let text = |key: &str| end[key].as_str().unwrap_or_default();
    let (result, reason) = (text("result"), text("reason"));
    let said = || {
        let errors = String::from_utf8_lossy(&output.stderr);
        Some(format!(
            "{result}: {reason} ({}), by {:?} {errors}",
            text("end"),
            routers(end, false)
        ))
    };
    let warnings = report["warnings"].to_string();
    if let Some(words) = way.says.as_ref().filter(|words| !warnings.contains(*words)) {
        return Some(format!("{words}: not in {warnings}"));
    }
    // A quick job asks about the request.
    let own = measured
        .routers
        .iter()
        .any(|way| way.contains(&measured.end));
    let passes = match measured.reached {
        Reached::No => false,
        // A router's own rules are on the request's way.
        Reached::Request => is_quick && !own,
        Reached::Answer => true,
    };
    let of_detailed = way.detailed_unknown.as_ref().filter(|_| !is_quick);
    if let Some(words) = way.unknown.as_ref().or(of_detailed) {
        let named = words.split(" … ").all(|part| reason.contains(part));
        return (result != "UNKNOWN" || !named).then(said).flatten();
    }
    let crossed = routers(end, true);
    let says_bridged = way.says.as_ref().is_some_and(|s| s.contains("bridged by"));
    if crossed
        .iter()
        .any(|router| !measured.bridged.contains(router))
        || says_bridged && crossed != measured.bridged
    {
        return Some(format!("it is bridged by {crossed:?}"));
    }
    let verdict = if passes { "YES" } else { "NO" };
    let same_way = !is_quick || measured.routers.contains(&routers(end, false));
    let own = measured
        .routers
        .iter()
        .any(|way| way.contains(&measured.end));
    let ends = match (passes, text("end")) {
        (true, "itself") => own,
        (true, "delivered" | "leaves") => !own,
        (true, _) => false,
        (false, _) => true,
    };
    // What ends on a wire has no router that it is at.
    let at_end = text("end") != "stopped"
        || !is_quick
        || crossed.last().map(String::as_str) == end["router"].as_str()
        || measured
            .routers
            .iter()
            .any(|way| way.last().map(String::as_str) == end["router"].as_str());
    let right = result == verdict && same_way && at_end && (ends || !is_quick);
    (!right).then(said).flatten()
}

/// The routers of the way that a job answers with, which are sent the packet or pass it on at layer 2.
fn routers(end: &Value, bridged: bool) -> Vec<String> {
    let mut routers: Vec<String> = Vec::new();
    let legs = end["way"].as_array().into_iter().flatten();
    for leg in legs.filter(|leg| leg["bridged"].is_string() == bridged) {
        let name = leg["router"].as_str().unwrap_or_default();
        if routers.last().is_none_or(|last| last != name) {
            routers.push(name.to_owned());
        }
    }
    routers
}
