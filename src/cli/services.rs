//! `tsim services`: the service groups that there are.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::{Context, Exit, Failure, Run, complete, table::write_table};
use crate::model::{Groups, Service, ServiceGroup};

const EXAMPLES: &str = "Examples:
  tsim services
  tsim services windows
  tsim services web --json
  tsim quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P @web,@dns,22
  tsim quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P @ports.txt

Groups of your own are [service_groups.NAME] in the configuration, with `services` and `title`; a policy may \
have some, too. A file has entries as -P takes them, one or more a line; `#` begins a comment.";

/// List the service groups that -P takes as @NAME, or the services of one
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServicesArgs {
    /// One group
    #[arg(add = complete::groups())]
    name: Option<String>,
}

/// A group, as `--json` prints it.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    title: &'a str,
    shipped: bool,
    services: Vec<Service>,
}

impl Run for ServicesArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let groups = &context.config.groups;
        match &self.name {
            Some(name) => {
                let name = name.trim_start_matches('@').to_lowercase();
                groups.get(&name).map_err(Failure::usage)?;
                let all = listed(groups)?;
                let one = all.iter().find(|group| group.name == name);
                context.print(&one, |out| one.map_or(Ok(()), |one| write_one(out, one)))?;
            }
            None => {
                let all = listed(groups)?;
                context.print(&all, |out| write_all(out, &all))?;
            }
        }
        Ok(Exit::Ok)
    }
}

fn listed(groups: &Groups) -> Result<Vec<Listed<'_>>, Failure> {
    let one = |(name, group, shipped)| -> Result<Listed<'_>, Failure> {
        let group: &ServiceGroup = group;
        Ok(Listed {
            name,
            title: &group.title,
            shipped,
            services: groups.services(name).map_err(Failure::usage)?,
        })
    };
    groups.all().map(one).collect()
}

fn write_all(out: &mut dyn Write, all: &[Listed<'_>]) -> io::Result<()> {
    let rows: Vec<[String; 3]> = all
        .iter()
        .map(|group| {
            let own = if group.shipped { "" } else { " (own)" };
            [
                format!("@{}", group.name),
                group.services.len().to_string(),
                format!("{}{own}", group.title),
            ]
        })
        .collect();
    write_table(out, ["GROUP", "SERVICES", "WHAT IT IS"], &rows)
}

fn write_one(out: &mut dyn Write, group: &Listed<'_>) -> io::Result<()> {
    let title = match group.title.is_empty() {
        true => String::new(),
        false => format!("  {}", group.title),
    };
    writeln!(out, "@{}{title}", group.name)?;
    let services: Vec<String> = group.services.iter().map(Service::to_string).collect();
    writeln!(out, "{}", services.join(","))
}
