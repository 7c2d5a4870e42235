//! `tsim`, the operator's command: labs, hosts, traces, registry, queue.

use clap::{Parser, Subcommand};

use super::{
    CommandLine, Context, EXIT_CODES, Exit, Failure, Global, KernelNeeds, Run, ask::ServerArgs,
    bulk, configuration, detailed, doctor, facts, generate, host, jobs, keeper, lab, quick,
    registry, result, services, status, submit, token, trace, watch,
};

const EXAMPLES: &str = "Examples:
  tsim doctor
  tsim lab up corp10 --facts netns-fixtures/corp10
  tsim quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh,https,53/udp
  tsim detailed --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh
  tsim lab down corp10";

/// The commands by what they are for, in the order of a first day. One that is in no group is
/// listed after all others.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Labs and facts",
        &["lab", "facts", "host", "trace", "exec", "shell"],
    ),
    (
        "Ask",
        &[
            "quick", "detailed", "services", "matrix", "check", "diff", "what-if", "sweep", "show",
        ],
    ),
    (
        "Queue",
        &["submit", "queue", "watch", "result", "cancel", "token"],
    ),
    (
        "Operate",
        &[
            "status",
            "doctor",
            "config",
            "keeper",
            "hosts",
            "leases",
            "locks",
            "dscp",
            "log",
            "reconcile",
            "generate",
        ],
    ),
];

/// The help with the commands in their groups; clap has one list only.
fn template() -> String {
    let all = Command::augment_subcommands(clap::Command::new("tsim"));
    let named = |name: &&str| GROUPS.iter().any(|(_, names)| names.contains(name));
    let others = all.get_subcommands().map(clap::Command::get_name);
    let others: Vec<&str> = others.filter(|name| !named(name)).collect();
    let mut text = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    for (title, names) in GROUPS.into_iter().chain([("Other", &others[..])]) {
        let commands = names.iter().filter_map(|name| all.find_subcommand(name));
        let lines: Vec<String> = commands.map(line).collect();
        if !lines.is_empty() {
            text += &format!("\n{title}:\n{}", lines.concat());
        }
    }
    text + "\nOptions:\n{options}{after-help}"
}

fn line(command: &clap::Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    let about = about.unwrap_or_default();
    format!("  {:10} {about}\n", command.get_name())
}

/// Rebuilds routers from collected facts as network namespaces and looks after them.
#[derive(Debug, Parser)]
#[command(
    name = "tsim",
    version,
    help_template = template(),
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}")
)]
pub struct Tsim {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quick(quick::QuickArgs),
    Detailed(detailed::DetailedArgs),
    Host(host::Host),
    Facts(facts::FactsArgs),
    Lab(lab::LabArgs),
    Trace(trace::TraceArgs),
    Services(services::ServicesArgs),
    Sweep(bulk::sweep::SweepCommand),
    Matrix(bulk::matrix::Matrix),
    Check(bulk::check::CheckCommand),
    Diff(bulk::diff::DiffCommand),
    WhatIf(bulk::what_if::WhatIf),
    Show(bulk::show::ShowSaved),
    Submit(submit::Submit),
    Queue(jobs::Queue),
    Status(status::ShowStatus),
    Cancel(jobs::CancelArgs),
    Result(result::Show),
    Watch(watch::WatchArgs),
    Token(token::TokenArgs),
    Hosts(registry::HostsArgs),
    Leases(registry::Leases),
    Locks(registry::Locks),
    Dscp(registry::DscpArgs),
    Reconcile(registry::ReconcileArgs),
    Log(registry::LogArgs),
    #[command(name = "config")]
    Configuration(configuration::Configuration),
    Doctor(doctor::Doctor),
    Generate(generate::Generate),
    Keeper(keeper::ShowKeeper),
    Exec(keeper::Exec),
    Shell(keeper::Shell),
}

impl CommandLine for Tsim {
    fn global(&self) -> &Global {
        &self.global
    }

    fn needs(&self) -> KernelNeeds {
        match self.command {
            // The queue and the registry are files; a doctor looks why there are no namespaces.
            Command::Queue(_)
            | Command::Cancel(_)
            | Command::Status(_)
            | Command::Result(_)
            | Command::Watch(_)
            | Command::Token(_)
            | Command::Hosts(_)
            | Command::Leases(_)
            | Command::Locks(_)
            | Command::Dscp(_)
            | Command::Log(_)
            | Command::Configuration(_)
            | Command::Doctor(_)
            | Command::Generate(_)
            | Command::Facts(_)
            | Command::Services(_)
            | Command::Show(_)
            | Command::Keeper(_) => KernelNeeds::Nothing,
            _ => KernelNeeds::Namespaces,
        }
    }

    fn asks(&self) -> Option<&ServerArgs> {
        match &self.command {
            Command::Submit(command) => Some(&command.at),
            Command::Queue(command) => Some(&command.at),
            Command::Cancel(command) => Some(&command.at),
            Command::Result(command) => Some(&command.at),
            Command::Watch(command) => Some(&command.at),
            Command::Token(command) => Some(&command.at),
            Command::Lab(command) => command.asks(),
            _ => None,
        }
    }
}

impl Run for Tsim {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.command {
            Command::Quick(command) => command.run(context),
            Command::Detailed(command) => command.run(context),
            Command::Host(command) => command.run(context),
            Command::Facts(command) => command.run(context),
            Command::Lab(command) => command.run(context),
            Command::Trace(command) => command.run(context),
            Command::Services(command) => command.run(context),
            Command::Sweep(command) => command.run(context),
            Command::Matrix(command) => command.run(context),
            Command::Check(command) => command.run(context),
            Command::Diff(command) => command.run(context),
            Command::WhatIf(command) => command.run(context),
            Command::Show(command) => command.run(context),
            Command::Submit(command) => command.run(context),
            Command::Queue(command) => command.run(context),
            Command::Status(command) => command.run(context),
            Command::Cancel(command) => command.run(context),
            Command::Result(command) => command.run(context),
            Command::Watch(command) => command.run(context),
            Command::Token(command) => command.run(context),
            Command::Hosts(command) => command.run(context),
            Command::Leases(command) => command.run(context),
            Command::Locks(command) => command.run(context),
            Command::Dscp(command) => command.run(context),
            Command::Reconcile(command) => command.run(context),
            Command::Log(command) => command.run(context),
            Command::Configuration(command) => command.run(context),
            Command::Generate(command) => command.run(context),
            Command::Doctor(command) => command.run(context),
            Command::Keeper(command) => command.run(context),
            Command::Exec(command) => command.run(context),
            Command::Shell(command) => command.run(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn help_has_every_command_once_in_its_group() {
        let help = Tsim::command().render_help().to_string();
        for (title, names) in GROUPS {
            assert!(help.contains(&format!("\n{title}:\n")), "{help}");
            for name in names {
                let lines = help.lines().filter(|line| {
                    let word = line
                        .strip_prefix("  ")
                        .and_then(|line| line.split(' ').next());
                    word == Some(name)
                });
                assert_eq!(lines.count(), 1, "{name}: {help}");
            }
        }
        assert!(!help.contains("\nOther:\n"), "{help}");
    }
}
