//! One HTML file: nothing from elsewhere, a few lines of script for the filter, for the screen in light
//! and dark and for paper. Verdicts are told by word and shape, not by colour alone.

use std::io::{self, Write};

use crate::{
    bulk::document::{Document, DocumentSection, Grid, Item, Outcome},
    run::{markup::escape, report::Verdict},
};

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

pub(super) fn write(out: &mut dyn Write, document: &Document) -> io::Result<()> {
    let title = escape(&document.title);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n\
         <h1>{title}</h1>\n<p class=\"summary\">{}</p>\n<dl>\n",
        escape(&document.summary)
    )?;
    for (name, value) in &document.about {
        writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(value))?;
    }
    writeln!(out, "</dl>\n</header>\n<main>")?;
    write_filter(out, document)?;
    if let Some(grid) = &document.grid {
        write_grid(out, grid)?;
    }
    writeln!(out, "<h2>In words</h2>")?;
    for section in &document.sections {
        write_section(out, document, section)?;
    }
    if !document.warnings.is_empty() {
        writeln!(out, "<h2>To be known</h2>\n<ul>")?;
        for warning in &document.warnings {
            writeln!(out, "<li>{}</li>", escape(warning))?;
        }
        writeln!(out, "</ul>")?;
    }
    write!(
        out,
        "</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// The form is shown by the script that it needs.
fn write_filter(out: &mut dyn Write, document: &Document) -> io::Result<()> {
    writeln!(
        out,
        "<form id=\"filter\" role=\"search\" hidden>\n<label>Find <input type=\"search\" name=\"text\" \
         autocomplete=\"off\"></label>\n<fieldset>\n<legend>Show</legend>"
    )?;
    for outcome in [Outcome::Bad, Outcome::Open, Outcome::Good] {
        let (class, word) = (class(outcome), document.word(outcome));
        writeln!(
            out,
            "<label><input type=\"checkbox\" name=\"{class}\" checked> {word} ({})</label>",
            document.count(outcome)
        )?;
    }
    writeln!(out, "</fieldset>\n<output id=\"found\"></output>\n</form>")
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Bad => "bad",
        Outcome::Open => "open",
        Outcome::Good => "good",
    }
}

fn write_section(
    out: &mut dyn Write,
    document: &Document,
    section: &DocumentSection,
) -> io::Result<()> {
    let (class, word) = (class(section.outcome), document.word(section.outcome));
    let open = if section.outcome == Outcome::Good {
        ""
    } else {
        " open"
    };
    writeln!(
        out,
        "<details class=\"entry {class}\"{open}>\n<summary><span class=\"word\">{word}</span> {}</summary>",
        escape(&section.name)
    )?;
    if !section.about.is_empty() {
        writeln!(out, "<dl>")?;
        for (name, value) in &section.about {
            writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(value))?;
        }
        writeln!(out, "</dl>")?;
    }
    match section.items.is_empty() {
        true => writeln!(out, "<p>{} questions.</p>", section.questions)?,
        false => {
            writeln!(out, "<ul>")?;
            section
                .items
                .iter()
                .try_for_each(|item| write_item(out, item))?;
            writeln!(out, "</ul>")?;
        }
    }
    writeln!(out, "</details>")
}

fn write_item(out: &mut dyn Write, item: &Item) -> io::Result<()> {
    let answer: Vec<String> = item.answer.iter().map(|text| escape(text)).collect();
    writeln!(
        out,
        "<li class=\"{}\"><b>{}</b>: {}</li>",
        class(item.outcome),
        escape(&item.what),
        answer.join("<br>")
    )
}

fn write_grid(out: &mut dyn Write, grid: &Grid) -> io::Result<()> {
    write!(
        out,
        "<h2>At a glance</h2>\n<div class=\"table\" tabindex=\"0\" role=\"region\" \
         aria-label=\"All answers\">\n<table>\n<thead>\n<tr><th scope=\"col\">From</th>\
         <th scope=\"col\">To</th>"
    )?;
    for column in &grid.columns {
        write!(out, "<th scope=\"col\">{}</th>", escape(column))?;
    }
    writeln!(out, "</tr>\n</thead>\n<tbody>")?;
    for (source, destination, cells) in &grid.rows {
        let worst = cells
            .iter()
            .flatten()
            .map(|verdict| Outcome::from(*verdict))
            .min();
        write!(
            out,
            "<tr class=\"entry {}\"><th scope=\"row\">{}</th><th scope=\"row\">{}</th>",
            class(worst.unwrap_or(Outcome::Good)),
            escape(source),
            escape(destination)
        )?;
        for cell in cells {
            // Short, since there may be 100,000 of them.
            match cell {
                Some(Verdict::Yes) => write!(out, "<td class=y>YES")?,
                Some(Verdict::No) => write!(out, "<td class=n>NO")?,
                Some(Verdict::Unknown) => write!(out, "<td class=u>UNKNOWN")?,
                None => write!(out, "<td>")?,
            }
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody>\n</table>\n</div>")
}
