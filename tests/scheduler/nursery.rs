//! The process that forks runners of quick jobs: what its children are, and what becomes of them and
//! of later jobs when it is gone.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::PathBuf,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{Pid, getpgid},
};
use rustix::process::{PidfdFlags, pidfd_open};
use tsim::{registry::LockMode::Exclusive, sched::job::Status};

use crate::{
    lab::{Lab, ROUTERS},
    support::Daemon,
};

fn of_process(pid: Pid, file: &str) -> PathBuf {
    format!("/proc/{pid}/{file}").into()
}

fn command_line(pid: Pid) -> String {
    let line = fs::read(of_process(pid, "cmdline")).unwrap_or_default();
    String::from_utf8(line).unwrap().replace('\0', " ")
}

/// The parent of a process, proc(5).
fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(of_process(pid, "stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some(Pid::from_raw(fields.nth(1)?.parse().ok()?))
}

fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap();
    let numbers = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    numbers.map(Pid::from_raw).collect()
}

fn nursery(daemon: &Daemon) -> Pid {
    let mut all = processes().into_iter();
    let found = all.find(|pid| {
        parent(*pid) == Some(daemon.pid()) && command_line(*pid).starts_with("tsim-nursery")
    });
    found.unwrap()
}

/// The runner of a job: whose standard input is the job's `alive` file, and who leads its group.
fn runner(lab: &Lab, run_id: &str) -> Pid {
    let run_id = run_id.parse().unwrap();
    let alive = fs::metadata(lab.site.spool.run_dir(&run_id).join("alive")).unwrap();
    let mut all = processes().into_iter();
    let found = all.find(|pid| {
        let stdin = fs::metadata(of_process(*pid, "fd/0"));
        stdin.is_ok_and(|file| (file.dev(), file.ino()) == (alive.dev(), alive.ino()))
            && getpgid(Some(*pid)) == Ok(*pid)
    });
    found.unwrap()
}

/// Starts a job that waits for a router which the test holds, and does what follows meanwhile.
fn while_one_waits(lab: &Lab, run_id: &str, then: impl FnOnce(Pid)) {
    let held = lab.hold("hq-gw", Exclusive);
    lab.submit("quick", run_id, &["hq-gw"]);
    lab.until_line("hq-gw", &["held", &format!("{run_id} …")]);
    then(runner(lab, run_id));
    drop(held);
}

#[test]
fn a_forked_runner_is_what_an_executed_one_is() {
    let lab = Lab::up(81, "max_output_bytes = 123456789");
    let daemon = lab.site.daemon();
    while_one_waits(&lab, "forked", |pid| {
        assert_eq!(parent(pid), Some(nursery(&daemon)));
        assert_eq!(fs::read(of_process(pid, "environ")).unwrap(), b"");
        let comm = fs::read_to_string(of_process(pid, "comm")).unwrap();
        assert_eq!(comm, "tsim-quick\n");
        let link = |file| fs::read_link(of_process(pid, file)).unwrap();
        let run = lab.site.spool.run_dir(&"forked".parse().unwrap());
        let run = fs::canonicalize(run).unwrap();
        assert_eq!(link("cwd"), run);
        assert_eq!(link("fd/1"), run.join("result.json"));
        assert_eq!(link("fd/2"), run.join("stderr.txt"));
        let limits = fs::read_to_string(of_process(pid, "limits")).unwrap();
        let size = limits
            .lines()
            .find(|line| line.starts_with("Max file size"));
        assert!(size.unwrap().contains("123456789"), "{limits}");
        // Nothing of the nursery's: the line to the scheduler is a socket that has no network.
        for open in fs::read_dir(of_process(pid, "fd")).unwrap() {
            let path = open.unwrap().path();
            let to = fs::read_link(&path).unwrap();
            let inode = fs::metadata(&path).map_or(0, |found| found.ino());
            let unix = fs::read_to_string("/proc/net/unix").unwrap();
            let ours = unix.lines().any(|line| line.contains(&format!(" {inode}")));
            assert!(
                !(to.to_string_lossy().starts_with("socket:") && ours),
                "{to:?}"
            );
        }
    });
    lab.verdicts("forked");
    assert!(lab.site.until_finished("forked").exit_code.is_some());
    lab.assert_nothing_left();
}

#[test]
fn a_killed_runner_has_failed_by_that_signal() {
    let lab = Lab::up(82, "");
    let _daemon = lab.site.daemon();
    while_one_waits(&lab, "killed", |pid| kill(pid, Signal::SIGKILL).unwrap());
    let job = lab.site.until_finished("killed");
    assert_eq!(job.status, Status::Failed);
    let reason = job.reason.unwrap();
    assert!(reason.contains("ended by SIGKILL"), "{reason}");
}

#[test]
fn runners_go_on_and_later_ones_are_executed_when_the_nursery_is_killed() {
    let lab = Lab::up(83, "");
    let daemon = lab.site.daemon();
    lab.submit("quick", "alone", &ROUTERS);
    let want = lab.verdicts("alone");
    while_one_waits(&lab, "first", |_| {
        kill(nursery(&daemon), Signal::SIGKILL).unwrap();
        lab.submit("quick", "second", &["br-gw"]);
        lab.assert_agree(&["second"], &want);
    });
    lab.assert_agree(&["first"], &want);
    while_one_waits(&lab, "third", |pid| {
        let line = command_line(pid);
        assert!(line.contains("/tsim-quick --lab"), "{line}");
        assert_eq!(parent(pid), Some(daemon.pid()));
    });
    lab.assert_agree(&["third"], &want);
    lab.assert_nothing_left();
}

#[test]
fn a_nursery_that_does_not_answer_holds_up_nobody_for_long() {
    let lab = Lab::up(84, "");
    let daemon = lab.site.daemon();
    kill(nursery(&daemon), Signal::SIGSTOP).unwrap();
    lab.submit("quick", "one", &ROUTERS);
    lab.verdicts("one");
    lab.assert_nothing_left();
}

#[test]
fn a_nursery_ends_with_its_scheduler_and_its_runners_do_not() {
    let lab = Lab::up(85, "");
    let daemon = lab.site.daemon();
    let mut next = None;
    while_one_waits(&lab, "adopted", |pid| {
        let nursery = nursery(&daemon);
        let end = pidfd_open(
            rustix::process::Pid::from_raw(nursery.as_raw()).unwrap(),
            PidfdFlags::empty(),
        );
        daemon.kill();
        let end = end.unwrap();
        let mut ended = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        poll(&mut ended, PollTimeout::NONE).unwrap();
        next = Some(lab.site.daemon());
        assert_eq!(runner(&lab, "adopted"), pid);
    });
    lab.verdicts("adopted");
    lab.assert_nothing_left();
}
