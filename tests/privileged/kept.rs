//! What tools printed of rules is kept from job to job, and never of other rules than the kernel's.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use tsim::{
    config::Config,
    run::quick::{self, QuickJob},
};

use crate::quick::TestLab;

const FORWARD: &str = "type filter hook forward priority 10;";

fn job(lab: &TestLab) -> QuickJob {
    lab.job("r1", "10.81.1.10", "10.81.3.10", "22,80")
}

/// Why 22/tcp is stopped, as a job says that has these tools.
fn reason(lab: &TestLab, tools: &Config) -> String {
    let report = quick::run(&job(lab), tools).unwrap().report;
    let service = &report.routers[0].services[0];
    service.reason.as_deref().unwrap_or_default().to_owned()
}

/// Rules whose bytes differ in the elements of a set without a name alone.
fn load(lab: &TestLab, ports: &str) {
    lab.nft(
        "r1",
        &format!(
            "add table inet fw; delete table inet fw; add table inet fw; \
             add chain inet fw f {{ {FORWARD} }}; \
             add rule inet fw f tcp dport {{ {ports} }} counter drop"
        ),
    );
}

/// The files of texts that are kept.
pub(crate) fn files(lab: &TestLab) -> Vec<PathBuf> {
    let dir = lab.config.labs_dir.join(lab.bed.lab.as_str());
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let kept = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("rules.")
    };
    files.filter(kept).collect()
}

#[test]
fn texts_are_kept_as_long_as_the_kernel_holds_the_same() {
    let lab = TestLab::up("small3");
    let without_tools = Config {
        tool_dirs: vec![lab.config.registry_dir.clone()],
        ..lab.config.clone()
    };
    load(&lab, "22, 23");
    let text = "tcp dport { 22, 23 }";
    assert!(!reason(&lab, &without_tools).contains(text));
    assert!(reason(&lab, &lab.config).contains(text));
    let kept = files(&lab);
    assert_eq!(kept.len(), 1, "{kept:?}");
    // No tool is needed any more, and what packets count is no change.
    for _ in 0..3 {
        assert!(reason(&lab, &without_tools).contains(text));
    }
    // The same handles, the same name of the set, other elements: nothing stale is told.
    load(&lab, "22, 24");
    let stale = reason(&lab, &without_tools);
    assert!(!stale.contains(text), "{stale}");
    assert!(reason(&lab, &lab.config).contains("tcp dport { 22, 24 }"));
    assert!(reason(&lab, &without_tools).contains("tcp dport { 22, 24 }"));
}

#[test]
fn a_file_that_is_damaged_or_a_link_is_ignored_and_made_again() {
    let lab = TestLab::up("small3");
    let without_tools = Config {
        tool_dirs: vec![lab.config.registry_dir.clone()],
        ..lab.config.clone()
    };
    load(&lab, "22, 23");
    let text = "tcp dport { 22, 23 }";
    assert!(reason(&lab, &lab.config).contains(text));
    let file = files(&lab).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let mut bad = whole.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    for content in [&bad[..], &whole[..middle], b""] {
        fs::write(&file, content).unwrap();
        assert!(!reason(&lab, &without_tools).contains(text));
    }
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), &whole).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(elsewhere.path(), &file).unwrap();
    assert!(!reason(&lab, &without_tools).contains(text));
    assert!(reason(&lab, &lab.config).contains(text));
    assert!(reason(&lab, &without_tools).contains(text));
    assert_eq!(fs::read(elsewhere.path()).unwrap(), whole);
    assert!(file.symlink_metadata().unwrap().is_file());
}
