//! A policy's file as written, in TOML, YAML or JSON.
//!
//! Values are checked while they are read, so that the reader of each format names line and field.

use std::{collections::BTreeMap, fmt, marker::PhantomData, path::Path, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::{bulk::addresses::Addresses, files, model::ServiceGroup};

/// Most bytes of one file.
const MOST: u64 = 16 << 20;

/// What a name may have.
pub(super) const NAMES: &str = "letters, digits, `-`, `_` and `.` are allowed in names";

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The version of the format; 1 is known.
    #[serde(default, rename = "version")]
    _version: Version,
    /// Other files, from this one's directory.
    #[serde(default)]
    pub(super) include: Vec<String>,
    /// Names for addresses, for `from` and `to`.
    #[serde(default)]
    pub(super) addresses: BTreeMap<String, AddressList>,
    /// Names for services, as in the configuration.
    #[serde(default)]
    pub(super) groups: BTreeMap<String, ServiceGroup>,
    /// Anything, for YAML's anchors and for notes.
    #[serde(default, rename = "x")]
    _anything: Option<de::IgnoredAny>,
    /// The rules.
    #[serde(default, alias = "rules")]
    pub(super) rule: Vec<RuleFile>,
}

/// A rule as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// What it is about, in words; every rule has another one.
    pub name: String,
    /// Sources.
    pub from: EndpointList,
    /// Destinations.
    pub to: EndpointList,
    /// Services.
    pub services: ServiceList,
    /// What is to be.
    pub must: Must,
    /// What it is not about.
    #[serde(default)]
    pub except: Vec<Except>,
    /// Who is to be asked.
    #[serde(default)]
    pub owner: Option<String>,
    /// Where it was decided.
    #[serde(default)]
    pub ticket: Option<String>,
    /// Anything else.
    #[serde(default)]
    pub note: Option<String>,
}

/// What is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Must {
    /// Every service gets there.
    #[serde(rename = "pass")]
    Pass,
    /// None does.
    #[serde(rename = "not-pass", alias = "not pass")]
    NotPass,
}

/// What a rule is not about: whatever fits all that is said here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Except {
    /// Sources.
    #[serde(default)]
    pub from: Option<EndpointList>,
    /// Destinations.
    #[serde(default)]
    pub to: Option<EndpointList>,
    /// Services.
    #[serde(default)]
    pub services: Option<ServiceList>,
    /// Why.
    #[serde(default)]
    pub note: Option<String>,
}

/// A source or destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A name under `[addresses]`.
    Name(String),
    /// Addresses themselves.
    Addresses(Addresses),
}

/// Sources or destinations: one, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointList(pub Vec<Endpoint>);

/// Addresses: one entry, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddressList(pub(super) Vec<Addresses>);

/// A list of services as typed after `-P`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceList(pub String);

/// Version 1.
#[derive(Debug, Default)]
struct Version;

impl File {
    /// Reads `text` in the format that the name of the file says.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("yaml" | "yml") => serde_saphyr::from_str(text).map_err(|error| error.to_string()),
            Some("json") => serde_json::from_str(text).map_err(|error| error.to_string()),
            Some("toml") => {
                let parsed: Result<Self, toml::de::Error> = toml::from_str(text);
                parsed.map_err(|error| error.to_string())
            }
            _ => Err("a name that ends with .toml, .yaml, .yml or .json is wanted".to_owned()),
        }
    }
}

/// The text of a file.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let bytes =
        files::read(path, MOST).map_err(|error| format!("cannot read the policy: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

/// The first line that has `word`, as a word of its own where there is such a line.
pub(super) fn line_of(text: &str, word: &str) -> Option<usize> {
    let quoted = [
        format!("\"{word}\""),
        format!("'{word}'"),
        format!(": {word}"),
    ];
    let lines = || (1..).zip(text.lines());
    let names = |line: &str| {
        quoted.iter().any(|quoted| line.contains(quoted.as_str()))
            || line
                .trim_start()
                .strip_prefix(word)
                .is_some_and(|rest| rest.trim_start().starts_with(['=', ':']))
    };
    let found = lines().find(|(_, line)| names(line));
    let found = found.or_else(|| lines().find(|(_, line)| line.contains(word)));
    found.map(|(number, _)| number)
}

pub(super) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.chars().all(allowed)
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let error = match text.parse() {
            Ok(addresses) => return Ok(Self::Addresses(addresses)),
            Err(error) => error,
        };
        // What looks like an address is a wrong one, and no name.
        let looks = text.contains([':', '/']) || text.starts_with(|c: char| c.is_ascii_digit());
        match is_name(text) && !looks {
            true => Ok(Self::Name(text.to_owned())),
            false => Err(error.to_string()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Addresses(addresses) => addresses.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(de::Error::custom(format!(
                "version: {other} is not known; 1 is allowed"
            ))),
        }
    }
}

/// Reads one string or a list of strings, each of which is a `T`.
struct OneOrMany<T>(PhantomData<T>);

impl<'de, T> Visitor<'de> for OneOrMany<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        let parts = text
            .split(',')
            .map(|part| part.trim().parse().map_err(E::custom));
        parts.collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            all.push(text.trim().parse().map_err(de::Error::custom)?);
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for EndpointList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(OneOrMany(PhantomData))
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for AddressList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(OneOrMany(PhantomData))
            .map(Self)
    }
}

/// Any text.
struct Text(String);

impl FromStr for Text {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// A list of services, where YAML and TOML may have a bare number.
struct ServiceTexts;

impl<'de> Visitor<'de> for ServiceTexts {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("services as after -P (`22,443/tcp,@web`), or a list of such")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_u64<E: de::Error>(self, port: u64) -> Result<String, E> {
        Ok(port.to_string())
    }

    fn visit_i64<E: de::Error>(self, port: i64) -> Result<String, E> {
        Ok(port.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<String, A::Error> {
        let texts: Vec<Text> = OneOrMany(PhantomData).visit_seq(list)?;
        let texts: Vec<String> = texts.into_iter().map(|text| text.0).collect();
        Ok(texts.join(","))
    }
}

impl<'de> Deserialize<'de> for ServiceList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ServiceTexts).map(Self)
    }
}
