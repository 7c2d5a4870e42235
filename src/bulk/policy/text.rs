//! A policy with all its files as one value: what is sent to a scheduler, which reads no file of its
//! own machine for a stranger's policy.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file;
use crate::model::{GroupError, fnv1a, read_list};

/// Most bytes of all files of a policy that is sent somewhere.
pub const MOST_TEXT: usize = 512 * 1024;
/// Longest name of a policy's file in bytes.
const NAME_MAX: usize = 128;

/// A policy with every file that it includes or that has a list of its services: nothing that it names is
/// looked for elsewhere. At most 512 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// The file that includes the others; ends with .toml, .yaml, .yml or .json.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub name: String,
    /// The texts of all files, by names as they are written in one another.
    pub files: BTreeMap<String, String>,
}

impl PolicyText {
    pub(super) fn of_files(path: &Path, files: &BTreeMap<PathBuf, String>) -> Self {
        let dir = path.parent().unwrap_or_else(|| Path::new(""));
        let name = |path: &Path| {
            let inside = path.strip_prefix(dir).unwrap_or(path);
            inside.to_string_lossy().into_owned()
        };
        Self {
            name: name(path),
            files: files
                .iter()
                .map(|(path, text)| (name(path), text.clone()))
                .collect(),
        }
    }

    /// What it is as a number: another text has another one.
    #[must_use]
    pub fn identity(&self) -> String {
        // A map of texts; it cannot fail.
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("{:016x}", fnv1a(text.as_bytes()))
    }

    /// Refuses what nobody may send: a name that is no file's, or too much.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let odd = |c: char| !c.is_ascii_alphanumeric() && !" ._-+".contains(c);
        let name = &self.name;
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.contains(odd)
            || name.starts_with(['-', '.'])
        {
            return Err(format!(
                "name {name:?}: 1 to {NAME_MAX} letters, digits and any of `._-+` and blanks are \
                 allowed, neither `-` nor `.` first"
            ));
        }
        let bytes: usize = self
            .files
            .iter()
            .map(|(name, text)| name.len() + text.len())
            .sum();
        match bytes > MOST_TEXT {
            true => Err(format!(
                "its files have {bytes} bytes, at most {MOST_TEXT} are allowed"
            )),
            false => Ok(()),
        }
    }
}

/// Where the files of a policy are.
#[derive(Clone, Copy)]
pub(super) enum PolicyFiles<'a> {
    /// On this machine.
    Disk,
    /// In here, and nowhere else.
    Text(&'a PolicyText),
}

impl PolicyFiles<'_> {
    fn known(self, path: &Path) -> Option<String> {
        let Self::Text(text) = self else {
            return None;
        };
        text.files.get(path.to_string_lossy().as_ref()).cloned()
    }

    /// The text of a file with rules.
    pub(super) fn policy(self, path: &Path) -> Result<String, String> {
        match self {
            Self::Disk => file::text(path),
            Self::Text(_) => self
                .known(path)
                .ok_or_else(|| "the file is not among those of the policy".to_owned()),
        }
    }

    /// The text of a file with a list of services; none where there is no such file.
    pub(super) fn list(self, path: &Path) -> Result<Option<String>, GroupError> {
        match self {
            Self::Disk => read_list(path),
            Self::Text(_) => Ok(self.known(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{bulk::policy::Policy, model::Groups};

    const MAIN: &str = "version = 1\ninclude = [\"below/base.toml\"]\n[[rule]]\nname = \"one\"\n\
        from = \"office\"\nto = \"10.0.0.2\"\nservices = \"@list.txt,22\"\nmust = \"pass\"\n";
    const BASE: &str = "version = 1\n[addresses]\noffice = \"10.0.0.1\"\n";

    #[test]
    fn a_policy_goes_with_all_its_files_and_is_the_same_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        let path = dir.path().join("main.toml");
        fs::write(&path, MAIN).unwrap();
        fs::write(dir.path().join("below/base.toml"), BASE).unwrap();
        fs::write(dir.path().join("list.txt"), "80 # web\n443/tcp,\n").unwrap();
        let groups = Groups::default();
        let here = Policy::load(&path, &groups).unwrap();
        let names: Vec<_> = here.text.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["below/base.toml", "list.txt", "main.toml"]);
        drop(dir);

        let there = Policy::of_text(&here.text, &groups).unwrap();
        let asked = |policy: &Policy| policy.questions().collect::<Vec<_>>();
        assert_eq!(asked(&there), asked(&here));
        assert_eq!(there.rules[0].place(), "main.toml:4");
        assert_eq!(there.text, here.text);
        here.text.check().unwrap();
    }

    #[test]
    fn nothing_is_read_that_did_not_come_along() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.toml");
        fs::write(&base, BASE).unwrap();
        let list = dir.path().join("list.txt");
        fs::write(&list, "80\n").unwrap();
        let (base, list) = (base.display(), list.display());
        let rule = |services: &str| {
            format!(
                "[[rule]]\nname = \"one\"\nfrom = \"10.0.0.1\"\nto = \"10.0.0.2\"\n\
                 services = \"{services}\"\nmust = \"pass\"\n"
            )
        };
        for (text, want) in [
            (
                format!("include = [\"{base}\"]\n{}", rule("22")),
                "not among those",
            ),
            (
                rule(&format!("@{list}")),
                "neither a service group nor a file",
            ),
        ] {
            let sent = PolicyText {
                name: "main.toml".to_owned(),
                files: [("main.toml".to_owned(), text)].into(),
            };
            let refused = Policy::of_text(&sent, &Groups::default())
                .unwrap_err()
                .to_string();
            assert!(refused.contains(want), "{refused}");
        }
    }

    #[test]
    fn names_that_are_no_files_and_too_much_text_are_refused() {
        let text = |name: &str, bytes| PolicyText {
            name: name.to_owned(),
            files: [(name.to_owned(), "x".repeat(bytes))].into(),
        };
        for bad in ["", "../x.toml", "-x.toml", ".toml", "a/b.toml", "a\nb.toml"] {
            assert!(text(bad, 1).check().is_err(), "{bad:?}");
        }
        text("Change 4711.toml", 1).check().unwrap();
        let refused = text("a.toml", MOST_TEXT).check().unwrap_err();
        assert!(refused.contains(&MOST_TEXT.to_string()), "{refused}");
    }
}
