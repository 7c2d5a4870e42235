//! Stretches on copies of their routers, where a route has next hops over several interfaces.
//!
//! Which of them the real router takes is not known, and the lab's own router takes the one that a
//! hash says. So all routers of the stretch are copied, with wires between the copies and hosts of
//! their own; the copies' routes are cut to one next hop; and the same is measured there as in the
//! lab. The lab's routers are read and not touched, and nothing has a name that could stay.

use std::sync::Arc;

use super::{NeighbourKey, Rounds};
use crate::{
    fault,
    lab::copy::{CopyError, JoinedCopies, RouterCopy},
    model::{IfName, RouterId, RouterName},
    netlink::{
        Netlink,
        object::{Family, Mac, Neighbour},
        sysctl::{self, SysctlError},
    },
    netns::NetnsFd,
    registry::{HostSpec, Job, LockMode, Unlocked},
    run::detailed::{
        DetailedError, Setup,
        bench::measure,
        fork::SingleHop,
        site::{Standins, Station, Stretch, StretchRound},
    },
};

/// Why nothing could be measured on copies, in words.
pub(in crate::run::detailed) type Uncopied = String;

impl<P: Fn(&str)> Rounds<'_, P> {
    /// Measures what `stretch`, which has the place `at`, has pending, on copies whose routes have the
    /// next hops of the stretch alone. Its routers are locked, shared, while they are copied.
    pub(in crate::run::detailed) fn on_copies(
        &mut self,
        mut job: Job<Unlocked>,
        at: usize,
        stretch: &mut Stretch,
    ) -> Result<(Job<Unlocked>, Result<(), Uncopied>), DetailedError> {
        let setup = Setup {
            done: &|| {},
            keep: &|_, _| {},
            ..*self.setup
        };
        while !stretch.pending.is_empty() {
            let target = stretch.pending.remove(0);
            let site = self.site(at, stretch, target)?;
            self.number += 1;
            let routers: Vec<RouterId> = site.stations.iter().map(|s| s.router.clone()).collect();
            let locked = job.all_router_locks(&routers, LockMode::Shared, &self.wait);
            let locked = locked.map_err(|refused| refused.error)?;
            let copied = fault::step("detailed.copy")
                .map_err(|error| error.to_string())
                .and_then(|()| self.copied(&site, &stretch.singles));
            job = locked.unlock();
            let (copies, site) = match copied {
                Ok(copied) => copied,
                Err(why) => return Ok((job, Err(why))),
            };
            let measured = measure(&setup, &site)?;
            drop(copies);
            self.keep(&site, measured, stretch)?;
        }
        Ok((job, Ok(())))
    }

    /// Copies of the routers of `site`, and `site` on them.
    fn copied(
        &mut self,
        site: &StretchRound,
        singles: &[SingleHop],
    ) -> Result<(JoinedCopies, StretchRound), Uncopied> {
        let map = self.setup.map;
        let interfaces = |station: &Station| map.interfaces(station.name());
        let tunnel = |station: &&Arc<Station>| interfaces(station).iter().any(|i| i.noarp);
        if let Some(station) = site.stations.iter().find(tunnel) {
            let router = station.name();
            return Err(format!("copies have no tunnels as {router} has"));
        }
        let routers = site.stations.iter();
        let routers: Vec<_> = routers.map(|s| (&*s.netns, interfaces(s))).collect();
        let joined = JoinedCopies::of(&routers, self.setup.tools).map_err(text)?;
        let neighbours = self.wanted(site);
        let mut stations = Vec::with_capacity(routers.len());
        for (station, copy) in site.stations.iter().zip(joined.copies()) {
            if let Some(lacks) = copy.differences().first() {
                return Err(format!("a copy of {} would lack: {lacks}", station.name()));
            }
            let family = Family::of(site.from());
            if family == Family::V4
                && let Some(dev) = strict(copy, station.name(), singles).map_err(text)?
            {
                let router = station.name();
                return Err(format!(
                    "the strict rp_filter on {dev} of {router} goes by all of them"
                ));
            }
            cut(copy, station.name(), family, singles).map_err(text)?;
            know(copy, station, &neighbours).map_err(text)?;
            stations.push(Arc::new(Station {
                router: station.router.clone(),
                netns: Arc::clone(copy.netns()),
                planned: station.planned.clone(),
            }));
        }
        let host = |spec: Option<&HostSpec>| spec.map(|spec| self.host(&joined, spec)).transpose();
        let standins = Standins {
            source: host(site.source.host())?,
            destination: host(site.destination.as_ref())?,
        };
        let site = StretchRound {
            stations,
            standins: Some(Arc::new(standins)),
            ..site.clone()
        };
        Ok((joined, site))
    }

    /// A host on the copies' wires.
    fn host(&self, joined: &JoinedCopies, spec: &HostSpec) -> Result<Arc<NetnsFd>, Uncopied> {
        let map = self.setup.map;
        let (router, interface) = (&spec.router.router, &spec.interface);
        let mtu = map.interfaces(router).iter().find(|i| i.name == *interface);
        let place = map.segment(router, interface);
        let place = place
            .zip(map.mac(router, interface))
            .zip(mtu.and_then(|i| i.mtu));
        let Some(((segment, mac), mtu)) = place else {
            return Err(format!("{interface} of {router} has no wire"));
        };
        let host = joined.host(spec, segment, (mac, mtu));
        host.map(Arc::new).map_err(text)
    }
}

fn text(error: impl std::error::Error) -> Uncopied {
    crate::model::WithCauses(&error).to_string()
}

/// The first interface of these next hops on which the strict rp_filter looks at packets that come in:
/// any of the next hops is a good enough way back for it, and on a copy there would be one.
fn strict(
    copy: &RouterCopy,
    router: &RouterName,
    singles: &[SingleHop],
) -> Result<Option<String>, SysctlError> {
    let singles = singles.iter().filter(|one| one.spread.router == *router);
    let hops = singles.flat_map(|one| &one.spread.hops);
    let devs = hops.filter_map(|hop| hop.dev.as_ref().map(IfName::as_str));
    let devs: Vec<&str> = ["all"].into_iter().chain(devs).collect();
    let keys = devs
        .iter()
        .map(|dev| format!("net/ipv4/conf/{dev}/rp_filter"));
    let keys: Vec<String> = keys.collect();
    let values = sysctl::read(copy.netns(), &keys)?;
    // The larger of both counts (ip-sysctl.rst), and 2 is loose.
    let number = |value: &String| value.trim().parse::<u8>().unwrap_or(0);
    let values: Vec<u8> = values.iter().map(number).collect();
    let all = values.first().copied().unwrap_or(0);
    let mut each = devs.iter().zip(values).skip(1);
    let found = each.find(|(_, own)| all.max(*own) == 1);
    Ok(found.map(|(dev, _)| (*dev).to_owned()))
}

/// Leaves the routes of a copy that have several next hops one of them.
fn cut(
    copy: &RouterCopy,
    router: &RouterName,
    family: Family,
    singles: &[SingleHop],
) -> Result<(), CopyError> {
    let singles = singles.iter().filter(|one| one.spread.router == *router);
    let singles: Vec<&SingleHop> = singles.collect();
    if singles.is_empty() {
        return Ok(());
    }
    let routes = Netlink::open(copy.netns())?.routes(family, None)?;
    for single in singles {
        for route in routes.iter().filter(|route| single.spread.is_by(route)) {
            copy.cut(route, &single.hop)?;
        }
    }
    Ok(())
}

/// Has a copy know the neighbours that leases tell the router itself of.
fn know(
    copy: &RouterCopy,
    station: &Station,
    neighbours: &[(NeighbourKey, Mac)],
) -> Result<(), CopyError> {
    let mut netlink = Netlink::open(copy.netns())?;
    netlink.links()?;
    let mut batch = netlink.batch(copy.netns().name().as_str());
    for (key, mac) in neighbours
        .iter()
        .filter(|(key, _)| key.router == station.router)
    {
        let entry = Neighbour::permanent(key.interface.clone(), key.address, *mac);
        batch.replace_neighbour(&entry);
    }
    Ok(batch.send()?)
}
