//! What this machine offers and lacks: rights, kernel features, tools, directories, limits; what
//! each absence costs, and how to get it.
//!
//! Kernel features are tried out, each in a network namespace that is made for that and goes
//! afterwards. The machine's own network set-up is neither changed nor looked at, but the kernel
//! may load modules.

mod advice;
mod confinement;
mod hint;
mod kernel;
mod loaded;
mod places;
mod rights;
mod tools;

pub use hint::missing_rights;
pub use kernel::UNTRIED;
use serde::Serialize;

use crate::{config::Config, firewall::Support, netns::tool::Tools};
use advice::{Advice, Weight};

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Capabilities of this process.
    Rights,
    /// Features of the running kernel.
    Kernel,
    /// Programs that are run.
    Tools,
    /// Where state is kept.
    Directories,
    /// Limits of the kernel and of this process.
    Limits,
}

/// Whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is there and works.
    Yes,
    /// It is not there.
    No,
    /// It could not be found out.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about.
    pub area: Area,
    /// Its name, unique in its area and the same in every version.
    pub name: String,
    /// Whether it is there.
    pub state: Presence,
    /// Whether nothing works without it.
    pub needed: bool,
    /// What was found: a version, a value, the kernel's words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub found: String,
    /// What its absence costs; only where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<&'static str>,
    /// How to get it; only where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Release of the running kernel, as uname(1) gives it.
    pub kernel: String,
    /// Version text of the running kernel: who built it and when.
    pub kernel_version: String,
    /// Whether all that is needed is there.
    pub able: bool,
    /// The checks, by area.
    pub checks: Vec<Check>,
}

impl Report {
    /// The check of this name.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn check(&self, area: Area, name: &str) -> Option<&Check> {
        self.checks
            .iter()
            .find(|check| check.area == area && check.name == name)
    }
}

/// Looks at everything. Takes a tenth of a second, most of it for the tools that it runs.
#[must_use]
pub fn examine(config: &Config) -> Report {
    let tools = Tools::new(config.tool_dirs.clone());
    let checks: Vec<Check> = rights::checks()
        .into_iter()
        .chain(kernel::checks(&tools))
        .chain(confinement::checks())
        .chain(tools::checks(&tools))
        .chain(places::directories(config))
        .chain(places::limits())
        .collect();
    let uname = nix::sys::utsname::uname();
    let text = |get: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname
            .as_ref()
            .map(|name| get(name).to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: text(nix::sys::utsname::UtsName::release),
        kernel_version: text(nix::sys::utsname::UtsName::version),
        able: able(&checks),
        checks,
    }
}

/// Whether this user may have namespaces of their own: the keeper, or why there is none.
#[must_use]
pub fn user_namespaces(keeper: Result<u32, String>) -> Check {
    let name = "user_namespaces";
    match keeper {
        Ok(pid) => {
            let found = format!("held by process {pid}");
            check(Area::Rights, name, Support::Yes, found)
        }
        Err(why) => check(Area::Rights, name, Support::No(why), String::new()),
    }
}

impl Report {
    /// Puts `check` first.
    pub fn prepend(&mut self, check: Check) {
        self.checks.insert(0, check);
        self.able = able(&self.checks);
    }
}

/// nf_tables or legacy xtables: one of the two must be there to tap a router.
fn able(checks: &[Check]) -> bool {
    let lacking = |check: &&Check| check.needed && check.state != Presence::Yes;
    let back_end = |name| {
        let is = |check: &Check| check.name == name && check.state == Presence::Yes;
        checks.iter().any(is)
    };
    checks.iter().find(lacking).is_none() && (back_end("nf_tables") || back_end("xtables_legacy"))
}

/// A check with the advice that belongs to its name.
fn check(area: Area, name: impl Into<String>, support: Support, found: String) -> Check {
    let name = name.into();
    let advice = advice::of(area, &name);
    let (state, words) = match support {
        Support::Yes => (Presence::Yes, found),
        Support::No(words) => (Presence::No, words),
        Support::Unknown(words) => (Presence::Unknown, words),
    };
    let absent = |text: fn(&Advice) -> &'static str| (state != Presence::Yes).then(|| text(advice));
    Check {
        area,
        name,
        state,
        needed: advice.weight == Weight::Needed,
        found: words,
        costs: absent(|advice| advice.costs),
        remedy: absent(|advice| advice.remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str, support: Support) -> Check {
        check(Area::Kernel, name, support, String::new())
    }

    fn no() -> Support {
        Support::No("not here".to_owned())
    }

    #[test]
    fn advice_is_given_only_where_something_is_absent() {
        let there = kernel("owner_tables", Support::Yes);
        assert_eq!((there.costs, there.remedy), (None, None));
        let absent = kernel("owner_tables", no());
        assert!(absent.costs.is_some_and(|text| text.contains("killed")));
        assert!(absent.remedy.is_some_and(|text| text.contains("5.12")));
        assert_eq!(absent.found, "not here");
    }

    #[test]
    fn one_back_end_is_enough_and_what_could_not_be_told_is_not_there() {
        let needed = ["namespaces", "veth", "bridges"].map(|name| kernel(name, Support::Yes));
        let with = |more: &[Check]| able(&[&needed[..], more].concat());
        assert!(with(&[kernel("nf_tables", Support::Yes)]));
        assert!(with(&[
            kernel("nf_tables", no()),
            kernel("xtables_legacy", Support::Yes)
        ]));
        assert!(!with(&[kernel("nf_tables", no())]));
        let unknown = kernel("veth", Support::Unknown("no rights".to_owned()));
        assert!(!with(&[kernel("nf_tables", Support::Yes), unknown]));
    }
}
