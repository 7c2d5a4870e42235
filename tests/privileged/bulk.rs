//! Questions in bulk: the sweep against the quick job, policies and matrices as a user types them.

use std::{
    path::Path,
    process::{Command, Output},
};

use tsim::{
    bulk::answers::Cell,
    model::{Protocol, Service, ServiceLimits, parse_services},
    run::{
        quick::{self, DscpChoice, Pair, QuickJob, RouterChoice, Terms, sweep::Sweep},
        report::{EndToEnd, Verdict},
    },
};

use crate::quick::TestLab;

fn terms(job: &QuickJob) -> Terms {
    Terms {
        lab: job.lab.clone(),
        routers: RouterChoice::Trace,
        from: None,
        dscp: DscpChoice::Auto,
        run_id: quick::new_run_id().unwrap(),
        probe_dscp: job.probe_dscp,
        size: None,
        source_port: None,
        lock_timeout: job.lock_timeout,
        explain: quick::ExplainMode::Always,
        backend: job.backend,
        trust_facts: false,
        use_registry: true,
        pass_on: None,
    }
}

fn services(list: &str) -> Vec<Service> {
    parse_services(list, Protocol::Tcp, ServiceLimits::default()).unwrap()
}

fn sweep(lab: &TestLab, pairs: Vec<Pair>) -> Vec<Cell> {
    let job = lab.job("r", "10.0.0.1", "10.0.0.2", "1");
    let mut sweep = Sweep::open(terms(&job), &lab.config).unwrap();
    let mut cells = Vec::new();
    let mut keep = |answer: quick::sweep::Answer<'_>| {
        cells.push(Cell::from(answer));
        Ok(())
    };
    sweep.ask(pairs, &mut keep, &mut |_| {}).unwrap();
    let swept = sweep.close();
    assert_eq!(swept.questions, cells.len() as u64);
    cells
}

/// What a reader acts on: verdict, where, why, and by which routers.
fn gist(end: &EndToEnd) -> (Service, Verdict, String, Vec<String>) {
    // Rates and counters say their own numbers each time.
    let why = format!("{:?} {:?}", end.router, end.end);
    let way = end.way.iter().map(|leg| leg.hop.router.to_string());
    (end.service(), end.result, why, way.collect())
}

#[test]
fn a_sweep_says_of_corp10_what_quick_jobs_say_one_by_one() {
    let lab = TestLab::up("corp10");
    let list = "22,80,443,53/udp,123/udp,3389,33434/udp,ping";
    let addresses = [
        ("10.3.10.50", "10.2.1.60"),
        ("10.1.1.100", "10.2.1.50"),
        ("10.1.1.100", "10.3.10.50"),
        ("10.2.1.60", "10.1.1.100"),
        ("10.1.11.50", "8.8.8.8"),
        ("10.1.2.10", "10.2.6.7"),
        ("203.0.113.5", "10.2.1.60"),
        // Where no interface of the lab leads.
        ("10.1.1.100", "10.1.1.101"),
    ];
    let pair = |(source, destination): &(&str, &str)| Pair {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        services: services(list),
    };
    let cells = sweep(&lab, addresses.iter().map(pair).collect());
    assert_eq!(cells.len(), addresses.len() * services(list).len());
    for ((source, destination), cells) in addresses.iter().zip(cells.chunks(8)) {
        let job = QuickJob {
            routers: RouterChoice::Trace,
            dscp: DscpChoice::Auto,
            run_id: quick::new_run_id().unwrap(),
            ..lab.job("r", source, destination, list)
        };
        let report = lab.run(&job);
        let one_by_one: Vec<_> = report.end_to_end.iter().map(gist).collect();
        let swept: Vec<_> = cells.iter().map(|cell| gist(&cell.end)).collect();
        assert_eq!(swept, one_by_one, "{source} -> {destination}");
    }
}

#[test]
fn a_source_that_enters_nowhere_is_unknown_and_its_neighbours_are_answered() {
    let lab = TestLab::up("small3");
    let pair = |source: &str, destination: &str| Pair {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        services: services("80,81"),
    };
    let cells = sweep(
        &lab,
        vec![
            pair("10.81.1.10", "10.81.3.10"),
            pair("fd00:dead::1", "fd00:dead::2"),
            pair("10.81.1.10", "224.0.0.5"),
            pair("10.81.1.11", "10.81.3.10"),
        ],
    );
    let verdicts: Vec<Verdict> = cells.iter().map(|cell| cell.end.result).collect();
    assert_eq!(&verdicts[2..6], [Verdict::Unknown; 4]);
    // The first and the last ask the same of two hosts side by side.
    assert_eq!(verdicts[..2], verdicts[6..]);
    assert_ne!(verdicts[0], Verdict::Unknown);
}

#[test]
fn rules_that_change_between_bursts_are_said() {
    let lab = TestLab::up("small3");
    let job = lab.job("r1", "10.81.1.10", "10.81.3.10", "1");
    let mut sweep = Sweep::open(terms(&job), &lab.config).unwrap();
    let pair = || Pair {
        source: job.source,
        destination: job.destination,
        services: services("2000-2009"),
    };
    sweep.ask([pair()], &mut |_| Ok(()), &mut |_| {}).unwrap();
    lab.nft("r1", "add table inet later");
    sweep.ask([pair()], &mut |_| Ok(()), &mut |_| {}).unwrap();
    let warnings = sweep.close().warnings;
    let said = |warning: &String| warning.starts_with("r1: table later changed during the sweep");
    assert!(warnings.iter().any(said), "{warnings:?}");
}

/// Runs `tsim` with this lab's configuration in its own directory.
pub(crate) fn tsim(lab: &TestLab, dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tsim"))
        .arg("--config")
        .arg(lab.config_file())
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_policy_made_of_a_matrix_holds_and_planted_contradictions_are_found() {
    let lab = TestLab::up("corp10");
    let dir = tempfile::tempdir().unwrap();
    let name = lab.bed.lab.to_string();
    let run = |args: &[&str]| tsim(&lab, dir.path(), args);
    let made = run(&[
        "matrix",
        &name,
        "--networks",
        "-P",
        "ssh,https,53/udp,33434/udp,ping",
        "-o",
        "p.toml",
        "-o",
        "m.json",
        "-o",
        "m.xml",
        "-o",
        "m.html",
        "-o",
        "m.md",
    ]);
    assert!(matches!(made.status.code(), Some(1 | 3)), "{}", text(&made));
    let matrix = std::fs::read_to_string(dir.path().join("m.json")).unwrap();
    assert_valid(matrix.as_bytes());
    let matrix: tsim::bulk::answers::Answers = serde_json::from_str(&matrix).unwrap();
    assert!(
        matrix.counts.yes > 0 && matrix.counts.no > 0,
        "{:?}",
        matrix.counts
    );
    // What was measured holds.
    let holds = run(&["check", &name, "p.toml"]);
    assert_eq!(holds.status.code(), Some(0), "{}", text(&holds));
    // Every rule turned round is found, and no other.
    let policy = std::fs::read_to_string(dir.path().join("p.toml")).unwrap();
    let rules = policy.matches("[[rule]]").count();
    for turned in [0, rules / 2, rules - 1] {
        let mut parts: Vec<String> = policy.split("[[rule]]").map(str::to_owned).collect();
        let rule = &mut parts[turned + 1];
        *rule = match rule.contains("must = \"pass\"") {
            true => rule.replace("must = \"pass\"", "must = \"not-pass\""),
            false => rule.replace("must = \"not-pass\"", "must = \"pass\""),
        };
        std::fs::write(dir.path().join("wrong.toml"), parts.join("[[rule]]")).unwrap();
        let checked = run(&["check", &name, "wrong.toml", "--json", "-o", "wrong.xml"]);
        assert_eq!(checked.status.code(), Some(1), "{}", text(&checked));
        assert_valid(&checked.stdout);
        let result: tsim::bulk::check::Checked = serde_json::from_slice(&checked.stdout).unwrap();
        assert_eq!(result.rule_counts.contradicted, 1);
        let rule = &result.rules[turned];
        assert_eq!(rule.surprises.len(), rule.questions, "{}", rule.name);
        let unexplained = rule
            .surprises
            .iter()
            .filter(|cell| cell.end.result == Verdict::No && cell.end.reason.is_none());
        assert_eq!(unexplained.count(), 0);
        // And --update makes the policy say what is measured.
        let updated = run(&["check", &name, "wrong.toml", "--update"]);
        assert_eq!(updated.status.code(), Some(1), "{}", text(&updated));
        let again = run(&["check", &name, "wrong.toml"]);
        assert_eq!(again.status.code(), Some(0), "{}", text(&again));
    }
    // A policy that says nothing holds of every lab, which nobody can want to hear.
    std::fs::write(dir.path().join("empty.toml"), "version = 1\n").unwrap();
    let empty = run(&["check", &name, "empty.toml"]);
    assert_eq!(empty.status.code(), Some(2), "{}", text(&empty));
}

#[test]
fn a_list_of_questions_is_answered_line_by_line_and_gone_on_with() {
    let lab = TestLab::up("small3");
    let dir = tempfile::tempdir().unwrap();
    let name = lab.bed.lab.to_string();
    let run = |args: &[&str]| tsim(&lab, dir.path(), args);
    let questions = "# ours\n10.81.1.10 10.81.3.10 1-700\n10.81.1.11 10.81.3.10 @web,22  # more\n";
    std::fs::write(dir.path().join("q.txt"), questions).unwrap();
    let whole = run(&["sweep", &name, "q.txt", "-o", "a.jsonl"]);
    assert!(
        matches!(whole.status.code(), Some(0 | 1)),
        "{}",
        text(&whole)
    );
    let verdicts = |file: &str| -> Vec<(u16, Verdict)> {
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        let cells = text
            .lines()
            .skip(1)
            .map(|line| serde_json::from_str::<Cell>(line).unwrap());
        cells.map(|cell| (cell.end.port, cell.end.result)).collect()
    };
    let all = verdicts("a.jsonl");
    assert_eq!(all.len(), 706);
    // Cut in the middle of a line, as a kill would.
    let text_of = std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap();
    std::fs::write(dir.path().join("b.jsonl"), &text_of[..text_of.len() / 2]).unwrap();
    let rest = run(&["sweep", &name, "q.txt", "-o", "b.jsonl", "--resume"]);
    assert_eq!(rest.status.code(), whole.status.code(), "{}", text(&rest));
    assert_eq!(verdicts("b.jsonl"), all);
    // A wrong line is named, and nothing is written.
    std::fs::write(
        dir.path().join("w.txt"),
        "10.81.1.10 10.81.3.10 80\n10.81.1.10 x 80\n",
    )
    .unwrap();
    let wrong = run(&["sweep", &name, "w.txt", "-o", "w.jsonl"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        text(&wrong).contains("w.txt:2: destination \"x\""),
        "{}",
        text(&wrong)
    );
    assert!(!dir.path().join("w.jsonl").exists());
}

/// The ruleset of a router of corp10 as its facts have it.
fn iptables_of(router: &str) -> String {
    let facts = format!("netns-fixtures/corp10/{router}_facts.txt");
    let facts = std::fs::read_to_string(facts).unwrap();
    let (_, section) = facts
        .split_once("TSIM_SECTION_START:iptables_save ===\n")
        .unwrap();
    let (section, _) = section.split_once("\nEXIT_CODE").unwrap();
    let at = section.find("\n---").unwrap();
    let body = &section[at + 1..];
    body.split_once('\n').unwrap().1.to_owned()
}

/// Holds a report against the schema that is shipped.
fn assert_valid(report: &[u8]) {
    let schema = std::fs::read_to_string("docs/report.schema.json").unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let report: serde_json::Value = serde_json::from_slice(report).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = schema.iter_errors(&report).map(|e| e.to_string()).collect();
    let shown: Vec<String> = errors
        .iter()
        .map(|e| e.chars().take(300).collect())
        .collect();
    assert!(errors.is_empty(), "{shown:?}");
}

fn diffed(output: &Output) -> tsim::bulk::diff::Diff {
    assert_valid(&output.stdout);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)))
}

fn ruleset_of(lab: &TestLab, router: &str) -> String {
    let netns = lab.lab.router_netns(&router.parse().unwrap()).unwrap();
    let save = || Command::new("/usr/sbin/iptables-save").output().unwrap();
    let saved = netns.enter(save).unwrap();
    let saved = String::from_utf8(saved.stdout).unwrap();
    // Policies count the packets of those who ask, too.
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| line.split(" [").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_if_says_what_a_lab_says_that_is_really_changed_so() {
    let lab = TestLab::up("corp10");
    let dir = tempfile::tempdir().unwrap();
    let name = lab.bed.lab.to_string();
    let run = |args: &[&str]| tsim(&lab, dir.path(), args);
    let ask = ["-s", "10.3.10.50,10.1.1.100", "-d", "10.2.1.60,10.3.20.60"];
    let ports = ["-P", "22,80,443,53/udp,33434/udp,8080"];
    let router = "dc-srv";
    let before = ruleset_of(&lab, router);
    let rules = iptables_of(router);
    // A service less, and one more.
    let drop = "-A FORWARD -p udp --dport 33434 -j DROP";
    let accept = "-A FORWARD -p tcp --dport 22 -j ACCEPT";
    let first = rules.find("-A FORWARD").unwrap();
    for change in [drop, accept] {
        let changed = format!("{}{change}\n{}", &rules[..first], &rules[first..]);
        std::fs::write(dir.path().join("new.txt"), changed).unwrap();
        let args = [
            &[
                "what-if",
                &name,
                "--router",
                router,
                "--ruleset",
                "new.txt",
                "--json",
            ],
            &ask[..],
            &ports[..],
        ];
        let asked = run(&args.concat());
        let found = diffed(&asked);
        // By the tables that such packets are looked up in, one may end where nobody can tell.
        let is_seen = !found.changes.is_empty() || !found.unknown.is_empty();
        assert!(is_seen, "{change}: {}", text(&asked));
        assert_eq!(ruleset_of(&lab, router), before, "the lab is untouched");
        // The same change, really made, in a lab brought up from such facts.
        let facts = dir.path().join("facts");
        std::fs::create_dir_all(&facts).unwrap();
        for entry in std::fs::read_dir("netns-fixtures/corp10").unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), facts.join(entry.file_name())).unwrap();
        }
        let mut real = vec!["diff", &name, "facts", "--json"];
        let file = facts.join(format!("{router}_facts.txt"));
        let old = std::fs::read_to_string(&file).unwrap();
        let new = std::fs::read_to_string(dir.path().join("new.txt")).unwrap();
        assert!(old.contains(&rules));
        std::fs::write(&file, old.replacen(&rules, &new, 1)).unwrap();
        real.extend(ask);
        real.extend(ports);
        let real = diffed(&run(&real));
        let verdicts = |diff: &tsim::bulk::diff::Diff| -> Vec<_> {
            let changes = diff.changes.iter();
            changes
                .map(|c| (c.after.key(), c.before.end.result, c.after.end.result))
                .collect()
        };
        assert_eq!(verdicts(&found), verdicts(&real), "{change}");
        let code = if found.changes.is_empty() { 3 } else { 1 };
        assert_eq!(asked.status.code(), Some(code), "{change}");
    }
    // Nothing is left of the labs that were made for it.
    let labs = run(&["lab", "list", "--json"]);
    assert!(!text(&labs).contains("tmp-"), "{}", text(&labs));
    // The same ruleset, and other routes.
    std::fs::write(dir.path().join("same.txt"), &rules).unwrap();
    let same = [
        "what-if",
        &name,
        "--router",
        router,
        "--ruleset",
        "same.txt",
        "--json",
    ];
    let same = diffed(&run(&[&same[..], &ask[..], &ports[..]].concat()));
    assert_eq!(
        (same.changes.len(), same.counts.lost + same.counts.gained),
        (0, 0)
    );
    let route = [
        "what-if",
        &name,
        "--router",
        router,
        "--route",
        "replace blackhole 10.2.1.60/32",
        "--json",
    ];
    let lost = run(&[
        &route[..],
        &["-s", "10.3.10.50", "-d", "10.2.1.60", "-P", "33434/udp"],
    ]
    .concat());
    let found = diffed(&lost);
    assert_eq!(
        (lost.status.code(), found.counts.lost),
        (Some(1), 1),
        "{}",
        text(&lost)
    );
}

#[test]
fn equal_labs_do_not_differ_and_wrong_changes_are_refused() {
    let lab = TestLab::up("small3");
    let dir = tempfile::tempdir().unwrap();
    let name = lab.bed.lab.to_string();
    let run = |args: &[&str]| tsim(&lab, dir.path(), args);
    let facts = std::env::current_dir()
        .unwrap()
        .join("netns-fixtures/small3");
    let facts = facts.to_str().unwrap();
    let ask = ["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "1-100,53/udp"];
    let same = run(&[&["diff", &name, facts, "--json"], &ask[..]].concat());
    let found = diffed(&same);
    assert!(
        found.changes.is_empty() && found.rerouted.is_empty(),
        "{}",
        text(&same)
    );
    assert_eq!(found.counts.same + found.counts.unknown, 101);
    // Both are made of the same facts, wherever these lie.
    let copied = dir.path().join("copied");
    std::fs::create_dir(&copied).unwrap();
    for entry in std::fs::read_dir(facts).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copied.join(entry.file_name())).unwrap();
    }
    let same = run(&[&["diff", &name, "copied", "--json"], &ask[..]].concat());
    let elsewhere = diffed(&same);
    assert_eq!(elsewhere.before.lab.identity, elsewhere.after.lab.identity);
    // Saved answers are a side, too, and bring the questions along.
    run(&[&["matrix", &name, "-o", "m.json"], &ask[..]].concat());
    let saved = run(&["diff", "m.json", &name, "--json"]);
    assert_eq!(diffed(&saved).counts, found.counts, "{}", text(&saved));
    let shown = run(&["show", "m.json", "--format", "markdown"]);
    assert!(
        text(&shown).starts_with("## Matrix of lab"),
        "{}",
        text(&shown)
    );
    for (args, want) in [
        (
            &[
                "what-if",
                &name,
                "-s",
                "10.81.1.10",
                "-d",
                "10.81.3.10",
                "-P",
                "1",
            ][..],
            "what is to be changed",
        ),
        (
            &[
                "what-if",
                &name,
                "--router",
                "r1",
                "--ruleset",
                "m.json",
                "-s",
                "10.81.1.10",
                "-d",
                "10.81.3.10",
                "-P",
                "1",
            ],
            "neither what iptables-save",
        ),
        (
            &["what-if", &name, "--router", "r1", "--route", "flush all"],
            "flush all",
        ),
        (
            &[
                "what-if",
                &name,
                "--router",
                "r9",
                "--ruleset",
                "e.nft",
                "-s",
                "10.81.1.10",
                "-d",
                "10.81.3.10",
                "-P",
                "1",
            ],
            "r9",
        ),
        (
            &[
                "diff",
                &name,
                "nowhere",
                "-s",
                "10.81.1.10",
                "-d",
                "10.81.3.10",
                "-P",
                "1",
            ],
            "no lab that is up",
        ),
        (&["diff", &name, &name], "what is to be asked"),
        (
            &["matrix", &name, "--networks", "-P", "1", "-o", "x.pdf"],
            ".html",
        ),
    ] {
        std::fs::write(dir.path().join("e.nft"), "").unwrap();
        let refused = run(args);
        assert!(
            matches!(refused.status.code(), Some(2 | 4)),
            "{args:?}: {}",
            text(&refused)
        );
        assert!(
            text(&refused).contains(want),
            "{args:?}: {}",
            text(&refused)
        );
    }
}

#[test]
fn a_killed_what_if_leaves_the_lab_alone_and_its_own_goes_with_the_next() {
    let lab = TestLab::up("small3");
    let dir = tempfile::tempdir().unwrap();
    let name = lab.bed.lab.to_string();
    let facts = std::env::current_dir()
        .unwrap()
        .join("netns-fixtures/small3");
    let ask = ["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "1-50000"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_tsim"))
        .arg("--config")
        .arg(lab.config_file())
        .args(["diff", &name])
        .arg(&facts)
        .args(ask)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let made = || {
        let labs = tsim(&lab, dir.path(), &["lab", "list"]);
        text(&labs).contains("tmp-")
    };
    // The command makes the lab before it asks anything, and asks longer than this takes to see.
    while !made() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was seen"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(made(), "a killed command cannot take it down");
    let facts = facts.to_str().unwrap();
    let next = tsim(
        &lab,
        dir.path(),
        &[
            "diff",
            &name,
            facts,
            "-s",
            "10.81.1.10",
            "-d",
            "10.81.3.10",
            "-P",
            "1",
        ],
    );
    assert!(matches!(next.status.code(), Some(0 | 3)), "{}", text(&next));
    assert!(!made(), "{}", text(&next));
}

#[test]
fn the_script_goes_from_no_policy_to_a_change_found_in_a_ci_job() {
    let lab = TestLab::up("small3");
    let bin = Path::new(env!("CARGO_BIN_EXE_tsim")).parent().unwrap();
    let path = format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", bin.display());
    let ran = Command::new("netns-fixtures/policy.sh")
        .arg("--config")
        .arg(lab.config_file())
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", text(&ran));
    assert!(text(&ran).contains("the change is found"), "{}", text(&ran));
    let left = tsim(&lab, Path::new("."), &["lab", "list"]);
    assert!(!text(&left).contains("policy-"), "{}", text(&left));
}
