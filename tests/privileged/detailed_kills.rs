//! A detailed job that is killed while routers keep track of its connections: whoever comes next
//! removes their entries, of all protocols, states and zones, and no others.

use std::{
    collections::BTreeSet,
    fs,
    net::UdpSocket,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::sys::signal::{Signal, kill};
use tsim::model::RouterName;

use crate::{
    detailed_chain::{lab, router},
    quick::TestLab,
    support::{await_stop, pid},
};

/// Translates the source, and has connections in a zone of its own.
pub(crate) const EDGE: &str = "
table inet zones {
    chain pre {
        type filter hook prerouting priority raw; policy accept;
        ct zone set 7
    }
}
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"mid\" masquerade
    }
}
";

/// Translates the destination, and lets some answers by.
const MIDDLE: &str = "
table ip nat {
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr 10.96.9.9 dnat to 10.96.4.80
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        tcp sport 82 drop
        udp sport 54 drop
    }
}
";

const CORE: &str = "
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established accept
    }
}
";

const ROUTERS: [&str; 3] = ["edge", "middle", "core"];

/// Three routers, with connections that somebody else made.
struct Stage {
    lab: TestLab,
    config: PathBuf,
    before: BTreeSet<String>,
    _facts: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let edge = router(
            "edge",
            &[("lan", &["10.96.1.1/24"]), ("mid", &["10.96.2.1/24"])],
            &["10.96.0.0/16 via 10.96.2.2 dev mid"],
            EDGE,
        );
        let middle = router(
            "middle",
            &[("mid", &["10.96.2.2/24"]), ("in", &["10.96.3.2/24"])],
            &[
                "10.96.4.0/24 via 10.96.3.3 dev in",
                "10.96.9.0/24 via 10.96.3.3 dev in",
            ],
            MIDDLE,
        );
        let core = router(
            "core",
            &[
                ("in", &["10.96.3.3/24"]),
                ("srv", &["10.96.4.1/24", "10.96.9.1/24"]),
            ],
            &["10.96.0.0/16 via 10.96.3.2 dev in"],
            CORE,
        );
        let (lab, facts) = lab(&[edge, middle, core]);
        let mut stage = Self {
            config: lab.config_file(),
            lab,
            before: BTreeSet::new(),
            _facts: facts,
        };
        // The address to which the job's own connections are translated is among the ends.
        for router in ROUTERS {
            let timeout = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
            stage.inside(router, || fs::write(timeout, "3600").unwrap());
        }
        stage.inside("middle", || {
            let socket = UdpSocket::bind("10.96.2.2:4000").unwrap();
            socket.send_to(b"before", "10.96.2.1:4000").unwrap();
        });
        stage.before = stage.entries();
        assert!(!stage.before.is_empty());
        stage
    }

    fn inside<T: Send>(&self, router: &str, work: impl FnOnce() -> T + Send) -> T {
        let netns = self.lab.lab.router_netns(&RouterName::new(router).unwrap());
        netns.unwrap().enter(work).unwrap()
    }

    /// What the routers keep track of: addresses, ports and zones.
    fn entries(&self) -> BTreeSet<String> {
        let of = |router: &str| {
            let read = || fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
            let table = self.inside(router, read);
            let parts = |line: &str| {
                let parts = line.split_whitespace().filter(|part| {
                    ["src=", "dst=", "sport=", "dport=", "type=", "zone="]
                        .iter()
                        .any(|key| part.starts_with(key))
                });
                parts.collect::<Vec<_>>().join(" ")
            };
            let lines = table
                .lines()
                .map(|line| format!("{router} {}", parts(line)));
            lines.collect::<Vec<_>>()
        };
        ROUTERS.iter().flat_map(|router| of(router)).collect()
    }

    fn command(
        &self,
        program: &str,
        (destination, services): (&str, &str),
        fault: Option<&str>,
    ) -> Command {
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.config);
        command.args(["--lab", self.lab.bed.lab.as_str(), "-s", "10.96.1.9"]);
        command.args(["-d", destination, "-P", services, "--json"]);
        if let Some(fault) = fault {
            command.args(["--fault", fault]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn detailed(&self, asked: (&str, &str), fault: Option<&str>) -> Child {
        let program = env!("CARGO_BIN_EXE_tsim-detailed");
        self.command(program, asked, fault).spawn().unwrap()
    }

    /// A job that has tried the first of these services and not forgotten it yet.
    fn tried(&self, asked: (&str, &str)) -> Child {
        let job = self.detailed(asked, Some("stop@detailed.forget"));
        await_stop(&job);
        job
    }

    fn assert_as_before(&self, when: &str) {
        assert_eq!(self.entries(), self.before, "{when}");
    }
}

fn kill_it(mut job: Child) {
    kill(pid(&job), Signal::SIGKILL).unwrap();
    job.wait().unwrap();
}

#[test]
fn what_a_killed_job_left_in_connection_tracking_the_next_one_removes() {
    let stage = Stage::new();
    let sweepers = [
        env!("CARGO_BIN_EXE_tsim"),
        env!("CARGO_BIN_EXE_tsim-detailed"),
        env!("CARGO_BIN_EXE_tsim-quick"),
    ];
    // Established; answered by one who is not heard; datagrams with and without an answer; and what
    // the middle one translates.
    let asked = [
        ("10.96.4.80", "80"),
        ("10.96.4.80", "82"),
        ("10.96.4.80", "53/udp"),
        ("10.96.4.80", "54/udp"),
        ("10.96.9.9", "80"),
        ("10.96.9.9", "ping"),
    ];
    for (service, sweeper) in asked.into_iter().zip(sweepers.iter().cycle()) {
        kill_it(stage.tried(service));
        let left = stage.entries();
        for router in ROUTERS {
            let new = left.difference(&stage.before);
            let new = new.filter(|entry| entry.starts_with(router));
            assert!(new.count() > 0, "{service:?}: {router}: {left:?}");
        }
        let mut command = match sweeper.ends_with("/tsim") {
            true => {
                let mut command = Command::new(sweeper);
                command.arg("--config").arg(&stage.config).arg("reconcile");
                command
            }
            false => stage.command(sweeper, ("10.96.4.80", "443"), None),
        };
        command.output().unwrap();
        stage.assert_as_before(&format!("{service:?}, {sweeper}"));
    }
}

/// Who waited for the routers when the job died has looked for what is left before that.
#[test]
fn what_it_left_is_removed_by_who_waited_for_it() {
    let stage = Stage::new();
    let first = stage.tried(("10.96.4.80", "82"));
    let second = stage.detailed(("10.96.4.80", "443"), Some("stop@registry.queue.wait"));
    await_stop(&second);
    kill_it(first);
    kill(pid(&second), Signal::SIGCONT).unwrap();
    let mut second = second;
    assert!(second.wait().unwrap().code().is_some());
    stage.assert_as_before("after the one that waited");
}
