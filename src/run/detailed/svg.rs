//! A service's path as an inline SVG: source, routers with their statuses, destination.
//!
//! Colours come from the page's style sheet by class, so that the drawing follows light, dark and
//! print. A line behind a router that stops the service is broken and ends in a bar.

use std::fmt::Write as _;

use super::result::{CameBy, DetailedReport, RouterTest, ServiceResult};
use crate::run::{markup::escape, report::Verdict};

/// Boxes in a row.
const PER_ROW: usize = 5;
const BOX_WIDTH: usize = 132;
const BOX_HEIGHT: usize = 54;
const GAP: usize = 64;
const ROW_HEIGHT: usize = 104;
const MARGIN: usize = 12;

/// One box of the drawing.
struct Node {
    title: String,
    below: String,
    class: &'static str,
    /// What stands at the line before it and behind it: the interfaces.
    before: String,
    behind: String,
    /// Whether packets go on behind it.
    passes: bool,
}

/// Draws the path of `service`.
pub(super) fn path(report: &DetailedReport, service: &ServiceResult) -> String {
    let mut nodes = vec![end("source", report.source.to_string())];
    let on_way = service
        .tests
        .iter()
        .filter(|test| test.reach != CameBy::ByAnswer);
    nodes.extend(on_way.map(router));
    let destination = format!("{} {}", report.destination, service.service);
    nodes.push(end("destination", destination));
    let columns = nodes.len().min(PER_ROW);
    let rows = nodes.len().div_ceil(PER_ROW);
    let width = 2 * MARGIN + columns * BOX_WIDTH + (columns - 1) * GAP;
    let height = 2 * MARGIN + (rows - 1) * ROW_HEIGHT + BOX_HEIGHT + 16;
    let mut svg = String::new();
    let label = format!("path of {} and each router's status", service.service);
    // Writing to a string does not fail.
    let _ = write!(
        svg,
        r#"<svg class="path" role="img" aria-label="{}" viewBox="0 0 {width} {height}" style="max-width:{width}px">"#,
        escape(&label)
    );
    for (at, node) in nodes.iter().enumerate() {
        if let Some(next) = nodes.get(at + 1) {
            line(&mut svg, at, node, next);
        }
    }
    for (at, node) in nodes.iter().enumerate() {
        draw(&mut svg, at, node);
    }
    svg.push_str("</svg>");
    svg
}

fn end(title: &str, below: String) -> Node {
    Node {
        title: title.to_owned(),
        below,
        class: "end",
        before: String::new(),
        behind: String::new(),
        passes: true,
    }
}

fn router(test: &RouterTest) -> Node {
    let name = |iface: &Option<crate::model::IfName>| {
        iface.as_ref().map_or(String::new(), ToString::to_string)
    };
    Node {
        title: test.router.to_string(),
        below: test.status.to_string(),
        class: class(test.status.verdict()),
        before: name(&test.iface_in),
        behind: name(&test.iface_out),
        passes: test.status.verdict() == Verdict::Yes,
    }
}

/// The class that the style sheet knows a verdict by.
pub(super) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Yes => "yes",
        Verdict::No => "no",
        Verdict::Unknown => "unknown",
    }
}

/// The upper left corner of the box at place `at`.
fn corner(at: usize) -> (usize, usize) {
    let (row, column) = (at / PER_ROW, at % PER_ROW);
    let x = MARGIN + column * (BOX_WIDTH + GAP);
    (x, MARGIN + row * ROW_HEIGHT)
}

fn line(svg: &mut String, at: usize, node: &Node, next: &Node) {
    let ((x, y), (nx, ny)) = (corner(at), corner(at + 1));
    let (from, middle) = (x + BOX_WIDTH, y + BOX_HEIGHT / 2);
    let kind = if node.passes { "" } else { " broken" };
    let same_row = y == ny;
    let way = if same_row {
        format!("M{from} {middle}H{nx}")
    } else {
        // Down behind the last box of a row and back to the first one of the next.
        let (between, target) = (y + BOX_HEIGHT + 34, ny + BOX_HEIGHT / 2);
        let right = from + 10;
        let left = nx.saturating_sub(8);
        format!("M{from} {middle}H{right}V{between}H{left}V{target}H{nx}")
    };
    let _ = write!(
        svg,
        r#"<path class="line {}{kind}" d="{way}"/>"#,
        node.class
    );
    let _ = write!(
        svg,
        r#"<path class="tip {}" d="M{nx} {t}l-7 -4v8z"/>"#,
        node.class,
        t = ny + BOX_HEIGHT / 2
    );
    if !node.passes {
        let bar = from + 6;
        let _ = write!(
            svg,
            r#"<path class="bar {}" d="M{bar} {}V{}"/>"#,
            node.class,
            middle - 9,
            middle + 9
        );
    }
    if same_row {
        text(
            svg,
            "iface start",
            from + if node.passes { 4 } else { 12 },
            middle - 6,
            &short(&node.behind),
        );
        text(svg, "iface stop", nx - 4, middle + 14, &short(&next.before));
    }
}

fn draw(svg: &mut String, at: usize, node: &Node) {
    let (x, y) = corner(at);
    let _ = write!(
        svg,
        r#"<rect class="box {}" x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>"#,
        node.class
    );
    let middle = x + BOX_WIDTH / 2;
    let title = cut(&node.title, 18);
    text(svg, "title", middle, y + 23, &title);
    text(
        svg,
        &format!("below {}", node.class),
        middle,
        y + 41,
        &cut(&node.below, 22),
    );
}

fn text(svg: &mut String, class: &str, x: usize, y: usize, words: &str) {
    let words = escape(words);
    let _ = write!(
        svg,
        r#"<text class="{class}" x="{x}" y="{y}">{words}</text>"#
    );
}

/// An interface's name as far as there is room beside the line.
fn short(name: &str) -> String {
    cut(name, 9)
}

fn cut(words: &str, most: usize) -> String {
    if words.chars().count() <= most {
        return words.to_owned();
    }
    let head: String = words.chars().take(most - 1).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_and_a_short_one_is_not() {
        assert_eq!(cut("hq-gw", 18), "hq-gw");
        assert_eq!(cut("a-router-with-a-very-long-name", 8), "a-route…");
    }

    #[test]
    fn boxes_go_on_in_the_next_row() {
        assert_eq!(corner(0), (MARGIN, MARGIN));
        assert_eq!(corner(PER_ROW), (MARGIN, MARGIN + ROW_HEIGHT));
    }
}
