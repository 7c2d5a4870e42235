//! `tsim hosts`: what is registered, of all labs.

use std::{collections::HashMap, net::IpAddr};

use clap::Args;
use ipnet::IpNet;
use serde::Serialize;

use super::{open, or_dash};
use crate::{
    cli::{Context, Exit, Failure, Run, complete, table::write_table},
    lab::{Lab, LabError},
    model::{HostId, IfName, LabName, RouterId},
    netlink::object::Mac,
    registry::ManagedBy,
};

/// List the hosts that are registered, of all labs
///
/// `tsim host list` shows one lab beside what the kernel has.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim hosts\n  tsim hosts --lab corp10")]
pub(in crate::cli) struct HostsArgs {
    /// Only those of this lab
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: Option<LabName>,
}

#[derive(Debug, Serialize)]
struct Row {
    host: HostId,
    router: RouterId,
    interface: IfName,
    address: IpNet,
    mac: Mac,
    gateway: Option<IpAddr>,
    managed_by: ManagedBy,
    creating: bool,
    created_at: String,
    leases: usize,
}

impl Run for HostsArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = open(context)?;
        let leases: HashMap<HostId, usize> = registry
            .source_host_leases()?
            .into_iter()
            .map(|(host, record)| (host, record.leases.len()))
            .collect();
        let wanted = |host: &HostId| self.lab.as_ref().is_none_or(|lab| host.lab == *lab);
        let hosts = registry.hosts()?.into_iter().filter(|(h, _)| wanted(h));
        let rows: Vec<Row> = hosts
            .map(|(host, record)| Row {
                leases: leases.get(&host).copied().unwrap_or(0),
                host,
                router: record.connected_to,
                interface: record.router_interface,
                address: record.primary_ip,
                mac: record.mac_address,
                gateway: record.gateway_ip,
                managed_by: record.managed_by,
                creating: record.creating,
                created_at: record.created_at,
            })
            .collect();
        if let (Some(name), true) = (&self.lab, rows.is_empty())
            && let Err(unknown @ LabError::NotFound { .. }) = Lab::open(&context.config, name)
        {
            return Err(unknown.into());
        }
        context.print(&rows, |out| {
            let head = [
                "HOST",
                "ADDRESS",
                "ROUTER",
                "INTERFACE",
                "GATEWAY",
                "OF",
                "LEASES",
            ];
            write_table(out, head, &rows.iter().map(cells).collect::<Vec<_>>())
        })?;
        Ok(Exit::Ok)
    }
}

fn cells(row: &Row) -> [String; 7] {
    let of = match (row.managed_by, row.creating) {
        (_, true) => "being made",
        (ManagedBy::Job, _) => "jobs",
        (ManagedBy::Operator, _) => "operator",
    };
    [
        row.host.to_string(),
        row.address.to_string(),
        row.router.to_string(),
        row.interface.to_string(),
        or_dash(row.gateway),
        of.to_owned(),
        row.leases.to_string(),
    ]
}
