//! A result in the form in which all reports are written, whatever was asked: a head, sections with what
//! is to be looked at, a table.

use schemars::JsonSchema;
use serde::Serialize;

use crate::run::report::Verdict;

/// How something stands to what was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Not as wanted.
    Bad,
    /// It is not known.
    Open,
    /// As wanted.
    Good,
}

/// A result to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What the result is: `matrix`, `check` or `diff`.
    pub kind: &'static str,
    /// One line: what was asked of what.
    pub title: String,
    /// Words for [`Outcome::Bad`], [`Outcome::Open`] and [`Outcome::Good`].
    pub words: [&'static str; 3],
    /// Who measured what when.
    pub about: Vec<(&'static str, String)>,
    /// One line: how many of what there are.
    pub summary: String,
    /// Those that are not as wanted first.
    pub sections: Vec<DocumentSection>,
    /// All answers at a glance.
    pub grid: Option<Grid>,
    /// What a reader should know beside.
    pub warnings: Vec<String>,
}

/// What belongs together: a rule of a policy, two addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentSection {
    /// What it is.
    pub name: String,
    /// How it stands.
    pub outcome: Outcome,
    /// What else is to be said of it.
    pub about: Vec<(&'static str, String)>,
    /// How many questions it has.
    pub questions: usize,
    /// What is to be looked at.
    pub items: Vec<Item>,
}

/// Something to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The question.
    pub what: String,
    /// How it stands.
    pub outcome: Outcome,
    /// The answer, one line or several.
    pub answer: Vec<String>,
}

/// A truth table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// What the columns are.
    pub columns: Vec<String>,
    /// Source, destination, and a verdict for each column; none where nothing was asked.
    pub rows: Vec<(String, String, Vec<Option<Verdict>>)>,
}

impl Document {
    /// The word for an outcome.
    #[must_use]
    pub fn word(&self, outcome: Outcome) -> &'static str {
        let [bad, open, good] = self.words;
        match outcome {
            Outcome::Bad => bad,
            Outcome::Open => open,
            Outcome::Good => good,
        }
    }

    /// How many sections have this outcome.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        let with = self.sections.iter().filter(|s| s.outcome == outcome);
        with.count()
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Yes => Self::Good,
            Verdict::No => Self::Bad,
            Verdict::Unknown => Self::Open,
        }
    }
}
