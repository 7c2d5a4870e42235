//! The registry on what only root can arrange: real neighbour entries and taps, other people's
//! files, a full disk, a read-only mount.

use std::{fs, os::unix::fs::chown, path::Path, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tsim::{
    config::Config,
    lab::neighbours::LabNeighbours,
    model::{RouterId, RunId},
    netlink::{
        Netlink,
        object::{Mac, Neighbour},
    },
    netns::{NetnsFd, tool::Tools},
    registry::{
        Job, JobInfo, JobType, Liveness, LockMode, Locked, ManagedBy, NeighbourKey, Owner,
        ReconcileScope, RegistryError, RegistryManager, TapKernel, Wait,
    },
    run::caretaker::Caretaker,
};

use crate::{
    minilab::{MiniLab, ip},
    support::{Bed, ifname},
};

const PERMANENT: u16 = 0x80;
const BEFORE: Mac = Mac([2, 0, 0, 0, 0, 0xaa]);
const LEASED: Mac = Mac([2, 0, 0, 0, 0, 0xbb]);

fn config(dir: &Path) -> Config {
    Config {
        registry_dir: dir.join("registry"),
        labs_dir: dir.join("labs"),
        ..Config::default()
    }
}

fn job(registry: &RegistryManager, run: &str, router: &RouterId) -> Job<Locked> {
    let info = JobInfo {
        run_id: RunId::new(run).unwrap(),
        job_type: JobType::Detailed,
        dscp: None,
    };
    let job = registry.job(info);
    job.router_lock(router, LockMode::Exclusive, &Wait::not())
        .unwrap()
}

fn router_with_interface() -> (MiniLab, NetnsFd, NeighbourKey) {
    let mut lab = MiniLab::new(1);
    let netns = lab.router("r", &[(0, &["10.0.0.1/24"])]);
    let key = NeighbourKey {
        router: RouterId::new(lab.bed.lab.clone(), "r".parse().unwrap()),
        interface: ifname("eth0"),
        address: ip("10.0.0.9"),
    };
    (lab, netns, key)
}

fn entry(netns: &NetnsFd) -> Option<(Option<Mac>, u16)> {
    let mut netlink = Netlink::open(netns).unwrap();
    let found = netlink.neighbour(&ifname("eth0"), ip("10.0.0.9")).unwrap();
    found.map(|n| (n.mac, n.state))
}

fn put_entry(netns: &NetnsFd) {
    let mut netlink = Netlink::open(netns).unwrap();
    let mut batch = netlink.batch("test");
    batch.replace_neighbour(&Neighbour {
        dev: ifname("eth0"),
        address: ip("10.0.0.9"),
        mac: Some(BEFORE),
        state: PERMANENT,
    });
    batch.send().unwrap();
}

#[test]
fn a_leased_neighbour_points_at_the_job_and_is_put_back_as_it_was() {
    let (lab, netns, key) = router_with_interface();
    let dir = tempfile::tempdir().unwrap();
    let registry = RegistryManager::open(&config(dir.path())).unwrap();
    let mut kernel = LabNeighbours::new(&lab.bed.dir);
    let mut job = job(&registry, "a", &key.router);
    for before in [None, Some((Some(BEFORE), PERMANENT))] {
        if before.is_some() {
            put_entry(&netns);
        }
        job.acquire_neighbor_lease(&key, LEASED, &mut kernel)
            .unwrap();
        assert_eq!(entry(&netns), Some((Some(LEASED), PERMANENT)));
        assert_eq!(job.release_neighbor_lease(&key, &mut kernel).unwrap(), 0);
        assert_eq!(entry(&netns), before);
    }
}

#[test]
fn the_neighbour_of_a_dead_job_is_put_back_by_reconcile() {
    let (lab, netns, key) = router_with_interface();
    put_entry(&netns);
    let dir = tempfile::tempdir().unwrap();
    let registry = RegistryManager::open(&config(dir.path())).unwrap();
    let mut kernel = LabNeighbours::new(&lab.bed.dir);
    job(&registry, "a", &key.router)
        .acquire_neighbor_lease(&key, LEASED, &mut kernel)
        .unwrap();
    die(&config(dir.path()).registry_dir.join("neighbor_leases.json"));
    let mut caretaker = Caretaker::new(&lab.bed.dir, &config(dir.path()));
    let scope = ReconcileScope::Touching {
        routers: vec![key.router],
        hosts: Vec::new(),
    };
    let run = RunId::new("next").unwrap();
    let report = registry
        .reconcile(&run, &scope, &mut caretaker, false)
        .unwrap();
    assert_eq!(report.failures, [""; 0]);
    assert_eq!(entry(&netns), Some((Some(BEFORE), PERMANENT)));
    assert_eq!(registry.neighbor_leases().unwrap(), []);
}

/// Makes every owner in a file one that was there before this boot.
fn die(file: &Path) {
    let text = fs::read_to_string(file).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let gone = "00000000-0000-0000-0000-000000000000";
    assert!(text.contains(boot.trim()));
    fs::write(file, text.replace(boot.trim(), gone)).unwrap();
}

#[test]
fn taps_of_a_dead_process_are_swept_and_those_of_the_living_are_not() {
    let bed = Bed::new();
    let netns = bed.netns("r");
    let config = Config::default();
    let tools = Tools::new(config.tool_dirs.clone());
    let dir = tempfile::tempdir().unwrap();
    let registry = RegistryManager::open(&self::config(dir.path())).unwrap();
    let me = registry.owner();
    let (pid, start) = (me.pid, me.start_time.unwrap());
    let boot = me.boot_id.clone().unwrap();
    let comment = |run: &str, start: u64| {
        let ns = me.pid_ns.unwrap();
        format!("TSIM_KSMS={run}:o:dscp=33:pid={pid}:start={start}:boot={boot}:ns={ns}")
    };
    let rule = |comment: &str| format!("-A POSTROUTING -m comment --comment \"{comment}\"\n");
    let living = comment("living", start);
    let payload = format!(
        "*mangle\n{}{}{}COMMIT\n",
        rule(&living),
        rule(&comment("dead", start - 1)),
        rule("of the router"),
    );
    let load = || tools.run("iptables-nft-restore", &["-n"], payload.as_bytes());
    netns.enter(load).unwrap().unwrap();

    let mut caretaker = Caretaker::new(&bed.dir, &config);
    let router: RouterId = format!("{}.r", bed.lab).parse().unwrap();
    let is_gone = |owner: &Owner| owner.liveness() == Liveness::Gone;
    let mut sweep = |dry_run| {
        caretaker
            .sweep_taps(Some(&router), &is_gone, dry_run)
            .unwrap()
    };
    let said = sweep(true);
    assert!(
        said.len() == 1 && said[0].contains("of dead (DSCP 33"),
        "{said:?}"
    );
    assert_eq!(sweep(false), said);
    assert_eq!(sweep(false), [""; 0]);
    let save = || tools.run("iptables-nft-save", &["-t", "mangle"], b"");
    let left = netns.enter(save).unwrap().unwrap().stdout;
    let left = String::from_utf8(left).unwrap();
    assert!(
        left.contains(&living) && left.contains("of the router"),
        "{left}"
    );
    assert!(!left.contains("=dead:"), "{left}");
}

/// As jobs leave them where the kernel has no owner tables.
#[test]
fn tables_of_a_dead_process_are_swept_and_all_others_stay() {
    let bed = Bed::new();
    let netns = bed.netns("r");
    let config = Config::default();
    let tools = Tools::new(config.tool_dirs.clone());
    let me = Owner::current().unwrap();
    let (pid, start) = (me.pid, me.start_time.unwrap());
    let (boot, ns) = (me.boot_id.unwrap(), me.pid_ns.unwrap());
    let table = |family: &str, name: &str, comment: &str| {
        format!("table {family} {name} {{ comment \"{comment}\"; }}\n")
    };
    let owner = |start: u64| format!("TSIM_KSMS=pid={pid}:start={start}:boot={boot}:ns={ns}");
    let rules = [
        table("ip", "tsimtrace_dead", &owner(start - 1)),
        table("netdev", "tsimtrace_dead", &owner(start - 1)),
        table("ip", "tsimtrace_living", &owner(start)),
        table("ip", "tsim_stranger", "of the router"),
        "table ip tsim_bare { }\n".to_owned(),
    ];
    let nft = |args: &[&str], input: &str| {
        let run = || tools.run("nft", args, input.as_bytes()).unwrap().stdout;
        String::from_utf8(netns.enter(run).unwrap()).unwrap()
    };
    nft(&["-f", "-"], &rules.concat());

    let mut caretaker = Caretaker::new(&bed.dir, &config);
    let router: RouterId = format!("{}.r", bed.lab).parse().unwrap();
    let is_gone = |owner: &Owner| owner.liveness() == Liveness::Gone;
    let mut sweep = |dry_run| {
        caretaker
            .sweep_taps(Some(&router), &is_gone, dry_run)
            .unwrap()
    };
    let dead = format!("table tsimtrace_dead on {router}");
    let said = sweep(true);
    assert_eq!(said, [dead.clone(), dead]);
    assert_eq!(sweep(false), said);
    assert_eq!(sweep(false), [""; 0]);
    let left = nft(&["list", "tables"], "");
    let left: Vec<&str> = left
        .split_whitespace()
        .filter(|w| w.contains("tsim"))
        .collect();
    assert_eq!(left, ["tsimtrace_living", "tsim_stranger", "tsim_bare"]);
}

fn register(registry: &RegistryManager, name: &str) -> Result<(), RegistryError> {
    let info = JobInfo {
        run_id: RunId::new("a").unwrap(),
        job_type: JobType::Quick,
        dscp: None,
    };
    let number = name.len();
    let spec = tsim::registry::HostSpec {
        id: format!("lab@{name}").parse().unwrap(),
        router: "lab.r".parse().unwrap(),
        interface: ifname("eth0"),
        address: format!("10.0.0.{number}/24").parse().unwrap(),
        gateway: None,
        mac: Mac([2, 0, 0, 0, 0, u8::try_from(number).unwrap()]),
        stands_in: false,
    };
    registry
        .job(info)
        .check_and_register_host(&spec, ManagedBy::Operator, &Wait::not())
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let registry = RegistryManager::open(&config).unwrap();
    register(&registry, "a").unwrap();
    let file = config.registry_dir.join("hosts.json");
    chown(&file, Some(65534), None).unwrap();
    let error = registry.hosts().unwrap_err().to_string();
    assert!(
        error.contains("hosts.json") && error.contains("uid 65534"),
        "{error}"
    );
    chown(&config.registry_dir, Some(65534), None).unwrap();
    let error = RegistryManager::open(&config).unwrap_err().to_string();
    assert!(error.contains("uid 65534"), "{error}");
}

/// Runs `work` with a file system of 256 KiB, seen by nobody else, at a directory of its own.
fn on_a_small_disk(work: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        // Only this thread sees the mount, and it goes with the thread.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let flags = MsFlags::empty();
        mount(
            Some("small"),
            dir.path(),
            Some("tmpfs"),
            flags,
            Some("size=256k"),
        )
        .unwrap();
        work(dir.path());
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap());
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    on_a_small_disk(|dir| {
        let registry = RegistryManager::open(&config(dir)).unwrap();
        register(&registry, "a").unwrap();
        let ballast = dir.join("ballast");
        // Fails when the disk is full, which is what is wanted.
        let _ = fs::write(&ballast, vec![0; 1 << 20]);
        let error = register(&registry, "bb").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
        assert!(error.to_string().contains("cannot"), "{error}");
        assert_eq!(registry.hosts().unwrap().len(), 1);
        fs::remove_file(ballast).unwrap();
        register(&registry, "bb").unwrap();
        assert_eq!(registry.hosts().unwrap().len(), 2);
        assert_eq!(registry.take_repairs(), []);
    });
}

#[test]
fn a_read_only_mount_is_said() {
    on_a_small_disk(|dir| {
        let registry = RegistryManager::open(&config(dir)).unwrap();
        register(&registry, "a").unwrap();
        // Not a remount of the same mount: a child that another test forked may for a moment hold a
        // file of ours open for writing, and the kernel refuses that with EBUSY.
        let none = None::<&str>;
        mount(Some(dir), dir, none, MsFlags::MS_BIND, none).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, dir, none, flags, none).unwrap();
        let again = RegistryManager::open(&config(dir)).unwrap();
        let error = register(&again, "bb").unwrap_err();
        assert_eq!(error.errno(), Some(libc::EROFS), "{error}");
        assert_eq!(registry.hosts().unwrap().len(), 1);
    });
}
