//! `tsim host`: hosts made and removed by hand.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::IpAddr,
    str::FromStr,
};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Serialize;

use super::{Context, Exit, Failure, Run, complete, table::write_table};
use crate::{
    lab::{
        InterfaceState, Lab, LabError,
        hosts::{HostError, HostRequest, Hosts, LabHosts},
        sockets::SocketsError,
    },
    model::{DidYouMean, HostId, HostName, IfName, LabName, RouterId, RouterName, RunId, alike},
    netlink::object::Mac,
    netns::NetnsDir,
    registry::{HostKernel, HostRecord, HostSpec, ManagedBy, RegistryError, RegistryManager, Wait},
};

/// Make, remove and list hosts on the routers of a lab
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tsim host add --lab corp10 --router hq-gw --address 10.1.1.5 --name client\n  tsim host list --lab corp10"
)]
pub(super) struct Host {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(Add),
    Remove(Remove),
    List(List),
}

impl Run for Host {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.command {
            Command::Add(command) => command.run(context),
            Command::Remove(command) => command.run(context),
            Command::List(command) => command.run(context),
        }
    }
}

/// An address with or without a prefix length.
#[derive(Debug, Clone, Copy)]
struct AddressArg {
    address: IpAddr,
    prefix_len: Option<u8>,
}

impl FromStr for AddressArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || "an IP address is allowed, with or without a prefix length".to_owned();
        match text.contains('/') {
            true => text.parse().map(|net: IpNet| Self {
                address: net.addr(),
                prefix_len: Some(net.prefix_len()),
            }),
            false => {
                return text.parse().map_err(|_| refuse()).map(|address| Self {
                    address,
                    prefix_len: None,
                });
            }
        }
        .map_err(|_| refuse())
    }
}

const ADD_EXAMPLES: &str = "Examples:
  tsim host add --lab corp --router hq-gw --address 10.1.1.5
  tsim host add --lab corp --router hq-gw --address 203.0.113.5 --interface eth0 --name client

The host joins the segment of the router's interface by which the router sends to the address, \
unless --interface names another one. It stays until it is removed. Adding the same host again \
changes nothing.";

/// Make a host on a router
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
struct Add {
    /// Lab of the router
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: LabName,
    /// Router that the host sends everything to
    #[arg(long, value_name = "NAME", add = complete::routers())]
    router: RouterName,
    /// Address; without a prefix length it gets that of the router's subnet
    #[arg(long, value_name = "ADDRESS")]
    address: AddressArg,
    /// The router's interface [default: the one that faces the address]
    #[arg(long, value_name = "NAME")]
    interface: Option<IfName>,
    /// Name of the host [default: ADDRESS-ROUTER]
    #[arg(long, value_name = "NAME")]
    name: Option<HostName>,
}

/// What `add` prints.
#[derive(Debug, Serialize)]
struct Added {
    #[serde(flatten)]
    host: Row,
    /// Whether it was made just now.
    made: bool,
}

impl Run for Add {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let name = match self.name {
            Some(name) => name,
            None => HostName::new(format!("{}-{}", self.address.address, self.router))
                .map_err(|e| Failure::usage(format!("{e}; give another with --name")))?,
        };
        let request = HostRequest {
            id: HostId::new(self.lab.clone(), name),
            router: RouterId::new(self.lab.clone(), self.router),
            address: self.address.address,
            prefix_len: self.address.prefix_len,
            interface: self.interface,
        };
        let mut kernel = LabHosts::new(&NetnsDir::default().patient(context.config.lock_timeout));
        let spec = kernel.lab(&self.lab).and_then(|lab| lab.plan(&request));
        let router = Some(&request.router.router);
        let spec = spec.map_err(|error| named(context, &self.lab, router, error))?;
        if let Some((router, interface)) = holder(context, &self.lab, self.address.address) {
            return Err(Failure::usage(format!(
                "{} is the address of {interface} of router {router}: a host needs one of its own",
                self.address.address
            )));
        }
        let registry = open(context)?;
        let made = add(&registry, &spec, &mut kernel, context)?;
        let record = registry.host(&spec.id).map_err(Failure::cannot_run)?;
        let host = Row::registered(&spec.id, &record, Vec::new(), State::Ok);
        context.print(&Added { host, made }, |out| {
            let verb = if made { "made" } else { "there already:" };
            let HostSpec {
                id,
                address,
                interface,
                router,
                mac,
                ..
            } = &spec;
            writeln!(
                out,
                "{verb} {id} {address} on {interface} of {router}, {mac}"
            )
        })?;
        Ok(Exit::Ok)
    }
}

/// The router of the lab that has this address, and its interface.
fn holder(context: &Context, lab: &LabName, address: IpAddr) -> Option<(RouterName, IfName)> {
    let lab = Lab::open(&context.config, lab).ok()?;
    lab.routers.iter().find_map(|router| {
        let has = |iface: &&InterfaceState| {
            let mut addresses = iface.addresses.iter();
            addresses.any(|own| own.local.addr() == address)
        };
        let iface = router.interfaces.iter().find(has)?;
        Some((router.name.clone(), iface.name.clone()))
    })
}

/// Makes the host unless the very same one is registered and there; says whether it was made.
fn add(
    registry: &RegistryManager,
    spec: &HostSpec,
    kernel: &mut LabHosts,
    context: &Context,
) -> Result<bool, Failure> {
    let same = match registry.host(&spec.id) {
        Ok(record) => !record.creating && record.spec(&spec.id) == *spec,
        Err(RegistryError::NotFound(_)) => false,
        Err(error) => return Err(Failure::cannot_run(error)),
    };
    if same && kernel.host_exists(&spec.id).map_err(Failure::cannot_run)? {
        return Ok(false);
    }
    registry
        .operator()
        .map_err(Failure::cannot_run)?
        .add_host(spec, kernel, &Wait::at_most(context.config.lock_timeout))
        .map_err(Failure::cannot_run)?;
    Ok(true)
}

/// Remove a host that no job uses. One that is not there is success
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim host remove --lab corp10 client")]
struct Remove {
    /// Lab of the host
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: LabName,
    /// Name of the host
    #[arg(add = complete::hosts())]
    name: HostName,
}

/// What `remove` prints.
#[derive(Debug, Serialize)]
struct Removed {
    host: HostName,
    /// Whether there was something to remove.
    removed: bool,
}

impl Run for Remove {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let id = HostId::new(self.lab, self.name);
        let mut kernel = LabHosts::new(&NetnsDir::default().patient(context.config.lock_timeout));
        let registry = open(context)?;
        let wait = Wait::at_most(context.config.lock_timeout);
        let mut operator = registry.operator().map_err(Failure::cannot_run)?;
        let removed = match operator.remove_host(&id, &mut kernel, &wait) {
            Ok(_) => true,
            Err(RegistryError::NotFound(_)) => remove_unregistered(&id, &mut kernel)?,
            Err(error) => return Err(Failure::cannot_run(error)),
        };
        let hosts = registry.hosts().map_err(Failure::cannot_run)?;
        let report = Removed {
            host: id.host.clone(),
            removed,
        };
        context.print(&report, |out| match removed {
            true => writeln!(out, "removed {id}"),
            false => writeln!(out, "there is no {id}{}", named_alike(&id, &hosts)),
        })?;
        Ok(Exit::Ok)
    }
}

/// The host of the same lab whose name is most like that of one that is not there.
fn named_alike<'a>(id: &HostId, hosts: &'a [(HostId, HostRecord)]) -> DidYouMean<'a> {
    let names = hosts.iter().filter(|(other, _)| other.lab == id.lab);
    let names = names.map(|(other, _)| other.host.as_str());
    DidYouMean(alike(id.host.as_str(), names))
}

/// Removes a host that the registry does not know.
fn remove_unregistered(host: &HostId, kernel: &mut LabHosts) -> Result<bool, Failure> {
    let there = kernel.host_exists(host).map_err(Failure::cannot_run)?;
    if there {
        kernel.remove_host(host).map_err(Failure::cannot_run)?;
    }
    Ok(there)
}

/// List the hosts of a lab, those of jobs included
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tsim host list --lab corp10")]
struct List {
    /// The lab
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: LabName,
}

/// Whether registry and kernel agree about a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Registered, and there.
    Ok,
    /// Registered, but not there (any more, or not yet).
    Missing,
    /// There, but not registered.
    Unregistered,
    /// There in part: being made, or left by a crash.
    Part,
}

/// One host, as listed.
#[derive(Debug, Serialize)]
struct Row {
    host: HostName,
    router: Option<RouterName>,
    interface: Option<IfName>,
    address: Option<IpNet>,
    mac: Option<Mac>,
    gateway: Option<IpAddr>,
    managed_by: Option<ManagedBy>,
    leases: Vec<RunId>,
    state: State,
}

impl Row {
    fn registered(id: &HostId, record: &HostRecord, leases: Vec<RunId>, state: State) -> Self {
        Self {
            host: id.host.clone(),
            router: Some(record.connected_to.router.clone()),
            interface: Some(record.router_interface.clone()),
            address: Some(record.primary_ip),
            mac: Some(record.mac_address),
            gateway: record.gateway_ip,
            managed_by: Some(record.managed_by),
            leases,
            state,
        }
    }
}

impl Run for List {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = open(context)?;
        let hosts = Hosts::open(&NetnsDir::default(), &self.lab);
        let mut hosts = hosts.map_err(|error| named(context, &self.lab, None, error))?;
        let rows = rows(&self.lab, &registry, &mut hosts)?;
        context.print(&rows, |out| write_rows(&rows, out))?;
        Ok(Exit::Ok)
    }
}

fn rows(lab: &LabName, registry: &RegistryManager, hosts: &mut Hosts) -> Result<Vec<Row>, Failure> {
    let mut there: BTreeSet<HostName> = hosts.names()?.into_iter().collect();
    let whole = hosts.list()?;
    let mut rows = Vec::new();
    for (id, record) in registry.hosts().map_err(Failure::cannot_run)? {
        if id.lab != *lab {
            continue;
        }
        let leases = registry.leases_of(&id).map_err(Failure::cannot_run)?;
        let leases = leases.into_iter().map(|lease| lease.run_id).collect();
        let state = match there.remove(&id.host) {
            false => State::Missing,
            true if whole.iter().any(|host| host.host == id.host) => State::Ok,
            true => State::Part,
        };
        rows.push(Row::registered(&id, &record, leases, state));
    }
    for host in there {
        let found = whole.iter().find(|state| state.host == host);
        rows.push(Row {
            router: found.map(|state| state.router.clone()),
            interface: found.map(|state| state.interface.clone()),
            address: found.map(|state| state.address),
            mac: found.map(|state| state.mac),
            gateway: None,
            managed_by: None,
            leases: Vec::new(),
            state: found.map_or(State::Part, |_| State::Unregistered),
            host,
        });
    }
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    Ok(rows)
}

fn write_rows(rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "no hosts");
    }
    fn text(value: Option<impl ToString>) -> String {
        value.map_or("-".to_owned(), |value| value.to_string())
    }
    let head = [
        "HOST",
        "ROUTER",
        "INTERFACE",
        "ADDRESS",
        "MAC",
        "OF",
        "STATE",
    ];
    let lines = rows.iter().map(|row| {
        let owner = match (row.leases.len(), row.managed_by) {
            (0, Some(ManagedBy::Job)) => "job".to_owned(),
            (0, Some(ManagedBy::Operator)) => "operator".to_owned(),
            (0, None) => "-".to_owned(),
            (1, _) => text(row.leases.first()),
            (many, _) => format!("{many} jobs"),
        };
        [
            row.host.to_string(),
            text(row.router.as_ref()),
            text(row.interface.as_ref()),
            text(row.address),
            text(row.mac),
            owner,
            format!("{:?}", row.state).to_lowercase(),
        ]
    });
    write_table(out, head, &lines.collect::<Vec<_>>())
}

/// Where a namespace is missing: whether that is because there is no lab, or router, of that name.
fn named(
    context: &Context,
    lab: &LabName,
    router: Option<&RouterName>,
    error: HostError,
) -> Failure {
    if !matches!(error, HostError::Sockets(SocketsError::Missing { .. })) {
        return error.into();
    }
    let found = Lab::open(&context.config, lab).and_then(|lab| match router {
        Some(router) => lab.router(router).map(drop),
        None => Ok(()),
    });
    match found {
        Err(unknown @ (LabError::NotFound { .. } | LabError::NoRouter { .. })) => unknown.into(),
        _ => error.into(),
    }
}

fn open(context: &Context) -> Result<RegistryManager, Failure> {
    RegistryManager::open(&context.config).map_err(Failure::cannot_run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_with_and_without_prefix_length() {
        let parse = |text: &str| {
            text.parse::<AddressArg>()
                .map(|a| (a.address, a.prefix_len))
        };
        let v4 = "10.0.0.9".parse().unwrap();
        assert_eq!(parse("10.0.0.9"), Ok((v4, None)));
        assert_eq!(parse("10.0.0.9/24"), Ok((v4, Some(24))));
        assert!(parse("2001:db8::1/64").is_ok());
        for bad in ["", "10.0.0", "10.0.0.9/33", "10.0.0.9/", "host"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_says_whose_each_host_is_and_what_is_wrong_with_it() {
        let row = |host: &str, managed_by, leases: &[&str], state| Row {
            host: host.parse().unwrap(),
            router: Some("gw".parse().unwrap()),
            interface: None,
            address: Some("10.0.0.9/24".parse().unwrap()),
            mac: None,
            gateway: None,
            managed_by,
            leases: leases.iter().map(|id| id.parse().unwrap()).collect(),
            state,
        };
        let rows = [
            row("a", Some(ManagedBy::Operator), &[], State::Ok),
            row("b", Some(ManagedBy::Job), &["q1", "q2"], State::Missing),
            row("c", None, &[], State::Unregistered),
        ];
        let mut text = Vec::new();
        write_rows(&rows, &mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "HOST  ROUTER  INTERFACE  ADDRESS      MAC  OF        STATE\n\
             a     gw      -          10.0.0.9/24  -    operator  ok\n\
             b     gw      -          10.0.0.9/24  -    2 jobs    missing\n\
             c     gw      -          10.0.0.9/24  -    -         unregistered\n"
        );
    }
}
