//! Writes a [`Document`]: as text for a terminal, as Markdown for a pull request's comment, as JUnit XML
//! for a CI server, as an HTML page.
//!
//! What comes from facts and policies may hold anything; every format makes it harmless in its own way,
//! and control characters are written out in all of them.

mod html;
mod junit;
mod markdown;
mod text;

use std::{
    fmt,
    io::{self, Write},
    str::FromStr,
};

use super::document::Document;
use crate::model::printable;

/// A format to write in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a terminal.
    Text,
    /// The result's own JSON, see `docs/report.schema.json`.
    Json,
    /// GitHub's kind of Markdown.
    Markdown,
    /// JUnit XML, as Jenkins and GitLab read it.
    Junit,
    /// One HTML file.
    Html,
}

impl Format {
    const ALL: [(&'static str, Self); 5] = [
        ("text", Self::Text),
        ("json", Self::Json),
        ("markdown", Self::Markdown),
        ("junit", Self::Junit),
        ("html", Self::Html),
    ];

    /// The format that the name of a file asks for.
    #[must_use]
    pub fn of_file(name: &str) -> Option<Self> {
        let (_, ending) = name.rsplit_once('.')?;
        match ending {
            "txt" => Some(Self::Text),
            "json" => Some(Self::Json),
            "md" => Some(Self::Markdown),
            "xml" => Some(Self::Junit),
            "html" | "htm" => Some(Self::Html),
            _ => None,
        }
    }
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, format)| *format)
            .ok_or_else(|| "`text`, `json`, `markdown`, `junit` and `html` are allowed".to_owned())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(_, format)| format == self);
        f.pad(found.map_or("", |(name, _)| name))
    }
}

/// How wide a terminal is, and whether it has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Columns.
    pub width: usize,
    /// Whether to colour verdicts.
    pub colour: bool,
}

/// Writes `document` in any format but JSON, which is the result's own.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(
    out: &mut dyn Write,
    document: &Document,
    format: Format,
    layout: Layout,
) -> io::Result<()> {
    match format {
        Format::Text | Format::Json => text::write(out, document, layout),
        Format::Markdown => markdown::write(out, document),
        Format::Junit => junit::write(out, document),
        Format::Html => html::write(out, document),
    }
}

/// Text on one line without anything that a terminal or a reader would act on.
fn line(text: &str) -> String {
    printable(text).to_string()
}

#[cfg(test)]
mod tests;
