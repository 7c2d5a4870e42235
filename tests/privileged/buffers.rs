//! Jobs whose sockets hold no more than an ordinary user's may, and far less.

use std::{
    path::Path,
    process::{Command, Output},
    thread,
};

use serde_json::Value;

use crate::quick::TestLab;

/// Linux's default for `net.core.rmem_max` and `wmem_max`, and so little that a few probes' events
/// overrun it.
const SMALL: [&str; 2] = ["212992", "16384"];

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1 | 3)), "{args:?}: {output:?}");
    output
}

/// What a quick job answers by this configuration, without what is another each time.
fn answers(lab: &TestLab, file: &Path, more: &[&str]) -> Value {
    let config = ["--config", file.to_str().unwrap(), "--json"];
    let question = ["-s", "10.3.10.50", "-d", "10.2.1.60", "--explain", "always"];
    let name = ["--lab", lab.bed.lab.as_str()];
    let output = run(
        env!("CARGO_BIN_EXE_tsim-quick"),
        &[&config[..], &name, &question, more].concat(),
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::json!([report["routers"], report["warnings"]])
}

#[test]
fn small_buffers_change_no_answer() {
    let lab = TestLab::up("corp10");
    let file = lab.config_file();
    for back_end in ["nft", "iptables-nft", "iptables-legacy"] {
        let ask = ["-P", "1-1500/tcp,33400-33450/udp", "--backend", back_end];
        let large = answers(&lab, &file, &ask);
        for bytes in SMALL {
            let small = answers(
                &lab,
                &file,
                &[&ask[..], &["--socket-buffers", bytes]].concat(),
            );
            assert!(large == small, "{back_end}, {bytes}: {large:#} {small:#}");
        }
    }
}

#[test]
fn jobs_at_once_with_small_buffers_give_the_reasons_of_one_alone() {
    let lab = TestLab::up("corp10");
    let file = lab.config_file();
    // Each needs longer than the others wait for its turn to trace before they go on beside it.
    let ask = ["-P", "1-4000/tcp", "--lock-timeout", "60"];
    let routers = |more: &[&str]| answers(&lab, &file, &[&ask[..], more].concat())[0].take();
    let alone = routers(&[]);
    thread::scope(|scope| {
        let small = |_| scope.spawn(|| routers(&["--socket-buffers", SMALL[1]]));
        let jobs: Vec<_> = (0..4).map(small).collect();
        for job in jobs {
            assert!(
                job.join().unwrap() == alone,
                "a job beside others says something else"
            );
        }
    });
}

#[test]
fn small_buffers_make_the_same_lab() {
    let facts = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-fixtures/corp10");
    let lab = TestLab::up("small3");
    let file = lab.config_file();
    let config = ["--config", file.to_str().unwrap(), "--json"];
    let tsim = |args: &[&str]| run(env!("CARGO_BIN_EXE_tsim"), &[&config[..], args].concat());
    let made = |more: &[&str]| {
        let name = format!("{}b", lab.bed.lab);
        tsim(&[&["lab", "up", &name, "--facts", facts][..], more].concat());
        let trace = [
            "trace",
            "--lab",
            &name,
            "-s",
            "10.3.10.50",
            "-d",
            "10.2.1.60",
        ];
        let trace = String::from_utf8(tsim(&trace).stdout).unwrap();
        tsim(&["lab", "down", &name]);
        trace
    };
    let large = made(&[]);
    for bytes in SMALL {
        assert_eq!(made(&["--socket-buffers", bytes]), large, "{bytes}");
    }
}
