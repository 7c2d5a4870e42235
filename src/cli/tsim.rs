//! `tsim`, the operator's command: labs, hosts, traces, registry, queue.

use clap::{Parser, Subcommand};

use super::{
    CommandLine, Context, EXIT_CODES, Exit, Failure, Global, Needs, Run, detailed, doctor, facts,
    host, jobs, keeper, lab, quick, registry, services, submit, trace, watch,
};

/// Rebuilds routers from collected facts as network namespaces and looks after them.
#[derive(Debug, Parser)]
#[command(name = "tsim", version, after_help = EXIT_CODES)]
pub struct Tsim {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quick(quick::Asked),
    Detailed(detailed::Asked),
    Host(host::Host),
    Facts(facts::Facts),
    Lab(lab::Lab),
    Trace(trace::Trace),
    Services(services::Services),
    Submit(submit::Submit),
    Queue(jobs::Queue),
    Cancel(jobs::Cancel),
    Result(jobs::Show),
    Watch(watch::Watch),
    Hosts(registry::Hosts),
    Leases(registry::Leases),
    Locks(registry::Locks),
    Dscp(registry::Dscp),
    Reconcile(registry::Reconcile),
    Log(registry::Log),
    Doctor(doctor::Doctor),
    Keeper(keeper::ShowKeeper),
    Exec(keeper::Exec),
    Shell(keeper::Shell),
}

impl CommandLine for Tsim {
    fn global(&self) -> &Global {
        &self.global
    }

    fn needs(&self) -> Needs {
        match self.command {
            // The queue and the registry are files; a doctor looks why there are no namespaces.
            Command::Queue(_)
            | Command::Cancel(_)
            | Command::Result(_)
            | Command::Watch(_)
            | Command::Hosts(_)
            | Command::Leases(_)
            | Command::Locks(_)
            | Command::Dscp(_)
            | Command::Log(_)
            | Command::Doctor(_)
            | Command::Facts(_)
            | Command::Services(_)
            | Command::Keeper(_) => Needs::Nothing,
            _ => Needs::Namespaces,
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
            Command::Submit(command) => command.run(context),
            Command::Queue(command) => command.run(context),
            Command::Cancel(command) => command.run(context),
            Command::Result(command) => command.run(context),
            Command::Watch(command) => command.run(context),
            Command::Hosts(command) => command.run(context),
            Command::Leases(command) => command.run(context),
            Command::Locks(command) => command.run(context),
            Command::Dscp(command) => command.run(context),
            Command::Reconcile(command) => command.run(context),
            Command::Log(command) => command.run(context),
            Command::Doctor(command) => command.run(context),
            Command::Keeper(command) => command.run(context),
            Command::Exec(command) => command.run(context),
            Command::Shell(command) => command.run(context),
        }
    }
}
