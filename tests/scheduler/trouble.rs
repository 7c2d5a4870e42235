//! A scheduler in trouble: a full disk, a client that holds the queue, a start in another's place.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use tempfile::TempDir;
use tsim::sched::job::{Mode, Status};

use crate::{
    http::Client,
    support::{Daemon, Site, id},
};

/// A file system of its own with little room.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Some("size=1m,mode=700");
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, options).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room; the file that does.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

fn is_healthy(daemon: &Daemon) -> bool {
    let client = Client {
        address: daemon.address(),
        token: None,
    };
    client.get("/healthz").status == 200
}

#[test]
fn a_full_disk_neither_ends_it_nor_keeps_it_from_starting() {
    let disk = SmallDisk::new();
    let site = Site::below(disk.path(), "");
    let mut daemon = site.daemon();
    site.quick("r1", "gate");
    site.until("it runs", |site| site.started().len() == 1);
    // Nothing that the runner wrote tells that it ran, as where the disk was full before it began.
    let progress = site.spool.run_dir(&id("r1")).join("progress.jsonl");
    fs::File::create(progress).unwrap();
    let filler = disk.fill();
    let _gate = site.open_gate();
    daemon.until_log("cannot be used; trying again");
    assert!(is_healthy(&daemon));
    let (mut watch, mut said) = watch(&site, "r1");
    assert!(said.any(|line| line.contains("it is over (FAILED), and that cannot be written down")));
    daemon.kill();
    watch.wait().unwrap();
    let mut daemon = site.daemon();
    daemon.until_log("cannot be used; trying again");
    assert!(is_healthy(&daemon));
    fs::remove_file(filler).unwrap();
    let ended = site.until_finished("r1");
    assert_eq!(ended.status, Status::Failed, "its result had no room");
    daemon.until_log("can be used again");
    site.quick("r2", "any");
    assert_eq!(site.until_finished("r2").status, Status::Done);
    assert_eq!(site.starts()["r1"], 1);
}

#[test]
fn half_of_a_result_that_fills_the_disk_makes_room_for_its_jobs_end() {
    let disk = SmallDisk::new();
    let site = Site::below(disk.path(), "");
    let _daemon = site.daemon();
    site.quick("large", "brim");
    assert_eq!(site.until_finished("large").status, Status::Failed);
    site.quick("next", "any");
    assert_eq!(site.until_finished("next").status, Status::Done);
}

/// `tsim watch`, and what it says.
fn watch(site: &Site, job: &str) -> (Child, impl Iterator<Item = String>) {
    let mut watch = Command::new(env!("CARGO_BIN_EXE_tsim"))
        .arg("--config")
        .arg(site.path("tsim.toml"))
        .args(["watch", job])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(watch.stdout.take().unwrap()).lines();
    (watch, said.map(Result::unwrap))
}

#[test]
fn who_watches_a_job_while_nobody_schedules_is_told_so() {
    let site = Site::new("");
    let daemon = site.daemon();
    site.quick("r1", "gate");
    site.until("it runs", |site| site.started().len() == 1);
    daemon.kill();
    let (mut watch, mut said) = watch(&site, "r1");
    let first = said.next().unwrap();
    let alone = |line: &str| line.contains("no scheduler is at work");
    assert!(first.starts_with("r1 RUNNING") && alone(&first), "{first}");
    let _daemon = site.daemon();
    assert!(said.any(|line| line.starts_with("r1 RUNNING") && !alone(&line)));
    let _gate = site.open_gate();
    assert!(said.any(|line| line.starts_with("r1 DONE")));
    watch.wait().unwrap();
}

/// A process that holds the queue's lock until it is killed.
fn hold_queue(site: &Site) -> Child {
    let lock = site.path("registry/queue/queue.lock");
    let mut holder = Command::new("flock")
        .arg(lock)
        .args(["sh", "-c", "echo held; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    let out = holder.stdout.as_mut().unwrap();
    std::io::Read::read_exact(out, &mut said).unwrap();
    holder
}

fn let_go(mut holder: Child) {
    // flock(1) waits for its command, which has the file open too.
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let command = fs::read_to_string(children).unwrap();
    for pid in command.split_whitespace() {
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }
    holder.wait().unwrap();
}

#[test]
fn a_client_that_holds_the_queue_hangs_nobody_and_is_named() {
    let site = Site::new("");
    site.prepend("lock_timeout_seconds = 1.5");
    let mut daemon = site.daemon();
    site.quick("r1", "gate");
    site.until("it runs", |site| site.started().len() == 1);
    let holder = hold_queue(&site);
    let name = format!("process {} (flock", holder.id());
    let _gate = site.open_gate();
    daemon.until_log("cannot be used; trying again");
    assert!(is_healthy(&daemon));
    let refused = site.tsim(&[
        "submit", "quick", "--lab", "any", "-s", "10.0.0.1", "-d", "10.0.0.2", "-P", "80",
    ]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(4), "{said}");
    daemon.until_log(&format!("waiting for {name}"));
    assert!(said.contains("has it locked for more than 1.5 s"), "{said}");
    let_go(holder);
    site.until_finished("r1");
    daemon.until_log("can be used again");
}

#[test]
fn a_standby_ends_when_it_is_told_to() {
    let site = Site::new("");
    let _leader = site.daemon();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut standby = site.spawn();
        standby.until_log("standing by");
        standby.signal(signal);
        assert!(standby.wait());
    }
}

#[test]
fn a_configuration_named_from_here_is_the_runners_too() {
    let site = Site::new("");
    let mut tsimd = Command::new(env!("CARGO_BIN_EXE_tsimd"));
    tsimd.current_dir(site.path("."));
    let _daemon = site.daemon_with(tsimd, Path::new("tsim.toml"));
    site.quick("r1", "args");
    site.until_finished("r1");
    let arguments = fs::read_to_string(site.path("args")).unwrap();
    let want = format!("--config {}", site.path("tsim.toml").display());
    assert!(arguments.contains(&want), "{arguments}");
}

#[test]
fn a_runner_writes_where_the_scheduler_has_looked_whatever_is_put_there_meanwhile() {
    let site = Site::new("");
    let _daemon = site.daemon();
    site.submit("r1", Mode::Detailed, "gate");
    site.until("it runs", |site| site.started().len() == 1);
    let run = site.spool.run_dir(&id("r1"));
    let (moved, decoy) = (site.path("moved"), site.path("decoy"));
    fs::create_dir(&decoy).unwrap();
    fs::rename(&run, &moved).unwrap();
    symlink(&decoy, &run).unwrap();
    let _gate = site.open_gate();
    site.until("it ended", |site| {
        site.log().iter().any(|line| line.what == "end")
    });
    assert_eq!(fs::read_dir(&decoy).unwrap().count(), 0);
    let progress = fs::read_to_string(moved.join("progress.jsonl")).unwrap();
    assert!(progress.contains("done"), "{progress}");
    assert!(moved.join("report/report.html").exists());
}
