//! What keeps the programs that load rulesets of strangers inside, see [`crate::netns::shut_in`].

use super::{Area, Check, check};
use crate::{
    firewall::Support,
    netns::shut_in::{WANTED_LANDLOCK, landlock_version},
    sys::seccomp,
};

pub(super) fn checks() -> Vec<Check> {
    let (landlock, found) = match landlock_version() {
        Some(version) if version >= WANTED_LANDLOCK => (Support::Yes, format!("version {version}")),
        Some(version) => {
            let lacks = format!("version {version}; {WANTED_LANDLOCK} is wanted");
            (Support::No(lacks), String::new())
        }
        None => (Support::No("the kernel has none".to_owned()), String::new()),
    };
    let seccomp = if seccomp::is_available() {
        Support::Yes
    } else {
        Support::No("the kernel takes no filter".to_owned())
    };
    vec![
        check(Area::Kernel, "landlock", landlock, found),
        check(Area::Kernel, "seccomp", seccomp, String::new()),
    ]
}
