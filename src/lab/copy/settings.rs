//! sysctls: those of the copy that differ from the router's are set to what the router has.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
};

use rustix::fs::{Mode, OFlags};

use super::CopyError;
use crate::{
    lab::kernel_settings,
    netlink::sysctl,
    netns::{NetnsError, NetnsFd},
};

/// Where the kernel shows sysctls of the calling thread's namespace.
const ROOT: &str = "/proc/sys";

/// Some of a namespace's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SettingsPart {
    /// What is there before any interface is.
    Global,
    /// What each interface has.
    Interfaces,
    /// Connection tracking and the like.
    Netfilter,
}

impl SettingsPart {
    /// The directories below `/proc/sys` whose files belong to it.
    fn directories(self) -> Vec<String> {
        let conf = |family: &str, global: bool| {
            let path = format!("net/{family}/conf");
            let names = fs::read_dir(Path::new(ROOT).join(&path));
            let names = names.into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let wanted = move |name: &String| ["all", "default"].contains(&name.as_str()) == global;
            let found = names.filter(wanted);
            found
                .map(|name| format!("{path}/{name}"))
                .collect::<Vec<_>>()
        };
        match self {
            Self::Netfilter => vec!["net/netfilter".to_owned()],
            Self::Interfaces => [conf("ipv4", false), conf("ipv6", false)].concat(),
            Self::Global => {
                let plain = vec!["net/ipv4".to_owned(), "net/ipv6".to_owned()];
                [plain, conf("ipv4", true), conf("ipv6", true)].concat()
            }
        }
    }

    /// The files and what they say, in the calling thread's namespace. What cannot be read (some
    /// files only take, some have no value yet) says nothing.
    fn read_here(self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        for directory in self.directories() {
            let path = Path::new(ROOT).join(&directory);
            // Relative to it, which saves the kernel the way down for each of a thousand files.
            let Ok(opened) = File::open(&path) else {
                continue;
            };
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                let kind = entry.file_type();
                let name = entry.file_name().into_string();
                if let (Ok(name), Ok(true)) = (name, kind.map(|kind| kind.is_file()))
                    && let Ok(text) = read(&opened, &name)
                {
                    values.insert(format!("{directory}/{name}"), text);
                }
            }
        }
        values
    }
}

fn read(directory: &File, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    sysctl::value_of(&File::from(file))
}

/// Whether a file of the calling thread's namespace only shows something (how many connections there are),
/// and is no setting.
fn only_shows(key: &str) -> bool {
    let file = fs::metadata(Path::new(ROOT).join(key));
    file.is_ok_and(|file| file.permissions().readonly())
}

/// Copies `part` of the settings; returns what the copy does not take.
pub(super) fn copy(
    router: &NetnsFd,
    copy: &NetnsFd,
    part: SettingsPart,
) -> Result<Vec<String>, CopyError> {
    let (wanted, have) = std::thread::scope(|scope| {
        let wanted = scope.spawn(|| router.enter(|| part.read_here()));
        let have = copy.enter(|| part.read_here());
        let wanted = wanted
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, NetnsError>((wanted?, have?))
    })?;
    let differs = |(key, value): &(&String, &String)| have.get(*key) != Some(value);
    let mut changes: Vec<(&String, &String)> = wanted.iter().filter(differs).collect();
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    changes.sort_by_key(|(key, _)| !kernel_settings::comes_first(key));
    let errors = copy.enter(|| {
        changes.retain(|(key, _)| !only_shows(key));
        let written = sysctl::write_here(copy.name().as_str(), &changes);
        written.err().unwrap_or_default()
    })?;
    Ok(errors.iter().map(ToString::to_string).collect())
}

/// The far ends are used at once, and take no part in anything.
pub(super) fn prepare_outside(outside: &NetnsFd) -> Result<(), NetnsError> {
    let values = [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/default/accept_redirects", "0"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_redirects", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
    ];
    // A kernel without IPv6 lacks some; nothing is sent there then.
    outside.enter(|| drop(sysctl::write_here(outside.name().as_str(), &values)))
}

/// Makes `wires` a namespace that switches frames, as that of a lab's segments.
pub(super) fn prepare_wires(wires: &NetnsFd) -> Result<(), NetnsError> {
    let write = || {
        for values in [
            &kernel_settings::SEGMENTS[..],
            &kernel_settings::BRIDGE_NETFILTER[..],
        ] {
            // What a kernel lacks is nothing to switch off.
            drop(sysctl::write_here(wires.name().as_str(), values));
        }
    };
    wires.enter(write)
}
