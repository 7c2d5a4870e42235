//! Cuts a sectioned facts file into its sections.

use super::FactsError;
use crate::{lab::topology::Origin, netlink::object::Family};

const START: &str = "=== TSIM_SECTION_START:";
const END: &str = "=== TSIM_SECTION_END:";
const MARK: &str = " ===";
/// What the collector ends with.
pub(super) const COMPLETE: &str = "TSIM_FACTS_COLLECTION_COMPLETE";

/// One section: what one command printed on the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section<'a> {
    /// Name between the marks, e.g. `policy_rules`.
    pub name: &'a str,
    /// `TITLE:`; empty where it is missing.
    pub title: &'a str,
    /// `COMMAND:`; empty where it is missing.
    pub command: &'a str,
    /// Line of the start mark.
    pub line: usize,
    /// Line of the end mark.
    pub end: usize,
    /// The command's output with its line numbers, `EXIT_CODE:` and blank ends cut off.
    pub body: Vec<(usize, &'a str)>,
    /// `EXIT_CODE:`, where there is one.
    pub exit_code: Option<i32>,
    /// Whether a line `---` tells where the command's output begins.
    pub divided: bool,
    /// What stands behind `EXIT_CODE:`, where nothing should.
    pub behind: Option<(usize, &'a str)>,
}

impl Section<'_> {
    /// Line of the first line of output, or of the start mark where there is no output.
    pub(super) fn first_line(&self) -> usize {
        self.body.first().map_or(self.line, |(line, _)| *line)
    }

    /// The output as one text that ends with a newline; empty where there is no output.
    pub(super) fn text(&self) -> String {
        self.body.iter().fold(String::new(), |mut text, (_, line)| {
            text.push_str(line);
            text.push('\n');
            text
        })
    }
}

/// All sections of `text`, wherever they stand; what is between them does not count.
///
/// # Errors
/// A section without its end, which is how a file that was cut shows, or without its beginning.
pub(super) fn sections<'a>(file: &str, text: &'a str) -> Result<Vec<Section<'a>>, FactsError> {
    let mut lines = (1..).zip(text.lines().map(str::trim_end));
    let mut found = Vec::new();
    while let Some((line, content)) = lines.next() {
        let Some(name) = mark(content, START) else {
            if let Some(section) = mark(content, END) {
                return Err(FactsError::Unbegun {
                    origin: Origin {
                        file: file.to_owned(),
                        line,
                    },
                    section: section.to_owned(),
                });
            }
            continue;
        };
        let mut inner = Vec::new();
        let closed = lines.by_ref().find_map(|(line, content)| {
            if mark(content, END) == Some(name) {
                return Some(Ok(line));
            }
            inner.push((line, content));
            mark(content, START).map(Err)
        });
        let Some(Ok(end)) = closed else {
            return Err(FactsError::Cut {
                origin: Origin {
                    file: file.to_owned(),
                    line,
                },
                section: name.to_owned(),
            });
        };
        found.push(section(name, (line, end), &inner));
    }
    Ok(found)
}

/// Lines outside of all sections that are neither blank nor comments.
pub(super) fn outside(text: &str) -> Vec<(usize, &str)> {
    let mut within = None;
    let mut found = Vec::new();
    for (line, content) in (1..).zip(text.lines().map(str::trim_end)) {
        if within.is_some() {
            within = within.filter(|name| mark(content, END) != Some(*name));
        } else if let Some(name) = mark(content, START) {
            within = Some(name);
        } else {
            let told = content.trim().is_empty()
                || content.starts_with('#')
                || content.trim_matches(['=', ' ']) == COMPLETE;
            found.extend((!told).then_some((line, content)));
        }
    }
    found
}

/// Family and table, by name or number, of a section with routes.
pub(super) fn routing_table(section: &str) -> Option<(Family, &str)> {
    let (family, rest) = match section.strip_prefix("ipv6_") {
        Some(rest) => (Family::V6, rest),
        None => (Family::V4, section),
    };
    match rest.strip_prefix("routing_table")? {
        "" => Some((family, "main")),
        table => Some((family, table.strip_prefix('_')?)),
    }
}

/// A section as the collector writes it, whose command was `command` and printed `body`.
pub(super) fn written(name: &str, command: &str, body: &str) -> String {
    let body = body.trim_end();
    format!(
        "{START}{name}{MARK}\nTITLE: {command}\nCOMMAND: {command}\n---\n{body}\n\nEXIT_CODE: 0\n\n\
         {END}{name}{MARK}\n"
    )
}

/// Whether a text has the mark of a section, which no ruleset has.
pub(super) fn has_mark(text: &str) -> bool {
    text.contains(START) || text.contains(END)
}

fn mark<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    Some(line.strip_prefix(start)?.strip_suffix(MARK)?.trim())
}

fn section<'a>(
    name: &'a str,
    (line, end): (usize, usize),
    inner: &[(usize, &'a str)],
) -> Section<'a> {
    let field = |key: &str| {
        inner
            .iter()
            .take_while(|(_, l)| *l != "---")
            .find_map(|(_, l)| l.strip_prefix(key))
            .map_or("", str::trim)
    };
    let head = inner.iter().position(|(_, l)| *l == "---");
    let output = inner.get(head.map_or(0, |at| at + 1)..).unwrap_or(&[]);
    let (body, exit_code, behind) = split_exit_code(output);
    Section {
        name,
        title: field("TITLE:"),
        command: field("COMMAND:"),
        line,
        end,
        body: trim_blank(body).to_vec(),
        exit_code,
        divided: head.is_some(),
        behind: trim_blank(behind).first().copied(),
    }
}

type Lines<'s, 'a> = &'s [(usize, &'a str)];

/// The command's output, its exit code, and what stands behind that. A line without a number is output.
fn split_exit_code<'s, 'a>(output: Lines<'s, 'a>) -> (Lines<'s, 'a>, Option<i32>, Lines<'s, 'a>) {
    let code = |line: &str| line.strip_prefix("EXIT_CODE:")?.trim().parse().ok();
    let mut all = output.iter().enumerate().rev();
    let last = all.find_map(|(at, (_, line))| Some((at, code(line)?)));
    match last.and_then(|(at, code)| Some((output.split_at_checked(at)?, code))) {
        Some(((body, tail), code)) => (body, Some(code), tail.get(1..).unwrap_or_default()),
        None => (output, None, &[]),
    }
}

fn trim_blank<'s, 'a>(lines: Lines<'s, 'a>) -> Lines<'s, 'a> {
    let full = |(_, l): &(usize, &str)| !l.trim().is_empty();
    match (lines.iter().position(full), lines.iter().rposition(full)) {
        (Some(first), Some(last)) => lines.get(first..=last).unwrap_or(&[]),
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# head\n\
        === TSIM_SECTION_START:a ===\nTITLE: A (7)\nCOMMAND: a b\nTIMESTAMP: now\n---\n\
        one\n\n two\n\nEXIT_CODE: 3\n\n=== TSIM_SECTION_END:a ===\n\
        === TSIM_FACTS_COLLECTION_COMPLETE ===\n\
        === TSIM_SECTION_START:b ===\n---\nthree\n=== TSIM_SECTION_END:b ===\n";

    #[test]
    fn sections_carry_head_lines_and_exit_code() {
        let found = sections("f", FILE).unwrap();
        let a = &found[0];
        assert_eq!((a.name, a.title, a.command), ("a", "A (7)", "a b"));
        assert_eq!((a.line, a.first_line(), a.exit_code), (2, 7, Some(3)));
        assert_eq!(a.text(), "one\n\n two\n");
        let b = &found[1];
        assert_eq!((b.name, b.exit_code), ("b", None));
        assert_eq!(b.body, [(17, "three")]);
    }

    #[test]
    fn a_section_without_its_end_is_an_error_that_names_it() {
        let cut = &FILE[..FILE.find("=== TSIM_SECTION_END:a").unwrap()];
        let error = sections("f", cut).unwrap_err().to_string();
        assert!(error.contains("f:2") && error.contains("`a`"), "{error}");
        let nested = FILE.replace("=== TSIM_SECTION_END:a ===\n", "");
        assert!(sections("f", &nested).is_err());
    }

    #[test]
    fn a_section_without_its_beginning_is_an_error_that_names_it() {
        let text = FILE.replace("=== TSIM_SECTION_START:a", "x === TSIM_SECTION_START:a");
        let error = sections("f", &text).unwrap_err().to_string();
        assert!(error.contains("f:13") && error.contains("`a`"), "{error}");
    }
}
