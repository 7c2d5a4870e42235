//! Directories of ours and files that facts or users name: no link is followed, nothing is waited
//! for that never ends.

use std::{
    error::Error,
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tsim::lab::{self, UpOptions};

use crate::lab::{Place, fixture};

const SECRET: &str = "root:$y$secret:20000:0:99999:7:::\n";

/// A directory of somebody else's with one file in it.
fn victim(place: &Place) -> std::path::PathBuf {
    let dir = place.dir.path().join("victim");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), SECRET).unwrap();
    dir
}

fn assert_untouched(victim: &Path) {
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), SECRET);
    assert_eq!(fs::read_dir(victim).unwrap().count(), 1);
}

#[test]
fn a_link_among_the_facts_is_not_followed() {
    let place = Place::new();
    let victim = victim(&place);
    let facts = place.facts(&[("r", "\"nft\": {\"file\": \"ruleset\"}")]);
    symlink(victim.join("file"), facts.join("ruleset")).unwrap();
    let refused = |what: &str| {
        // Without it a file that cannot be used makes its router a missing one.
        let strict = UpOptions {
            strict: true,
            ..UpOptions::default()
        };
        let error = place.up_with(&facts, strict).unwrap_err();
        let text = format!("{error:?}: {}", error.source().unwrap());
        assert!(text.contains(what) && !text.contains("secret"), "{text}");
        place.assert_nothing_left();
    };
    refused("symbolic link");
    fs::remove_file(facts.join("ruleset")).unwrap();
    mkfifo(&facts.join("ruleset"), Mode::S_IRWXU).unwrap();
    refused("regular file");
    fs::remove_file(facts.join("ruleset")).unwrap();
    fs::write(facts.join("ruleset"), "").unwrap();
    symlink(victim.join("file"), facts.join("other_facts.txt")).unwrap();
    refused("symbolic link");
    assert_untouched(&victim);
}

#[test]
fn down_empties_no_directory_that_a_link_leads_to() {
    let place = Place::new();
    let victim = victim(&place);
    fs::create_dir_all(&place.config.labs_dir).unwrap();
    let at = place.config.labs_dir.join(place.name().as_str());
    symlink(&victim, &at).unwrap();
    let error = lab::down(&place.config, place.name())
        .unwrap_err()
        .to_string();
    assert!(error.contains("symbolic link"), "{error}");
    let error = place
        .up_with(&fixture("small3"), UpOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert_untouched(&victim);
    fs::remove_file(&at).unwrap();
    // A link in a lab's own directory goes; what it leads to stays.
    place.up(&fixture("small3"));
    symlink(victim.join("file"), at.join("file")).unwrap();
    place.down();
    place.assert_nothing_left();
    assert_untouched(&victim);
}

#[test]
fn a_directory_of_labs_that_is_a_link_or_open_to_all_is_refused() {
    let mut place = Place::new();
    let victim = victim(&place);
    symlink(&victim, place.dir.path().join("link")).unwrap();
    place.config.labs_dir = place.dir.path().join("link");
    let error = place
        .up_with(&fixture("small3"), UpOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert!(lab::list(&place.config).is_err());
    assert_untouched(&victim);
    let open = place.dir.path().join("open");
    fs::create_dir(&open).unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&open, all).unwrap();
    place.config.labs_dir = open;
    let error = place
        .up_with(&fixture("small3"), UpOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("everybody may write"), "{error}");
}

/// Asks small3 with the routers of `trace`.
fn quick(place: &Place, trace: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tsim-quick"))
        .arg("--config")
        .arg(place.dir.path().join("tsim.toml"))
        .args(["--lab", place.name().as_str()])
        .args([
            "-s",
            "10.81.1.10",
            "-d",
            "10.81.3.10",
            "-P",
            "80/tcp",
            "--trace",
        ])
        .arg(trace)
        .output()
        .unwrap()
}

#[test]
fn a_trace_is_a_file_and_of_the_question_that_is_asked() {
    let place = Place::new();
    place.up(&fixture("small3"));
    let lab = place.name().to_string();
    let asked = [
        "--json",
        "trace",
        "--lab",
        &lab,
        "-s",
        "10.81.1.10",
        "-d",
        "10.81.3.10",
    ];
    let asked = [&asked[..], &["--proto", "tcp", "--dport", "80"]].concat();
    let way = String::from_utf8(place.tsim(&asked).stdout).unwrap();
    let at = |name: &str| place.dir.path().join(name);
    fs::write(at("way"), &way).unwrap();
    let output = quick(&place, &at("way"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        matches!(output.status.code(), Some(0 | 1 | 3)),
        "{way}{said}"
    );

    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    fs::write(at("large"), vec![b' '; 17 << 20]).unwrap();
    fs::write(at("lab"), way.replace(&format!("\"{lab}\""), "\"other\"")).unwrap();
    fs::write(
        at("source"),
        way.replace("\"10.81.1.10\"", "\"10.81.1.11\""),
    )
    .unwrap();
    fs::write(
        at("destination"),
        way.replace("\"10.81.3.10\"", "\"10.81.3.11\""),
    )
    .unwrap();
    fs::write(at("port"), way.replace(": 80", ": 81")).unwrap();
    for (path, why) in [
        ("/dev/zero".into(), "not a regular file"),
        (at("fifo"), "not a regular file"),
        (at("large"), "most that is read"),
        (at("lab"), "lab other"),
        (at("source"), "source 10.81.1.11"),
        (at("destination"), "destination 10.81.3.11"),
        (at("port"), "port 81"),
    ] {
        let output = quick(&place, &path);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{}: {said}", path.display());
        assert!(said.contains(why), "{}: {said}", path.display());
    }
}
