//! A scheduler that runs as an ordinary user, and the others of the machine who ask it: they have no
//! number in its user namespace, and are known all the same.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use super::user::{ASK, User, stage};

/// A scheduler of `user`, whose socket those of their group reach.
struct Service {
    daemon: Child,
    socket: PathBuf,
}

impl Service {
    fn start(user: &User) -> Self {
        fs::set_permissions(user.home(), fs::Permissions::from_mode(0o711)).unwrap();
        let socket = user.home().join("tsimd.sock");
        let dir = user.home().join("config/tsim");
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "[scheduler]\nlisten = \"127.0.0.1:0\"\nsocket = \"{}\"\n",
            socket.display()
        );
        fs::write(dir.join("tsim.toml"), text).unwrap();
        let mut command = user.command(stage().join("tsimd"));
        let mut daemon = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(daemon.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("leading") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "tsimd ended");
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { daemon, socket }
    }

    fn end(mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    fn ask(&self, mut command: Command, args: &[&str]) -> Output {
        let server = ["--server", self.socket.to_str().unwrap()];
        command.args(args).args(server).output().unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}

#[test]
fn users_of_a_scheduler_without_root_are_known_by_their_own_numbers() {
    let (keeper, ann, bob) = (User::new(), User::new(), User::new());
    keeper.lab_up("corp10");
    let service = Service::start(&keeper);
    let by = |user: &User, args: &[&str]| {
        let mut command = user.command(stage().join("tsim"));
        command.gid(keeper.uid);
        service.ask(command, args)
    };
    let listed = by(&ann, &["lab", "list"]);
    assert!(said(&listed).contains("lab corp10 is up"), "{listed:?}");
    let job = [
        "submit",
        "quick",
        "--lab",
        "corp10",
        "-P",
        "22,33434/udp",
        "--run-id",
        "a1",
    ];
    let submitted = by(&ann, &[&job[..], ASK].concat());
    assert!(submitted.status.success(), "{submitted:?}");
    let watched = by(&ann, &["watch", "a1"]);
    assert!(said(&watched).contains("a1 DONE"), "{watched:?}");
    let result = by(&ann, &["result", "a1", "--json"]);
    let result: Value = serde_json::from_slice(&result.stdout).unwrap();
    assert_eq!(result["run_id"], "a1");
    let refused = by(&bob, &["result", "a1"]);
    let name = format!("uid {}", ann.uid);
    assert!(said(&refused).contains(&format!("{name}'s")), "{refused:?}");
    let refused = by(&bob, &["cancel", "a1"]);
    assert!(said(&refused).contains(&format!("{name}'s")), "{refused:?}");
    // Root, and whose scheduler it is, see everything.
    let root = service.ask(
        Command::new(stage().join("tsim")),
        &["result", "a1", "--json"],
    );
    assert!(!root.stdout.is_empty(), "{root:?}");
    let own = service.ask(
        keeper.command(stage().join("tsim")),
        &["result", "a1", "--json"],
    );
    assert_eq!(own.stdout, root.stdout);
    // Of another group nobody gets in.
    let stranger = service.ask(bob.command(stage().join("tsim")), &["queue"]);
    assert!(
        said(&stranger).contains("Permission denied"),
        "{stranger:?}"
    );
    service.end();
    keeper.tsim(&["lab", "down", "corp10"]);
    keeper.await_end();
}
