//! In a container as engines make them: a filter of system calls, and `/proc` masked and read-only in
//! parts. There it works, or the first command and `tsim doctor` say what is missing and what to do, and
//! nothing half made is left.

use std::{collections::BTreeMap, env::consts::ARCH, fs, path::Path, process::Output, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use serde_json::Value;

use crate::user::{ASK, User, stage, verdicts};

/// What engines refuse to whoever has no rights on the machine and tsim has no use for: keys, programs for
/// the kernel, its own log, other processes, clocks, modules.
const USELESS: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_move_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
];

/// What makes namespaces and mounts, beside clone(2).
const NAMESPACES: &[i64] = &[
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

/// Paths below `/proc` that engines hide.
const MASKED: [&str; 9] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
];
/// Paths below `/proc` that engines make read-only, beside `/proc/sys`.
const READ_ONLY: [&str; 4] = ["bus", "fs", "irq", "sysrq-trigger"];

/// What a container forbids.
#[derive(Clone, Default)]
struct Container {
    /// System calls with the error that each of them answers.
    refused: Vec<(Vec<i64>, i32)>,
    /// Whether clone(2) may make no namespaces; clone3(2), whose arguments no filter sees, is not there.
    no_clone: bool,
    masked: bool,
    read_only_settings: bool,
}

impl Container {
    /// As Docker has it for whoever has no rights: `EPERM`, and ENOSYS for clone3.
    fn docker() -> Self {
        Self {
            refused: vec![([USELESS, NAMESPACES].concat(), libc::EPERM)],
            no_clone: true,
            masked: true,
            ..Self::default()
        }
    }

    /// What is not on the list is not there, as Podman has it.
    fn unknown_calls() -> Self {
        Self {
            refused: vec![([USELESS, NAMESPACES].concat(), libc::ENOSYS)],
            no_clone: true,
            masked: true,
            ..Self::default()
        }
    }

    /// `call` alone.
    fn without(call: i64, errno: i32) -> Self {
        Self {
            refused: vec![(vec![call], errno)],
            ..Self::default()
        }
    }

    /// `tsim` in it, with these arguments.
    fn tsim(&self, user: &User, args: &[&str]) -> Output {
        self.run(user, "tsim", args)
    }

    /// A program of ours in it. The thread becomes the container, and what it starts is inside.
    fn run(&self, user: &User, program: &str, args: &[&str]) -> Output {
        let inside = || {
            self.hide();
            self.refuse();
            user.run(program, args)
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn hide(&self) {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let again = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, again, None::<&str>).unwrap();
        let proc = Path::new("/proc");
        if self.masked {
            MASKED.iter().for_each(|name| mask(&proc.join(name)));
            READ_ONLY.iter().for_each(|n| read_only(&proc.join(n)));
        }
        if self.read_only_settings {
            read_only(&proc.join("sys"));
        }
    }

    fn refuse(&self) {
        for (calls, errno) in &self.refused {
            let rules = calls.iter().map(|call| (*call, Vec::new()));
            apply(rules.collect(), *errno);
        }
        if self.no_clone {
            apply(
                BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
                libc::ENOSYS,
            );
            let made = [
                libc::CLONE_NEWNS,
                libc::CLONE_NEWCGROUP,
                libc::CLONE_NEWUTS,
                libc::CLONE_NEWIPC,
                libc::CLONE_NEWUSER,
                libc::CLONE_NEWPID,
                libc::CLONE_NEWNET,
            ];
            let rules = made.map(|flag| with_flag(u64::from(flag.cast_unsigned())));
            apply(
                BTreeMap::from([(libc::SYS_clone, rules.into())]),
                libc::EPERM,
            );
        }
    }
}

/// Has the calling thread, and what it starts, get `errno` for these calls.
fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) {
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    let arch = ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}

/// Fits clone(2) with this flag.
fn with_flag(flag: u64) -> SeccompRule {
    let has = SeccompCmpOp::MaskedEq(flag);
    let flags = SeccompCondition::new(0, SeccompCmpArgLen::Qword, has, flag).unwrap();
    SeccompRule::new(vec![flags]).unwrap()
}

/// Puts something empty over a path, if the kernel has that.
fn mask(path: &Path) {
    let Ok(meta) = fs::metadata(path) else { return };
    let none = None::<&str>;
    if meta.is_dir() {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, none).unwrap();
    } else {
        mount(Some("/dev/null"), path, none, MsFlags::MS_BIND, none).unwrap();
    }
}

fn read_only(path: &Path) {
    if !path.exists() {
        return;
    }
    let none = None::<&str>;
    mount(
        Some(path),
        path,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .unwrap();
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, path, none, again, none).unwrap();
}

fn lab_up() -> [String; 5] {
    let facts = stage().join("corp10").display().to_string();
    ["lab", "up", "mine", "--facts", &facts].map(str::to_owned)
}

/// Asserts that the first command fails with `what` and the remedy, that `tsim doctor` says the same, and
/// that there is no keeper afterwards.
fn assert_said(container: &Container, name: &str, what: &str, remedy: &str) {
    let user = User::new();
    let up = lab_up();
    let first = container.tsim(&user, &up.each_ref().map(String::as_str));
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    assert_eq!(first.status.code(), Some(4), "{name}: {said}");
    for wanted in [what, remedy] {
        assert!(said.contains(wanted), "{name}: no {wanted:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{name}: {said}");
    assert_none_kept(&user, name);

    let doctor = container.tsim(&user, &["doctor", "--json"]);
    assert_eq!(doctor.status.code(), Some(4), "{name}: {doctor:?}");
    let report: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let first = &report["checks"][0];
    assert_eq!(first["name"], "user_namespaces", "{name}: {first}");
    assert_eq!(first["state"], "no", "{name}: {first}");
    let found = first["found"].as_str().unwrap();
    assert!(
        found.contains(what) && found.contains(remedy),
        "{name}: {found}"
    );
    let said = String::from_utf8_lossy(&doctor.stderr).into_owned();
    assert!(!said.contains("panicked"), "{name}: {said}");
    assert_none_kept(&user, name);
}

fn assert_none_kept(user: &User, name: &str) {
    user.await_end();
    let runtime = user.runtime_dir();
    let labs = fs::read_dir(runtime.join("labs")).map(Iterator::count);
    assert_eq!(labs.unwrap_or(0), 0, "{name}");
    assert!(!runtime.join("keeper.json").exists(), "{name}");
}

const SECCOMP: &str = "seccomp=unconfined";

#[test]
fn what_an_engines_filter_refuses_is_said_and_nothing_is_left() {
    for (name, container) in [
        ("docker", Container::docker()),
        ("podman", Container::unknown_calls()),
    ] {
        assert_said(&container, name, "cannot make a user namespace", SECCOMP);
    }
}

#[test]
fn each_call_that_a_keeper_needs_is_said_whatever_refuses_it() {
    for (call, what) in [
        (libc::SYS_unshare, "cannot make a user namespace"),
        (libc::SYS_mount, "cannot make a private /run"),
        (libc::SYS_umount2, "cannot unmount anything"),
        (libc::SYS_setns, "cannot go into namespaces that are there"),
        (
            libc::SYS_pidfd_open,
            "cannot go into namespaces that are there",
        ),
    ] {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let name = format!("{what}, errno {errno}");
            assert_said(&Container::without(call, errno), &name, what, SECCOMP);
        }
    }
}

/// One filter for whoever starts the keeper, and another for who comes later.
#[test]
fn who_may_not_join_a_keeper_that_is_there_is_told_so_and_it_stays() {
    let user = User::new();
    user.lab_up("mine");
    let keeper = user.keeper();
    let refused =
        Container::without(libc::SYS_setns, libc::EPERM).tsim(&user, &["lab", "status", "mine"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(
        said.contains("cannot go into namespaces") && said.contains(SECCOMP),
        "{said}"
    );
    assert_eq!(user.keeper(), keeper);
    user.ask("tsim-quick", "mine", "22/tcp");
    user.tsim(&["lab", "down", "mine"]);
    user.assert_gone();
}

#[test]
fn settings_that_an_engine_makes_read_only_are_said() {
    let container = Container {
        masked: true,
        read_only_settings: true,
        ..Container::default()
    };
    let what = "cannot change the settings of a network namespace";
    assert_said(
        &container,
        "read-only /proc/sys",
        what,
        "systempaths=unconfined",
    );
}

/// What is left to a container whose engine was told to let namespaces be made: everything works, and the
/// answers are those of outside.
#[test]
fn where_namespaces_are_let_be_the_rest_of_a_container_is_no_hindrance() {
    let outside = User::new();
    outside.lab_up("mine");
    let want = outside.ask("tsim-quick", "mine", "1-60/tcp");
    let landlock = [
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_restrict_self,
    ];
    for errno in [libc::EPERM, libc::ENOSYS] {
        let container = Container {
            refused: vec![([USELESS, &landlock].concat(), errno)],
            masked: true,
            ..Container::default()
        };
        let user = User::new();
        let run = |program: &str, args: &[&str]| {
            let output = container.run(&user, program, args);
            assert!(
                output.status.code() != Some(4),
                "errno {errno}: {args:?}: {output:?}"
            );
            output
        };
        let up = lab_up();
        let made = run("tsim", &up.each_ref().map(String::as_str));
        assert!(made.status.success(), "errno {errno}: {made:?}");
        let ask = [&["--lab", "mine", "--json", "-P", "1-60/tcp"], ASK].concat();
        assert_eq!(verdicts(&run("tsim-quick", &ask)), want, "errno {errno}");
        let ask = [&["--lab", "mine", "--json", "-P", "22,53/udp"], ASK].concat();
        verdicts(&run("tsim-detailed", &ask));
        assert!(run("tsim", &["doctor"]).status.success());
        run("tsim", &["lab", "down", "mine"]);
        user.assert_gone();
    }
    outside.tsim(&["lab", "down", "mine"]);
    outside.assert_gone();
}
