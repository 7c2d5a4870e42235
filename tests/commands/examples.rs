//! The programs in `examples/`, which use the library as any other program would.

use std::process::Command;

use crate::support::{Site, program};

/// What an example prints, run with `args` behind the site's configuration.
fn output(site: &Site, example: &str, args: &[&str]) -> String {
    let output = Command::new(program("examples").join(example))
        .arg(site.config())
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{example}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_example_does_what_it_says() {
    let site = Site::new();
    let (from, to) = ("10.81.1.10", "10.81.3.10");
    let facts = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-fixtures/small3");
    let lab = site.lab.as_str();
    let up = output(&site, "up", &[lab, facts]);
    assert_eq!(up, format!("{lab} was there already\n"));
    let quick = output(&site, "quick", &[lab, from, to, "22,443"]);
    let ask = |services| {
        site.run(&[
            "tsim-quick",
            "--lab",
            lab,
            "-s",
            from,
            "-d",
            to,
            "-P",
            services,
        ])
    };
    for line in quick.lines() {
        let mut words = line.split(' ');
        let service = words.next().unwrap();
        let verdict = words.next().unwrap();
        let wanted = match ask(service).status.code() {
            Some(0) => "YES",
            Some(1) => "NO",
            _ => "UNKNOWN",
        };
        assert_eq!(verdict, wanted, "{line}");
    }
    assert_eq!(quick.lines().count(), 2, "{quick}");
    let detailed = output(&site, "detailed", &[lab, from, to, "443"]);
    assert!(["YES\n", "NO\n"].contains(&detailed.as_str()), "{detailed}");
}
