//! DSCP values, RFC 2474: the upper six bits of the IPv4 TOS octet or the IPv6 traffic class.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A DSCP value, 0 to 63.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(with = "u8", extend("maximum" = 63))]
pub struct Dscp(u8);

/// A DSCP value or range was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DscpError {
    /// Not a number from 0 to 63.
    #[error(
        "DSCP {0:?} is not allowed: a whole number from 0 to 63 is, or a name such as `ef` or `af21`"
    )]
    Value(String),
    /// A range whose ends are the wrong way round.
    #[error("DSCP range {first}-{last} is empty: the first value must not exceed the last")]
    Empty {
        /// First value as given.
        first: Dscp,
        /// Last value as given.
        last: Dscp,
    },
}

impl Dscp {
    /// Best effort, what ordinary traffic carries.
    pub const DEFAULT: Self = Self(0);
    const MAX: u8 = 63;

    /// Checks and wraps a value.
    ///
    /// # Errors
    /// [`DscpError::Value`] above 63.
    pub fn new(value: u8) -> Result<Self, DscpError> {
        if value > Self::MAX {
            Err(DscpError::Value(value.to_string()))
        } else {
            Ok(Self(value))
        }
    }

    /// The six-bit value.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// The value in its place in the TOS octet or traffic class, ECN bits zero.
    #[must_use]
    pub fn tos(self) -> u8 {
        self.0 << 2
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Dscp {
    type Err = DscpError;
    /// A number, or a name of RFC 2474 (`cs0` to `cs7`), RFC 2597 (`af11` to `af43`), RFC 3246 (`ef`),
    /// RFC 5865 (`va`) or RFC 8622 (`le`).
    fn from_str(text: &str) -> Result<Self, DscpError> {
        if let Some(value) = named(&text.to_lowercase()) {
            return Ok(Self(value));
        }
        let value = text
            .parse()
            .map_err(|_| DscpError::Value(text.to_owned()))?;
        Self::new(value)
    }
}

/// The value of a name in small letters.
fn named(name: &str) -> Option<u8> {
    let digits = |prefix: &str| -> Option<Vec<u8>> {
        let rest = name.strip_prefix(prefix)?.bytes();
        rest.map(|b| b.is_ascii_digit().then(|| b - b'0')).collect()
    };
    match name {
        "be" | "default" => return Some(0),
        "le" => return Some(1),
        "va" => return Some(44),
        "ef" => return Some(46),
        _ => {}
    }
    // Class and drop precedence stand in the upper five bits.
    match (digits("cs").as_deref(), digits("af").as_deref()) {
        (Some([class @ 0..=7]), _) => Some(class << 3),
        (_, Some([class @ 1..=4, drop @ 1..=3])) => Some(class << 3 | drop << 1),
        _ => None,
    }
}

impl TryFrom<u8> for Dscp {
    type Error = DscpError;
    fn try_from(value: u8) -> Result<Self, DscpError> {
        Self::new(value)
    }
}

impl From<Dscp> for u8 {
    fn from(dscp: Dscp) -> Self {
        dscp.0
    }
}

/// The DSCP values that jobs may hold, one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DscpRange {
    first: Dscp,
    last: Dscp,
}

impl DscpRange {
    /// The range from `first` to `last`, both included.
    ///
    /// # Errors
    /// [`DscpError::Empty`] when `first` exceeds `last`.
    pub fn new(first: Dscp, last: Dscp) -> Result<Self, DscpError> {
        if first > last {
            Err(DscpError::Empty { first, last })
        } else {
            Ok(Self { first, last })
        }
    }

    /// The lowest value.
    #[must_use]
    pub fn first(self) -> Dscp {
        self.first
    }

    /// The highest value.
    #[must_use]
    pub fn last(self) -> Dscp {
        self.last
    }

    /// Whether a job may hold `dscp`.
    #[must_use]
    pub fn contains(self, dscp: Dscp) -> bool {
        (self.first..=self.last).contains(&dscp)
    }

    /// The values in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Dscp> {
        let values: RangeInclusive<u8> = self.first.0..=self.last.0;
        values.map(Dscp)
    }

    /// How many values there are, 1 to 64.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.last.0 - self.first.0) + 1
    }
}

impl Default for DscpRange {
    /// 32 to 63, as in the Python system.
    fn default() -> Self {
        Self {
            first: Dscp(32),
            last: Dscp(63),
        }
    }
}

impl fmt::Display for DscpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_six_bits_are_refused() {
        assert!("64".parse::<Dscp>().is_err());
        assert!("-1".parse::<Dscp>().is_err());
        assert!("0x20".parse::<Dscp>().is_err());
        assert_eq!("46".parse::<Dscp>().unwrap().tos(), 0xb8);
    }

    #[test]
    fn names_are_those_of_the_standards() {
        for (name, value) in [
            ("cs0", 0),
            ("le", 1),
            ("cs6", 48),
            ("af11", 10),
            ("AF43", 38),
            ("ef", 46),
            ("va", 44),
        ] {
            assert_eq!(name.parse(), Ok(Dscp(value)), "{name}");
        }
        for name in ["cs8", "cs", "af44", "af5", "af111", "eff", ""] {
            assert!(name.parse::<Dscp>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_default_range_holds_32_values() {
        let range = DscpRange::default();
        assert_eq!(range.count(), 32);
        assert_eq!(range.iter().count(), 32);
        assert!(!range.contains(Dscp(31)) && range.contains(Dscp(63)));
        assert!(DscpRange::new(Dscp(5), Dscp(4)).is_err());
    }
}
