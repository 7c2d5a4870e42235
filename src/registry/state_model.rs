//! The rules of hosts, leases and DSCP values against a model of sets, over random histories in
//! which owners die. After each change the files are written and read back.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::{
    Collided, HostSpec, JobType, Lease, Liveness, ManagedBy, Owner, RegistryError, dscp,
    host::{self, Registrant},
    lease,
    table::Table,
};
use crate::{
    model::{Dscp, DscpRange, HostId, RunId},
    netlink::object::Mac,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const FIRST: u8 = 32;
const LAST: u8 = 34;

#[derive(Debug, Clone)]
enum Op {
    Register {
        name: u8,
        router: u8,
        ip: u8,
        mac: u8,
    },
    Unregister {
        name: u8,
    },
    Lease {
        name: u8,
        run: u8,
    },
    Release {
        name: u8,
        run: u8,
    },
    Allocate {
        run: u8,
        wanted: Option<u8>,
    },
    Free {
        run: u8,
    },
    Die {
        run: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let wanted = prop::option::of(30..37_u8);
    prop_oneof![
        3 => (0..4_u8, 0..2_u8, 0..4_u8, 0..4_u8)
            .prop_map(|(name, router, ip, mac)| Op::Register { name, router, ip, mac }),
        1 => (0..4_u8).prop_map(|name| Op::Unregister { name }),
        4 => (0..4_u8, 0..5_u8).prop_map(|(name, run)| Op::Lease { name, run }),
        3 => (0..4_u8, 0..5_u8).prop_map(|(name, run)| Op::Release { name, run }),
        3 => (0..5_u8, wanted).prop_map(|(run, wanted)| Op::Allocate { run, wanted }),
        2 => (0..5_u8).prop_map(|run| Op::Free { run }),
        1 => (0..5_u8).prop_map(|run| Op::Die { run }),
    ]
}

/// What ought to be, as sets.
#[derive(Debug, Default)]
struct Model {
    hosts: BTreeMap<u8, (u8, u8, u8)>,
    leases: BTreeMap<u8, BTreeSet<u8>>,
    dscp: BTreeMap<u8, u8>,
    dead: BTreeSet<u8>,
}

/// What is, as files.
struct Files {
    hosts: Table,
    leases: Table,
    dscp: Table,
}

fn id(name: u8) -> HostId {
    format!("lab@h{name}").parse().unwrap()
}

fn run_id(run: u8) -> RunId {
    RunId::new(format!("run-{run}")).unwrap()
}

/// The process of a run; its pid tells the model which one it is.
fn owner(run: u8) -> Owner {
    Owner {
        pid: u32::from(run) + 1,
        ..Owner::default()
    }
}

impl Model {
    fn liveness(&self, owner: &Owner) -> Liveness {
        let is_dead = self.dead.iter().any(|&run| self::owner(run) == *owner);
        if is_dead {
            Liveness::Gone
        } else {
            Liveness::Alive
        }
    }

    fn register(&mut self, files: &mut Files, name: u8, at: (u8, u8, u8)) {
        let (router, ip, mac) = at;
        let spec = HostSpec {
            id: id(name),
            router: format!("lab.r{router}").parse().unwrap(),
            interface: "eth0".parse().unwrap(),
            address: format!("10.0.0.{ip}/24").parse().unwrap(),
            gateway: None,
            mac: Mac([2, 0, 0, 0, 0, mac]),
            stands_in: false,
        };
        let by = Registrant {
            managed_by: ManagedBy::Job,
            run_id: run_id(0),
            owner: owner(0),
        };
        let name_taken = self.hosts.contains_key(&name);
        let ip_taken = self.hosts.values().any(|h| (h.0, h.1) == (router, ip));
        let mac_taken = self.hosts.values().any(|h| h.2 == mac);
        match host::register(&mut files.hosts, &spec, &by, NOW) {
            Ok(()) => {
                assert!(!name_taken && !ip_taken && !mac_taken);
                self.hosts.insert(name, at);
            }
            Err(RegistryError::Collision { what, .. }) => match what {
                Collided::Name => assert!(name_taken),
                Collided::Address(_) => assert!(!name_taken && ip_taken),
                Collided::Mac(_) => assert!(!name_taken && mac_taken),
                Collided::Neighbour(_) | Collided::Run(_) => panic!("{what} is not concerned"),
            },
            Err(e) => panic!("{e}"),
        }
    }

    fn lease(&mut self, files: &mut Files, name: u8, run: u8) {
        let Some((router, ..)) = self.hosts.get(&name) else {
            return;
        };
        let router = format!("lab.r{router}").parse().unwrap();
        let new = Lease::new(&run_id(run), &owner(run), JobType::Quick, None, NOW);
        let table = &mut files.leases;
        let got = lease::acquire_host(table, &id(name), &router, new, &mut |o| self.liveness(o));
        assert_eq!(got.unwrap().run_id, run_id(run));
        // A process that leases is alive; the run lives again in a new process of the same pid.
        self.leases.entry(name).or_default().insert(run);
    }

    fn release(&mut self, files: &mut Files, name: u8, run: u8) {
        let table = &mut files.leases;
        let result = lease::release_host(table, &id(name), &run_id(run), &mut |o| self.liveness(o));
        let held = self.leases.entry(name).or_default();
        if held.remove(&run) {
            held.retain(|run| !self.dead.contains(run));
            assert_eq!(result.unwrap(), held.len());
        } else {
            assert!(matches!(result, Err(RegistryError::NotFound(_))));
        }
    }

    fn allocate(&mut self, files: &mut Files, run: u8, wanted: Option<u8>) {
        let range = DscpRange::new(Dscp::new(FIRST).unwrap(), Dscp::new(LAST).unwrap()).unwrap();
        let (run_id, owner) = (run_id(run), owner(run));
        let request = dscp::DscpRequest {
            run_id: &run_id,
            owner: &owner,
            username: None,
            wanted: wanted.map(|w| Dscp::new(w).unwrap()),
        };
        let table = &mut files.dscp;
        let result = dscp::allocate(table, range, &request, &mut |o| self.liveness(o), NOW);
        let others = self
            .dscp
            .iter()
            .filter(|(r, _)| **r != run && !self.dead.contains(r));
        let taken: BTreeSet<u8> = others.map(|(_, d)| *d).collect();
        let mine = self.dscp.get(&run).copied();
        let free = (FIRST..=LAST).find(|d| !taken.contains(d));
        match result {
            Ok(grant) => {
                let dscp = grant.dscp.get();
                assert_eq!(Some(dscp), wanted.or(mine).or(free));
                assert!(!taken.contains(&dscp) && (FIRST..=LAST).contains(&dscp));
                self.dscp.retain(|r, _| *r == run || !self.dead.contains(r));
                self.dscp.insert(run, dscp);
            }
            Err(RegistryError::DscpExhausted { by, .. }) => {
                assert!(wanted.is_none() && mine.is_none() && free.is_none());
                assert_eq!(by.len(), taken.len());
            }
            Err(RegistryError::DscpTaken { dscp, .. }) => assert!(taken.contains(&dscp)),
            Err(RegistryError::DscpOutOfRange { dscp, .. }) => {
                assert!(!(FIRST..=LAST).contains(&dscp));
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn apply(&mut self, files: &mut Files, op: &Op) {
        match *op {
            Op::Register {
                name,
                router,
                ip,
                mac,
            } => self.register(files, name, (router, ip, mac)),
            Op::Unregister { name } => {
                files.hosts.remove(&id(name).to_string());
                self.hosts.remove(&name);
            }
            Op::Lease { name, run } if !self.dead.contains(&run) => self.lease(files, name, run),
            Op::Release { name, run } if !self.dead.contains(&run) => {
                self.release(files, name, run);
            }
            Op::Allocate { run, wanted } if !self.dead.contains(&run) => {
                self.allocate(files, run, wanted);
            }
            Op::Free { run } => {
                let freed = dscp::release(&mut files.dscp, &run_id(run)).ok();
                assert_eq!(freed.map(Dscp::get), self.dscp.remove(&run));
            }
            Op::Die { run } => {
                self.dead.insert(run);
            }
            _ => {}
        }
    }

    fn check(&self, files: &Files) {
        let hosts = host::list(&files.hosts).unwrap();
        let names: Vec<HostId> = self.hosts.keys().map(|n| id(*n)).collect();
        assert_eq!(hosts.into_iter().map(|h| h.0).collect::<Vec<_>>(), names);
        let leases = lease::list(&files.leases).unwrap();
        let held = |runs: &BTreeSet<u8>| runs.iter().map(|r| run_id(*r)).collect();
        let want: BTreeMap<HostId, BTreeSet<RunId>> = self
            .leases
            .iter()
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(name, runs)| (id(*name), held(runs)))
            .collect();
        let have = leases
            .into_iter()
            .map(|(host, record)| (host, record.leases.into_iter().map(|l| l.run_id).collect()))
            .collect();
        assert_eq!(want, have);
    }
}

impl Files {
    fn new() -> Self {
        Self {
            hosts: Table::empty("hosts.json", None),
            leases: Table::empty("host_leases.json", None),
            dscp: Table::empty("dscp_registry.json", Some("allocations")),
        }
    }

    fn write_and_read_back(&mut self) {
        let again =
            |table: &Table, name, nested| Table::parse(name, nested, &table.to_bytes()).unwrap();
        self.hosts = again(&self.hosts, "hosts.json", None);
        self.leases = again(&self.leases, "host_leases.json", None);
        self.dscp = again(&self.dscp, "dscp_registry.json", Some("allocations"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn files_and_sets_agree(ops in prop::collection::vec(op(), 1..60)) {
        let (mut model, mut files) = (Model::default(), Files::new());
        for op in &ops {
            model.apply(&mut files, op);
            files.write_and_read_back();
            model.check(&files);
        }
    }
}
