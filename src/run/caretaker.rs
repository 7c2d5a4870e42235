//! What the registry needs to put everything right: hosts, neighbour entries and taps of all labs.

use std::{cell::RefCell, collections::HashSet, sync::Arc, time::Duration};

use crate::{
    config::Config,
    firewall::{
        Support, TapSite,
        conntrack::Conntrack,
        iptables::{self, Identity, OwnerMark, Variant, trace::restore_logger},
        nft::{NftSocket, inventory::support_here, orphans},
    },
    lab::{self, LabError, hosts::LabHosts, neighbours::LabNeighbours},
    model::{HostId, RouterId, RunId, WithCauses},
    netlink::{
        forget_exceptions,
        object::{Family, Mac, Neighbour},
    },
    netns::{NetnsDir, NetnsError, NetnsFd, tool::Tools},
    registry::{
        HostKernel, HostSpec, KernelError, Liveness, NeighbourKernel, NeighbourKey, Owner,
        ReconcileAction, ReconcileReport, ReconcileScope, RegistryManager, TapKernel, TapNote,
    },
};

/// The tools without which there can be no taps of a variant: who has put them there had them.
const TOOLS: [(Variant, Family, &str); 4] = [
    (Variant::Nft, Family::V4, "iptables-nft-save"),
    (Variant::Nft, Family::V6, "ip6tables-nft-save"),
    (Variant::Legacy, Family::V4, "iptables-legacy-save"),
    (Variant::Legacy, Family::V6, "ip6tables-legacy-save"),
];

/// Everything that reconciling may have to remove or put back.
#[derive(Debug)]
pub struct Caretaker {
    dir: NetnsDir,
    tools: Tools,
    sweeps_taps: bool,
    /// How long to wait for others in a router's iptables.
    patience: Duration,
    hosts: LabHosts,
    neighbours: LabNeighbours,
    config: Config,
}

impl Caretaker {
    /// For the namespaces in `dir`, and as patient as that.
    #[must_use]
    pub fn new(dir: &NetnsDir, config: &Config) -> Self {
        Self {
            dir: dir.clone(),
            tools: Tools::new(config.tool_dirs.clone()),
            sweeps_taps: true,
            patience: dir.patience(),
            hosts: LabHosts::new(dir),
            neighbours: LabNeighbours::new(dir),
            config: config.clone(),
        }
    }

    /// Removes all that dead processes left: what jobs had of the registry, and what changes of labs
    /// made aside. As [`RegistryManager::reconcile`] otherwise.
    ///
    /// # Errors
    /// When the registry's files or the labs cannot be read.
    pub fn reconcile(
        &mut self,
        registry: &RegistryManager,
        run_id: &RunId,
        dry_run: bool,
    ) -> Result<ReconcileReport, LabError> {
        let everything = ReconcileScope::Everything;
        let mut report = registry.reconcile(run_id, &everything, self, dry_run)?;
        let (labs, failures) = lab::settle_all(&self.config, dry_run)?;
        let settled = labs
            .into_iter()
            .map(|lab| ReconcileAction::SettleLab { lab });
        report.actions.extend(settled);
        let failures = failures.iter().map(|error| WithCauses(error).to_string());
        report.failures.extend(failures);
        Ok(report)
    }

    /// Leaves taps of dead jobs where they are, but for tables that the job finds when it makes its
    /// own. Finding the others takes the tools of iptables, several processes per router; they
    /// recognise their own probes and nothing else, so neither a job that measures with nf_tables
    /// nor a detailed one is disturbed by them.
    #[must_use]
    pub fn leaving_taps(mut self) -> Self {
        self.sweeps_taps = false;
        self
    }

    /// The hosts of all labs.
    pub fn hosts(&mut self) -> &mut LabHosts {
        &mut self.hosts
    }

    fn routers(&self, router: Option<&RouterId>) -> Result<Vec<RouterId>, NetnsError> {
        match router {
            Some(router) => Ok(vec![router.clone()]),
            None => {
                let names = self.dir.list()?;
                Ok(names
                    .iter()
                    .filter_map(|n| n.as_str().parse().ok())
                    .collect())
            }
        }
    }

    fn sweep_router(
        &self,
        router: &RouterId,
        is_gone: &dyn Fn(&Owner) -> bool,
        dry_run: bool,
    ) -> Result<Vec<String>, KernelError> {
        let Some(netns) = self.open(router)? else {
            return Ok(Vec::new());
        };
        let mut swept = sweep_tables(&netns, is_gone, dry_run)?
            .into_iter()
            .map(|name| format!("table {name} on {router}"))
            .collect::<Vec<_>>();
        for (variant, family, tool) in TOOLS {
            if self.tools.find(tool).is_ok() {
                let dead = self.sweep_variant(&netns, (variant, family), is_gone, dry_run)?;
                swept.extend(dead.iter().map(|of| {
                    let (run_id, dscp) = (&of.run_id, of.dscp);
                    format!("of {run_id} (DSCP {dscp}, iptables-{variant}, {family}) on {router}")
                }));
            }
        }
        Ok(swept)
    }

    fn sweep_variant(
        &self,
        netns: &Arc<NetnsFd>,
        (variant, family): (Variant, Family),
        is_gone: &dyn Fn(&Owner) -> bool,
        dry_run: bool,
    ) -> Result<Vec<Identity>, KernelError> {
        let nobody = OwnerMark::default();
        let site = self.site(netns, &nobody);
        let would_go = RefCell::new(Vec::new());
        let is_dead = |identity: &Identity| {
            let dead = is_gone(&Owner::from(&identity.owner));
            let mut would_go = would_go.borrow_mut();
            if dead && !would_go.contains(identity) {
                would_go.push(identity.clone());
            }
            dead && !dry_run
        };
        let swept = iptables::sweep((variant, family), site, &[], is_dead)?;
        Ok(if dry_run {
            would_go.into_inner()
        } else {
            swept.dead
        })
    }

    fn site<'a>(&'a self, netns: &'a Arc<NetnsFd>, owner: &'a OwnerMark) -> TapSite<'a> {
        TapSite {
            netns,
            tools: &self.tools,
            owner,
            notes: None,
            patience: self.patience,
        }
    }

    /// The router's namespace; none where it has gone, and its taps with it.
    fn open(&self, router: &RouterId) -> Result<Option<Arc<NetnsFd>>, NetnsError> {
        match self.dir.open(&router.netns()) {
            Ok(netns) => Ok(Some(Arc::new(netns))),
            Err(NetnsError::NotFound { .. } | NetnsError::NotANamespace { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Removes tables that outlived their job, as they do where there are no owner tables.
fn sweep_tables(
    netns: &NetnsFd,
    is_gone: &dyn Fn(&Owner) -> bool,
    dry_run: bool,
) -> Result<Vec<String>, KernelError> {
    // Without nf_tables there are none.
    let open = || match support_here() {
        Support::No(_) => Ok(None),
        _ => NftSocket::open_here().map(Some),
    };
    match netns.enter(open)?? {
        Some(mut socket) => Ok(orphans::sweep(&mut socket, is_gone, dry_run)?),
        None => Ok(Vec::new()),
    }
}

impl TapKernel for Caretaker {
    fn sweeps_taps(&self) -> bool {
        self.sweeps_taps
    }

    fn sweep_taps(
        &mut self,
        router: Option<&RouterId>,
        is_gone: &dyn Fn(&Owner) -> bool,
        dry_run: bool,
    ) -> Result<Vec<String>, KernelError> {
        let mut swept = Vec::new();
        if !self.sweeps_taps {
            return Ok(swept);
        }
        for router in self.routers(router)? {
            swept.extend(self.sweep_router(&router, is_gone, dry_run)?);
        }
        Ok(swept)
    }

    fn remove_noted(&mut self, note: &TapNote) -> Result<bool, KernelError> {
        let netns = self.open(&note.router)?;
        let Some(netns) = netns.filter(|netns| netns.id() == note.netns) else {
            return Ok(true);
        };
        if restore_logger(&netns, (&note.tool, &note.made), self.patience)? {
            return Ok(true);
        }
        let named = |(_, _, tool): &&(_, _, &str)| *tool == format!("{}-save", note.tool);
        let Some(&(variant, family, _)) = TOOLS.iter().find(named) else {
            return Err(format!("no back end uses {}", note.tool).into());
        };
        let nobody = OwnerMark::default();
        let is_dead = |identity: &Identity| {
            identity.run_id == note.run_id
                && Owner::from(&identity.owner).liveness() == Liveness::Gone
        };
        let site = self.site(&netns, &nobody);
        Ok(iptables::sweep((variant, family), site, &note.made, is_dead)?.all)
    }

    fn forget_connections(&mut self, notes: &[TapNote]) -> Result<(), KernelError> {
        let mut routers = Vec::with_capacity(notes.len());
        let mut addresses = HashSet::new();
        for note in notes {
            let Some(noted) = note.connections() else {
                continue;
            };
            let family = noted.ends.first().copied().map(Family::of);
            let client = noted.client.and_then(|(host, id)| {
                let netns = self.dir.open(&host.netns()).ok()?;
                (netns.id() == id).then_some(netns)
            });
            if let Some((client, family)) = client.zip(family) {
                forget_exceptions(&client, family, &[])?;
            }
            let netns = self.open(&note.router)?;
            let Some(netns) = netns.filter(|netns| netns.id() == note.netns) else {
                continue;
            };
            if let Some(family) = family.filter(|_| noted.no_exceptions) {
                forget_exceptions(&netns, family, &[])?;
            }
            addresses.extend(noted.ends);
            routers.push(netns.enter(|| Conntrack::open_here_since(&noted.known))??);
        }
        Ok(Conntrack::forget_all(&mut routers, addresses)?)
    }
}

impl HostKernel for Caretaker {
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError> {
        self.hosts.host_exists(host)
    }

    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError> {
        self.hosts.create_host(spec)
    }

    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError> {
        self.hosts.remove_host(host)
    }

    fn create_hosts(&mut self, specs: &[&HostSpec]) -> Result<(), KernelError> {
        self.hosts.create_hosts(specs)
    }

    fn remove_hosts(&mut self, hosts: &[&HostId]) -> Result<(), KernelError> {
        self.hosts.remove_hosts(hosts)
    }

    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        self.hosts.list_hosts()
    }
}

impl NeighbourKernel for Caretaker {
    fn neighbour(&mut self, key: &NeighbourKey) -> Result<Option<Neighbour>, KernelError> {
        self.neighbours.neighbour(key)
    }

    fn set_neighbour(&mut self, key: &NeighbourKey, mac: Mac) -> Result<(), KernelError> {
        self.neighbours.set_neighbour(key, mac)
    }

    fn restore_neighbour(
        &mut self,
        key: &NeighbourKey,
        before: Option<&Neighbour>,
    ) -> Result<(), KernelError> {
        self.neighbours.restore_neighbour(key, before)
    }
}
