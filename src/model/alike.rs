//! What was probably meant by a name that nothing has.

use std::fmt;

/// The candidate that is most like `name`: a third of its letters may be wrong, missing, too many
/// or in the wrong order. None where there is none such.
pub fn alike<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let most = (name.chars().count() / 3).max(1);
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
    let near = candidates.into_iter().map(|c| (distance(c), c));
    let near = near.filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}

/// The end of a message that refuses a name; nothing where no other is like it.
#[derive(Debug, Clone, Copy)]
pub struct DidYouMean<'a>(pub Option<&'a str>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; did you mean `{name}`?"),
            None => Ok(()),
        }
    }
}

/// The names that there are, for the end of a message that refuses another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    alike: Option<String>,
    names: Vec<String>,
}

impl Known {
    /// More names than a reader would look through are not listed.
    const LISTED: usize = 12;

    /// What there is instead of `name`.
    pub fn instead_of(name: &str, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort();
        let alike = alike(name, names.iter().map(String::as_str)).map(str::to_owned);
        Self { alike, names }
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DidYouMean(self.alike.as_deref()).fmt(f)?;
        match self.names.as_slice() {
            [] => Ok(()),
            _ if self.alike.is_some() => Ok(()),
            names if names.len() <= Self::LISTED => write!(f, "; there are {}", names.join(", ")),
            names => write!(f, "; there are {} others", names.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_nothing_is_made_up() {
        let names = ["hq-gw", "br-gw", "dc-core"];
        for (typed, meant) in [
            ("hq-wg", Some("hq-gw")),
            ("HQ-GW", Some("hq-gw")),
            ("hq-g", Some("hq-gw")),
            ("dccore", Some("dc-core")),
            ("firewall", None),
            ("", None),
        ] {
            assert_eq!(alike(typed, names), meant, "{typed}");
        }
        assert_eq!(alike("hq-gw", []), None);
    }

    #[test]
    fn the_names_that_there_are_follow_where_none_is_alike() {
        let names = ["r2", "r1"];
        let text = |name| Known::instead_of(name, names).to_string();
        assert_eq!(text("border"), "; there are r1, r2");
        assert_eq!(text("r3"), "; did you mean `r1`?");
        let many = (0..40).map(|nth| format!("router{nth}"));
        assert_eq!(
            Known::instead_of("x", many).to_string(),
            "; there are 40 others"
        );
        assert_eq!(Known::instead_of("x", [""; 0]).to_string(), "");
    }
}
