//! How many system calls a quick job makes: time depends on the machine, this does not.
//!
//! The limits are what was counted, with some room. Whoever adds a hundred calls is told here.

use std::{
    fs,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Event, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tsim::{
    lab::hosts::{HostRequest, LabHosts},
    model::{HostId, RouterId, RouterName},
    registry::{RegistryManager, Wait},
};

use crate::quick::TestLab;

const SOURCE: &str = "10.1.1.100";
const DESTINATION: &str = "10.2.1.50";

const RUNS: usize = 5;

// A debug build of the standard library asks with fcntl(2) whether a descriptor is open before it closes it: 22
// calls of a job over one router. Users do not make them, but what is counted is what was built: release builds
// are that far below these limits.

/// Ten services, one router, its source host made by somebody else; 355 to 359 were counted, the most of them as
/// an ordinary user; 334 of a release build.
const KEPT: u64 = 380;
/// The same with a host that the job makes and removes; 511 to 515, and 477.
const MADE: u64 = 540;
/// Ten named routers, to eight of which the hidden sender sends, and two hosts that the job makes; 1,376 to 1,401,
/// and 1,310. Where threads of the job wait for each other, 30 are those of the thread that wakes them.
const TEN: u64 = 1460;
/// What each further router costs where the job makes no host; 84 to 86, and 81.
const FURTHER: u64 = 95;

/// The calls of a job over `routers`, the least of some runs: other tests that run beside it can only
/// add some.
fn calls(lab: &TestLab, routers: &str) -> u64 {
    let runs = (0..RUNS).map(|_| one_run(lab, routers));
    runs.min().unwrap()
}

fn one_run(lab: &TestLab, routers: &str) -> u64 {
    let file = lab.config_file();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
    command
        .arg("--config")
        .arg(&file)
        .args(["--lab", lab.bed.lab.as_str(), "-s", SOURCE])
        .args(["-d", DESTINATION, "-P", "1-10", "--routers", routers])
        .args(["--explain", "never", "--json"]);
    count(&command)
}

/// Runs a command, and counts the system calls of all its threads and children, ptrace(2).
fn count(command: &Command) -> u64 {
    // A shell that waits for a line is there to be traced before the command is. It says so: that it was
    // started is known before its own execve(2) has ended, and would be taken for that of the command.
    let mut shell = Command::new("sh")
        .args(["-c", "echo && read go && exec \"$@\" >/dev/null", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        // cargo sets it, and the dynamic linker then looks for each library in each of its directories.
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let shell_pid = Pid::from_raw(shell.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(shell_pid, options).unwrap();
    ptrace::interrupt(shell_pid).unwrap();
    writeln!(shell.stdin.take().unwrap(), "go").unwrap();
    let (mut started, mut stops, mut code) = (false, 0, None);
    // Children of this thread only: other tests run beside it.
    let mine = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        let (pid, signal) = match waitpid(None, Some(mine)) {
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                stops += u64::from(started);
                (pid, None)
            }
            Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                started |= event == Event::PTRACE_EVENT_EXEC as i32;
                (pid, None)
            }
            Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
            Ok(WaitStatus::Exited(pid, exit)) => {
                code = if pid == shell_pid { Some(exit) } else { code };
                continue;
            }
            Ok(_) => continue,
            Err(Errno::ECHILD) => break,
            Err(errno) => panic!("{errno}"),
        };
        // One that was killed meanwhile is gone.
        let _ = ptrace::syscall(pid, signal);
    }
    // Its end was seen above.
    let _ = shell.wait();
    assert!(matches!(code, Some(0 | 1 | 3)), "{code:?}");
    // One stop where a call begins, and one where it ends.
    stops / 2
}

/// Makes an operator's host with the source's address on each of these routers.
fn keep_hosts(lab: &TestLab, routers: &[&str]) {
    let mut hosts = LabHosts::new(&lab.bed.dir);
    let registry = RegistryManager::open(&lab.config).unwrap();
    let mut job = registry.operator().unwrap();
    for router in routers {
        let router: RouterName = router.parse().unwrap();
        let request = HostRequest {
            id: HostId::new(
                lab.bed.lab.clone(),
                format!("kept-{router}").parse().unwrap(),
            ),
            router: RouterId::new(lab.bed.lab.clone(), router),
            address: SOURCE.parse().unwrap(),
            prefix_len: None,
            interface: None,
        };
        let spec = hosts.lab(&lab.bed.lab).unwrap().plan(&request).unwrap();
        job.add_host(&spec, &mut hosts, &Wait::not()).unwrap();
    }
}

#[test]
fn a_quick_job_makes_no_more_system_calls_than_were_counted() {
    let mut lab = TestLab::up("corp10");
    // A registry in memory, as /run is.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    lab.config.registry_dir = memory.path().join("registry");
    fs::create_dir(&lab.config.registry_dir).unwrap();
    let one = "hq-gw";
    // The first job makes the files.
    calls(&lab, one);
    let made = calls(&lab, one);
    let ten = "br-core,br-gw,br-wifi,dc-core,dc-gw,dc-srv,hq-core,hq-dmz,hq-gw,hq-lab";
    let ten_made = calls(&lab, ten);
    keep_hosts(&lab, &[one]);
    let kept = calls(&lab, one);
    keep_hosts(&lab, &["hq-core"]);
    let further = (calls(&lab, ten) - kept) / 9;
    let found =
        format!("kept {kept}, made {made}, ten routers {ten_made}, each further router {further}");
    println!("{found}");
    assert!(kept <= KEPT, "{found}");
    assert!(made <= MADE, "{found}");
    assert!(ten_made <= TEN, "{found}");
    assert!(further <= FURTHER, "{found}");
}
