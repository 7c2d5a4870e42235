//! What is allowed in a configuration and yet will not work, or not as it seems to say.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use serde::Serialize;

use super::{Config, Lines};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Something will be refused.
    Error,
    /// Something will not be as the file seems to say.
    Warning,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigFinding {
    /// How bad it is.
    pub grade: Grade,
    /// The key.
    pub key: &'static str,
    /// Its line; none where the default is what is wrong here.
    pub line: Option<usize>,
    /// What is wrong, and what is allowed.
    pub what: String,
}

/// Without these a lab has no firewalls.
const TOOLS: [&str; 3] = ["nft", "iptables-restore", "ipset"];

/// Holds `config` against this machine. Nothing is changed.
#[must_use]
pub fn check(config: &Config, lines: &Lines) -> Vec<ConfigFinding> {
    let mut findings = Vec::new();
    let mut find = |grade, key: &'static str, what: String| {
        let line = lines.get(key);
        findings.push(ConfigFinding {
            grade,
            key,
            line,
            what,
        });
    };
    for (key, dir) in [
        ("registry_dir", &config.registry_dir),
        ("labs_dir", &config.labs_dir),
        ("results_dir", &config.results_dir),
    ] {
        if let Some(what) = unsafe_directory(dir) {
            find(Grade::Error, key, what);
        }
    }
    let (jobs, values) = (config.scheduler.quick_jobs, config.dscp.count());
    if jobs > values {
        let what = format!(
            "{jobs} quick jobs at once need as many DSCP values, and dscp_first to dscp_last are \
             {values}: at most {values} will run"
        );
        find(Grade::Warning, "scheduler.quick_jobs", what);
    }
    for tool in TOOLS {
        if !config.tool_dirs.iter().any(|dir| dir.join(tool).is_file()) {
            let what = format!("{tool} is in none of them: rulesets that need it are refused");
            find(Grade::Warning, "tool_dirs", what);
        }
    }
    if let Some(dir) = &config.scheduler.runner_dir {
        for runner in ["tsim-quick", "tsim-detailed", "tsim"] {
            if !dir.join(runner).is_file() {
                let what = format!("there is no {runner} in {}", dir.display());
                find(Grade::Error, "scheduler.runner_dir", what);
            }
        }
    }
    if let Some(file) = &config.scheduler.token_file
        && let Some(what) = unsafe_secret(file)
    {
        find(Grade::Error, "scheduler.token_file", what);
    }
    findings
}

/// What is wrong with a directory that state is kept in, or with the one that it will be made in.
fn unsafe_directory(dir: &Path) -> Option<String> {
    let (there, metadata) = nearest(dir)?;
    let shown = there.display();
    if metadata.is_symlink() {
        return (there == dir).then(|| format!("{shown} is a symbolic link, and none is followed"));
    }
    if !metadata.is_dir() {
        return Some(format!("{shown} is not a directory"));
    }
    let (mode, uid, me) = (metadata.mode(), metadata.uid(), geteuid().as_raw());
    // In /tmp everybody may make names, and nobody may rename those of others.
    let sticky = mode & 0o1000 != 0 && there != dir;
    if mode & 0o002 != 0 && !sticky {
        return Some(format!(
            "{shown} has mode {:04o}: everybody may write to it",
            mode & 0o7777
        ));
    }
    if uid != me && uid != 0 {
        return Some(format!(
            "{shown} belongs to uid {uid}; only uid {me} and root are trusted"
        ));
    }
    None
}

/// `path`, or the closest directory above it that there is. None where not even that can be seen.
fn nearest(path: &Path) -> Option<(PathBuf, fs::Metadata)> {
    path.ancestors().find_map(|above| {
        let metadata = fs::symlink_metadata(above).ok()?;
        Some((above.to_owned(), metadata))
    })
}

/// What is wrong with a file that only its owner may read.
fn unsafe_secret(file: &Path) -> Option<String> {
    let shown = file.display();
    match fs::symlink_metadata(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some(format!("there is no {shown}")),
        Err(e) => Some(format!("cannot look at {shown}: {e}")),
        Ok(metadata) if !metadata.is_file() => Some(format!("{shown} is no regular file")),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => Some(format!(
            "{shown} has mode {:04o}: others may read or write it, 0600 is wanted",
            metadata.mode() & 0o7777
        )),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Places;

    fn found(text: &str) -> Vec<(&'static str, Option<usize>, String)> {
        let config = Config::parse(text, Path::new("t.toml"), &Places::system()).unwrap();
        let findings = check(&config, &Lines::of(text));
        let shown = findings.into_iter().map(|f| (f.key, f.line, f.what));
        shown.filter(|(key, ..)| *key != "tool_dirs").collect()
    }

    #[test]
    fn what_will_not_work_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let token = dir.path().join("token");
        fs::write(&token, "x").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
        let text = format!(
            "registry_dir = \"{path}/open\"\nlabs_dir = \"{path}/open/labs\"\n\
             results_dir = \"{path}/fine\"\ndscp_first = 60\n[scheduler]\nquick_jobs = 9\n\
             runner_dir = \"{path}\"\ntoken_file = \"{path}/token\"\n"
        );
        let found = found(&text);
        for (key, line, word) in [
            ("registry_dir", 1, "0777"),
            ("labs_dir", 2, "0777"),
            ("scheduler.quick_jobs", 6, "are 4"),
            ("scheduler.runner_dir", 7, "tsim-detailed"),
            ("scheduler.token_file", 8, "0644"),
        ] {
            let is = |(k, l, what): &(&str, Option<usize>, String)| {
                *k == key && *l == Some(line) && what.contains(word)
            };
            assert!(found.iter().any(is), "{key}: {found:?}");
        }
        assert!(
            !found.iter().any(|(key, ..)| *key == "results_dir"),
            "{found:?}"
        );
    }

    #[test]
    fn a_missing_directory_below_tmp_is_fine() {
        assert_eq!(
            unsafe_directory(Path::new("/tmp/tsim-that-is-not-there/x")),
            None
        );
    }
}
