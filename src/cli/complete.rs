//! What a shell offers when Tab is pressed: options and commands as they are parsed, and the names
//! of the labs, routers, hosts, jobs and services that there are at this moment.
//!
//! The scripts that `tsim generate completions` writes call the program itself with the variable
//! [`VARIABLE`] set. Looking must not change anything, need no rights and say nothing: what cannot
//! be read is not offered.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::CommandFactory;
use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate},
};

use super::{CommandLine, Exit, start};
use crate::{
    config::Config,
    lab::{self, LabState},
    model::service_names,
    registry::RegistryManager,
    sched::spool::Spool,
};

/// Set by the shell to its own name when it asks for completions. No process of ours sets it.
pub(super) const VARIABLE: &str = "TSIM_COMPLETE";
/// Jobs that are over and still offered.
const OVER: usize = 50;

/// Answers the shell if it is one that asks; the process then ends with this code.
pub(super) fn answer<C: CommandLine + CommandFactory>() -> Option<Exit> {
    env::var_os(VARIABLE)?;
    let here = env::current_dir().ok();
    let completion = CompleteEnv::with_factory(C::command).var(VARIABLE);
    match completion.try_complete(env::args_os(), here.as_deref()) {
        Ok(true) => Some(Exit::Ok),
        Ok(false) => None,
        Err(error) => {
            let _ = write!(io::stderr(), "{error}");
            Some(Exit::Usage)
        }
    }
}

/// The command line that is being typed, as far as it decides what is offered.
struct Typed {
    words: Vec<OsString>,
    config: Config,
}

impl Typed {
    fn read() -> Option<Self> {
        let words: Vec<OsString> = env::args_os().skip_while(|word| word != "--").collect();
        let file = value_of(&words, "--config").map(PathBuf::from);
        let file = file.or_else(|| env::var_os("TSIM_CONFIG").map(PathBuf::from));
        let rootless = words.iter().any(|word| word == "--rootless");
        let config = Config {
            lock_timeout: Duration::ZERO,
            ..start::configuration(file.as_deref(), rootless).ok()?
        };
        Some(Self { words, config })
    }

    fn labs(&self) -> Vec<LabState> {
        lab::list(&self.config).unwrap_or_default()
    }

    /// The lab that is named on the command line, or else all.
    fn labs_named(&self) -> Vec<LabState> {
        let mut labs = self.labs();
        let is_named = |lab: &LabState| {
            let equals = format!("--lab={}", lab.lab);
            let names = |word: &OsString| *word == *lab.lab.as_str() || *word == *equals;
            self.words.iter().any(names)
        };
        if labs.iter().any(is_named) {
            labs.retain(is_named);
        }
        labs
    }
}

/// What follows `option` on the command line, or is joined to it by `=`.
fn value_of(words: &[OsString], option: &str) -> Option<OsString> {
    let joined = format!("{option}=");
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == option {
            return words.next().cloned();
        }
        if let Some(value) = word.to_str().and_then(|word| word.strip_prefix(&joined)) {
            return Some(value.into());
        }
    }
    None
}

/// Offers the names of `all` that begin as the word does; of a list by commas, as its last entry.
fn offer(typed: &OsStr, all: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else {
        return Vec::new();
    };
    let (before, last) = match typed.rfind(',') {
        Some(comma) => typed.split_at(comma + 1),
        None => ("", typed),
    };
    let listed: Vec<&str> = before.split(',').collect();
    let fits = |name: &String| name.starts_with(last) && !listed.contains(&name.as_str());
    let fitting: BTreeSet<String> = all.into_iter().filter(fits).collect();
    let whole = fitting.into_iter().map(|name| format!("{before}{name}"));
    whole.map(CompletionCandidate::new).collect()
}

fn completer(names: impl Fn(&Typed) -> Vec<String> + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |word: &OsStr| {
        let typed = Typed::read();
        offer(word, typed.map(|typed| names(&typed)).unwrap_or_default())
    })
}

/// Labs.
pub(super) fn labs() -> ArgValueCompleter {
    completer(|typed| {
        let labs = typed.labs();
        labs.iter().map(|lab| lab.lab.to_string()).collect()
    })
}

/// Routers of the lab that is named, one or a list of them.
pub(super) fn routers() -> ArgValueCompleter {
    completer(|typed| {
        let labs = typed.labs_named();
        let routers = labs.iter().flat_map(|lab| &lab.routers);
        routers.map(|router| router.name.to_string()).collect()
    })
}

/// Registered hosts of the lab that is named.
pub(super) fn hosts() -> ArgValueCompleter {
    completer(|typed| {
        // Opening the registry would make it.
        if !typed.config.registry_dir.is_dir() {
            return Vec::new();
        }
        let labs: Vec<_> = typed.labs_named().into_iter().map(|lab| lab.lab).collect();
        let hosts = RegistryManager::open(&typed.config).and_then(|registry| registry.hosts());
        let hosts = hosts.unwrap_or_default().into_iter().map(|(host, _)| host);
        let hosts = hosts.filter(|host| labs.contains(&host.lab));
        hosts.map(|host| host.host.to_string()).collect()
    })
}

/// Jobs that run, wait, or are over since not long ago.
pub(super) fn jobs() -> ArgValueCompleter {
    completer(|typed| {
        let Config {
            registry_dir,
            results_dir,
            ..
        } = &typed.config;
        if !registry_dir.is_dir() || !results_dir.is_dir() {
            return Vec::new();
        }
        run_ids(&typed.config).unwrap_or_default()
    })
}

fn run_ids(config: &Config) -> Option<Vec<String>> {
    let spool = Spool::open(config).ok()?;
    let jobs = spool.jobs().ok()?;
    let over = spool.history(None, OVER).ok()?;
    let running = jobs.running.iter().map(|job| job.run_id.to_string());
    let queued = jobs.queued.iter().map(|job| job.run_id.to_string());
    let over = over.jobs.iter().map(|job| job.run_id.to_string());
    Some(running.chain(queued).chain(over).collect())
}

/// Names of services and, with `@`, of groups; one or a list of them.
pub(super) fn services() -> ArgValueCompleter {
    completer(|typed| {
        let groups = typed.config.groups.all();
        let groups = groups.map(|(name, ..)| format!("@{name}"));
        groups.chain(service_names().map(str::to_owned)).collect()
    })
}

/// Names of groups, without the `@`.
pub(super) fn groups() -> ArgValueCompleter {
    completer(|typed| {
        let groups = typed.config.groups.all();
        groups.map(|(name, ..)| name.to_owned()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(typed: &str, all: &[&str]) -> Vec<String> {
        let offered = offer(typed.as_ref(), all.iter().map(|name| (*name).to_owned()));
        let values = offered
            .iter()
            .map(|c| c.get_value().to_str().unwrap().to_owned());
        values.collect()
    }

    #[test]
    fn the_last_entry_of_a_list_is_completed() {
        let all = ["br-gw", "hq-gw", "hq-core"];
        assert_eq!(offered("h", &all), ["hq-core", "hq-gw"]);
        assert_eq!(offered("br-gw,hq-g", &all), ["br-gw,hq-gw"]);
        assert_eq!(offered("x", &all), [""; 0]);
        // What is in the list already is not offered again.
        assert_eq!(offered("hq-gw,hq-", &all), ["hq-gw,hq-core"]);
    }

    #[test]
    fn options_are_found_in_both_forms() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for text in ["-- tsim --config a.toml lab", "-- tsim lab --config=a.toml"] {
            assert_eq!(value_of(&words(text), "--config"), Some("a.toml".into()));
        }
        assert_eq!(value_of(&words("-- tsim lab"), "--config"), None);
    }
}
