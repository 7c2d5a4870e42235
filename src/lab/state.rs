//! What is kept on disk about a lab, so that it can be used and taken down without its facts.
//!
//! ```text
//! <labs_dir>/<lab>/
//!   lab.json        the lab as it is, or (phase "building") as it is to be
//!   topology.json   the topology that it was made from, rulesets included
//!   lock            flock: exclusive while the lab is made or taken down
//! ```
//!
//! `lab.json` is written before the first namespace is made: whatever happens afterwards, it names
//! all there is to remove. Files are written aside, fsynced and renamed; after a crash there is
//! the old content or the new one. The directory goes with the lab, and its lock file last: who
//! waits for the lock looks whether the file is still linked.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    LabError,
    topology::{InterfaceKind, LinkFacts, Segment, Topology, Warning},
};
use crate::{
    config::Config,
    fault,
    model::{
        IfName, LabName, RouterName,
        owner::{KEEPER_FILE, world},
    },
    netlink::object::{Address, Mac},
    netns::NetnsId,
};

const VERSION: u32 = 2;
const STATE: &str = "lab.json";
const TOPOLOGY: &str = "topology.json";
const LOCK: &str = "lock";

/// How far a lab has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `up` is at work, or was interrupted.
    Building,
    /// All is there.
    Up,
}

/// A lab, as `lab.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabState {
    version: u32,
    /// Its name.
    pub lab: LabName,
    /// How far it has come.
    pub phase: Phase,
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
            phase: Phase::Building,
            created_at: jiff::Timestamp::now().to_string(),
            boot_id: boot_id()?,
            facts,
            legacy,
            segments_netns: None,
            routers,
            segments: topology.segments.clone(),
            warnings: topology.warnings.clone(),
        })
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

/// The directory of one lab.
#[derive(Debug, Clone)]
pub(super) struct LabDir {
    path: PathBuf,
}

impl LabDir {
    pub(super) fn new(config: &Config, lab: &LabName) -> Self {
        Self {
            path: config.labs_dir.join(lab.as_str()),
        }
    }

    /// Names in `labs_dir` that are labs.
    pub(super) fn list(config: &Config) -> Result<Vec<LabName>, LabError> {
        let fail = file_error("list", &config.labs_dir);
        let entries = match fs::read_dir(&config.labs_dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fail(e)),
        };
        let mut labs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(&fail)?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| LabName::new(name).ok());
            labs.extend(name.filter(|_| entry.path().join(STATE).exists()));
        }
        labs.sort();
        Ok(labs)
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// What is kept; none where there is no lab.
    pub(super) fn state(&self) -> Result<Option<LabState>, LabError> {
        let state: Option<LabState> = self.read(STATE)?;
        match &state {
            Some(state) if state.version != VERSION => Err(LabError::Format {
                path: self.path.join(STATE),
                message: format!("version {}; {VERSION} is known", state.version),
            }),
            _ => Ok(state),
        }
    }

    pub(super) fn topology(&self) -> Result<Option<Topology>, LabError> {
        self.read(TOPOLOGY)
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, LabError> {
        let path = self.path.join(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file_error("read", &path)(e)),
        };
        let value = serde_json::from_slice(&bytes).map_err(|e| LabError::Format {
            path,
            message: e.to_string(),
        })?;
        Ok(Some(value))
    }
}

/// The directory of one lab, which nobody else changes.
#[derive(Debug)]
pub(super) struct LockedLab {
    dir: LabDir,
    _lock: Flock<File>,
}

impl LabDir {
    /// Waits until nobody else makes or takes down this lab.
    pub(super) fn lock(self) -> Result<LockedLab, LabError> {
        loop {
            self.make()?;
            if let Some(lock) = self.try_lock()? {
                return Ok(LockedLab {
                    dir: self,
                    _lock: lock,
                });
            }
        }
    }

    fn make(&self) -> Result<(), LabError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.path);
        made.map_err(file_error("make the directory", &self.path))
    }

    /// None when the file went while it was waited for, with the lab.
    fn try_lock(&self) -> Result<Option<Flock<File>>, LabError> {
        let path = self.path.join(LOCK);
        let mut open = File::options();
        open.read(true).write(true).create(true).truncate(false);
        let file = match open.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(file_error("open", &path))?,
        };
        let mut unlocked = file;
        let lock = loop {
            match Flock::lock(unlocked, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                Err((file, nix::errno::Errno::EINTR)) => unlocked = file,
                Err((_, errno)) => return Err(file_error("lock", &path)(errno.into())),
            }
        };
        let held = lock.metadata().map_err(file_error("look at", &path))?;
        Ok((held.nlink() > 0).then_some(lock))
    }
}

impl LockedLab {
    pub(super) fn dir(&self) -> &LabDir {
        &self.dir
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
        let path = self.dir.path.join(file);
        let fail = file_error("write", &path);
        fault::step("lab.write").map_err(&fail)?;
        let mut temporary = tempfile::Builder::new()
            .prefix(".new")
            .tempfile_in(&self.dir.path)
            .map_err(&fail)?;
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| fail(e.into()))?;
        temporary.write_all(&bytes).map_err(&fail)?;
        temporary.as_file().sync_all().map_err(&fail)?;
        temporary.persist(&path).map_err(|e| fail(e.error))?;
        let dir = File::open(&self.dir.path).map_err(&fail)?;
        dir.sync_all().map_err(&fail)
    }

    /// Forgets the lab: removes its files, the lock last, and its directory.
    pub(super) fn remove(self) -> Result<(), LabError> {
        let path = &self.dir.path;
        fault::step("lab.remove").map_err(file_error("remove", path))?;
        // What an interrupted write left, too; lab.json is the last that names anything.
        let entries = fs::read_dir(path).map_err(file_error("list", path))?;
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in entries {
            files.push(entry.map_err(file_error("list", path))?.path());
        }
        let rank = |file: &PathBuf| match file.file_name().and_then(|n| n.to_str()) {
            Some(LOCK) => 2,
            Some(STATE) => 1,
            _ => 0,
        };
        files.sort_by_key(rank);
        for file in files {
            fs::remove_file(&file).map_err(file_error("remove", &file))?;
        }
        match fs::remove_dir(path) {
            // Somebody waits for the lock and has made a new one.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other.map_err(file_error("remove", path)),
        }
    }
}
