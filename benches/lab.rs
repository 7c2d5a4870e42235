//! How long it takes to bring a lab up and down: corp10, and generated labs of 10 to 1,000 routers.
//!
//! ```text
//! cargo bench --bench lab                 corp10, 10 and 100 routers
//! cargo bench --bench lab -- --large      1,000 routers too
//! ```
//!
//! Needs root. Each lab is made three times and the best of each part is shown: what disturbs only
//! ever adds. `down` returns when the names are gone; the kernel frees the namespaces after that,
//! which the next `up` may have to wait for and the pause between two runs takes out.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tsim::{
    config::Config,
    lab::{self, UpOptions},
    model::LabName,
};

const RUNS: usize = 3;
/// As many rules as a router of corp10 has on average.
const RULES: usize = 160;
/// Routers on one backbone segment.
const ROW: usize = 20;

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let large = std::env::args().any(|a| a == "--large");
    let corp10 = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-fixtures/corp10");
    println!("{HEAD}");
    bench("corp10", &corp10);
    let sizes: &[usize] = if large { &[10, 100, 1000] } else { &[10, 100] };
    for &routers in sizes {
        for rules in [0, RULES] {
            let dir = tempfile::tempdir().unwrap();
            generate(dir.path(), routers, rules);
            bench(
                &format!("{routers} routers, {rules} rules each"),
                dir.path(),
            );
        }
    }
}

const HEAD: &str = "\
lab (milliseconds, best of 3)     facts  intent   netns    segs routers   state    up     down";

/// Facts of `routers` routers in rows, the rows joined by the first router of each, with two
/// stub networks and `rules` iptables rules each.
fn generate(dir: &Path, routers: usize, rules: usize) {
    for at in 0..routers {
        let (row, place) = (at / ROW, at % ROW);
        let mut interfaces = vec![
            format!(
                r#"{{"name": "row", "addresses": ["10.{}.{}.{}/24"]}}"#,
                200,
                row,
                place + 1
            ),
            format!(
                r#"{{"name": "lan0", "addresses": ["10.{}.{}.1/25"]}}"#,
                at / 250,
                at % 250
            ),
            format!(
                r#"{{"name": "lan1", "addresses": ["10.{}.{}.129/25"]}}"#,
                at / 250,
                at % 250
            ),
        ];
        let mut routes = vec![format!(r#""default via 10.200.{row}.1 dev row""#)];
        if place == 0 {
            interfaces.push(format!(
                r#"{{"name": "core", "addresses": ["10.201.0.{}/24"]}}"#,
                row + 1
            ));
            routes = (0..routers.div_ceil(ROW))
                .filter(|other| *other != row)
                .map(|other| {
                    format!(
                        r#""10.200.{other}.0/24 via 10.201.0.{} dev core""#,
                        other + 1
                    )
                })
                .collect();
        }
        let text = format!(
            "{{\"version\": 1, \"name\": \"r{at}\",\n\"interfaces\": [{}],\n\"routes\": [{}]{}}}",
            interfaces.join(",\n"),
            routes.join(",\n"),
            ruleset(rules)
        );
        fs::write(dir.join(format!("r{at}.json")), text).unwrap();
    }
}

fn ruleset(rules: usize) -> String {
    if rules == 0 {
        return String::new();
    }
    let mut text = String::from(",\n\"iptables\": [\"*filter\", \":FORWARD DROP [0:0]\",\n");
    for port in 0..rules {
        let net = port % 200;
        writeln!(
            text,
            "\"-A FORWARD -s 10.{net}.0.0/16 -p tcp -m tcp --dport {} -j ACCEPT\",",
            1000 + port
        )
        .unwrap();
    }
    text + "\"COMMIT\"]"
}

fn bench(what: &str, facts: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        labs_dir: dir.path().join("labs"),
        ..Config::default()
    };
    let name = LabName::new(format!("bench{}", std::process::id())).unwrap();
    let mut best: Vec<Duration> = Vec::new();
    for _ in 0..RUNS {
        let times = once(&config, &name, facts);
        if best.is_empty() {
            best.clone_from(&times);
        }
        for (best, time) in best.iter_mut().zip(times) {
            *best = time.min(*best);
        }
        thread::sleep(Duration::from_secs(1));
    }
    let columns: Vec<_> = best
        .iter()
        .map(|time| format!("{:7.1}", time.as_secs_f64() * 1000.0))
        .collect();
    println!("{what:<31} {}", columns.join(" "));
}

/// The parts of one `up`, the whole of it, and `down`.
fn once(config: &Config, name: &LabName, facts: &Path) -> Vec<Duration> {
    let begin = Instant::now();
    let up = lab::up_from(config, name, facts, UpOptions::default(), &()).unwrap();
    let whole = begin.elapsed();
    let begin = Instant::now();
    lab::down(config, name).unwrap();
    let down = begin.elapsed();
    let mut times: Vec<Duration> = up.timing.iter().map(|(_, time)| *time).collect();
    times.extend([whole, down]);
    times
}
