//! A lab whose facts have changed: what is different in it is made anew, or nothing is.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tsim::{
    lab::{
        self, Lab,
        hosts::{HostRequest, LabHosts},
    },
    model::RouterId,
    netns::{NetnsDir, NetnsId},
    registry::{Job, JobInfo, JobType, LockMode, Locked, RegistryManager, Wait},
};

use crate::{
    lab::{Place, fixture, tool},
    links::{connect, plain_host},
    support::{await_links_that, await_stop, pid},
};

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

    /// r1 as its facts are now, and all others as they are.
    fn reload(&self, more: &[&str]) -> Output {
        let name = self.place.name().as_str();
        let args = ["--json", "lab", "reload", name, "r1"];
        self.place.tsim(&[more, &args].concat())
    }

    /// The namespaces of the routers that do not change, with their rules.
    fn others(&self) -> Vec<(NetnsId, String)> {
        let of = |name: &str| {
            let netns = self.place.router(name);
            let rules = tool(&netns, "nft", &["list", "ruleset"]);
            (netns.id(), rules)
        };
        ["r2", "r3"].map(of).to_vec()
    }

    /// Which of the two labs is up and whole, by what the kernel holds, and what passes it.
    fn is_new(&self) -> bool {
        let status = lab::status(&self.place.config, self.place.name()).unwrap();
        assert_eq!(status.missing, []);
        let lab = Lab::open(&self.place.config, self.place.name()).unwrap();
        let rules = tool(&self.place.router("r1"), "iptables-save", &[]);
        let new = rules.contains("--dports 80,443");
        assert_ne!(new, rules.contains("--dports 22,80,443"), "{rules}");
        assert_eq!(lab.routers.len(), if new { 4 } else { 3 });
        for router in &lab.routers {
            let id = self.place.router(router.name.as_str()).id();
            assert_eq!(router.netns, Some(id), "{}", router.name);
        }
        new
    }

    /// Whether no change is on its way, and no router is there that is not written down.
    fn is_as_written(&self) -> bool {
        let file = self.place.config.labs_dir.join(self.place.name().as_str());
        let state = fs::read_to_string(file.join("lab.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let routers = state["routers"].as_array().unwrap().len();
        let names = self.place.bed.left().len();
        state.get("change").is_none() && names == routers + 1
    }

    /// How `tsim lab status` ends, and what it says of r1 that is not as it was made.
    fn drift(&self) -> (Option<i32>, Value) {
        let name = self.place.name().as_str();
        let output = self.place.tsim(&["--json", "lab", "status", name]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), status["drift"].clone())
    }

    /// How connections end that plain hosts make through all three routers: to 443/tcp, which both
    /// labs let through, and 22/tcp. Nobody had their addresses, which begin with `first`, before.
    fn seen_by_hosts(&self, first: u8) -> [ErrorKind; 2] {
        let lab = Lab::open(&self.place.config, self.place.name()).unwrap();
        let host = |net: u8| {
            let (own, gateway) = (format!("10.81.{net}.{first}/24"), format!("10.81.{net}.1"));
            plain_host(
                &self.place,
                &lab,
                &format!("10.81.{net}.0/24"),
                &own,
                &gateway,
            )
        };
        let (near, far) = (host(1), host(3));
        let seen = [443, 22].map(|port| connect(&near, &format!("10.81.3.{first}:{port}")));
        let names = [near.name().clone(), far.name().clone()];
        drop((near, far));
        names
            .iter()
            .for_each(|name| self.place.bed.dir.delete(name).unwrap());
        // Ports of a router that was made anew may be on their way out, too.
        await_links_that(&self.place.segments(), "none of a host", |links| {
            !links.iter().any(|name| name.as_str().starts_with('x'))
        });
        seen
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
    let others = two.others();
    // Routers know each other's hardware addresses by now.
    assert_eq!(two.seen_by_hosts(51), [ErrorKind::ConnectionRefused; 2]);
    let replaced = json(&two.replace(&[]));
    assert_eq!(
        replaced["replaced"],
        serde_json::json!({"added": ["r4"], "removed": [], "changed": ["r1"]})
    );
    assert!(two.is_new());
    assert_eq!(two.others(), others, "r2 and r3 stay as they are");
    assert_eq!(
        two.seen_by_hosts(52),
        [ErrorKind::ConnectionRefused, ErrorKind::TimedOut]
    );
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
    let router = RouterId::new(two.place.name().clone(), "r1".parse().unwrap());
    let job = registry.operator().unwrap();
    let locked = job.all_router_locks(&[router], LockMode::Shared, &Wait::not());
    let options = lab::UpOptions::default();
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
        let said = String::from_utf8_lossy(&output.stderr);
        let decided = output.status.success() || said.contains("could not be put in place");
        assert_eq!(two.is_new(), decided, "{plan}: {output:?}");
        two.place.down();
        two.place.assert_nothing_left();
    }
}

#[test]
fn after_a_kill_at_any_step_there_is_one_of_the_two_labs() {
    let two = Two::new();
    let (mut old, mut new) = (0, 0);
    for step in 1..=steps(&two) {
        json(&two.up(&two.old, &[]));
        let others = two.others();
        let killed = two.replace(&["--fault", &format!("kill@{step}")]);
        assert_eq!(killed.status.code(), None, "{step}: not killed");
        // Whoever comes first puts it right.
        if step % 2 == 0 {
            let reconciled = two.place.tsim(&["reconcile"]);
            assert!(reconciled.status.success(), "{step}: {reconciled:?}");
            assert!(two.is_as_written(), "after the kill at step {step}");
        }
        match two.is_new() {
            true => new += 1,
            false => old += 1,
        }
        assert!(two.is_as_written(), "after the kill at step {step}");
        assert_eq!(two.others(), others);
        if step % 3 == 0 {
            json(&two.replace(&[]));
            assert!(two.is_new(), "after the kill at step {step}");
            assert_eq!(two.others(), others);
        }
        two.place.down();
        two.place.assert_nothing_left();
    }
    assert!(
        old > 4 && new > 4,
        "{old} times the old lab, {new} times the new one"
    );
}

#[test]
fn nobody_puts_right_a_change_that_somebody_is_at() {
    let two = Two::new();
    json(&two.up(&two.old, &[]));
    let name = two.place.name().as_str();
    let facts = two.new.to_str().unwrap();
    let mut replace = Command::new(env!("CARGO_BIN_EXE_tsim"))
        .arg("--config")
        .arg(two.place.config_file())
        .args(["--fault", "stop@lab.ruleset", "lab", "up", name])
        .args(["--replace", "--facts", facts])
        .spawn()
        .unwrap();
    await_stop(&replace);
    assert!(two.place.tsim(&["reconcile"]).status.success());
    assert!(
        !two.is_new(),
        "it is the old lab until the new one is whole"
    );
    kill(pid(&replace), Signal::SIGCONT).unwrap();
    assert!(replace.wait().unwrap().success());
    assert!(two.is_new() && two.is_as_written());
}

#[test]
fn a_lab_can_be_taken_down_after_a_kill_at_any_step_of_a_change() {
    let two = Two::new();
    for step in 1..=steps(&two) {
        json(&two.up(&two.old, &[]));
        two.replace(&["--fault", &format!("kill@{step}")]);
        two.place.down();
        two.place.assert_nothing_left();
    }
}

#[test]
fn a_router_is_made_anew_from_its_facts_and_no_other_is() {
    let two = Two::new();
    json(&two.up(&two.old, &[]));
    let others = two.others();
    let before = two.place.router("r1").id();
    // Somebody changed the router, and its hardware address is another in its facts.
    tool(&two.place.router("r1"), "iptables", &["-F", "FORWARD"]);
    assert_eq!(two.seen_by_hosts(53), [ErrorKind::TimedOut; 2]);
    for arguments in [
        "route add 192.0.2.0/24 via 10.81.12.2",
        "-6 route del default",
        "rule add from 10.81.1.0/24 lookup 7 priority 9",
        "addr add 10.81.9.1/24 dev east",
        "link set src mtu 1400",
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        tool(&two.place.router("r1"), "ip", &arguments);
    }
    let drift = serde_json::json!({"r1": {
        "gone": [
            "interface src up mtu 1500",
            "route ::/0 via 2001:db8:81:12::2 dev east metric 1024",
        ],
        "added": [
            "IPv4 rule 9: from 10.81.1.0/24 lookup 7",
            "address 10.81.9.1/24 dev east",
            "interface src up mtu 1400",
            "route 10.81.9.0/24 dev east src 10.81.9.1",
            "route 192.0.2.0/24 via 10.81.12.2 dev east",
        ],
        "firewall": true,
        "unknown": false,
    }});
    assert_eq!(two.drift(), (Some(1), drift));
    let facts = fs::read_to_string(two.old.join("r1.json")).unwrap();
    let other = facts.replace("02:00:00:00:01:02", "02:00:00:00:01:99");
    fs::write(two.old.join("r1.json"), &other).unwrap();
    let said = two
        .place
        .tsim(&["lab", "status", two.place.name().as_str()]);
    let said = String::from_utf8(said.stdout).unwrap();
    let name = two.place.name();
    let wanted = format!(
        "r1: facts changed since the lab was made\n`tsim lab reload {name} r1` makes them anew from them\n"
    );
    assert!(said.contains(&wanted), "{said}");
    let reloaded = json(&two.reload(&[]));
    assert_eq!(reloaded["replaced"]["changed"], serde_json::json!(["r1"]));
    assert_ne!(two.place.router("r1").id(), before);
    assert_eq!(two.others(), others);
    assert_eq!(two.drift(), (Some(0), serde_json::json!({})));
    // Nobody goes by the address that r1 had.
    assert_eq!(two.seen_by_hosts(54), [ErrorKind::ConnectionRefused; 2]);
    // Jobs leave nothing of theirs, and an older release has noted nothing.
    assert_eq!(two.drift(), (Some(0), serde_json::json!({})));
    let lab = two.place.config.labs_dir.join(two.place.name().as_str());
    fs::remove_file(lab.join("made.json")).unwrap();
    let (code, drift) = two.drift();
    assert_eq!(
        (code, &drift["r3"]["unknown"]),
        (Some(0), &Value::Bool(true))
    );
    // Its facts are the same, and it is made anew all the same.
    tool(&two.place.router("r1"), "iptables", &["-F", "FORWARD"]);
    let reloaded = json(&two.reload(&[]));
    assert_eq!(reloaded["replaced"]["anew"], serde_json::json!(["r1"]));
    assert_eq!(two.seen_by_hosts(55), [ErrorKind::ConnectionRefused; 2]);
    assert_eq!(json(&two.up(&two.old, &[]))["changed"], false);

    // What is said of one router is not done to another.
    let facts = fs::read_to_string(two.old.join("r3.json")).unwrap();
    fs::write(two.old.join("r3.json"), facts.replace("1400", "1300")).unwrap();
    let refused = two.reload(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(said.contains("have changed, too: r3;"), "{said}");
    assert_eq!(two.others(), others);
    two.place.down();
    two.place.assert_nothing_left();
}

/// A job that holds `router` of `two`, until it is dropped.
fn held(two: &Two, router: &str) -> (RegistryManager, Job<Locked>) {
    let registry = RegistryManager::open(&two.place.config).unwrap();
    let router = RouterId::new(two.place.name().clone(), router.parse().unwrap());
    let job = registry.operator().unwrap();
    let locked = job.all_router_locks(&[router], LockMode::Shared, &Wait::not());
    (registry, locked.map_err(|refused| refused.error).unwrap())
}

#[test]
fn jobs_on_a_router_are_waited_for_and_jobs_on_others_are_not() {
    let two = Two::new();
    json(&two.up(&two.old, &[]));
    let (_, elsewhere) = held(&two, "r2");
    json(&two.reload(&[]));
    drop(elsewhere);
    let before = two.place.router("r1").id();
    let (registry, job) = held(&two, "r1");
    let router = RouterId::new(two.place.name().clone(), "r1".parse().unwrap());
    let reloaded = std::thread::scope(|scope| {
        let reload = scope.spawn(|| two.reload(&[]));
        // The lock is only handed over once somebody waits for it.
        while registry.is_router_locked(&router).unwrap().len() < 2 {
            std::thread::yield_now();
        }
        assert_eq!(
            two.place.router("r1").id(),
            before,
            "not before the lock is free"
        );
        drop(job);
        reload.join().unwrap()
    });
    json(&reloaded);
    assert_ne!(two.place.router("r1").id(), before);
}

#[test]
fn jobs_that_lease_a_host_of_a_router_are_waited_for() {
    let two = Two::new();
    json(&two.up(&two.old, &[]));
    let lab = two.place.name();
    let before = two.place.router("r1").id();
    let registry = RegistryManager::open(&two.place.config).unwrap();
    let mut kernel = LabHosts::new(&NetnsDir::default());
    let request = HostRequest {
        id: format!("{lab}@leased").parse().unwrap(),
        router: RouterId::new(lab.clone(), "r1".parse().unwrap()),
        address: "10.81.1.77".parse().unwrap(),
        prefix_len: None,
        interface: None,
    };
    let spec = kernel.lab(lab).unwrap().plan(&request).unwrap();
    let mut job = registry.job(JobInfo {
        run_id: "leaser".parse().unwrap(),
        job_type: JobType::Quick,
        dscp: None,
    });
    job.ensure_host_and_lease(&spec, &mut kernel, &Wait::not())
        .unwrap();
    let mut reload = Command::new(env!("CARGO_BIN_EXE_tsim"))
        .arg("--config")
        .arg(two.place.config_file())
        .args([
            "--fault",
            "stop@lab.await",
            "lab",
            "reload",
            lab.as_str(),
            "r1",
        ])
        .spawn()
        .unwrap();
    await_stop(&reload);
    assert_eq!(two.place.router("r1").id(), before);
    kill(pid(&reload), Signal::SIGCONT).unwrap();
    job.release_and_remove(&spec.id, &mut kernel, &Wait::not())
        .unwrap();
    assert!(reload.wait().unwrap().success());
    assert_ne!(two.place.router("r1").id(), before);
}

#[test]
fn a_job_that_waited_for_a_router_that_was_made_anew_says_so() {
    let two = Two::new();
    json(&two.up(&two.old, &[]));
    let router = RouterId::new(two.place.name().clone(), "r1".parse().unwrap());
    let registry = RegistryManager::open(&two.place.config).unwrap();
    let operator = registry.operator().unwrap();
    let held = operator.all_router_locks(
        std::slice::from_ref(&router),
        LockMode::Exclusive,
        &Wait::not(),
    );
    let held = held.unwrap();
    let quick = Command::new(env!("CARGO_BIN_EXE_tsim-quick"))
        .arg("--config")
        .arg(two.place.config_file())
        .args(["--lab", router.lab.as_str(), "-s", "10.81.1.50"])
        .args(["-d", "10.81.3.60", "-P", "22"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while registry.is_router_locked(&router).unwrap().len() < 2 {
        std::thread::yield_now();
    }
    // As whoever makes a router anew does while it holds its lock.
    let file = two
        .place
        .config
        .labs_dir
        .join(router.lab.as_str())
        .join("lab.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    state["changed_at"] = "2026-01-01T00:00:00Z".into();
    fs::write(&file, state.to_string()).unwrap();
    drop(held);
    let output = quick.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        said.contains("was changed or taken down meanwhile"),
        "{said}"
    );
}
