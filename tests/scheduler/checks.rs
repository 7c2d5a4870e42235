//! What is asked in bulk through the scheduler, with real runners in a real lab.

use std::{
    fs,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tsim::{
    registry::LockMode::Exclusive,
    sched::job::{Mode, Status},
};

use crate::lab::{Lab, ROUTERS};

/// As many questions as `services` has, in two files.
fn policy(lab: &Lab, services: &str) -> String {
    let base = "version = 1\n[addresses]\nbranch = \"10.3.10.50\"\ncentre = \"10.2.1.60\"\n";
    fs::write(lab.site.path("base.toml"), base).unwrap();
    let rule = |name: &str, services: &str, must: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrom = \"branch\"\nto = \"centre\"\n\
             services = \"{services}\"\nmust = \"{must}\"\n"
        )
    };
    let text = "version = 1\ninclude = [\"base.toml\"]\n".to_owned()
        + &rule("all of them", services, "pass")
        + &rule("none of these", "22222", "not-pass");
    let path = lab.site.path("policy.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// What a check says of each rule, without the times at which it was asked.
fn rules(checked: &Value) -> Vec<(Value, Value, Vec<Value>)> {
    let surprises = |rule: &Value| {
        let cells = rule["surprises"].as_array().unwrap().iter();
        cells.map(|cell| cell["port"].clone()).collect()
    };
    let rules = checked["rules"].as_array().unwrap().iter();
    rules
        .map(|rule| {
            (
                rule["name"].clone(),
                rule["result"].clone(),
                surprises(rule),
            )
        })
        .collect()
}

#[test]
fn a_check_finds_what_it_finds_by_hand_and_can_be_shown_again() {
    let lab = Lab::up(20, "");
    let _daemon = lab.site.daemon();
    let path = policy(&lab, "22,80,443,53/udp,8000-8010");
    let by_hand = lab.site.tsim(&["check", lab.name(), &path, "--json"]);
    let code = by_hand.status.code();
    assert!(matches!(code, Some(0 | 1 | 3)), "{by_hand:?}");

    let submitted = lab
        .site
        .tsim(&["submit", "check", &path, lab.name(), "--run-id", "c1"]);
    assert!(submitted.status.success(), "{submitted:?}");
    // What it was asked is its text: the files may go.
    fs::remove_file(&path).unwrap();
    let job = lab.site.until_finished("c1");
    assert_eq!(
        (job.status, job.mode),
        (Status::Done, Mode::Check),
        "{:?}",
        job.reason
    );
    let result = lab.site.tsim(&["result", "c1", "--json"]);
    assert_eq!(result.status.code(), code, "{result:?}");
    let (found, want) = (json(&result), json(&by_hand));
    assert_eq!(rules(&found), rules(&want));
    assert_eq!(found["lab"]["identity"], want["lab"]["identity"]);
    assert_eq!(found["policy"], "policy.toml");

    let text = lab.site.tsim(&["result", "c1"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("all of them"), "{text}");
    let shown = shown(&result.stdout, "junit");
    assert!(shown.contains("name=\"all of them\""), "{shown}");

    // All answers are kept, to be compared with those of another run.
    let answers = lab
        .site
        .spool
        .run_dir(&job.run_id)
        .join("report/answers.json");
    let answers = answers.display().to_string();
    let same = lab.site.tsim(&["diff", &answers, &answers]);
    let unknown = json(&result)["rules"].to_string().contains("UNKNOWN");
    assert_eq!(
        same.status.code(),
        Some(if unknown { 3 } else { 0 }),
        "{same:?}"
    );
    lab.assert_nothing_left();
}

/// What `tsim show` makes of a result.
fn shown(result: &[u8], format: &str) -> String {
    let mut show = Command::new(env!("CARGO_BIN_EXE_tsim"));
    show.args(["show", "-", "--format", format]);
    show.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut show = show.spawn().unwrap();
    show.stdin.take().unwrap().write_all(result).unwrap();
    String::from_utf8(show.wait_with_output().unwrap().stdout).unwrap()
}

/// What was found: how many of what, and each answer or change without what differs from run to run.
fn found(result: &Value) -> (Value, Vec<[Value; 4]>) {
    let cells = result["cells"].as_array();
    let changes = result["changes"].as_array();
    let after = changes.into_iter().flatten().map(|change| &change["after"]);
    let all = cells.into_iter().flatten().chain(after);
    let part =
        |cell: &Value| ["destination", "port", "result", "reason"].map(|key| cell[key].clone());
    (result["counts"].clone(), all.map(part).collect())
}

#[test]
fn matrices_and_diffs_find_what_they_find_by_hand_and_jobs_are_shown_again() {
    const ASKED: [&str; 4] = ["-d", "10.2.6.2,192.0.2.1", "-P", "22,443,ping"];
    let lab = Lab::up(23, "");
    let after = format!("u{}x23", std::process::id());
    let facts = ["--facts", "netns-fixtures/corp10"];
    let up = lab
        .site
        .tsim(&[&["lab", "up", &after], &facts[..]].concat());
    assert!(up.status.success(), "{up:?}");
    let drop_ping = "iptables -I FORWARD -p icmp -j DROP";
    let change: Vec<&str> = drop_ping.split(' ').collect();
    let changed = lab
        .site
        .tsim(&[&["exec", &after, "br-wifi", "--"], &change[..]].concat());
    assert!(changed.status.success(), "{changed:?}");
    let _daemon = lab.site.daemon();
    let source = ["-s", "10.2.5.2"];
    let asked = [&source, &ASKED[..]].concat();
    for (run_id, command) in [
        ("m", vec!["matrix", lab.name()]),
        ("d", vec!["diff", lab.name(), &after]),
    ] {
        let by_hand = lab.site.tsim(&[&command[..], &asked, &["--json"]].concat());
        let named = ["--run-id", run_id];
        let job = [&["submit"], &command[..], &asked, &named].concat();
        let submitted = lab.site.tsim(&job);
        assert!(submitted.status.success(), "{submitted:?}");
        let job = lab.site.until_finished(run_id);
        assert_eq!(job.status, Status::Done, "{:?}", job.reason);
        let result = lab.site.tsim(&["result", run_id, "--json"]);
        assert_eq!(result.status.code(), by_hand.status.code(), "{result:?}");
        assert_eq!(found(&json(&result)), found(&json(&by_hand)));
        let text = lab.site.tsim(&["result", run_id]).stdout;
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("10.2.5.2 → 10.2.6.2"), "{text}");
        assert!(!shown(&result.stdout, "markdown").is_empty());
    }
    // The rule that came between is found, and nothing else.
    let diff = json(&lab.site.tsim(&["result", "d", "--json"]));
    let changes = diff["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2, "{diff:#}");
    for change in changes {
        assert_eq!(change["after"]["protocol"], "icmp", "{change:#}");
        assert_eq!(change["after"]["router"], "br-wifi", "{change:#}");
    }
    for (job, want) in [
        (vec!["matrix", lab.name(), "-P", "22"], "source is missing"),
        (vec!["matrix", "nolab", "--networks", "-P", "22"], "nolab"),
        (
            vec!["diff", lab.name(), lab.name(), "--networks", "-P", "22"],
            "with another one",
        ),
        (
            vec!["diff", "nolab", lab.name(), "--networks", "-P", "22"],
            "nolab",
        ),
        (
            vec![
                "matrix",
                lab.name(),
                "-s",
                "10.3.0.0/17",
                "-d",
                "10.2.0.0/17",
                "-P",
                "22",
            ],
            "max_output_bytes",
        ),
        (
            vec![
                "quick",
                "--lab",
                lab.name(),
                "-s",
                "10.3.10.0/24",
                "-d",
                "10.2.1.60",
                "-P",
                "22",
            ],
            "about one address",
        ),
    ] {
        let refused = lab.site.tsim(&[&["submit"], &job[..]].concat());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{job:?}: {said}");
        assert!(said.contains(want), "{job:?}: {said}");
    }

    lab.submit("detailed", "r", &["dc-gw"]);
    lab.site.until_finished("r");
    let result = lab.site.tsim(&["result", "r", "--json"]);
    let verdicts = &json(&result)["summary"];
    for format in ["text", "markdown", "junit", "html", "json"] {
        let shown = shown(&result.stdout, format);
        assert!(shown.contains("10.1.1.100"), "{format}: {shown}");
    }
    let text = shown(&result.stdout, "text");
    let counted = format!("{} YES, {} NO", verdicts["yes"], verdicts["no"]);
    assert!(text.contains(&counted), "{counted}: {text}");
    let down = lab.site.tsim(&["lab", "down", &after]);
    assert!(down.status.success(), "{down:?}");
    lab.assert_nothing_left();
}

/// A check is asked in bursts: of more than a thousand questions there are at least two, and between
/// them whoever waits for a router gets it.
#[test]
fn a_detailed_job_gets_its_routers_in_the_middle_of_a_check() {
    let lab = Lab::up(21, "");
    let _daemon = lab.site.daemon();
    let path = policy(&lab, "1-1500");
    let held = lab.hold("dc-gw", Exclusive);
    let submitted = lab
        .site
        .tsim(&["submit", "check", &path, lab.name(), "--run-id", "c"]);
    assert!(submitted.status.success(), "{submitted:?}");
    lab.until_line("dc-gw", &["held", "c …"]);
    lab.submit("detailed", "d", &["dc-gw"]);
    lab.until_line("dc-gw", &["held", "c …", "d …"]);
    drop(held);
    let [check, detailed] = ["c", "d"].map(|run_id| lab.site.until_finished(run_id));
    for job in [&check, &detailed] {
        assert_eq!(job.status, Status::Done, "{:?}", job.reason);
    }
    assert!(
        detailed.finished_at < check.finished_at,
        "the detailed job waited for all of the check: {check:?}, {detailed:?}"
    );
    lab.assert_nothing_left();
}

/// What admission says that fits does fit: a question just below what it refuses is written whole.
#[test]
fn a_job_at_the_limit_of_its_result_is_written_whole() {
    const MOST: u64 = 2_000_000;
    let lab = Lab::up(22, &format!("max_output_bytes = {MOST}"));
    let _daemon = lab.site.daemon();
    for (mode, routers) in [
        ("quick", &ROUTERS[..1]),
        ("quick", &ROUTERS),
        ("detailed", &ROUTERS[..1]),
    ] {
        let (name, routers) = (format!("{mode}{}", routers.len()), routers.join(","));
        let submit = |ports: u64| {
            let ports = format!("1-{ports}");
            let submit = [
                "submit",
                mode,
                "--lab",
                lab.name(),
                "-s",
                "10.1.1.100",
                "-d",
                "10.2.1.50",
                "-P",
                &ports,
                "--routers",
                &routers,
                "--run-id",
                &name,
            ];
            let explain: &[&str] = match mode {
                "quick" => &["--explain", "always"],
                _ => &[],
            };
            lab.site.tsim(&[&submit, explain].concat())
        };
        let mut ports = 65_535;
        let mut refused = 0;
        while !submit(ports).status.success() {
            refused += 1;
            ports = ports * 19 / 20;
        }
        assert!(refused > 0 && ports > 20, "{name}: {ports} services");
        let job = lab.site.until_finished(&name);
        assert_eq!(
            job.status,
            Status::Done,
            "{name}: {ports} services: {:?}",
            job.reason
        );
        let result = lab.site.spool.run_dir(&job.run_id).join("result.json");
        let bytes = fs::metadata(result).unwrap().len();
        // A limit that refuses four times as much as would fit is none to work with.
        assert!(
            (MOST / 4..=MOST).contains(&bytes),
            "{name}: {ports} services took {bytes} bytes"
        );
    }
    lab.assert_nothing_left();
}
