//! `tsim keeper`, `tsim exec` and `tsim shell`: the namespaces in which a user's labs live.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::{
        fs::MetadataExt,
        process::{CommandExt, ExitStatusExt},
    },
    process::Command,
};

use clap::Args;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::Serialize;

use super::{Context, Exit, Failure, Run, complete, start::Standing};
use crate::{
    keeper,
    lab::{self, Lab},
    model::{LabName, RouterId, RouterName, RunId},
    registry::{JobInfo, JobType, LockMode, RegistryManager, Wait},
};

/// Says which process holds this user's namespaces, and who is in them
///
/// Where tsim runs without root, labs live in a user namespace, which a process keeps: the first
/// command that needs it starts it, and it ends by itself when no lab is up and nothing runs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim keeper\n  tsim keeper --json")]
pub(super) struct ShowKeeper {}

#[derive(Serialize)]
struct KeeperOutput {
    /// Whether labs of this user live in a user namespace.
    rootless: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    keeper: Option<keeper::Keeper>,
    labs: Vec<LabName>,
    /// Processes inside, the keeper left out.
    processes: Vec<u32>,
}

impl Run for ShowKeeper {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let keeper = match &context.standing {
            Standing::Root => None,
            Standing::Outside(places) => keeper::find(places)?,
            Standing::Inside(keeper, _) => Some(keeper.clone()),
        };
        let labs = lab::list(&context.config)?.into_iter().map(|lab| lab.lab);
        let output = KeeperOutput {
            rootless: !matches!(context.standing, Standing::Root),
            processes: keeper
                .as_ref()
                .map_or_else(Vec::new, |k| inside(k.owner.pid)),
            labs: labs.filter(|_| keeper.is_some()).collect(),
            keeper,
        };
        context.print(&output, |out| write_keeper(out, &output))?;
        Ok(Exit::Ok)
    }
}

fn write_keeper(out: &mut dyn Write, output: &KeeperOutput) -> io::Result<()> {
    let Some(keeper) = &output.keeper else {
        return match output.rootless {
            true => writeln!(out, "no keeper: the next command that needs one starts it"),
            false => writeln!(
                out,
                "no keeper: this process has root's rights and needs none"
            ),
        };
    };
    let (pid, user, since) = (keeper.owner.pid, &keeper.user, &keeper.since);
    writeln!(out, "keeper {pid} of {user}, since {since}")?;
    writeln!(out, "state    {}", keeper.places.runtime_dir.display())?;
    writeln!(out, "results  {}", keeper.places.results_dir.display())?;
    let labs: Vec<&str> = output.labs.iter().map(LabName::as_str).collect();
    writeln!(out, "labs     {}", none_or(&labs.join(" ")))?;
    let processes: Vec<String> = output.processes.iter().map(ToString::to_string).collect();
    writeln!(out, "inside   {}", none_or(&processes.join(" ")))
}

fn none_or(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// The processes in the user namespace of process `pid`, that and this one left out. Those of other
/// users cannot be in it, and cannot be looked at.
fn inside(pid: u32) -> Vec<u32> {
    let namespace = |pid: u32| {
        let meta = fs::metadata(format!("/proc/{pid}/ns/user")).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let Some(wanted) = namespace(pid) else {
        return Vec::new();
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|other| ![pid, std::process::id()].contains(other));
    let mut inside: Vec<u32> = others.filter(|&p| namespace(p) == Some(wanted)).collect();
    inside.sort_unstable();
    inside
}

/// Runs a command where this user's labs live, as root of their namespaces
///
/// With root's rights that is the machine itself. After the names of a lab, a router and `--` the
/// command runs in that router, and holds its lock as a quick job does: other quick jobs go on,
/// detailed jobs wait. What it changes there stays until the lab is down, and is measured.
#[derive(Debug, Args)]
#[command(
    override_usage = "tsim exec [OPTIONS] [LAB ROUTER --] COMMAND...",
    after_help = "Examples:
  tsim exec ip netns list
  tsim exec -- sh -c 'nft list ruleset'
  tsim exec corp10 hq-gw -- ip route get 10.2.1.60

The exit code is the command's own."
)]
pub(super) struct Exec {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Run for Exec {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        if let [lab, router, dashes, command @ ..] = self.command.as_slice()
            && dashes == "--"
        {
            let name = |word: &OsString| word.to_string_lossy().into_owned();
            let lab = LabName::new(name(lab)).map_err(Failure::usage)?;
            let router = RouterName::new(name(router)).map_err(Failure::usage)?;
            return in_router(context, &lab, &router, command);
        }
        let mut command = self.command.into_iter();
        let program = command.next().unwrap_or_default();
        if program.as_encoded_bytes().starts_with(b"-") {
            let program = program.display();
            return Err(Failure::usage(format!("exec has no option {program}")));
        }
        keep_users(context)?;
        let error = Command::new(&program)
            .args(command)
            .env("PATH", search_path(context)?)
            .exec();
        Err(cannot_start(&program, &error))
    }
}

/// Runs a command in a router whose lock is held meanwhile, and ends with its exit code.
fn in_router(
    context: &Context,
    lab: &LabName,
    router: &RouterName,
    command: &[OsString],
) -> Result<Exit, Failure> {
    let [program, arguments @ ..] = command else {
        return Err(Failure::usage("a command is wanted behind --"));
    };
    let opened = Lab::open(&context.config, lab)?;
    let netns = opened.router_netns(router)?;
    let registry = RegistryManager::open(&context.config)?;
    let run_id = format!("exec-{}", std::process::id());
    let job = registry.job(JobInfo {
        run_id: RunId::new(run_id).map_err(Failure::cannot_run)?,
        job_type: JobType::Quick,
        dscp: None,
    });
    let routers = [RouterId::new(lab.clone(), router.clone())];
    let wait = Wait::at_most(context.config.lock_timeout);
    let locked = job.all_router_locks(&routers, LockMode::Shared, &wait);
    let locked = locked.map_err(|refused| Failure::from(refused.error))?;
    // It may have been made anew while it was waited for.
    opened.check_unchanged(&context.config)?;
    if !context.quiet {
        let _ = writeln!(
            io::stderr(),
            "in router {router} of lab {lab}: detailed jobs wait meanwhile; what is changed stays \
             until the lab is down"
        );
    }
    let mut started = Command::new(program);
    started.args(arguments).env("PATH", search_path(context)?);
    let status = netns.enter(|| started.status());
    let status = status.map_err(Failure::cannot_run)?;
    let status = status.map_err(|error| cannot_start(program, &error))?;
    drop(locked.unlock());
    // As shells have it for a command that a signal ended.
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    std::process::exit(code.unwrap_or(Exit::CannotRun as i32))
}

fn cannot_start(program: &OsString, error: &io::Error) -> Failure {
    Failure::cannot_run(format!("cannot start {}: {error}", program.display()))
}

/// Where programs are looked for: as always, and where the rulesets' programs are, which a login
/// without rights does not have in its PATH on Debian.
fn search_path(context: &Context) -> Result<OsString, Failure> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty());
    let dirs = usual.chain(context.config.tool_dirs.iter().cloned());
    env::join_paths(dirs).map_err(Failure::cannot_run)
}

/// Has the keeper wait for what is started now, and for what that starts.
fn keep_users(context: &Context) -> io::Result<()> {
    if let Standing::Inside(_, Some(users)) = &context.standing {
        fcntl(users, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

/// Opens a shell, or runs a command, in a router of a lab
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tsim shell corp10 hq-gw
  tsim shell corp10 hq-gw -- iptables-save -c")]
pub(super) struct Shell {
    /// Name of the lab
    #[arg(add = complete::labs())]
    lab: LabName,
    /// Name of the router
    #[arg(add = complete::routers())]
    router: RouterName,
    /// The command and its arguments [default: the shell that SHELL names]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Run for Shell {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let netns = Lab::open(&context.config, &self.lab)?.router_netns(&self.router)?;
        let mut command = self.command.into_iter();
        let shell = || env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        let program = command.next().unwrap_or_else(shell);
        keep_users(context)?;
        let mut command_line = Command::new(&program);
        command_line.args(command);
        command_line.env("PATH", search_path(context)?);
        // exec(3) replaces the whole process by the thread that calls it.
        let error = netns.enter(|| command_line.exec());
        Err(cannot_start(&program, &error.map_err(Failure::cannot_run)?))
    }
}
