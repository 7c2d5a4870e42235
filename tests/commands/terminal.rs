//! What a person sees: only the answer, colour, evidence, a command in a router.

use crate::support::Site;

const ASK: [&str; 6] = ["-s", "10.81.1.10", "-d", "10.81.3.10", "-P", "22,80"];

fn text(site: &Site, line: &[&str]) -> (Option<i32>, String, String) {
    let output = site.run(line);
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn quiet_is_the_answer_alone_and_verbose_says_what_is_done() {
    let site = Site::new();
    let lab = ["--lab", site.lab.as_str()];
    let quick = |more: &[&str]| text(&site, &[&["tsim", "quick"], &lab[..], &ASK, more].concat());
    let (_, whole, said) = quick(&[]);
    assert!(
        whole.contains("measured with") && said.is_empty(),
        "{whole}{said}"
    );
    let (_, quiet, said) = quick(&["-q"]);
    for line in quiet.lines() {
        let verdict = line.split(' ').next();
        assert!(
            matches!(verdict, Some("YES" | "NO" | "UNKNOWN" | "")),
            "{quiet}"
        );
    }
    assert!(!quiet.trim().is_empty() && said.is_empty(), "{quiet}{said}");
    let (_, _, said) = quick(&["-v"]);
    for phase in ["waiting", "probing", "undoing"] {
        assert!(said.contains(phase), "{said}");
    }
    let (_, coloured, _) = quick(&["--color", "always"]);
    let (_, plain, _) = quick(&["--color", "never"]);
    assert!(
        coloured.contains('\u{1b}') && !plain.contains('\u{1b}'),
        "{coloured}"
    );
}

#[test]
fn a_detailed_report_is_short_unless_evidence_is_asked_for() {
    let site = Site::new();
    let lab = ["--lab", site.lab.as_str()];
    let ask = [&["tsim", "detailed"], &lab[..], &ASK].concat();
    let (code, short, _) = text(&site, &ask);
    let (same, long, _) = text(&site, &[&ask[..], &["--evidence"]].concat());
    assert_eq!(code, same);
    assert!(short.contains("--evidence shows"), "{short}");
    assert!(
        !short.contains("packet traced") || short.contains("stopped by"),
        "{short}"
    );
    assert!(
        long.lines().count() > short.lines().count(),
        "{short}{long}"
    );
    let (_, quiet, _) = text(&site, &[&ask[..], &["-q"]].concat());
    assert_eq!(quiet.lines().count(), 2, "{quiet}");
}

#[test]
fn a_command_in_a_router_has_its_network_and_its_own_exit_code() {
    let site = Site::new();
    let inside = ["tsim", "exec", &site.lab, "r1", "--"];
    let (code, addresses, said) = text(&site, &[&inside[..], &["ip", "address"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(addresses.contains("10.81.1.1/24"), "{addresses}");
    assert!(said.contains("stays until the lab is down"), "{said}");
    let (code, ..) = text(&site, &[&inside[..], &["sh", "-c", "exit 7"]].concat());
    assert_eq!(code, Some(7));
    let (code, locks, _) = text(&site, &["tsim", "locks"]);
    assert_eq!((code, locks.lines().count()), (Some(0), 1), "{locks}");
}

#[test]
fn addresses_that_cannot_be_meant_are_refused() {
    let site = Site::new();
    let lab = site.lab.as_str();
    for (line, word) in [
        (
            vec![
                "tsim",
                "quick",
                "-s",
                "127.0.0.1",
                "-d",
                "10.81.3.10",
                "-P",
                "80",
            ],
            "127.0.0.1",
        ),
        (
            vec![
                "tsim",
                "submit",
                "quick",
                "-s",
                "127.0.0.1",
                "-d",
                "10.81.3.10",
                "-P",
                "80",
            ],
            "127.0.0.1",
        ),
        (
            vec![
                "tsim",
                "submit",
                "quick",
                "-s",
                "10.81.1.10",
                "-d",
                "10.81.3.10",
                "-P",
                "80",
                "--routers",
                "r1,r1",
            ],
            "r1 twice",
        ),
        (
            vec![
                "tsim",
                "quick",
                "-s",
                "::ffff:10.81.1.10",
                "-d",
                "::ffff:10.81.3.10",
                "-P",
                "80",
            ],
            "ask about 10.81.1.10",
        ),
        (
            vec![
                "tsim",
                "detailed",
                "-s",
                "fd81::10",
                "-d",
                "::ffff:10.81.3.10",
                "-P",
                "80",
            ],
            "ask about 10.81.3.10",
        ),
        (
            vec![
                "tsim",
                "host",
                "add",
                "--router",
                "r1",
                "--address",
                "10.81.12.2",
            ],
            "router r2",
        ),
    ] {
        let (code, _, said) = text(&site, &[&line[..], &["--lab", lab]].concat());
        assert_eq!(code, Some(2), "{line:?}: {said}");
        assert!(said.contains(word), "{line:?}: {said}");
    }
    let to_a_link = [
        "tsim", "quick", "--lab", lab, "-s", "fd81::10", "-d", "fe80::1", "-P", "80",
    ];
    let (code, answer, _) = text(&site, &to_a_link);
    assert_eq!(code, Some(3), "{answer}");
    assert!(
        answer.contains("fe80::1 is a link-local address"),
        "{answer}"
    );
    let way = [
        "tsim",
        "trace",
        "--lab",
        lab,
        "-s",
        "10.81.1.10",
        "-d",
        "10.81.3.10",
    ];
    let (code, _, said) = text(&site, &[&way[..], &["--dport", "https"]].concat());
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn the_overview_names_labs_queue_and_what_is_held() {
    let site = Site::new();
    let (code, overview, _) = text(&site, &["tsim", "status"]);
    assert_eq!(code, Some(0), "{overview}");
    for wanted in [
        &format!("{} up, 3 routers", site.lab),
        "does not run",
        "0 of 32 values held",
    ] {
        assert!(overview.contains(wanted), "{overview}");
    }
}
