//! Programs that are killed at random moments leave nothing, and change no answer.

use std::{
    io::{Read, Seek},
    process::Stdio,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::user::{ASK, User, await_exit, stage};

/// The moments are drawn from this: a failure is the same again.
struct Draw(u64);

impl Draw {
    /// Marsaglia's xorshift.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn jobs_killed_at_random_moments_leave_nothing() {
    let user = User::new();
    user.lab_up("mine");
    let rules = || {
        user.tsim(&[
            "shell",
            "mine",
            "hq-gw",
            "--",
            "nft",
            "--stateless",
            "list",
            "ruleset",
        ])
    };
    let answer = || user.ask("tsim-quick", "mine", "1-60/tcp");
    let (before, want) = (rules(), answer());
    let mut draw = Draw(0x5eed_0018);
    for nth in 0..16 {
        let program = ["tsim-quick", "tsim-detailed"][nth % 2];
        let mut job = user
            .command(stage().join(program))
            .args(["--lab", "mine", "-P", "1-200"])
            .args(ASK)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A random moment, not an event that is waited for: any will do.
        thread::sleep(Duration::from_millis(draw.below(150)));
        job.kill().unwrap();
        job.wait().unwrap();
        assert_eq!(answer(), want, "after kill {nth} of {program}");
    }
    user.tsim(&["reconcile"]);
    assert_eq!(rules(), before);
    let hosts = user.tsim(&["hosts", "--json"]);
    let hosts: serde_json::Value = serde_json::from_str(&hosts).unwrap();
    assert!(hosts.as_array().is_some_and(Vec::is_empty), "{hosts}");
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
}

#[test]
fn labs_that_are_killed_while_they_are_made_can_be_made_again() {
    let user = User::new();
    let facts = stage().join("corp10");
    let mut draw = Draw(0x5eed_0019);
    for _ in 0..6 {
        let mut up = user
            .command(stage().join("tsim"))
            .args(["lab", "up", "mine", "--facts", facts.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(draw.below(900)));
        up.kill().unwrap();
        up.wait().unwrap();
        let down = user.run("tsim", &["lab", "down", "mine", "--force"]);
        let said = String::from_utf8_lossy(&down.stderr);
        assert!(down.status.success() || said.contains("no lab"), "{down:?}");
    }
    user.lab_up("mine");
    user.ask("tsim-quick", "mine", "22/tcp");
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
}

#[test]
fn keepers_killed_at_random_moments_leave_nothing() {
    let user = User::new();
    user.lab_up("mine");
    let facts = stage().join("corp10");
    let facts = facts.to_str().unwrap();
    let up = ["lab", "up", "mine", "--facts", facts];
    let asked = [&["--lab", "mine", "-P", "1-200"], ASK].concat();
    // It goes on to its end without the keeper, which two hundred services would put off by half a minute.
    let few = [&["--lab", "mine", "-P", "1-20"], ASK].concat();
    let work: [(&str, &[&str], u64); 3] = [
        ("tsim-quick", &asked, 150),
        ("tsim-detailed", &few, 600),
        ("tsim", &["lab", "up", "other", "--facts", facts], 900),
    ];
    let answer = || user.ask("tsim-quick", "mine", "1-60/tcp");
    let want = answer();
    let mut draw = Draw(0x5eed_001a);
    for nth in 0..9 {
        let (program, args, within) = work[nth % 3];
        let keeper = user.keeper().unwrap();
        let mut job = user.command(stage().join(program));
        // A file and not a pipe, which would be full if nobody read it.
        let mut words = tempfile::tempfile().unwrap();
        let to = words.try_clone().unwrap();
        job.args(args).stdout(Stdio::null()).stderr(to);
        let mut job = job.spawn().unwrap();
        thread::sleep(Duration::from_millis(draw.below(within)));
        kill(Pid::from_raw(keeper.cast_signed()), Signal::SIGKILL).unwrap();
        assert!(await_exit(keeper));
        // Whoever is inside goes on to an end, whichever.
        assert!(await_exit(job.id()), "{program} stays after kill {nth}");
        let succeeded = job.wait().unwrap().success();
        let again = user.run("tsim", &up);
        let mut said = String::from_utf8(again.stderr).unwrap();
        assert!(
            again.status.success(),
            "after kill {nth} at {program}: {said}"
        );
        // Whoever starts the next keeper says it: the job, if it had not joined yet when its keeper was killed.
        words.rewind().unwrap();
        words.read_to_string(&mut said).unwrap();
        assert_eq!(
            said.matches("lab mine is gone: the keeper").count(),
            1,
            "{said}"
        );
        let has_other = user.tsim(&["lab", "list"]).contains("lab other");
        if has_other {
            assert!(succeeded, "after kill {nth} at {program}");
            user.tsim(&["lab", "down", "other"]);
        }
        assert_eq!(answer(), want, "after kill {nth} at {program}");
        assert_eq!(user.tsim(&["lab", "list"]).matches("lab ").count(), 1);
    }
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
}
