//! Notes of what outlives a job in a router when the job is killed.
//!
//! Before a job puts anything into a router's iptables, sets where their traces go, or makes connections
//! that the router keeps track of, it notes so in `locks/taps/`, and strikes the note when all of that is gone again. What a dead job has noted,
//! whoever comes next removes or puts back.
//!
//! A note is a symbolic link that leads nowhere: `RUN-ID,LAB.ROUTER,TOOL`, its target the note as
//! JSON. symlinkat(2) makes it whole or not at all, readlinkat(2) reads it, and nothing follows it.
//! The directory is there only while there are notes, so a job that makes none and finds none does
//! not look into it: it counts the directories beside the lock files anyway.

use std::net::IpAddr;

use nix::{
    errno::Errno,
    fcntl::readlinkat,
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};
use serde::{Deserialize, Serialize};

use crate::{
    fault,
    model::{HostId, HostName, RouterId, RunId},
    netns::NetnsId,
    registry::{Owner, RegistryError, RegistryManager, medium::Directory},
};

/// The tool of a note about connections.
const CONNECTIONS: &str = "conntrack";
/// A note is the target of a symbolic link, which has less than a page: so many entries are noted.
const ENTRIES: usize = 128;
/// Said of a router without exceptions of routes.
const NO_EXCEPTIONS: &str = "no exceptions";
/// What begins the digest of an entry, among addresses.
const DIGEST: char = '#';
/// What begins the host that connects, of which the same is true.
const CLIENT: &str = "client ";

/// The directory's name; no queue has it, for those have a `.` or an `@`.
pub(crate) const DIRECTORY: &str = "taps";

/// What a job's taps may leave in a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapNote {
    /// The job.
    pub run_id: RunId,
    /// Where.
    pub router: RouterId,
    /// Which namespace that was then.
    pub netns: NetnsId,
    /// With whose tools, such as `ip6tables-nft`; or the setting that a trace changes, such as
    /// `nf_log-2`; or `conntrack`, where connections were made.
    pub tool: String,
    /// Tables and chains that come into being with the taps, in the back end's words; or what the
    /// setting was; or what [`NotedTraffic`] has: addresses, `#` with the digest of an entry, whether there
    /// were exceptions, and the host that connects.
    pub made: Vec<String>,
    /// Whose taps they are.
    pub owner: Owner,
}

/// What a job notes of connections that it makes through a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedTraffic {
    /// The ends of connections.
    pub ends: Vec<IpAddr>,
    /// The digests of the entries that were there before.
    pub known: Vec<u64>,
    /// Whether the router had no exceptions of routes, so that all which are there later are the job's.
    pub no_exceptions: bool,
    /// The host that connects, where that had none, either, and which namespace it was: one that
    /// somebody put there outlives the job.
    pub client: Option<(HostId, NetnsId)>,
}

impl TapNote {
    /// Its name in the directory.
    fn name(&self) -> String {
        format!("{},{},{}", self.run_id, self.router, self.tool)
    }

    /// What is meant, in words.
    pub(crate) fn described(&self) -> String {
        match self.tool.as_str() {
            CONNECTIONS => "entries of connection tracking".to_owned(),
            setting if setting.starts_with("nf_log") => format!("the setting {setting} of a trace"),
            tool => format!("taps ({tool})"),
        }
    }

    /// A note about connections in a router; none where the entries before are too many for a note.
    #[must_use]
    pub fn of_connections(
        (run_id, router, netns): (&RunId, &RouterId, NetnsId),
        noted: &NotedTraffic,
        owner: &Owner,
    ) -> Option<Self> {
        let ends = noted.ends.iter().map(ToString::to_string);
        let digests = noted.known.iter();
        let digests = digests.map(|digest| format!("{DIGEST}{digest:x}"));
        let none = noted.no_exceptions.then(|| NO_EXCEPTIONS.to_owned());
        let client = noted.client.as_ref().map(|(host, netns)| {
            let NetnsId { dev, ino } = netns;
            format!("{CLIENT}{dev} {ino} {}", host.host)
        });
        let made = ends.chain(digests).chain(none).chain(client);
        (noted.known.len() <= ENTRIES).then(|| Self {
            run_id: run_id.clone(),
            router: router.clone(),
            netns,
            tool: CONNECTIONS.to_owned(),
            made: made.collect(),
            owner: owner.clone(),
        })
    }

    /// What a note about connections says.
    #[must_use]
    pub fn connections(&self) -> Option<NotedTraffic> {
        let made = || self.made.iter();
        let digest = |text: &String| u64::from_str_radix(text.strip_prefix(DIGEST)?, 16).ok();
        let client = |text: &String| {
            let mut words = text.strip_prefix(CLIENT)?.split(' ');
            let mut number = || words.next()?.parse().ok();
            let (dev, ino) = (number()?, number()?);
            let host: HostName = words.next()?.parse().ok()?;
            let lab = self.router.lab.clone();
            Some((HostId::new(lab, host), NetnsId { dev, ino }))
        };
        (self.tool == CONNECTIONS).then(|| NotedTraffic {
            ends: made().filter_map(|text| text.parse().ok()).collect(),
            known: made().filter_map(digest).collect(),
            no_exceptions: made().any(|text| text == NO_EXCEPTIONS),
            client: made().find_map(client),
        })
    }

    /// Whether both are about the same tables.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        self.netns == other.netns && self.tool == other.tool && self.name() != other.name()
    }
}

impl RegistryManager {
    /// Notes what is about to be made.
    ///
    /// # Errors
    /// [`RegistryError::Io`]; there is no note then.
    pub fn note_tap(&self, note: &TapNote) -> Result<(), RegistryError> {
        let locks = self.locks();
        let name = note.name();
        // Of a struct without maps; it cannot fail.
        let text = serde_json::to_string(note).unwrap_or_default();
        loop {
            let taps = locks.sub(DIRECTORY)?;
            let put = fault::step("registry.taps.note")
                .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
                .and_then(|()| symlinkat(text.as_str(), taps.fd(), name.as_str()));
            match put {
                Ok(()) => return Ok(()),
                // An earlier job of this name died; its note is as good as gone, for this one says
                // what both have made.
                Err(Errno::EEXIST) => unlink(&taps, &name)?,
                // Somebody has struck the last note and removed the directory.
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(taps.error("note", &name, e)),
            }
        }
    }

    /// Strikes a note: nothing of what it says is left. One that is not there is no error.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn strike_tap(&self, note: &TapNote) -> Result<(), RegistryError> {
        let Some(taps) = self.locks().sub_existing(DIRECTORY)? else {
            return Ok(());
        };
        let name = note.name();
        fault::step("registry.taps.strike").map_err(|e| taps.error("strike", &name, e))?;
        unlink(&taps, &name)?;
        self.discard_tap_notes();
        Ok(())
    }

    /// Removes the directory of notes; any note keeps it.
    pub(crate) fn discard_tap_notes(&self) {
        let _ = unlinkat(self.locks().fd(), DIRECTORY, UnlinkatFlags::RemoveDir);
    }

    /// All notes, by name. What is no note is left out.
    ///
    /// # Errors
    /// [`RegistryError::Io`] when they cannot be read.
    pub fn tap_notes(&self) -> Result<Vec<TapNote>, RegistryError> {
        if !self.locks().may_have_directories()? {
            return Ok(Vec::new());
        }
        let Some(taps) = self.locks().sub_existing(DIRECTORY)? else {
            return Ok(Vec::new());
        };
        let mut names = match taps.names() {
            // The last note was struck meanwhile.
            Err(e) if e.errno() == Some(libc::ENOENT) => Vec::new(),
            other => other?,
        };
        names.sort_unstable();
        let read = |name| {
            let text = readlinkat(taps.fd(), name).ok()?;
            serde_json::from_str(text.to_str()?).ok()
        };
        Ok(names
            .iter()
            .filter_map(|name| read(name.as_os_str()))
            .collect())
    }
}

fn unlink(taps: &Directory, name: &str) -> Result<(), RegistryError> {
    match unlinkat(taps.fd(), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(taps.error("strike", name, e)),
    }
}
