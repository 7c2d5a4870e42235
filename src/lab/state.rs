//! What is kept on disk about a lab, so that it can be used and taken down without its facts.
//!
//! ```text
//! <labs_dir>/<lab>/
//!   lab.json        the lab as it is, or (phase "building") as it is to be
//!   topology.json   the topology that it was made from, rulesets included
//!   next.json       the topology that it is being changed to
//!   rules.*         what tools printed of routers' rules, kept by jobs
//!   made.json       what routers were like when they were made
//!   lock            flock: exclusive while the lab is made or taken down
//! ```
//!
//! `lab.json` is written before the first namespace is made: whatever happens afterwards, it names
//! all there is to remove. Files are written aside, fsynced and renamed; after a crash there is
//! the old content or the new one. The directory goes with the lab, and its lock file last: who
//! waits for the lock looks whether the file is still linked.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{fcntl::Flock, sys::stat::fstat};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    LabError,
    topology::{self, InterfaceKind, LinkFacts, Ruleset, Segment, Topology, Warning},
    unseen::Unseen,
};
use crate::{
    config::Config,
    fault, flock,
    model::{
        IfName, Known, LabName, RouterName,
        owner::{KEEPER_FILE, world},
    },
    netlink::object::{Address, Mac},
    netns::NetnsId,
    registry::{
        RegistryError,
        medium::{Directory, Medium},
    },
    wait::Wait,
};

const VERSION: u32 = 2;
const STATE: &str = "lab.json";
const TOPOLOGY: &str = "topology.json";
const NEXT: &str = "next.json";
const MADE: &str = "made.json";
const LOCK: &str = "lock";
/// A file that is being written.
const NEW: &str = ".new";

/// How far a lab has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LabPhase {
    /// `up` is at work, or was interrupted.
    Building,
    /// All is there.
    Up,
}

/// A lab, as `lab.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(with = "serde_json::Map<String, serde_json::Value>")]
pub struct LabState {
    pub(super) version: u32,
    /// Its name.
    pub lab: LabName,
    /// How far it has come.
    pub phase: LabPhase,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// The boot that its namespaces belong to, and the keeper where there is one; none of them
    /// outlives these.
    pub boot_id: String,
    /// Directory of the facts that it was made from.
    pub facts: PathBuf,
    /// Whether iptables rulesets went through the legacy variant.
    pub legacy: bool,
    /// The hidden namespace with one bridge per segment; none until it is made.
    pub segments_netns: Option<NetnsId>,
    /// Routers in the order of their names.
    pub routers: Vec<RouterState>,
    /// Segments; the bridge of the `n`-th is [`bridge_name`]`(n)`.
    pub segments: Vec<Segment>,
    /// What the lab does not have as the facts do.
    pub warnings: Vec<Warning>,
    /// When some of its routers were made anew last, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
    /// What is on its way, or was when it was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<Swap>,
}

/// Routers that are made anew beside those that are there, and then take their places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Swap {
    /// Whether all that is new was made: then it is to be put in place, and until then it is to be
    /// thrown away.
    pub(super) decided: bool,
    /// Routers that are made aside, under another name.
    pub(super) aside: Vec<RouterName>,
    /// The namespaces whose places they take, and those of routers that go.
    pub(super) old: Vec<RemainingRouter>,
    /// Hardware addresses of those, which neighbours may have learned, and their segments.
    pub(super) macs: Vec<Mac>,
    pub(super) segments: Vec<usize>,
    /// Whether tunnels have other ends now.
    pub(super) tunnels: bool,
}

/// What is left of a lab's file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Remains {
    #[serde(default)]
    pub(super) boot_id: Option<String>,
    #[serde(default)]
    pub(super) segments_netns: Option<NetnsId>,
    #[serde(default)]
    pub(super) routers: Vec<RemainingRouter>,
    #[serde(default)]
    pub(super) change: RemainingChange,
}

/// What is left of a change of it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RemainingChange {
    #[serde(default)]
    pub(super) aside: Vec<RouterName>,
}

/// A router of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RemainingRouter {
    pub(super) name: RouterName,
    #[serde(default)]
    pub(super) netns: Option<NetnsId>,
}

/// A router of a lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterState {
    /// Its name.
    pub name: RouterName,
    /// Its namespace; none until it is made.
    pub netns: Option<NetnsId>,
    /// Whether some of its rules could not be loaded; the lab's warnings say which.
    pub ruleset_incomplete: bool,
    /// Rules that give packets another destination, as text; listed only where the router lacks
    /// something, to tell what that can concern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirecting: Vec<String>,
    /// Rules that translate addresses or ports, as text, by which a job plans what it can ask side by
    /// side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translating: Vec<String>,
    /// Its rulesets as its facts have them; kept only where it lacks some of their rules, to tell
    /// which packets can have met those, or where what its bridges hand on meets rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rulesets: Vec<Ruleset>,
    /// Whether its rules ask sets for hardware addresses, which the kernel's own form of them does not
    /// show.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks_hardware_addresses: bool,
    /// Whether its rules change the options of TCP, as those do that lower the segment size.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rewrites_tcp_options: bool,
    /// Rules that rewrite bits of headers which probes do not carry to the next router, as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewriting: Vec<String>,
    /// Rules that ask sets for ports and tell apart those that clients have, as text: the kernel's own form
    /// of them does not show that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asking_port_sets: Vec<String>,
    /// What it stops of answers whose request did not pass it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Unseen>,
    /// Its interfaces, loopback included.
    pub interfaces: Vec<InterfaceState>,
}

/// An interface of a router of a lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterfaceState {
    /// Its name.
    pub name: IfName,
    /// What it was on the real router.
    pub kind: InterfaceKind,
    /// Its index in the router's namespace.
    pub index: u32,
    /// Its hardware address; none for loopback.
    pub mac: Option<Mac>,
    /// Its MTU in bytes; none for loopback.
    pub mtu: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Whether it asks for no neighbours, as an end of a tunnel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noarp: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// What leads to the other end of its link.
    #[serde(default, skip_serializing_if = "LinkFacts::is_unknown")]
    pub link: LinkFacts,
    /// The segment that it is plugged into; none for loopback.
    pub segment: Option<usize>,
    /// The port of the segment's bridge at the other end of its wire.
    pub port: Option<IfName>,
}

/// The bridge of the `segment`-th segment, in the namespace of segments.
///
/// # Errors
/// Never for a number that fits an interface name.
pub fn bridge_name(segment: usize) -> Result<IfName, crate::model::NameError> {
    IfName::new(format!("br{segment}"))
}

impl LabState {
    /// An intent: what is to be made of `topology`.
    pub(super) fn new(
        lab: LabName,
        facts: PathBuf,
        legacy: bool,
        topology: &Topology,
        routers: Vec<RouterState>,
    ) -> Result<Self, LabError> {
        Ok(Self {
            version: VERSION,
            lab,
            phase: LabPhase::Building,
            created_at: jiff::Timestamp::now().to_string(),
            boot_id: boot_id()?,
            facts,
            legacy,
            segments_netns: None,
            routers,
            segments: topology.segments.clone(),
            warnings: topology.warnings.clone(),
            changed_at: None,
            change: None,
        })
    }

    /// Which lab of this name it is, and since which change.
    #[must_use]
    pub fn edition(&self) -> (&str, Option<&str>) {
        (&self.created_at, self.changed_at.as_deref())
    }

    /// How many segments have ends: a bridge stays when its last router goes.
    #[must_use]
    pub fn used_segments(&self) -> usize {
        let used = |segment: &&Segment| !segment.members.is_empty();
        self.segments.iter().filter(used).count()
    }

    /// The router `name`.
    ///
    /// # Errors
    /// [`LabError::NoRouter`].
    pub fn router(&self, name: &RouterName) -> Result<&RouterState, LabError> {
        let found = self.routers.iter().find(|router| router.name == *name);
        found.ok_or_else(|| LabError::NoRouter {
            lab: self.lab.clone(),
            router: name.clone(),
            known: Known::instead_of(
                name.as_str(),
                self.routers.iter().map(|router| router.name.as_str()),
            ),
        })
    }
}

impl InterfaceState {
    /// The index of the port at the other end of its wire, in the namespace of segments.
    #[must_use]
    pub fn port_index(&self) -> Option<u32> {
        super::plan::port_index(self.port.as_ref()?)
    }
}

impl RouterState {
    /// The interface `name`, if the router has it.
    #[must_use]
    pub fn interface(&self, name: &IfName) -> Option<&InterfaceState> {
        self.interfaces.iter().find(|i| i.name == *name)
    }
}

/// Names this boot of the machine, and the keeper in whose namespaces this process is.
pub(super) fn boot_id() -> Result<String, LabError> {
    world().map_err(file_error("read", Path::new(KEEPER_FILE)))
}

fn file_error(call: &'static str, path: &Path) -> impl Fn(io::Error) -> LabError {
    let path = path.to_owned();
    move |source| LabError::File {
        call,
        path: path.clone(),
        source,
    }
}

/// A file at one time: its inode, and when that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64, i64, i64);

/// The directory of one lab. It and the directory of all labs are opened and checked as the
/// registry's are: a link or a directory of somebody else in its place is refused, and what is in it
/// is opened and removed by its name in there.
#[derive(Debug, Clone)]
pub(super) struct LabDir {
    labs: PathBuf,
    name: LabName,
    /// How long to wait for somebody else who changes the lab.
    patience: Duration,
}

impl LabDir {
    pub(super) fn new(config: &Config, lab: &LabName) -> Self {
        Self {
            labs: config.labs_dir.clone(),
            name: lab.clone(),
            patience: config.lock_timeout,
        }
    }

    /// Names in `labs_dir` that are labs.
    pub(super) fn list(config: &Config) -> Result<Vec<LabName>, LabError> {
        let Some(labs) = Directory::open_existing(&config.labs_dir)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for name in labs.names()? {
            let name = name.to_str().and_then(|name| LabName::new(name).ok());
            let Some(name) = name else { continue };
            // A file, a link or somebody's directory beside the labs is none of them.
            if let Ok(Some(dir)) = labs.sub_existing(name.as_str())
                && !matches!(dir.open_file(STATE), Ok(None))
            {
                found.push(name);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether there is anything to take down.
    pub(super) fn exists(&self) -> Result<bool, LabError> {
        Ok(self.existing()?.is_some())
    }

    pub(super) fn existing(&self) -> Result<Option<Directory>, LabError> {
        match Directory::open_existing(&self.labs)? {
            Some(labs) => Ok(labs.sub_existing(self.name.as_str())?),
            None => Ok(None),
        }
    }

    /// Which file tells of the lab: another one since it was changed.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let file = self.labs.join(self.name.as_str()).join(STATE);
        let found = std::fs::symlink_metadata(file).ok()?;
        Some(Stamp(found.ino(), found.ctime(), found.ctime_nsec()))
    }

    /// What is kept; none where there is no lab.
    pub(super) fn state(&self) -> Result<Option<LabState>, LabError> {
        match self.existing()? {
            Some(dir) => read_state(&dir),
            None => Ok(None),
        }
    }

    /// What the lab was made from; none where there is no lab.
    pub(super) fn topology(&self) -> Result<Option<Topology>, LabError> {
        match self.existing()? {
            Some(dir) => read(&dir, TOPOLOGY),
            None => Ok(None),
        }
    }

    /// What routers were like when they were made; none where nothing is kept.
    pub(super) fn made<T: DeserializeOwned>(&self) -> Result<Option<T>, LabError> {
        match self.existing()? {
            Some(dir) => read(&dir, MADE),
            None => Ok(None),
        }
    }

    /// Waits until nobody else makes or takes down this lab.
    pub(super) fn lock(&self) -> Result<LockedLab, LabError> {
        self.lock_within(&Wait::at_most(self.patience))
    }

    /// The same, if nobody else is at it now.
    pub(super) fn lock_now(&self) -> Result<Option<LockedLab>, LabError> {
        match self.lock_within(&Wait::not()) {
            Err(LabError::File { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
                Ok(None)
            }
            locked => locked.map(Some),
        }
    }

    fn lock_within(&self, wait: &Wait) -> Result<LockedLab, LabError> {
        loop {
            let labs = Directory::open(&self.labs)?;
            let dir = labs.sub(self.name.as_str())?;
            if let Some(lock) = try_lock(&dir, wait)? {
                return Ok(LockedLab {
                    name: self.name.clone(),
                    labs,
                    dir,
                    _lock: lock,
                });
            }
        }
    }
}

/// What is kept in the directory of a lab; none where there is no lab.
pub(super) fn read_state(dir: &Directory) -> Result<Option<LabState>, LabError> {
    let state: Option<LabState> = read(dir, STATE)?;
    match &state {
        Some(state) if state.version != VERSION => Err(LabError::Format {
            path: dir.path().join(STATE),
            message: format!(
                "version {} is of another release of tsim, {VERSION} is known: take the lab down \
                 with --force and up again",
                state.version
            ),
        }),
        _ => Ok(state),
    }
}

fn read<T: DeserializeOwned>(dir: &Directory, name: &str) -> Result<Option<T>, LabError> {
    let Some(bytes) = dir.content(name)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes).map_err(|e| LabError::Format {
        path: dir.path().join(name),
        message: e.to_string(),
    })?;
    Ok(Some(value))
}

/// None when the file or its directory went while it was waited for, with the lab.
fn try_lock(dir: &Directory, wait: &Wait) -> Result<Option<Flock<OwnedFd>>, LabError> {
    let path = dir.path().join(LOCK);
    let unlocked = match dir.lock_file(LOCK) {
        Err(RegistryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        other => other?,
    };
    let lock = flock::exclusive(unlocked, &path, wait);
    let lock = lock.map_err(|refused| file_error("lock", &path)(refused.into_io(wait)))?;
    let held = fstat(&*lock).map_err(|e| file_error("look at", &path)(e.into()))?;
    Ok((held.st_nlink > 0).then_some(lock))
}

/// The directory of one lab, which nobody else changes.
#[derive(Debug)]
pub(super) struct LockedLab {
    name: LabName,
    labs: Directory,
    dir: Directory,
    _lock: Flock<OwnedFd>,
}

impl LockedLab {
    /// What is kept; none where there is no lab.
    pub(super) fn state(&self) -> Result<Option<LabState>, LabError> {
        read_state(&self.dir)
    }

    /// What can be told of a lab whose file is damaged or another release's: the boot it belongs to
    /// and its namespaces, from what is left of the file, or else from the topology.
    pub(super) fn remains(&self) -> Remains {
        let state: Option<Remains> = read(&self.dir, STATE).ok().flatten();
        let topology = || {
            let topology = self.topology().ok().flatten()?;
            let router = |router: topology::Router| RemainingRouter {
                name: router.name,
                netns: None,
            };
            Some(Remains {
                routers: topology.routers.into_iter().map(router).collect(),
                ..Remains::default()
            })
        };
        let known = state.filter(|state| !state.routers.is_empty());
        known.or_else(topology).unwrap_or_default()
    }

    pub(super) fn topology(&self) -> Result<Option<Topology>, LabError> {
        read(&self.dir, TOPOLOGY)
    }

    /// Keeps `state`; durable when it returns.
    pub(super) fn write_state(&self, state: &LabState) -> Result<(), LabError> {
        self.write(STATE, state)
    }

    /// Keeps `topology`; durable when it returns.
    pub(super) fn write_topology(&self, topology: &Topology) -> Result<(), LabError> {
        self.write(TOPOLOGY, topology)
    }

    fn write<T: Serialize>(&self, file: &str, value: &T) -> Result<(), LabError> {
        let path = self.dir.path().join(file);
        let fail = file_error("write", &path);
        fault::step("lab.write").map_err(&fail)?;
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| fail(e.into()))?;
        self.dir.write(NEW, &bytes)?;
        self.dir.rename(NEW, file)?;
        Ok(self.dir.sync_names()?)
    }

    /// What routers were like when they were made; none where nothing is kept.
    pub(super) fn made<T: DeserializeOwned>(&self) -> Result<Option<T>, LabError> {
        read(&self.dir, MADE)
    }

    /// Keeps what routers are like; durable when it returns.
    pub(super) fn write_made<T: Serialize>(&self, made: &T) -> Result<(), LabError> {
        self.write(MADE, made)
    }

    /// Keeps what the lab is being changed to; durable when it returns.
    pub(super) fn write_next(&self, topology: &Topology) -> Result<(), LabError> {
        self.write(NEXT, topology)
    }

    /// Takes what the lab was changed to for what it was made from. Once more it changes nothing.
    pub(super) fn take_next(&self) -> Result<(), LabError> {
        let path = self.dir.path().join(TOPOLOGY);
        fault::step("lab.write").map_err(file_error("write", &path))?;
        if self.dir.open_file(NEXT)?.is_some() {
            self.dir.rename(NEXT, TOPOLOGY)?;
            self.dir.sync_names()?;
        }
        Ok(())
    }

    /// Forgets what the lab was to be changed to.
    pub(super) fn drop_next(&self) -> Result<(), LabError> {
        let path = self.dir.path().join(NEXT);
        fault::step("lab.write").map_err(file_error("remove", &path))?;
        if self.dir.open_file(NEXT)?.is_some() {
            self.dir.remove_file(NEXT.as_ref())?;
        }
        Ok(())
    }

    /// Forgets the lab: removes its files, the lock last, and its directory.
    pub(super) fn remove(self) -> Result<(), LabError> {
        let path = self.dir.path();
        fault::step("lab.remove").map_err(file_error("remove", path))?;
        // What an interrupted write left, too; lab.json is the last that names anything.
        let mut names = self.dir.names()?;
        names.sort_by_key(|name| match name.to_str() {
            Some(LOCK) => 2,
            Some(STATE) => 1,
            _ => 0,
        });
        for name in names {
            self.dir.remove_file(&name)?;
        }
        // False: somebody waits for the lock and has made a new one.
        self.labs.remove_dir(self.name.as_str())?;
        Ok(())
    }
}
