//! The iptables back end: both variants, both families.

mod bed;
mod departure;
mod explain;

use std::{fs, process::Command};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tsim::{
    firewall::{
        Backend, BackendChoice, InstalledTaps, Support, choose,
        iptables::{IptablesTaps, Matcher, Variant, feature, sweep},
    },
    netlink::object::Family,
    netns::tool::Tools,
};

use self::bed::{Job, Row, plan, tool};

const VARIANTS: [(Variant, Backend); 2] = [
    (Variant::Nft, Backend::IptablesNft),
    (Variant::Legacy, Backend::IptablesLegacy),
];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A ruleset in which `{to}` stands for the destination, and what is right.
struct Case {
    name: &'static str,
    rules: &'static str,
    /// Services that go out, in the order 22, 80, 443, 53.
    out: &'static str,
    /// Services that reach the end of INPUT.
    local: &'static str,
    undecided: &'static str,
    to_router: bool,
}

const ALL: &str = "22,80,443,53";

const CASE: Case = Case {
    name: "",
    rules: "",
    out: ALL,
    local: "",
    undecided: "",
    to_router: false,
};

const CASES: &[Case] = &[
    Case {
        name: "no rules",
        ..CASE
    },
    Case {
        name: "drop in FORWARD",
        rules: "*filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n",
        out: "22,443,53",
        ..CASE
    },
    Case {
        name: "policy DROP in FORWARD",
        rules: "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p udp --dport 53 -j ACCEPT\nCOMMIT\n",
        out: "53",
        ..CASE
    },
    Case {
        name: "drop in raw PREROUTING, an early ACCEPT before it",
        rules: "*raw\n-A PREROUTING -p tcp --dport 22 -j ACCEPT\n-A PREROUTING -p tcp -j DROP\nCOMMIT\n",
        out: "22,53",
        ..CASE
    },
    Case {
        name: "early ACCEPT in mangle PREROUTING and POSTROUTING",
        rules: "*mangle\n-A PREROUTING -j ACCEPT\n-A POSTROUTING -j ACCEPT\nCOMMIT\n",
        ..CASE
    },
    Case {
        name: "drop in mangle POSTROUTING",
        rules: "*mangle\n-A POSTROUTING -p tcp --dport 443 -j DROP\nCOMMIT\n",
        out: "22,80,53",
        ..CASE
    },
    Case {
        name: "drops and accepts in mangle POSTROUTING",
        rules: "*mangle\n-A POSTROUTING -p tcp --dport 22 -j ACCEPT\n\
                -A POSTROUTING -p tcp --dport 80 -j DROP\nCOMMIT\n",
        out: "443,53",
        undecided: "22,80",
        ..CASE
    },
    Case {
        name: "policy DROP in mangle POSTROUTING",
        rules: "*mangle\n:POSTROUTING DROP [0:0]\nCOMMIT\n",
        out: "",
        undecided: ALL,
        ..CASE
    },
    Case {
        name: "DNAT to another port, and masquerading",
        rules: "*nat\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {to-port}\n\
                -A POSTROUTING -o out -j MASQUERADE --random\nCOMMIT\n\
                *filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n",
        ..CASE
    },
    Case {
        name: "DSCP, TTL and MSS rewritten everywhere",
        rules: "*mangle\n-A PREROUTING -j DSCP --set-dscp 46\n-A FORWARD -j DSCP --set-dscp 10\n\
                -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1200\n\
                -A POSTROUTING -j DSCP --set-dscp 0\n{ttl}COMMIT\n",
        ..CASE
    },
    Case {
        name: "rules that match the class of the user's probes",
        rules: "*filter\n-A FORWARD -m dscp ! --dscp 0 -j DROP\nCOMMIT\n",
        ..CASE
    },
    Case {
        name: "the router itself, filtered",
        rules: "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n\
                -A INPUT -p udp -j ACCEPT\nCOMMIT\n",
        out: "",
        local: "22,53",
        to_router: true,
        ..CASE
    },
    Case {
        name: "the router itself, filtered in security too",
        rules: "*filter\n-A INPUT -p tcp --dport 80 -j REJECT\nCOMMIT\n\
                *security\n-A INPUT -p tcp --dport 22 -j DROP\nCOMMIT\n",
        out: "",
        local: "443,53",
        to_router: true,
        ..CASE
    },
    Case {
        name: "redirected to the router itself",
        rules: "*nat\n-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080\nCOMMIT\n",
        out: "22,443,53",
        local: "80",
        ..CASE
    },
    Case {
        name: "untracked",
        rules: "*raw\n-A PREROUTING -j CT --notrack\nCOMMIT\n\
                *filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n",
        ..CASE
    },
];

impl Case {
    fn rules(&self, family: Family) -> String {
        let (to_port, ttl) = match family {
            Family::V4 => ("10.9.0.2:8080", "-A FORWARD -j TTL --ttl-set 9\n"),
            Family::V6 => ("[2001:db8:b::2]:8080", "-A FORWARD -j HL --hl-set 9\n"),
        };
        self.rules
            .replace("{to-port}", to_port)
            .replace("{ttl}", ttl)
    }
}

/// Every table that a tap may use, so that with the legacy variant none comes into being.
const TABLES: &str = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*security\nCOMMIT\n";

#[test]
fn verdicts_are_right_and_the_ruleset_is_as_before() {
    for (variant, backend) in VARIANTS {
        for family in FAMILIES {
            for case in CASES {
                check(case, variant, backend, family);
            }
        }
    }
}

fn check(case: &Case, variant: Variant, backend: Backend, family: Family) {
    let row = Row::new();
    if variant == Variant::Legacy {
        row.load(variant, family, TABLES);
    }
    row.load(variant, family, &case.rules(family));
    let what = format!("{backend} {family:?}: {}", case.name);
    let before = row.ruleset();
    let mut job = row.job("job", family);
    if case.to_router {
        job = job.to(plan(family).near);
    }
    job.taps.note_arrivals = true;
    let reading = job.measure(backend);
    assert_eq!(job.ports(reading.out.iter()), case.out, "{what}: out");
    assert_eq!(job.ports(reading.local.iter()), case.local, "{what}: local");
    let undecided = reading.undecided.iter().flat_map(|u| u.services.iter());
    assert_eq!(job.ports(undecided), case.undecided, "{what}: undecided");
    assert_eq!(reading.packets_in, 4, "{what}: in");
    assert_eq!(reading.arrived.unwrap().len(), 4, "{what}: arrived");
    assert_eq!(reading.packets_out, reading.out.len() as u64, "{what}");
    assert_eq!(reading.foreign, 0, "{what}");
    assert_eq!(row.ruleset(), before, "{what}");
}

#[test]
fn what_the_taps_say_is_what_a_capture_shows() {
    let rules = "*filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n\
                 *mangle\n-A POSTROUTING -p tcp --dport 22 -j DROP\nCOMMIT\n";
    for (variant, backend) in VARIANTS {
        for family in FAMILIES {
            let row = Row::new();
            row.load(variant, family, rules);
            let capture = row.capture();
            let mut job = row.job("job", family);
            let discarded = job.measure(backend);
            let left = capture.indexes(job.taps.tags);
            assert!(left.is_empty(), "probes must not leave");
            job.taps.pass_on = true;
            let passed = job.measure(backend);
            let captured = capture.indexes(job.taps.tags);
            assert_eq!(passed.out.iter().collect::<Vec<_>>(), captured);
            assert_eq!(passed.out, discarded.out);
            assert_eq!(job.ports(captured.into_iter()), "443,53");
        }
    }
}

#[test]
fn jobs_share_a_router() {
    for (variant, backend) in VARIANTS {
        let row = Row::new();
        let rules = "*mangle\n-A POSTROUTING -p tcp --dport 80 -j DROP\nCOMMIT\n";
        row.load(variant, Family::V4, &format!("{TABLES}{rules}"));
        let before = row.ruleset();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let row = &row;
                scope.spawn(move || {
                    let run_id = format!("a-rather-long-run-id-of-job-{number}");
                    let job = row.job(&run_id, Family::V4);
                    for _ in 0..3 {
                        let reading = job.measure(backend);
                        assert_eq!(job.ports(reading.out.iter()), "22,443,53", "{backend}");
                        assert_eq!((reading.packets_in, reading.packets_out), (4, 3));
                    }
                });
            }
        });
        assert_eq!(row.ruleset(), before, "{backend}");
    }
}

#[test]
fn tables_that_came_with_taps_go_with_the_last_of_them() {
    let row = Row::new();
    let before = row.ruleset();
    let (first, second) = (row.job("first", Family::V4), row.job("second", Family::V4));
    let taps = first.install(Backend::IptablesNft);
    let others = second.install(Backend::IptablesNft);
    taps.remove().1.unwrap();
    assert_ne!(row.ruleset(), before);
    others.remove().1.unwrap();
    assert_eq!(row.ruleset(), before);
}

#[test]
fn a_legacy_table_comes_into_being_once_and_stays_empty() {
    let row = Row::new();
    row.job("job", Family::V4).measure(Backend::IptablesLegacy);
    let save = row.tool("iptables-legacy-save", &[], "");
    let tables: Vec<_> = save.lines().filter(|line| line.starts_with('*')).collect();
    assert_eq!(tables, ["*mangle"]);
    assert!(!save.contains("-A ") && !save.contains("DROP"), "{save}");
}

#[test]
fn only_taps_of_dead_jobs_are_swept() {
    for (variant, backend) in VARIANTS {
        let row = Row::new();
        row.load(variant, Family::V4, TABLES);
        let rules = "*mangle\n:TSIM_KSMS - [0:0]\n\
                     -A FORWARD -m comment --comment \"TSIM_KSMS=dead:x\" -j TSIM_KSMS\nCOMMIT\n";
        row.load(variant, Family::V4, rules);
        let before = row.ruleset();
        let (dead, alive) = (row.job("dead", Family::V4), row.job("alive", Family::V4));
        // Dropped without removal: what a job that is killed leaves.
        drop(dead.install(backend));
        let mut taps = alive.install(backend);
        let of = (variant, Family::V4);
        let swept = sweep(of, row.site(), &[], |identity| {
            assert_eq!(identity.owner, row.owner);
            identity.run_id.as_str() == "dead"
        })
        .unwrap();
        let swept: Vec<_> = swept.dead.iter().map(|dead| dead.run_id.as_str()).collect();
        assert_eq!(swept, ["dead"], "{backend}");
        alive.send();
        assert_eq!(taps.read().unwrap().packets_out, 4, "{backend}");
        taps.remove().1.unwrap();
        assert_eq!(row.ruleset(), before, "{backend}");
        let again = sweep(of, row.site(), &[], |_| true).unwrap();
        assert_eq!(again.dead, []);
    }
}

#[test]
fn a_run_id_cannot_be_used_twice_and_a_refused_installation_leaves_nothing() {
    for (variant, backend) in VARIANTS {
        let row = Row::new();
        // Three tables hold taps, so a payload that fails in the last one was half in force.
        let rules = "*raw\n-A PREROUTING -p icmp -j DROP\nCOMMIT\n\
                     *filter\n-A INPUT -p icmp -j DROP\nCOMMIT\n\
                     *security\n:TSIM_job_l - [0:0]\nCOMMIT\n";
        row.load(variant, Family::V4, TABLES);
        row.load(variant, Family::V4, rules);
        let before = row.ruleset();
        let job = row.job("job", Family::V4);
        let result = InstalledTaps::install(backend, row.site(), job.taps.clone());
        let error = result.unwrap_err().to_string();
        assert!(error.contains("TSIM_job_l"), "{error}");
        assert_eq!(row.ruleset(), before, "{backend}");
    }
}

#[test]
fn taps_that_somebody_removed_are_an_error_and_no_verdict() {
    for (variant, backend) in VARIANTS {
        let row = Row::new();
        let job = row.job("job", Family::V4);
        let mut taps = job.install(backend);
        row.tool(
            &tool(variant, Family::V4, "restore"),
            &[],
            "*mangle\nCOMMIT\n",
        );
        let error = taps.read().unwrap_err().to_string();
        assert!(error.contains("TSIM_job_"), "{error}");
        taps.remove().1.unwrap();
    }
}

#[test]
fn chains_of_nf_tables_behind_the_taps_are_no_verdict() {
    for (_, backend) in VARIANTS {
        let row = Row::new();
        row.tool(
            "nft",
            &["-f", "-"],
            "table inet late {\nchain out {\ntype filter hook postrouting priority 0\n\
             tcp dport 80 drop\n}\nchain in {\ntype filter hook input priority 0\n\
             tcp dport 22 drop\n}\n}\n",
        );
        let before = row.ruleset();
        let job = row.job("job", Family::V4);
        let reading = job.measure(backend);
        assert!(reading.out.is_empty(), "{backend}");
        let [undecided] = reading.undecided.as_slice() else {
            panic!("{backend}: {:?}", reading.undecided);
        };
        assert_eq!(job.ports(undecided.services.iter()), ALL);
        assert!(
            undecided.reason.contains("late out"),
            "{}",
            undecided.reason
        );
        // At INPUT there is a table of iptables behind that chain.
        let local = row.job("local", Family::V4).to(plan(Family::V4).near);
        assert_eq!(
            local.ports(local.measure(backend).local.iter()),
            "80,443,53"
        );
        if backend == Backend::IptablesNft {
            assert_eq!(row.ruleset(), before);
        }
    }
}

#[test]
fn without_u32_probes_are_known_by_bpf_and_without_both_there_is_an_error() {
    for (variant, _) in VARIANTS {
        for family in FAMILIES {
            let mut row = Row::new();
            row.load(variant, family, TABLES);
            let before = row.ruleset();
            let dir = tempfile::tempdir().unwrap();
            row.tools = crippled(dir.path(), &tool(variant, family, "restore"), "-m u32");
            let job = row.job("job", family);
            let mut taps = IptablesTaps::install(variant, row.site(), job.taps.clone()).unwrap();
            assert_eq!(taps.matcher(), Matcher::Bpf);
            job.send();
            assert_eq!(taps.read().unwrap().out.len(), 4);
            taps.remove().unwrap();
            let crippled = crippled(dir.path(), &tool(variant, family, "restore"), "-m [ub]");
            row.tools = crippled;
            let job = row.job("job", family);
            let result = IptablesTaps::install(variant, row.site(), job.taps.clone());
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("u32: no such match; bpf: no such match"),
                "{error}"
            );
            assert_eq!(row.ruleset(), before);
        }
    }
}

/// Tools of which one refuses payloads that match `pattern`.
fn crippled(dir: &std::path::Path, tool: &str, pattern: &str) -> Tools {
    use std::os::unix::fs::PermissionsExt;
    let script = format!(
        "#!/bin/sh\ninput=$(cat; echo .)\n\
         if echo \"$input\" | grep -q -e '{pattern}'; then echo no such match >&2; exit 2; fi\n\
         printf %s \"${{input%.}}\" | /usr/sbin/{tool} \"$@\"\n"
    );
    let file = dir.join(tool);
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let dirs = [
        dir.to_owned(),
        "/usr/sbin".into(),
        "/usr/bin".into(),
        "/bin".into(),
    ];
    Tools::new(dirs)
}

#[test]
fn every_port_of_both_protocols_fits() {
    for (_, backend) in VARIANTS {
        let row = Row::new();
        let job = Job::new(&row, "job", Family::V4, "1-65535/tcp,1-65535/udp");
        let mut taps = job.install(backend);
        job.send_collecting(&mut taps);
        let reading = taps.read().unwrap();
        taps.remove().1.unwrap();
        assert_eq!(reading.out.len(), 131_070);
        assert_eq!(reading.packets_out, 131_070);
    }
}

/// Keeps this thread on the first processor and has the kernel take what comes in at `device` to
/// the last (RPS): who sends probes does not carry them through the router, as on a busy machine.
fn receive_elsewhere(row: &Row, device: &str) {
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    let file = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
    // `ip netns exec` shows the namespace's own /sys.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", row.router.name().as_str(), "sh", "-c"]);
    command.arg(format!("echo {:x} > {file}", 1_u64 << last.min(31)));
    assert!(command.status().unwrap().success());
}

#[test]
fn probes_that_the_sender_does_not_carry_itself_are_waited_for() {
    let row = Row::new();
    receive_elsewhere(&row, "in");
    // Each probe takes the router longer than the sender.
    let rules = "counter\n".repeat(2000);
    let chain = format!("type filter hook forward priority 0\n{rules}");
    let slow = format!("table ip slow {{\nchain forward {{\n{chain}}}\n}}\n");
    row.tool("nft", &["-f", "-"], &slow);
    let job = Job::new(&row, "job", Family::V4, "1-500/tcp");
    for _ in 0..20 {
        assert_eq!(job.measure(Backend::Nft).out.len(), 500);
    }
}

#[test]
fn this_kernel_supports_every_back_end_and_auto_takes_nf_tables() {
    let row = Row::new();
    for family in FAMILIES {
        for backend in Backend::ALL {
            let support = feature::probe(backend, family, row.site(), &mut None);
            assert_eq!(support, Support::Yes, "{backend}");
        }
        let probe = |backend| feature::probe(backend, family, row.site(), &mut None);
        assert_eq!(choose(BackendChoice::Auto, probe).unwrap(), Backend::Nft);
    }
}

#[test]
fn a_missing_tool_means_unsupported() {
    let mut row = Row::new();
    row.tools = Tools::new(["/nonexistent".into()]);
    for backend in [Backend::IptablesNft, Backend::IptablesLegacy] {
        let support = feature::probe(backend, Family::V4, row.site(), &mut None);
        assert!(
            matches!(&support, Support::No(why) if why.contains("/nonexistent")),
            "{support:?}"
        );
    }
}
