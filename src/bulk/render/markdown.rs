//! Markdown as GitHub, GitLab and Gitea show it in a comment.

use std::io::{self, Write};

use super::line;
use crate::bulk::document::{Document, DocumentSection, Grid, Outcome};

/// A comment may have 65,536 characters on GitHub: what is to be looked at comes first, and the rest is
/// counted.
const MOST_ITEMS: usize = 200;
/// Wider tables are hard to read in a comment.
const MOST_COLUMNS: usize = 12;
/// And longer ones.
const MOST_ROWS: usize = 60;

pub(super) fn write(out: &mut dyn Write, document: &Document) -> io::Result<()> {
    writeln!(out, "## {}\n", escape(&document.title))?;
    writeln!(out, "**{}**\n", escape(&document.summary))?;
    let mut room = MOST_ITEMS;
    for outcome in [Outcome::Bad, Outcome::Open] {
        for section in document.sections.iter().filter(|s| s.outcome == outcome) {
            write_section(out, document, section, &mut room)?;
        }
    }
    let good = document.count(Outcome::Good);
    if good > 0 {
        writeln!(out, "{} {good}\n", document.word(Outcome::Good))?;
    }
    let fits = |grid: &&Grid| {
        (1..=MOST_COLUMNS).contains(&grid.columns.len()) && grid.rows.len() <= MOST_ROWS
    };
    if let Some(grid) = document.grid.as_ref().filter(fits) {
        write_grid(out, grid)?;
    }
    for warning in &document.warnings {
        writeln!(out, "> {}\n", escape(warning))?;
    }
    let about = document.about.iter();
    let about: Vec<String> = about
        .map(|(name, value)| format!("{name} {}", escape(value)))
        .collect();
    writeln!(out, "<sub>{}</sub>", about.join(" · "))
}

fn write_section(
    out: &mut dyn Write,
    document: &Document,
    section: &DocumentSection,
    room: &mut usize,
) -> io::Result<()> {
    let word = document.word(section.outcome);
    writeln!(out, "### {word}: {}\n", escape(&section.name))?;
    for (name, value) in &section.about {
        writeln!(out, "- {name}: {}", escape(value))?;
    }
    if !section.about.is_empty() {
        writeln!(out)?;
    }
    if section.items.is_empty() {
        return Ok(());
    }
    writeln!(out, "| question | answer |\n|---|---|")?;
    for item in section.items.iter().take(*room) {
        let answer: Vec<String> = item.answer.iter().map(|line| escape(line)).collect();
        writeln!(out, "| {} | {} |", escape(&item.what), answer.join("<br>"))?;
    }
    if let Some(more @ 1..) = section.items.len().checked_sub(*room) {
        writeln!(out, "\nand {more} more")?;
    }
    *room = room.saturating_sub(section.items.len());
    writeln!(out)
}

fn write_grid(out: &mut dyn Write, grid: &Grid) -> io::Result<()> {
    let columns: Vec<String> = grid.columns.iter().map(|column| escape(column)).collect();
    writeln!(out, "| from | to | {} |", columns.join(" | "))?;
    writeln!(out, "|---|---|{}", "---|".repeat(columns.len()))?;
    for (source, destination, cells) in &grid.rows {
        let cells = cells.iter().map(|cell| match cell {
            Some(verdict) => verdict.to_string(),
            None => String::new(),
        });
        let cells: Vec<String> = cells.collect();
        let (source, destination) = (escape(source), escape(destination));
        writeln!(out, "| {source} | {destination} | {} |", cells.join(" | "))?;
    }
    writeln!(out)
}

/// Text that Markdown and the HTML in it take for nothing else, on one line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in line(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // A mention or a reference would notify somebody.
            '@' => escaped.push_str("&#64;"),
            '#' => escaped.push_str("&#35;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '!' | '$' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
