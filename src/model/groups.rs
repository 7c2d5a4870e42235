//! Service groups: names for lists of services, written `@web` where a list is asked for.
//!
//! Some are shipped with tsim (`groups.toml`), others come from the configuration. A group may name other
//! groups. What stands for a group is its list as text, so whatever reads lists reads groups.

use std::{collections::BTreeMap, path::Path};

use thiserror::Error;

use super::{
    DidYouMean, Protocol, Service, ServiceError, ServiceLimits, alike,
    service::parse_services,
    shipped::{ServiceGroup, shipped},
};
use crate::files::{self, ReadError};

/// Most bytes of a file with a list of services.
const MOST_OF_FILE: u64 = 1 << 20;
/// More groups within groups than anybody writes; what is deeper goes round in a circle.
const DEPTH: usize = 16;

/// All groups that there are, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    own: BTreeMap<String, ServiceGroup>,
}

/// What has the texts of files with lists, by what is written behind the `@`.
pub type ReadList<'a> = dyn Fn(&str) -> Result<Option<String>, GroupError> + 'a;

/// A group was refused.
#[derive(Debug, Error)]
pub enum GroupError {
    /// No group and no file has that name.
    #[error(
        "@{name} is neither a service group nor a file{}; `tsim services` lists the groups",
        DidYouMean(alike.as_deref())
    )]
    Unknown {
        /// What was typed behind the `@`.
        name: String,
        /// The group that is most like it.
        alike: Option<String>,
    },
    /// A name that cannot be typed in a list, or that a shipped group has.
    #[error("service group {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A list is wrong.
    #[error("service group {name}: {source}")]
    List {
        /// The group.
        name: String,
        /// Why.
        source: ServiceError,
    },
    /// Groups that name each other.
    #[error("service group {name} names itself, by way of other groups")]
    Circle {
        /// One of them.
        name: String,
    },
    /// A file could not be read.
    #[error("cannot read the list of services {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A file is not text.
    #[error("{path} is no list of services: it is not UTF-8")]
    NoText {
        /// The file.
        path: String,
    },
}

impl Groups {
    /// The shipped groups and `own` ones, each of which must be a list.
    ///
    /// # Errors
    /// [`GroupError`] for the first that is wrong.
    pub fn with(own: BTreeMap<String, ServiceGroup>) -> Result<Self, GroupError> {
        let groups = Self { own };
        for name in groups.own.keys() {
            check_name(name)?;
            groups.services(name)?;
        }
        Ok(groups)
    }

    /// These groups and more, which go before groups of the same name that were not shipped.
    ///
    /// # Errors
    /// [`GroupError`] for the first that is wrong.
    pub fn and(&self, more: BTreeMap<String, ServiceGroup>) -> Result<Self, GroupError> {
        let mut own = self.own.clone();
        own.extend(more);
        Self::with(own)
    }

    /// Every group with its name, and whether it is shipped.
    pub fn all(&self) -> impl Iterator<Item = (&str, &ServiceGroup, bool)> {
        let shipped = shipped().iter().map(|(n, g)| (n.as_str(), g, true));
        let mut all: Vec<_> = shipped
            .chain(self.own.iter().map(|(n, g)| (n.as_str(), g, false)))
            .collect();
        all.sort_by_key(|(name, ..)| *name);
        all.into_iter()
    }

    /// The group `name`.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn get(&self, name: &str) -> Result<&ServiceGroup, GroupError> {
        let found = self.own.get(name).or_else(|| shipped().get(name));
        found.ok_or_else(|| GroupError::Unknown {
            name: name.to_owned(),
            alike: alike(name, self.all().map(|(name, ..)| name)).map(|n| format!("@{n}")),
        })
    }

    /// The services of the group `name`.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn services(&self, name: &str) -> Result<Vec<Service>, GroupError> {
        let list = self.expand(&format!("@{name}"), None)?;
        let limits = ServiceLimits::default();
        parse_services(&list, Protocol::Tcp, limits).map_err(|source| GroupError::List {
            name: name.to_owned(),
            source,
        })
    }

    /// The list `text` with every `@GROUP` replaced by what it stands for, and every `@FILE` by the list
    /// in that file, one or more entries a line, where `#` begins a comment. Files are looked for
    /// from `dir`; without it there are none. Everything else is left as it is.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn expand(&self, text: &str, dir: Option<&Path>) -> Result<String, GroupError> {
        match dir {
            Some(dir) => self.expand_from(text, &|name| read(&dir.join(name))),
            None => self.expand_from(text, &|_| Ok(None)),
        }
    }

    /// The same with lists of which `read` has the text of a file; none where it has no such file.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn expand_from(&self, text: &str, read: &ReadList<'_>) -> Result<String, GroupError> {
        match text.contains('@') {
            true => self.expand_at(text, read, 0),
            false => Ok(text.to_owned()),
        }
    }

    fn expand_at(
        &self,
        text: &str,
        read: &ReadList<'_>,
        depth: usize,
    ) -> Result<String, GroupError> {
        let mut parts = Vec::new();
        for part in text.split(',') {
            let words = part.split_whitespace().map(|word| {
                let Some(name) = word.strip_prefix('@') else {
                    return Ok(word.to_owned());
                };
                if depth == DEPTH {
                    let name = name.to_owned();
                    return Err(GroupError::Circle { name });
                }
                match self.get(&name.to_lowercase()) {
                    Ok(group) => self.expand_at(&group.services, &|_| Ok(None), depth + 1),
                    Err(unknown) => match read(name)? {
                        Some(text) => self.expand_at(&listed(&text), &|_| Ok(None), depth + 1),
                        None => Err(unknown),
                    },
                }
            });
            parts.push(words.collect::<Result<Vec<_>, _>>()?.join(" "));
        }
        Ok(parts.join(","))
    }
}

/// The text of a file; none where there is no such file.
pub fn read(path: &Path) -> Result<Option<String>, GroupError> {
    let shown = || path.display().to_string();
    let bytes = match files::read(path, MOST_OF_FILE) {
        Ok(bytes) => bytes,
        Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(source) => {
            let path = shown();
            return Err(GroupError::Read { path, source });
        }
    };
    let text = String::from_utf8(bytes).map_err(|_| GroupError::NoText { path: shown() })?;
    Ok(Some(text))
}

/// The list that a file has, one or more entries a line.
fn listed(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .map(|line| line.trim_end_matches(','))
        .filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(",")
}

fn check_name(name: &str) -> Result<(), GroupError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    let refuse = |why| {
        let name = name.to_owned();
        Err(GroupError::Name { name, why })
    };
    if name.is_empty() || !name.bytes().all(allowed) {
        return refuse("small letters, digits, `-` and `_` are allowed");
    }
    if shipped().contains_key(name) {
        // One name must not stand for one list here and for another on a machine without that
        // configuration.
        return refuse("a shipped group has that name; choose another");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(list: &[(&str, &str)]) -> Result<Groups, GroupError> {
        let group = |services: &str| ServiceGroup {
            title: String::new(),
            services: services.to_owned(),
        };
        let own = list.iter().map(|(n, s)| ((*n).to_owned(), group(s)));
        Groups::with(own.collect())
    }

    #[test]
    fn every_shipped_group_is_a_list_with_a_title_and_folds_nothing() {
        let groups = Groups::default();
        assert_eq!(groups.all().count(), 44);
        for (name, group, _) in groups.all() {
            let services = groups.services(name).unwrap();
            let ranges = group.services.contains('-');
            let typed = group.services.split(',').count();
            assert!(!group.title.is_empty(), "{name}");
            assert!(ranges || services.len() == typed, "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
        }
    }

    #[test]
    fn groups_stand_for_their_lists_also_within_each_other() {
        let groups = own(&[("intranet", "@web,9443"), ("all-of-it", "@intranet @ntp")]).unwrap();
        let list = groups.expand("22,@intranet,53/udp", None).unwrap();
        assert_eq!(
            list,
            "22,80/tcp,443/tcp,443/udp,8080/tcp,8443/tcp,9443,53/udp"
        );
        assert_eq!(groups.services("all-of-it").unwrap().len(), 6 + 4);
        assert_eq!(groups.expand("22, 80 443", None).unwrap(), "22, 80 443");
    }

    #[test]
    fn a_file_is_a_list_with_comments() {
        let dir = tempfile::tempdir().unwrap();
        let text = "# ours\n22, 80\n\n@dns  # names\n443/udp,\n";
        std::fs::write(dir.path().join("list.txt"), text).unwrap();
        let groups = Groups::default();
        let list = groups.expand("25,@list.txt", Some(dir.path())).unwrap();
        assert_eq!(
            list,
            "25,22, 80,53/udp,53/tcp,853/tcp,853/udp,443/udp".replace(", ", ",")
        );
        // Where lists of strangers are read, no file is.
        assert!(groups.expand("@list.txt", None).is_err());
    }

    #[test]
    fn what_is_no_group_is_refused_by_name() {
        let error = |list: &[(&str, &str)]| own(list).unwrap_err().to_string();
        assert!(error(&[("web", "80")]).contains("shipped group"));
        assert!(error(&[("Web", "80")]).contains("small letters"));
        assert!(error(&[("a", "99999")]).contains("group a: port 99999"));
        assert!(error(&[("a", "@b"), ("b", "@a")]).contains("names itself"));
        let error = Groups::default().expand("@wbe", None).unwrap_err();
        assert!(error.to_string().contains("did you mean `@web`?"));
    }
}
