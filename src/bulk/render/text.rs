//! Text for a terminal.

use std::io::{self, Write};

use owo_colors::{OwoColorize, Style};

use super::{Layout, line};
use crate::{
    bulk::document::{Document, DocumentSection, Grid, Item, Outcome},
    run::report::Verdict,
};

/// More things to look at in one section are counted only.
const MOST_ITEMS: usize = 40;
/// Wider tables than this many columns do not fit a terminal: the sections say it.
const MOST_COLUMNS: usize = 16;

pub(super) fn write(out: &mut dyn Write, document: &Document, layout: Layout) -> io::Result<()> {
    writeln!(out, "{}", line(&document.title))?;
    for (name, value) in &document.about {
        writeln!(out, "  {name} {}", line(value))?;
    }
    writeln!(out)?;
    let fits = |grid: &&Grid| (1..=MOST_COLUMNS).contains(&grid.columns.len());
    if let Some(grid) = document.grid.as_ref().filter(fits) {
        write_grid(out, grid, layout)?;
        writeln!(out)?;
    }
    let mut silent = 0;
    for section in &document.sections {
        if section.items.is_empty() && section.outcome == Outcome::Good {
            silent += 1;
            continue;
        }
        write_section(out, document, section, layout)?;
    }
    // Where nothing else was shown, the summary says it.
    if silent > 0 && silent < document.sections.len() {
        let word = document.word(Outcome::Good);
        writeln!(out, "{} {silent} more", styled(word, Outcome::Good, layout))?;
    }
    for warning in &document.warnings {
        writeln!(out, "warning: {}", line(warning))?;
    }
    writeln!(out, "{}", line(&document.summary))
}

fn styled(word: &str, outcome: Outcome, layout: Layout) -> String {
    let style = match outcome {
        _ if !layout.colour => Style::new(),
        Outcome::Good => Style::new().green(),
        Outcome::Bad => Style::new().red().bold(),
        Outcome::Open => Style::new().yellow(),
    };
    word.style(style).to_string()
}

fn write_section(
    out: &mut dyn Write,
    document: &Document,
    section: &DocumentSection,
    layout: Layout,
) -> io::Result<()> {
    let word = styled(document.word(section.outcome), section.outcome, layout);
    let about = section.about.iter();
    let about: Vec<String> = about
        .map(|(name, value)| format!("{name} {}", line(value)))
        .collect();
    let about = match about.is_empty() {
        true => String::new(),
        false => format!("  ({})", about.join("; ")),
    };
    writeln!(out, "{word} {}{about}", line(&section.name))?;
    for item in section.items.iter().take(MOST_ITEMS) {
        write_item(out, item)?;
    }
    if let Some(more @ 1..) = section.items.len().checked_sub(MOST_ITEMS) {
        writeln!(out, "    and {more} more; --format json has all")?;
    }
    writeln!(out)
}

fn write_item(out: &mut dyn Write, item: &Item) -> io::Result<()> {
    let mut lines = item.answer.iter();
    let first = lines.next().map_or("", String::as_str);
    writeln!(out, "    {}: {}", line(&item.what), line(first))?;
    lines.try_for_each(|more| writeln!(out, "        {}", line(more)))
}

fn write_grid(out: &mut dyn Write, grid: &Grid, layout: Layout) -> io::Result<()> {
    let width = |texts: &mut dyn Iterator<Item = &str>| {
        texts
            .map(|text| line(text).chars().count())
            .max()
            .unwrap_or(0)
    };
    let from = width(&mut grid.rows.iter().map(|(from, ..)| from.as_str())).max(4);
    let to = width(&mut grid.rows.iter().map(|(_, to, _)| to.as_str())).max(2);
    let columns: Vec<usize> = grid
        .columns
        .iter()
        .map(|c| c.chars().count().max(7))
        .collect();
    let mut head = format!("{:from$}  {:to$}", "FROM", "TO");
    for (column, width) in grid.columns.iter().zip(&columns) {
        head.push_str(&format!("  {column:width$}"));
    }
    writeln!(out, "{}", head.trim_end())?;
    for (source, destination, cells) in &grid.rows {
        write!(out, "{:from$}  {:to$}", line(source), line(destination))?;
        for (at, (cell, width)) in cells.iter().zip(&columns).enumerate() {
            let text = cell.map_or_else(|| "-".to_owned(), |verdict: Verdict| verdict.to_string());
            let last = at + 1 == cells.len();
            let text = if last { text } else { format!("{text:width$}") };
            let text = match cell {
                Some(verdict) => styled(&text, Outcome::from(*verdict), layout),
                None => text,
            };
            write!(out, "  {text}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
