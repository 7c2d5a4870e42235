//! Before and after, and what a change would do.

use std::{
    env, fs,
    process::{Command, Stdio},
};

use tsim::bulk::diff::Diff;

use super::{Desk, Random, text};

/// How many random changes a plain test run tries.
const CHANGES: usize = 6;
const ROUTERS: [&str; 4] = ["dc-srv", "dc-gw", "br-gw", "hq-gw"];
const PORTS: [&str; 6] = ["22", "80", "443", "53", "33434", "8080"];
const ASK: &str = "-s 10.3.10.50,10.1.1.100 -d 10.2.1.60,10.3.20.60 \
                   -P 22,80,443,53/udp,33434/udp,8080";
const ASK_SMALL: &str = "-s 10.81.1.10 -d 10.81.3.10";

/// The ruleset of a router of corp10 as its facts have it.
fn iptables_of(router: &str) -> String {
    let facts = fs::read_to_string(format!("netns-fixtures/corp10/{router}_facts.txt")).unwrap();
    let (_, section) = facts
        .split_once("TSIM_SECTION_START:iptables_save ===\n")
        .unwrap();
    let (section, _) = section.split_once("\nEXIT_CODE").unwrap();
    let (_, body) = section.split_once("\n---").unwrap();
    body.split_once('\n').unwrap().1.to_owned()
}

/// The rules of the router that lives, without their counters.
fn live_ruleset(desk: &Desk, router: &str) -> String {
    let router = desk.lab.lab.router_netns(&router.parse().unwrap()).unwrap();
    let save = || Command::new("/usr/sbin/iptables-save").output().unwrap();
    let saved = String::from_utf8(router.enter(save).unwrap().stdout).unwrap();
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| line.split(" [").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// `rules` with one rule of FORWARD more or less.
fn changed(rules: &str, random: &mut Random) -> String {
    let mut lines: Vec<String> = rules.lines().map(str::to_owned).collect();
    let is_forward = |line: &String| line.starts_with("-A FORWARD");
    let forward: Vec<usize> = (0..lines.len())
        .filter(|&at| is_forward(&lines[at]))
        .collect();
    // The first rules decide most: a change behind them would seldom be one.
    let at = forward[random.below(forward.len().min(4))];
    if random.below(4) == 0 {
        lines.remove(at);
    } else {
        let protocol = random.of(&["tcp", "udp"]);
        let port = random.of(&PORTS);
        let target = random.of(&["DROP", "ACCEPT", "REJECT"]);
        let rule = format!("-A FORWARD -p {protocol} -m {protocol} --dport {port} -j {target}");
        lines.insert(at, rule);
    }
    lines.join("\n") + "\n"
}

/// What a reader acts on: which service became what.
fn verdicts(diff: &Diff) -> Vec<String> {
    let changes = diff.changes.iter();
    changes
        .map(|c| {
            format!(
                "{:?} {:?} {:?}",
                c.after.key(),
                c.before.end.result,
                c.after.end.result
            )
        })
        .collect()
}

#[test]
fn what_if_says_what_a_lab_says_that_is_really_changed_so() {
    let count = env::var("TSIM_CHANGES").map_or(CHANGES, |count| count.parse().unwrap());
    let desk = Desk::at("corp10");
    let mut random = Random(7);
    let mut seen = 0;
    for number in 0..count {
        let router = *random.of(&ROUTERS);
        let rules = iptables_of(router);
        let change = changed(&rules, &mut random);
        let before = live_ruleset(&desk, router);
        desk.write("new.txt", &change);
        let what_if = format!("what-if LAB --router {router} --ruleset new.txt --json {ASK}");
        let asked: Diff = desk.report(&[0, 1, 3], &what_if);
        assert_eq!(live_ruleset(&desk, router), before, "the lab is untouched");

        // The same change, really made, in a lab brought up from such facts.
        desk.copy_facts("corp10", "facts");
        let file = format!("facts/{router}_facts.txt");
        let facts = desk.read(&file);
        assert!(facts.contains(&rules));
        desk.write(&file, facts.replacen(&rules, &change, 1));
        let made: Diff = desk.report(&[0, 1, 3], &format!("diff LAB facts --json {ASK}"));
        assert_eq!(
            verdicts(&asked),
            verdicts(&made),
            "change {number} of {router}: {change}"
        );
        seen += usize::from(!asked.changes.is_empty() || !asked.unknown.is_empty());
    }
    assert!(
        seen * 3 >= count,
        "{seen} of {count} changes change anything"
    );
    assert!(!desk.has_temporary_labs());
}

#[test]
fn what_if_takes_routes_and_finds_no_change_in_the_same_rules() {
    let desk = Desk::at("corp10");
    desk.write("same.txt", iptables_of("dc-srv"));
    let what_if = "what-if LAB --router dc-srv --json";
    let same: Diff = desk.report(&[0, 3], &format!("{what_if} --ruleset same.txt {ASK}"));
    assert_eq!(
        (same.changes.len(), same.counts.lost + same.counts.gained),
        (0, 0)
    );
    let ask = "-s 10.3.10.50 -d 10.2.1.60 -P 33434/udp";
    let route = "--route 'replace blackhole 10.2.1.60/32'";
    let lost: Diff = desk.report(&[1], &format!("{what_if} {route} {ask}"));
    assert_eq!(lost.counts.lost, 1);
}

#[test]
fn equal_labs_do_not_differ() {
    let desk = Desk::at("small3");
    let facts = fs::canonicalize("netns-fixtures/small3").unwrap();
    let ask = format!("{ASK_SMALL} -P 1-100,53/udp");
    let diff = format!("diff LAB '{}' --json {ask}", facts.display());
    let found: Diff = desk.report(&[0, 3], &diff);
    assert!(found.changes.is_empty() && found.rerouted.is_empty());
    assert_eq!(found.counts.same + found.counts.unknown, 101);
    // Both are made of the same facts, wherever these lie.
    desk.copy_facts("small3", "copied");
    let elsewhere: Diff = desk.report(&[0, 3], &format!("diff LAB copied --json {ask}"));
    assert_eq!(elsewhere.before.lab.identity, elsewhere.after.lab.identity);
    // Saved answers are a side, too, and bring the questions along.
    desk.run(&format!("matrix LAB -o m.json {ask}"));
    let saved: Diff = desk.report(&[0, 3], "diff m.json LAB --json");
    assert_eq!(saved.counts, found.counts);
    let shown = text(&desk.run("show m.json --format markdown"));
    assert!(shown.starts_with("## Matrix of lab"), "{shown}");
}

#[test]
fn wrong_changes_are_refused() {
    let desk = Desk::at("small3");
    desk.write("e.nft", "");
    desk.write("m.json", "{}");
    let ask = format!("{ASK_SMALL} -P 1");
    let router = "what-if LAB --router r1";
    for (line, want) in [
        (format!("what-if LAB {ask}"), "what is to be changed"),
        (
            format!("{router} --ruleset m.json {ask}"),
            "neither what iptables-save",
        ),
        (format!("{router} --route 'flush all'"), "flush all"),
        (
            format!("what-if LAB --router r9 --ruleset e.nft {ask}"),
            "r9",
        ),
        (format!("diff LAB nowhere {ask}"), "no lab that is up"),
        ("diff LAB LAB".to_owned(), "what is to be asked"),
        ("matrix LAB --networks -P 1 -o x.pdf".to_owned(), ".html"),
        (format!("quick --lab LAB {ask} -o x.toml"), "makes a policy"),
    ] {
        let refused = text(&desk.ends_with(&[2, 4], &line));
        assert!(refused.contains(want), "{line}: {refused}");
    }
}

#[test]
fn a_killed_what_if_leaves_the_lab_alone_and_its_own_goes_with_the_next() {
    let desk = Desk::at("small3");
    let facts = fs::canonicalize("netns-fixtures/small3").unwrap();
    let diff = format!("diff LAB '{}' {ASK_SMALL}", facts.display());
    let mut command = desk.command(&format!("{diff} -P 1-50000"));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    // The command makes the lab before it asks anything, and asks longer than this takes to see.
    while !desk.has_temporary_labs() {
        assert!(child.try_wait().unwrap().is_none(), "it ended unseen");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        desk.has_temporary_labs(),
        "a killed command cannot take it down"
    );
    desk.ends_with(&[0, 3], &format!("{diff} -P 1"));
    assert!(!desk.has_temporary_labs());
}
