//! The result as one HTML file: no script, no font, no image from elsewhere; for the screen in
//! light and dark, and for paper.

use std::fmt::{Display, Write as _};

use super::{
    result::{
        DetailedReport, Direction, Nat, PacketWay, RouterTest, RuleEvidence, ServiceResult,
        TakenLeg, file_stem,
    },
    svg::{class, path},
    text::{headline, place, reach},
};
use crate::run::{markup::escape, report::Verdict};

const STYLE: &str = include_str!("style.css");

/// The result as a whole page.
#[must_use]
pub fn page(report: &DetailedReport) -> String {
    let mut page = Page::default();
    page.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.raw("<title>")
        .text(title(report))
        .raw("</title>\n<style>\n");
    page.raw(STYLE).raw("</style>\n</head>\n<body>\n");
    header(&mut page, report);
    matrix(&mut page, report);
    for service in &report.services {
        section(&mut page, report, service);
    }
    footer(&mut page, report);
    page.raw("</body>\n</html>\n");
    page.0
}

/// A page that is being written. What comes from outside goes through [`Page::text`].
#[derive(Default)]
struct Page(String);

impl Page {
    fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    fn text(&mut self, text: impl Display) -> &mut Self {
        let escaped = escape(&text.to_string());
        self.0.push_str(&escaped);
        self
    }

    /// An element with text in it; `name` may carry attributes.
    fn element(&mut self, name: &str, text: impl Display) -> &mut Self {
        let tag = name.split(' ').next().unwrap_or(name);
        let _ = write!(self.0, "<{name}>");
        self.text(text);
        let _ = write!(self.0, "</{tag}>");
        self
    }

    fn badge(&mut self, verdict: Verdict, text: impl Display) -> &mut Self {
        let name = format!("span class=\"badge {}\"", class(verdict));
        self.element(&name, text)
    }
}

fn title(report: &DetailedReport) -> String {
    format!(
        "{} → {}: detailed reachability",
        report.source, report.destination
    )
}

fn header(page: &mut Page, report: &DetailedReport) {
    page.raw("<header>\n");
    let heading = format!("{} → {}", report.source, report.destination);
    page.element("h1", heading).raw("\n");
    page.element(
        "p class=\"soft\"",
        "The whole way, with real connections: what got there and back, and which rule decided.",
    );
    page.raw("<dl>\n");
    let port = report.source_port;
    let facts = [
        ("Lab", report.lab.to_string()),
        ("Run", report.run_id.to_string()),
        ("Begun", report.started_at.clone()),
        (
            "Source port",
            port.map_or("fresh for each connection".to_owned(), |p| p.to_string()),
        ),
        ("Routers", report.routers.len().to_string()),
        ("Took", format!("{:.0} ms", report.timing_ms.total)),
    ];
    for (name, value) in facts {
        page.raw("<div>")
            .element("dt", name)
            .element("dd", value)
            .raw("</div>\n");
    }
    page.raw("</dl>\n<div class=\"totals\">");
    let (yes, no, unknown) = report.count();
    for (verdict, count, what) in [
        (Verdict::Yes, yes, "pass"),
        (Verdict::No, no, "stopped"),
        (Verdict::Unknown, unknown, "unknown"),
    ] {
        if count > 0 {
            page.badge(verdict, format!("{count} {what}"));
        }
    }
    page.raw("</div>\n");
    for warning in &report.warnings {
        page.element("p class=\"warn\"", warning).raw("\n");
    }
    page.raw("</header>\n");
}

fn matrix(page: &mut Page, report: &DetailedReport) {
    page.raw("<div class=\"scroll\"><table class=\"matrix\">\n<thead><tr><th>Service</th><th>End to end</th>");
    for router in &report.routers {
        page.element("th", &router.name);
    }
    page.raw("</tr></thead>\n<tbody>\n");
    for service in &report.services {
        let link = format!("a href=\"#s-{}\"", file_stem(service.service));
        page.raw("<tr><td class=\"nowrap\">")
            .element(&link, service.service)
            .raw("</td>");
        page.raw("<td>")
            .badge(service.verdict(), service.verdict())
            .raw("</td>");
        for router in &report.routers {
            page.raw("<td>");
            match service.at(&router.name) {
                Some(test) if test.counts() => page.badge(test.status.verdict(), test.status),
                Some(test) => page.element("span class=\"soft\"", format!("({})", test.status)),
                None => page.element("span class=\"soft\"", "–"),
            };
            page.raw("</td>");
        }
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table></div>\n");
}

fn section(page: &mut Page, report: &DetailedReport, service: &ServiceResult) {
    let verdict = service.verdict();
    let id = file_stem(service.service);
    let _ = write!(
        page.0,
        "<section class=\"service\" id=\"s-{id}\">\n<div class=\"head\">"
    );
    page.element("h2", service.service).raw(" ");
    page.badge(verdict, verdict).raw(" ");
    page.element("span", headline(service)).raw("</div>\n");
    page.raw(&path(report, service)).raw("\n");
    legs(page, "Request", &service.end.way);
    legs(page, "Answer", &service.end.answer);
    for test in &service.tests {
        router(page, test);
    }
    page.raw("</section>\n");
}

fn legs(page: &mut Page, what: &str, legs: &[TakenLeg]) {
    if legs.is_empty() {
        return;
    }
    page.raw("<table><tbody>\n");
    for leg in legs {
        page.raw("<tr>").element("td class=\"nowrap soft\"", what);
        page.element("td class=\"mono\"", leg).raw("</tr>\n");
    }
    page.raw("</tbody></table>\n");
}

fn router(page: &mut Page, test: &RouterTest) {
    let name = |iface: &Option<crate::model::IfName>| {
        iface.as_ref().map_or("?".to_owned(), ToString::to_string)
    };
    page.raw("<details class=\"router\" open><summary><div class=\"head\">");
    page.element("h3", &test.router).raw(" ");
    page.badge(test.status.verdict(), test.status).raw(" ");
    let way = format!("{} → {}", name(&test.iface_in), name(&test.iface_out));
    page.element("span class=\"soft\"", way)
        .raw("</div></summary>\n");
    let message = format!("{}{}", reach(test.reach), test.message);
    page.element("p", message).raw("\n");
    for warning in &test.warnings {
        page.element("p class=\"warn\"", warning).raw("\n");
    }
    rules(page, test);
    nat(page, &test.nat);
    for way in &test.trace {
        packet(page, way);
    }
    page.raw("</details>\n");
}

fn rules(page: &mut Page, test: &RouterTest) {
    let groups = [
        ("Stopped by", &test.blocking),
        ("Allowed by", &test.allowing),
        ("Seen by", &test.touched),
        ("Other traffic", &test.other_traffic),
    ];
    if groups.iter().all(|(_, rules)| rules.is_empty()) {
        return;
    }
    page.raw("<h4>Rules and counters</h4>\n<div class=\"scroll\"><table>\n<thead><tr>");
    for (head, class) in [
        ("", "nowrap"),
        ("Rule", ""),
        ("Before", "num"),
        ("After", "num"),
        ("Increase", "num"),
        ("Traced", "num"),
    ] {
        page.element(&format!("th class=\"{class}\""), head);
    }
    page.raw("</tr></thead>\n<tbody>\n");
    for (what, list) in groups {
        for rule in list {
            rule_row(page, what, rule);
        }
    }
    page.raw("</tbody></table></div>\n");
}

fn rule_row(page: &mut Page, what: &str, rule: &RuleEvidence) {
    let number = |n: Option<u64>| n.map_or("—".to_owned(), |n| n.to_string());
    let stop = if what == "Stopped by" {
        " class=\"stop\""
    } else {
        ""
    };
    let _ = write!(page.0, "<tr{stop}>");
    page.element("td class=\"nowrap\"", what);
    page.raw("<td class=\"rule\">")
        .element("code", &rule.rule)
        .raw("<br>");
    page.element("span class=\"soft\"", place(rule))
        .raw("</td>");
    page.element("td class=\"num\"", number(rule.packets_before));
    page.element("td class=\"num\"", number(rule.packets_after));
    let increase = match (rule.packet_increase, rule.unexplained) {
        (Some(more), 0) => format!("+{more}"),
        (Some(more), strange) => format!("+{more} ({strange} not explained)"),
        (None, _) => "—".to_owned(),
    };
    page.element("td class=\"num\"", increase);
    page.element("td class=\"num\"", rule.packets_traced)
        .raw("</tr>\n");
}

fn nat(page: &mut Page, list: &[Nat]) {
    if list.is_empty() {
        return;
    }
    page.raw("<h4>Rewritten addresses</h4>\n<table><tbody>\n");
    for nat in list {
        page.raw("<tr>")
            .element("td class=\"nowrap\"", nat.direction);
        page.element("td class=\"mono\"", nat.before);
        page.element("td class=\"soft\"", "⇒");
        page.element("td class=\"mono\"", nat.after).raw("</tr>\n");
    }
    page.raw("</tbody></table>\n");
}

fn packet(page: &mut Page, way: &PacketWay) {
    let what = match way.direction {
        Direction::Request => "Request",
        Direction::Answer => "Answer",
    };
    let times = match way.count {
        1 => String::new(),
        n => format!(" · {n} packets went this way"),
    };
    page.element("h4", format!("{what}: {}{times}", way.packet))
        .raw("\n<div class=\"way\">");
    page.element("p class=\"mono\"", way.headers);
    if !way.steps.is_empty() {
        page.raw("<div class=\"scroll\"><table><tbody>\n");
        for step in &way.steps {
            page.raw("<tr>").element("td class=\"nowrap\"", &step.hook);
            let at = step
                .position
                .map_or(String::new(), |p| format!(" rule {p}"));
            let chain = format!("{} {} {}{at}", step.family, step.table, step.chain);
            page.element("td class=\"nowrap soft\"", chain);
            page.raw("<td class=\"rule\">")
                .element("code", &step.rule)
                .raw("</td>");
            page.element("td class=\"nowrap\"", &step.verdict)
                .raw("</tr>\n");
        }
        page.raw("</tbody></table></div>\n");
    }
    let class = if way.passed { "yes" } else { "no" };
    page.element(&format!("p class=\"end {class}\""), &way.end)
        .raw("</div>\n");
}

fn footer(page: &mut Page, report: &DetailedReport) {
    page.raw("<footer>");
    page.text(format!(
        "Measured by tsim {} in lab {}. Packets were followed through every chain; counters were \
         read before and after each service. A rule without a counter has none to show.",
        env!("CARGO_PKG_VERSION"),
        report.lab
    ));
    page.raw("</footer>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let mut page = Page::default();
        page.element(
            "code",
            "-m comment --comment \"<script>alert('&')</script>\u{202e}\u{1b}\"",
        );
        assert_eq!(
            page.0,
            "<code>-m comment --comment &quot;&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;\
             \\u{202e}\\u{1b}&quot;</code>"
        );
    }

    #[test]
    fn the_closing_tag_carries_no_attributes() {
        let mut page = Page::default();
        page.element("td class=\"num\"", 7);
        assert_eq!(page.0, "<td class=\"num\">7</td>");
    }

    #[test]
    fn the_style_sheet_asks_for_nothing_from_elsewhere() {
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
