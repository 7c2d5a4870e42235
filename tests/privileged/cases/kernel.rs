//! What the running kernel was built with.

use std::{fs, path::Path, process::Command};

use nix::sys::utsname::uname;

/// The kernel's configuration.
pub(super) struct Kernel {
    config: Option<String>,
}

impl Kernel {
    /// Reads it where the kernel or its package shows it.
    pub(super) fn running() -> Self {
        let release = uname().unwrap().release().to_string_lossy().into_owned();
        let config = if Path::new("/proc/config.gz").exists() {
            let zcat = Command::new("zcat").arg("/proc/config.gz").output();
            Some(String::from_utf8(zcat.unwrap().stdout).unwrap())
        } else {
            fs::read_to_string(format!("/boot/config-{release}")).ok()
        };
        Self { config }
    }

    /// Whether the kernel says that it was built without `CONFIG_{symbol}`. One that does not say
    /// has everything, so that what it has not fails.
    pub(super) fn lacks(&self, symbol: &str) -> bool {
        let has = |line: &str| {
            let value = line
                .strip_prefix("CONFIG_")
                .and_then(|l| l.strip_prefix(symbol));
            matches!(value, Some("=y" | "=m"))
        };
        let config = self.config.as_deref();
        config.is_some_and(|config| !config.lines().any(has))
    }
}
