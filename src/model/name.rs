//! Names, checked at the door.
//!
//! A value of one of these types is never a path, an option, a rule fragment or a terminal
//! escape: whoever holds one may put it into a file name, a command line or a message.
//!
//! Namespace names are built from them without ambiguity, because a lab's name holds none of `.`,
//! `@` and `:`, and a router's name does not begin with `.`:
//!
//! ```text
//! corp10.hq-gw       router hq-gw of lab corp10
//! corp10:hq-gw       what is to take the place of router hq-gw
//! corp10@src-1       host src-1 of lab corp10
//! corp10..segments   the hidden namespace with the lab's bridges
//! ```

use std::{
    borrow::{Borrow, Cow},
    fmt,
    str::FromStr,
    sync::Arc,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use super::text_in_json;

/// Longest lab name in bytes; with [`LONG_MAX`] it keeps a namespace name within `NAME_MAX`.
const LAB_MAX: usize = 32;
/// Longest router, host or run id in bytes.
const LONG_MAX: usize = 64;
/// Longest interface name in bytes: `IFNAMSIZ` (16, linux/if.h) without the closing NUL.
const IF_MAX: usize = 15;

/// A name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} {value:?} is not allowed: {reason}")]
pub struct NameError {
    /// What the name was meant for, e.g. `router name`.
    pub kind: &'static str,
    /// The value as given.
    pub value: String,
    /// What is wrong with it and what is allowed.
    pub reason: String,
}

/// What one kind of name may look like.
struct Rule {
    kind: &'static str,
    max: usize,
    /// Characters allowed beside ASCII letters and digits.
    extra: &'static str,
    /// Characters that may not come first.
    not_first: &'static str,
}

impl Rule {
    /// The same for programs: that `..` is not allowed is said by none of it.
    fn schema(&self) -> Schema {
        let extra = self.extra.replace('-', r"\-");
        let first: String = self
            .extra
            .chars()
            .filter(|c| !self.not_first.contains(*c))
            .collect();
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": self.max,
            "pattern": format!("^[A-Za-z0-9{first}][A-Za-z0-9{extra}]*$"),
        })
    }

    fn check(&self, value: &str) -> Result<(), NameError> {
        let refuse = |reason: String| {
            Err(NameError {
                kind: self.kind,
                value: value.to_owned(),
                reason,
            })
        };
        if value.is_empty() {
            return refuse("it is empty".to_owned());
        }
        if value.len() > self.max {
            return refuse(format!(
                "it has {} bytes, at most {} are allowed",
                value.len(),
                self.max
            ));
        }
        if value.contains("..") {
            return refuse("it contains `..`".to_owned());
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || self.extra.contains(c);
        if let Some(bad) = value.chars().find(|&c| !allowed(c)) {
            return refuse(format!(
                "it contains {bad:?}; allowed are ASCII letters, digits and `{}`",
                self.extra
            ));
        }
        match value.chars().next() {
            Some(first) if self.not_first.contains(first) => {
                refuse(format!("it begins with {first:?}"))
            }
            _ => Ok(()),
        }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $rule:expr) => {
        $(#[$doc])*
        ///
        /// A copy shares the text: answers have the same few names thousands of times.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            const RULE: Rule = $rule;

            /// Checks `value` and wraps it.
            ///
            /// # Errors
            /// [`NameError`] when the value is not allowed; it says what is.
            pub fn new(value: impl Into<String>) -> Result<Self, NameError> {
                let value = value.into();
                Self::RULE.check(&value)?;
                Ok(Self(value.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                Self::RULE.schema()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// A lab: ASCII letters, digits, `_`, `-`; at most 32 bytes.
    LabName,
    Rule { kind: "lab name", max: LAB_MAX, extra: "_-", not_first: "-" }
);
name_type!(
    /// A router as its facts name it: ASCII letters, digits, `_`, `-`, `.`; at most 64 bytes.
    RouterName,
    Rule { kind: "router name", max: LONG_MAX, extra: "_-.", not_first: "-." }
);
name_type!(
    /// A host: ASCII letters, digits, `_`, `-`, `.`, `:`; at most 64 bytes.
    HostName,
    Rule { kind: "host name", max: LONG_MAX, extra: "_-.:", not_first: "-." }
);
name_type!(
    /// A job: ASCII letters, digits, `_`, `-`, `.`; at most 64 bytes.
    RunId,
    Rule { kind: "run id", max: LONG_MAX, extra: "_-.", not_first: "-." }
);
name_type!(
    /// A network interface; at most 15 bytes (`IFNAMSIZ` − 1), see dev_valid_name() in the kernel.
    IfName,
    Rule { kind: "interface name", max: IF_MAX, extra: "_-.@+=", not_first: "-." }
);

/// The file name of a network namespace under `/run/netns`.
///
/// Made from checked parts ([`RouterId::netns`], [`HostId::netns`], [`NetnsName::segments`]), or
/// checked itself where an operator names one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "String", description = "A network namespace below /run/netns.")]
pub struct NetnsName(String);

text_in_json!(NetnsName);

impl FromStr for NetnsName {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        Self::new(value)
    }
}

impl NetnsName {
    /// Checks a name that somebody typed or that a directory listing showed.
    ///
    /// # Errors
    /// [`NameError`] when the value could leave the directory or is no name that tsim uses.
    pub fn new(value: impl Into<String>) -> Result<Self, NameError> {
        const RULE: Rule = Rule {
            kind: "namespace name",
            max: LAB_MAX + LONG_MAX + 2,
            extra: "_-.:@",
            not_first: "-.",
        };
        let value = value.into();
        // The one `..` that is allowed is the lab's own, see the module's head.
        let checked = value.strip_suffix("..segments").unwrap_or(&value);
        RULE.check(checked).map_err(|e| NameError {
            value: value.clone(),
            ..e
        })?;
        Ok(Self(value))
    }

    /// The namespace that holds a lab's bridges.
    #[must_use]
    pub fn segments(lab: &LabName) -> Self {
        Self(format!("{lab}..segments"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One router of one lab; its text form is its namespace's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId {
    /// The lab.
    pub lab: LabName,
    /// The router within the lab.
    pub router: RouterName,
}

impl RouterId {
    /// Names router `router` of `lab`.
    #[must_use]
    pub fn new(lab: LabName, router: RouterName) -> Self {
        Self { lab, router }
    }

    /// The router's network namespace.
    #[must_use]
    pub fn netns(&self) -> NetnsName {
        NetnsName(self.to_string())
    }

    /// The namespace that is to take its place, until it does.
    #[must_use]
    pub fn netns_aside(&self) -> NetnsName {
        NetnsName(format!("{}:{}", self.lab, self.router))
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.lab, self.router)
    }
}

impl FromStr for RouterId {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        let (lab, router) = split(value, '.', "router")?;
        Ok(Self {
            lab: LabName::new(lab)?,
            router: RouterName::new(router)?,
        })
    }
}

/// One host of one lab; its text form is its namespace's name and its key in the registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId {
    /// The lab.
    pub lab: LabName,
    /// The host within the lab.
    pub host: HostName,
}

impl HostId {
    /// Names host `host` of `lab`.
    #[must_use]
    pub fn new(lab: LabName, host: HostName) -> Self {
        Self { lab, host }
    }

    /// The host's network namespace.
    #[must_use]
    pub fn netns(&self) -> NetnsName {
        NetnsName(self.to_string())
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.lab, self.host)
    }
}

impl FromStr for HostId {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        let (lab, host) = split(value, '@', "host")?;
        Ok(Self {
            lab: LabName::new(lab)?,
            host: HostName::new(host)?,
        })
    }
}

text_in_json!(RouterId, HostId);

fn split<'a>(
    value: &'a str,
    at: char,
    kind: &'static str,
) -> Result<(&'a str, &'a str), NameError> {
    value.split_once(at).ok_or_else(|| NameError {
        kind,
        value: value.to_owned(),
        reason: format!("it is not of the form LAB{at}NAME"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in [
            "",
            "../../etc",
            "a/b",
            "-flush",
            "a..b",
            "a b",
            "a\nb",
            "a'b",
            "a;b",
            "é",
            ".a",
        ] {
            assert!(RouterName::new(bad).is_err(), "router {bad:?}");
            assert!(HostName::new(bad).is_err(), "host {bad:?}");
            assert!(RunId::new(bad).is_err(), "run id {bad:?}");
            assert!(LabName::new(bad).is_err(), "lab {bad:?}");
            assert!(IfName::new(bad).is_err(), "interface {bad:?}");
            assert!(NetnsName::new(bad).is_err(), "netns {bad:?}");
        }
        assert!(LabName::new("a.b").is_err());
        assert!(LabName::new("a@b").is_err());
        assert!(IfName::new("a234567890123456").is_err());
        assert!(RunId::new("x".repeat(65)).is_err());
    }

    #[test]
    fn a_refusal_names_kind_value_and_what_is_allowed() {
        let text = RouterName::new("../../etc").unwrap_err().to_string();
        assert!(
            text.contains("router name") && text.contains("../../etc"),
            "{text}"
        );
        let text = IfName::new("x".repeat(16)).unwrap_err().to_string();
        assert!(
            text.contains("16 bytes") && text.contains("at most 15"),
            "{text}"
        );
    }

    #[test]
    fn namespace_names_are_unambiguous_and_read_back() {
        let id: RouterId = "a.b.c".parse().unwrap();
        assert_eq!((id.lab.as_str(), id.router.as_str()), ("a", "b.c"));
        assert_eq!(id.netns().as_str(), "a.b.c");
        let host: HostId = "lab@10.0.0.1".parse().unwrap();
        assert_eq!(host.to_string(), "lab@10.0.0.1");
        let lab = LabName::new("corp10").unwrap();
        assert_eq!(NetnsName::segments(&lab).as_str(), "corp10..segments");
        assert!(NetnsName::new("corp10..segments").is_ok());
        assert!(NetnsName::new("corp10..other").is_err());
    }

    #[test]
    fn deserializing_checks_too() {
        assert!(serde_json::from_str::<RouterName>("\"../x\"").is_err());
        assert_eq!(
            serde_json::from_str::<RouterName>("\"r1\"")
                .unwrap()
                .as_str(),
            "r1"
        );
    }
}
