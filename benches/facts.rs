//! How long facts take that are long, or full of rules that the kernel refuses.
//!
//! ```text
//! cargo bench --bench facts
//! ```
//!
//! Needs root. Beside each ruleset stands what its own tool takes to load what is good of it, in an
//! empty namespace: medians of pairs in turn.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tsim::{
    config::Config,
    lab::{self, UpOptions, facts},
    model::LabName,
    netns,
};

/// How often a lab is made, and its rules loaded alone.
const PAIRS: usize = 20;

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    println!(
        "facts (milliseconds)                          read       up   loader alone   ratio   left out"
    );
    for routes in [20_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &format!("\"routes\": [{}]", routes_of(routes)));
        let begin = Instant::now();
        facts::load_dir(dir.path()).unwrap();
        println!(
            "{:<40} {}",
            format!("{routes} routes in JSON"),
            shown(begin.elapsed())
        );
    }
    for legacy in [false, true] {
        let variant = if legacy { "legacy" } else { "nft" };
        let refused = format!("5,000 rules, 1,640 refused, {variant}");
        bench(&refused, legacy, 5_000, true);
        bench(&format!("20,000 rules, {variant}"), legacy, 20_000, false);
    }
}

fn shown(time: Duration) -> String {
    format!("{:9.1}", time.as_secs_f64() * 1000.0)
}

fn write(dir: &Path, rest: &str) {
    let text = format!("{{\"version\": 1, \"name\": \"r\",\n{rest}}}");
    fs::write(dir.join("r.json"), text).unwrap();
}

fn routes_of(count: usize) -> String {
    let route = |n: usize| {
        let (a, b, c) = (n / 65_536 + 11, n / 256 % 256, n % 256);
        format!("\"{a}.{b}.{c}.0/24 via 10.0.0.2 dev eth0\"")
    };
    (0..count).map(route).collect::<Vec<_>>().join(",\n")
}

/// Rules of the filter table; where `refused`, a third of the first 4,920 are of forms that only
/// other tables have.
fn rules(count: usize, refused: bool) -> Vec<String> {
    let rule = |n: usize| {
        let from = format!(
            "-A FORWARD -s 10.{}.{}.0/24 -p tcp -m tcp",
            n / 250,
            n % 250
        );
        let port = n % 65_535 + 1;
        match n {
            n if !refused || n >= 4_920 || n % 3 > 0 => format!("{from} --dport {port} -j ACCEPT"),
            n if n % 2 == 0 => format!("{from} -m rpfilter -j DROP"),
            _ => format!("{from} -j TPROXY --on-port {port} --on-ip 0.0.0.0"),
        }
    };
    (0..count).map(rule).collect()
}

fn whole<'a>(rules: impl IntoIterator<Item = &'a String>) -> String {
    let rules = rules.into_iter().map(|rule| rule.clone() + "\n");
    format!(
        "*filter\n:FORWARD DROP [0:0]\n{}COMMIT\n",
        rules.collect::<String>()
    )
}

fn bench(what: &str, legacy: bool, count: usize, refused: bool) {
    let dir = tempfile::tempdir().unwrap();
    let facts = dir.path().join("facts");
    fs::create_dir(&facts).unwrap();
    write(&facts, "\"iptables\": {\"file\": \"ruleset\"}");
    let rules = rules(count, refused);
    fs::write(facts.join("ruleset"), whole(&rules)).unwrap();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        labs_dir: dir.path().join("labs"),
        ..Config::default()
    };
    let name = LabName::new(format!("facts{}", std::process::id())).unwrap();
    let options = UpOptions {
        legacy,
        ..UpOptions::default()
    };
    let good = whole(rules.iter().filter(|rule| rule.ends_with("ACCEPT")));
    let mut left_out = 0;
    let mut pair = || {
        let begin = Instant::now();
        let up = lab::up_from(&config, &name, &facts, options, &()).unwrap();
        let took = begin.elapsed();
        lab::down(&config, &name).unwrap();
        left_out = up.lab.warnings.len();
        let alone = netns::in_scratch(|| load(legacy, &good)).unwrap();
        (took, alone)
    };
    let pairs: Vec<_> = (0..PAIRS).map(|_| pair()).collect();
    let of = |time: fn(&(Duration, Duration)) -> Duration| median(pairs.iter().map(time));
    let ratio = |(up, alone): &(Duration, Duration)| up.as_secs_f64() / alone.as_secs_f64();
    println!(
        "{what:<40} {:>9} {} {:>14} {:7.2} {left_out:>10}",
        "",
        shown(of(|pair| pair.0)),
        shown(of(|pair| pair.1)),
        median(pairs.iter().map(ratio)),
    );
}

fn median<T: PartialOrd + Copy>(all: impl Iterator<Item = T>) -> T {
    let mut all: Vec<T> = all.collect();
    all.sort_by(|a, b| a.partial_cmp(b).unwrap());
    all[all.len() / 2]
}

fn load(legacy: bool, text: &str) -> Duration {
    let tool = if legacy {
        "iptables-legacy-restore"
    } else {
        "iptables-nft-restore"
    };
    let begin = Instant::now();
    let mut child = Command::new(tool).stdin(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    begin.elapsed()
}
