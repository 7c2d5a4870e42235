//! A lab that takes the place of another: the new one is up, or the old one is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;
use tsim::{
    lab::{self, Lab},
    registry::{Mode, RegistryManager, Wait},
};

use crate::lab::{Place, fixture, tool};

/// The facts of small3, and the same without telnet's port at its second router's door, with a
/// fourth router on no segment of the others.
struct Two {
    place: Place,
    old: PathBuf,
    new: PathBuf,
}

impl Two {
    fn new() -> Self {
        let place = Place::new();
        let [old, new] = ["old", "new"].map(|name| {
            let dir = place.dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            for file in fs::read_dir(fixture("small3")).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), dir.join(file.file_name())).unwrap();
            }
            dir
        });
        let rules = fs::read_to_string(new.join("r1.json")).unwrap();
        fs::write(new.join("r1.json"), rules.replace("22,80,443", "80,443")).unwrap();
        let more = r#"{"version": 1, "name": "r4", "interfaces": [{"name": "e0", "addresses": ["10.9.9.1/24"]}]}"#;
        fs::write(new.join("r4.json"), more).unwrap();
        Self { place, old, new }
    }

    fn up(&self, facts: &Path, more: &[&str]) -> Output {
        let name = self.place.name().as_str();
        let facts = facts.to_str().unwrap();
        let args = [more, &["--json", "lab", "up", name, "--facts", facts]];
        self.place.tsim(&args.concat())
    }

    fn replace(&self, more: &[&str]) -> Output {
        let name = self.place.name().as_str();
        let facts = self.new.to_str().unwrap();
        let args = ["--json", "lab", "up", name, "--replace", "--facts", facts];
        self.place.tsim(&[more, &args].concat())
    }

    /// Which of the two labs is up and whole, by what the kernel holds.
    fn is_new(&self) -> bool {
        let status = lab::status(&self.place.config, self.place.name()).unwrap();
        assert_eq!(status.missing, []);
        let lab = Lab::open(&self.place.config, self.place.name()).unwrap();
        let rules = tool(&self.place.router("r1"), "iptables-save", &[]);
        let new = rules.contains("--dports 80,443");
        assert_ne!(new, rules.contains("--dports 22,80,443"), "{rules}");
        assert_eq!(lab.routers.len(), if new { 4 } else { 3 });
        new
    }
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_lab_takes_the_place_of_another_and_says_what_is_different() {
    let two = Two::new();
    assert_eq!(json(&two.up(&two.old, &[]))["changed"], true);
    let replaced = json(&two.replace(&[]));
    assert_eq!(
        replaced["replaced"],
        serde_json::json!({"added": ["r4"], "removed": [], "changed": ["r1"]})
    );
    assert!(two.is_new());
    // Once more there is nothing to do.
    let again = json(&two.replace(&[]));
    assert_eq!(again["changed"], false);
    assert_eq!(again.get("replaced"), None);
    two.place.down();
    two.place.assert_nothing_left();
}

#[test]
fn facts_that_cannot_be_used_and_jobs_that_measure_leave_the_lab_alone() {
    let two = Two::new();
    let before = json(&two.up(&two.old, &[]));
    fs::write(two.new.join("r2.json"), "{").unwrap();
    let name = two.place.name().as_str();
    let facts = two.new.to_str().unwrap();
    let strict = ["lab", "up", name, "--replace", "--strict", "--facts", facts];
    let refused = two.place.tsim(&strict);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(!two.is_new());
    fs::copy(two.old.join("r2.json"), two.new.join("r2.json")).unwrap();

    let config = tsim::config::Config {
        lock_timeout: std::time::Duration::from_millis(100),
        ..two.place.config.clone()
    };
    let registry = RegistryManager::open(&config).unwrap();
    let router = tsim::model::RouterId::new(two.place.name().clone(), "r1".parse().unwrap());
    let job = registry.operator().unwrap();
    let locked = job.all_router_locks(&[router], Mode::Shared, &Wait::not());
    let options = lab::Options::default();
    let wait = Wait::at_most(config.lock_timeout);
    let error = lab::replace(&config, two.place.name(), &two.new, options, &(), &wait);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("was not free within"), "{error}");
    assert!(!two.is_new());
    drop(locked.map_err(|refused| refused.error).unwrap());
    let after = json(&two.up(&two.old, &[]));
    assert_eq!(after["changed"], false);
    assert_eq!(after["created_at"], before["created_at"]);
}

#[test]
fn a_lab_that_cannot_be_replaced_is_made_again() {
    let two = Two::new();
    json(&two.up(&two.old, &[]));
    let other = two.place.bed.netns("r4");
    let refused = two.replace(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(said.contains("it is up as it was before"), "{said}");
    assert!(said.contains(other.name().as_str()), "{said}");
    assert!(!two.is_new());
}

fn steps(two: &Two) -> usize {
    json(&two.up(&two.old, &[]));
    let counted = two.replace(&["--fault", "count"]);
    let said = String::from_utf8(counted.stderr).unwrap();
    let number = said
        .lines()
        .find_map(|line| line.strip_prefix("fault: ")?.strip_suffix(" steps"));
    let steps = number.unwrap_or_else(|| panic!("{said}")).parse().unwrap();
    assert!(steps > 20, "{steps}");
    two.place.down();
    steps
}

#[test]
fn a_failure_at_any_step_leaves_one_of_the_two_labs() {
    let two = Two::new();
    for step in 1..=steps(&two) {
        json(&two.up(&two.old, &[]));
        let plan = format!("ENOSPC@{step}");
        let output = two.replace(&["--fault", &plan]);
        assert_eq!(two.is_new(), output.status.success(), "{plan}: {output:?}");
        two.place.down();
        two.place.assert_nothing_left();
    }
}

#[test]
fn after_a_kill_at_any_step_a_lab_can_be_made_and_taken_down() {
    let two = Two::new();
    for step in 1..=steps(&two) {
        json(&two.up(&two.old, &[]));
        let killed = two.replace(&["--fault", &format!("kill@{step}")]);
        assert_eq!(killed.status.code(), None, "{step}: not killed");
        if step % 2 == 0 {
            json(&two.replace(&[]));
            assert!(two.is_new(), "after the kill at step {step}");
        }
        two.place.down();
        two.place.assert_nothing_left();
    }
}
