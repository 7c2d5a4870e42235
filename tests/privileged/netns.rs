//! Named namespaces.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::socket::{AddressFamily, SockFlag, SockType},
};
use tsim::{
    model::WithCauses,
    netlink::Netlink,
    netns::{NetnsDir, NetnsError, NetnsId, visit},
};

use crate::support::{Bed, mounts};

/// The namespace that the calling thread is in.
fn here() -> NetnsId {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata("/proc/thread-self/ns/net").unwrap();
    NetnsId {
        dev: meta.dev(),
        ino: meta.ino(),
    }
}

#[test]
fn a_namespace_is_made_entered_and_deleted() {
    let bed = Bed::new();
    let home = here();
    let netns = bed.netns("a");
    assert_ne!(netns.id(), home);
    assert_eq!(netns.enter(here).unwrap(), netns.id());
    assert_eq!(here(), home, "entering must not move the caller");
    let again = bed.dir.open(&bed.name("a")).unwrap();
    assert_eq!(again.id(), netns.id());
    assert_eq!(bed.left(), [bed.name("a")]);
    assert!(matches!(
        bed.dir.create(&bed.name("a")),
        Err(NetnsError::Exists { .. })
    ));
    bed.dir.delete(&bed.name("a")).unwrap();
    bed.dir.delete(&bed.name("a")).unwrap();
    assert!(matches!(
        bed.dir.open(&bed.name("a")),
        Err(NetnsError::NotFound { .. })
    ));
    assert!(mounts(bed.lab.as_str()).is_empty());
}

#[test]
fn what_a_crash_left_can_be_created_and_deleted() {
    let bed = Bed::new();
    bed.netns("first");
    for name in ["a", "b"].map(|name| bed.name(name)) {
        fs::write(bed.dir.path(&name), "").unwrap();
        assert!(matches!(
            bed.dir.open(&name),
            Err(NetnsError::NotANamespace { .. })
        ));
    }
    assert_ne!(bed.netns("a").id(), here());
    bed.dir.delete(&bed.name("b")).unwrap();
    assert_eq!(bed.left(), [bed.name("a"), bed.name("first")]);
}

#[test]
fn a_panic_inside_is_an_error() {
    let bed = Bed::new();
    let error = bed.netns("a").enter(|| panic!("inside")).unwrap_err();
    assert!(error.to_string().contains("inside"), "{error}");
}

#[test]
fn one_thread_visits_many_namespaces() {
    let bed = Bed::new();
    let all = ["a", "b", "c"].map(|name| bed.netns(name));
    let each: Vec<_> = all.iter().collect();
    let seen = visit(&each, |netns| (netns.name().clone(), here())).unwrap();
    let want: Vec<_> = all.iter().map(|n| (n.name().clone(), n.id())).collect();
    assert_eq!(seen, want);
}

#[test]
fn a_socket_stays_in_its_namespace_and_is_not_inherited() {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let bed = Bed::new();
    let netns = bed.netns("a");
    let socket = netns
        .socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::empty(),
            None,
        )
        .unwrap();
    for fd in [socket.as_fd(), netns.as_fd()] {
        let flags = fcntl(fd, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
    let links = Netlink::open(&netns).unwrap().links().unwrap();
    assert_eq!(links.len(), 1, "a new namespace has its loopback only");
}

#[test]
fn deleting_the_name_keeps_it_for_whoever_has_it_open() {
    let bed = Bed::new();
    let netns = bed.netns("a");
    bed.dir.delete(&bed.name("a")).unwrap();
    assert_eq!(netns.enter(here).unwrap(), netns.id());
    let fresh = bed.netns("a");
    assert_ne!(fresh.id(), netns.id(), "the old one is still there");
}

#[test]
fn parallel_creation_and_deletion_of_fifty_leaves_nothing() {
    let bed = Bed::new();
    thread::scope(|scope| {
        for worker in 0..5 {
            let bed = &bed;
            scope.spawn(move || {
                for number in 0..10 {
                    bed.netns(&format!("r{worker}-{number}"));
                }
            });
        }
    });
    let made = bed.left();
    assert_eq!(made.len(), 50);
    thread::scope(|scope| {
        for part in made.chunks(10) {
            let bed = &bed;
            scope.spawn(move || part.iter().for_each(|name| bed.dir.delete(name).unwrap()));
        }
    });
    assert!(bed.left().is_empty());
    assert!(mounts(bed.lab.as_str()).is_empty());
}

/// Another user of the machine who has `dir` locked (flock(2)), as anybody can who may read it, until
/// their standard input ends.
fn locked_by_another(dir: &Path) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "flock"]);
    command
        .arg(dir)
        .args(["sh", "-c", "echo held; read -r line"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(holder.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    holder
}

fn let_go(mut holder: Child) {
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

#[test]
fn another_user_who_has_iproutes_lock_is_named_and_waited_for_once_at_most() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = place.path().join("netns");
    fs::create_dir(&path).unwrap();
    let dir = || NetnsDir::new(&path).patient(Duration::from_millis(20));
    let name = |text: &str| Bed::new().name(text);
    let (first, second) = (name("first"), name("second"));

    let holder = locked_by_another(&path);
    let refused = dir().create(&first).unwrap_err();
    let text = WithCauses(&refused).to_string();
    let pid = holder.id();
    let want = format!("process {pid} (flock ");
    assert!(text.contains(&want), "{text}");
    assert_eq!(dir().list().unwrap(), []);
    let_go(holder);

    dir().create(&first).unwrap();
    // The directory is a shared mount now, which is all that the lock is for.
    let holder = locked_by_another(&path);
    dir().create(&second).unwrap();
    dir().delete(&first).unwrap();
    dir().delete(&second).unwrap();
    let_go(holder);
    umount2(&path, MntFlags::MNT_DETACH).unwrap();
}
