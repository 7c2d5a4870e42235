//! The program that loads rulesets, replaced by one that tries what the user who runs tsim can do, and what
//! only root and others can.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    process::{Command, Stdio},
};

use crate::user::{User, stage};

/// Tries everything, says what succeeded, and fails. Nothing in it harms the machine if it does succeed.
const PROGRAM: &str = r#"#!/usr/bin/perl
sub attempt { print STDERR "$_[0]=", ($_[1] ? "done" : "failed"), ";"; }
attempt("own-read", open(my $a, "<", "OWN/secret"));
attempt("own-write", open(my $b, ">>", "OWN/secret"));
attempt("own-create", mkdir("OWN/made") && rmdir("OWN/made"));
attempt("own-signal", kill(0, OWNPID));
attempt("own-environ", open(my $c, "<", "/proc/OWNPID/environ"));
attempt("others-read", open(my $d, "<", "OTHER/secret"));
attempt("others-list", opendir(my $e, "OTHER"));
attempt("others-create", mkdir("OTHER/made") && rmdir("OTHER/made"));
attempt("others-signal", kill(0, OTHERPID));
attempt("others-environ", open(my $f, "<", "/proc/OTHERPID/environ"));
attempt("roots-read", open(my $g, "<", "ROOTS"));
attempt("roots-write", open(my $h, ">>", "ROOTS"));
attempt("roots-chown", chown(0, 0, "ROOTS"));
attempt("shadow", open(my $i, "<", "/etc/shadow"));
attempt("facts", open(my $j, ">>", "STAGE/corp10/br-gw_facts.txt"));
attempt("roots-signal", kill(0, ROOTPID));
attempt("roots-environ", open(my $k, "<", "/proc/ROOTPID/environ"));
attempt("settings", open(my $l, ">", "/proc/sys/kernel/core_pattern"));
my $device = "OWN/device";
attempt("device", syscall(MKNOD, $device, 020600, 0x103) == 0 && unlink($device));
my $m;
attempt("roots-network", open($m, "<", "/proc/ROOTPID/ns/net") && syscall(SETNS, fileno($m), 0) == 0);
exit 1;
"#;

const ATTEMPTS: usize = 20;
/// What a user can do.
const OWN: [&str; 5] = [
    "own-create",
    "own-environ",
    "own-read",
    "own-signal",
    "own-write",
];

/// Who is there to be attacked, each with a process and a file.
struct Scene {
    user: User,
    other: User,
    processes: Vec<std::process::Child>,
    roots: tempfile::NamedTempFile,
}

impl Scene {
    fn new() -> Self {
        let (user, other) = (User::new(), User::new());
        let mut processes = Vec::new();
        for who in [&user, &other] {
            let secret = who.home().join("secret");
            fs::write(&secret, "as it was").unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&secret, Some(who.uid), Some(who.uid)).unwrap();
            processes.push(who.command("/bin/sleep").arg("600").spawn().unwrap());
        }
        let roots = tempfile::NamedTempFile::new().unwrap();
        Self {
            user,
            other,
            processes,
            roots,
        }
    }

    /// The program, where everybody can run it.
    fn program(&self) -> String {
        let mut text = PROGRAM.to_owned();
        for (word, what) in [
            ("OWNPID", self.processes[0].id().to_string()),
            ("OTHERPID", self.processes[1].id().to_string()),
            ("ROOTPID", std::process::id().to_string()),
            ("OWN/", format!("{}/", self.user.home().display())),
            ("OTHER/", format!("{}/", self.other.home().display())),
            ("\"OTHER\"", format!("\"{}\"", self.other.home().display())),
            ("ROOTS", self.roots.path().display().to_string()),
            ("STAGE", stage().display().to_string()),
            ("MKNOD", libc::SYS_mknod.to_string()),
            ("SETNS", libc::SYS_setns.to_string()),
        ] {
            text = text.replace(word, &what);
        }
        let dir = self.user.home().join("tools");
        fs::create_dir(&dir).unwrap();
        let file = dir.join("nft");
        fs::write(&file, text).unwrap();
        for path in [&dir, &file] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            chown(path, Some(self.user.uid), Some(self.user.uid)).unwrap();
        }
        file.display().to_string()
    }

    /// What the user's `tsim lab up` says when that is the program that loads rulesets.
    fn as_loader(&self) -> String {
        let home = self.user.home();
        let config = home.join("config/tsim");
        fs::create_dir_all(&config).unwrap();
        let dirs = format!("tool_dirs = [{:?}]\n", home.join("tools"));
        fs::write(config.join("tsim.toml"), dirs).unwrap();
        let facts = home.join("facts");
        fs::create_dir(&facts).unwrap();
        let router = serde_json::json!({
            "version": 1, "name": "r", "nft": "table ip x {\n}\n",
            "interfaces": [{"name": "in", "addresses": ["10.9.0.1/24"]}], "routes": [],
        });
        fs::write(facts.join("r.json"), router.to_string()).unwrap();
        for path in [&config, &facts] {
            chown(path, Some(self.user.uid), Some(self.user.uid)).unwrap();
        }
        let up = ["lab", "up", "mine", "--facts", facts.to_str().unwrap()];
        let output = self.user.run("tsim", &up);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The attempts that succeeded, of as many as the program has.
fn done(said: &str) -> BTreeSet<String> {
    let attempts: Vec<_> = said.split(';').filter_map(|a| a.split_once('=')).collect();
    assert_eq!(
        attempts.len(),
        PROGRAM.matches("\nattempt(").count(),
        "{said}"
    );
    let done = attempts.iter().filter(|(_, how)| *how == "done");
    let name = |(name, _): &(&str, &str)| name.rsplit([' ', '\n']).next().unwrap().to_owned();
    done.map(name).collect()
}

#[test]
fn a_hostile_loader_can_do_nothing_that_its_user_cannot() {
    let scene = Scene::new();
    let program = scene.program();
    let direct = |mut command: Command| {
        let output = command.stderr(Stdio::piped()).output().unwrap();
        done(&String::from_utf8(output.stderr).unwrap())
    };
    // Every attempt is one that can succeed.
    let root = direct(Command::new(&program));
    assert_eq!(root.len(), ATTEMPTS, "{root:?}");
    let user = direct(scene.user.command(&program));
    assert_eq!(user, OWN.map(str::to_owned).into());
    let loader = done(&scene.as_loader());
    assert!(loader.is_subset(&user), "{loader:?} beside {user:?}");
    for who in [&scene.user, &scene.other] {
        let secret = fs::read_to_string(who.home().join("secret")).unwrap();
        assert_eq!(secret, "as it was");
    }
    assert_eq!(fs::read(scene.roots.path()).unwrap(), b"");
}
