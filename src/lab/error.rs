//! What can go wrong with a lab as a whole.

use std::{fmt, io, path::PathBuf};

use thiserror::Error;

use super::{facts::FactsError, topology::Warning};
use crate::{
    model::{Known, LabName, NameError, NetnsName, RouterName, RunId},
    netlink::{NetlinkErrors, SysctlError},
    netns::{NetnsError, shut_in::ShutInError, tool::ToolError},
    registry::RegistryError,
};

/// A lab could not be made, taken down or opened.
#[derive(Debug, Error)]
pub enum LabError {
    /// The facts cannot be used.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// Strict mode was asked for and the lab would differ from the facts.
    #[error("the lab would differ from its facts in {} places, and strict mode was asked for: {}",
        .0.len(), Lines(.0))]
    Strict(Vec<Warning>),
    /// The lab is up, and from something else.
    #[error(
        "lab {lab} is up already, from other facts or options ({facts}): replace it with \
        `tsim lab up {lab} --facts DIR --replace`, or choose another name"
    )]
    Exists {
        /// The lab.
        lab: LabName,
        /// The facts that it was made from.
        facts: PathBuf,
    },
    /// A lab was to be made in the place of another, and could not.
    #[error("lab {lab} could not be replaced; it is up as it was before")]
    NotReplaced {
        /// The lab.
        lab: LabName,
        /// Why the new one could not be made.
        #[source]
        cause: Box<LabError>,
    },
    /// Routers of a lab were made anew, and are not all in place.
    #[error(
        "routers of lab {lab} were made anew and could not be put in place: `tsim lab status {lab}` \
        tries it again, `tsim lab down {lab}` takes the lab down"
    )]
    Unsettled {
        /// The lab.
        lab: LabName,
        /// What was in the way.
        #[source]
        cause: Box<LabError>,
    },
    /// The lab is not the one that was opened.
    #[error("lab {lab} was changed or taken down meanwhile: ask again")]
    Changed {
        /// The lab.
        lab: LabName,
    },
    /// One router was to be made anew, and the facts of others are not what they were.
    #[error(
        "the facts of other routers of lab {lab} have changed, too: {}; name them as well, or use \
        `tsim lab up {lab} --facts {facts} --replace`", Names(.routers))]
    OthersChanged {
        /// The lab.
        lab: LabName,
        /// Those routers.
        routers: Vec<RouterName>,
        /// Where the facts lie.
        facts: PathBuf,
    },
    /// What leads tunnels to their other ends could not be loaded.
    #[error("nft cannot lead the tunnels of lab {lab} to their other ends: {message}")]
    Tunnels {
        /// The lab.
        lab: LabName,
        /// What the tool said.
        message: String,
    },
    /// A namespace of that name exists and belongs to a lab of the same name in another registry.
    #[error(
        "network namespace {netns} belongs to a lab {lab} of another registry: take that down with \
        the configuration that it was made with, or choose another name"
    )]
    Elsewhere {
        /// The lab.
        lab: LabName,
        /// The namespace.
        netns: NetnsName,
    },
    /// A namespace of that name exists and belongs to somebody else.
    #[error(
        "network namespace {netns} exists and is no part of a lab: remove it, or choose \
        another name for the lab"
    )]
    Taken {
        /// The namespace.
        netns: NetnsName,
    },
    /// There is no such lab.
    #[error("there is no lab {lab} in {dir}{known}")]
    NotFound {
        /// The lab.
        lab: LabName,
        /// Where it was looked for.
        dir: PathBuf,
        /// The labs that are there.
        known: Known,
    },
    /// Its namespaces went with what held them.
    #[error(
        "lab {lab} is gone, with the keeper or the boot of the machine that it belonged to: \
         `tsim lab up` makes it again, `tsim lab down` forgets it"
    )]
    Gone {
        /// The lab.
        lab: LabName,
    },
    /// An `up` that did not come to its end left it.
    #[error(
        "lab {lab} is half made, its `up` was interrupted: run `tsim lab down {lab}` or \
        `tsim lab up {lab}`"
    )]
    HalfMade {
        /// The lab.
        lab: LabName,
    },
    /// Jobs measure in the lab.
    #[error(
        "lab {lab} is in use by {}: wait for them or cancel them, or take it down under them \
        with --force",
        .users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    InUse {
        /// The lab.
        lab: LabName,
        /// The jobs.
        users: Vec<RunId>,
    },
    /// Hosts of the lab could not be removed, or its routers not be locked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A job of one command could not be named.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The lab's state file has a router that does not exist (any more).
    #[error("lab {lab} has no router {router}{known}")]
    NoRouter {
        /// The lab.
        lab: LabName,
        /// The router.
        router: RouterName,
        /// The lab's routers.
        known: Known,
    },
    /// A program that loads rulesets is missing.
    #[error("{tool} is needed to load the rulesets and is not in {}: install {package}",
        Dirs(.dirs))]
    ToolMissing {
        /// Its name.
        tool: &'static str,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
        /// What Debian calls the package.
        package: &'static str,
    },
    /// A ruleset cannot be loaded, and no line of it is to blame.
    #[error("{tool} cannot load the ruleset of router {router}: {message}")]
    Loader {
        /// The tool.
        tool: &'static str,
        /// The router.
        router: RouterName,
        /// What the tool said.
        message: String,
    },
    /// A ruleset tool could not be run.
    #[error("cannot load the ruleset of router {router}")]
    Run {
        /// The router.
        router: RouterName,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// The programs that load rulesets could not be shut in, and were not started.
    #[error(transparent)]
    ShutIn(#[from] ShutInError),
    /// A namespace could not be made, opened or removed.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused something that every lab needs.
    #[error(transparent)]
    Netlink(#[from] NetlinkErrors),
    /// A sysctl that every lab needs was refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A file of the lab's own could not be read or written.
    #[error("cannot {call} {path}")]
    File {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the lab's own is not what this version writes.
    #[error("{path} cannot be understood: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A worker thread ended without a result.
    #[error("a worker thread died")]
    Worker,
    /// `up` failed and undid what it had made.
    #[error("lab {lab} was not made{}", Undone(.failures))]
    NotMade {
        /// The lab.
        lab: LabName,
        /// Why.
        #[source]
        cause: Box<LabError>,
        /// What could not be undone.
        failures: Vec<LabError>,
    },
    /// `down` failed in part.
    #[error("lab {lab} is not wholly removed: {}", Lines(.failures))]
    NotRemoved {
        /// The lab.
        lab: LabName,
        /// Everything that failed.
        failures: Vec<LabError>,
    },
}

struct Lines<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Lines<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in self.0 {
            write!(f, "\n  {item}")?;
        }
        Ok(())
    }
}

struct Names<'a>(&'a [RouterName]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(RouterName::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

struct Dirs<'a>(&'a [PathBuf]);

impl fmt::Display for Dirs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, dir) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{}", dir.display())?;
        }
        Ok(())
    }
}

struct Undone<'a>(&'a [LabError]);

impl fmt::Display for Undone<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("; nothing is left of it")
        } else {
            write!(f, "; this is left of it: {}", Lines(self.0))
        }
    }
}
