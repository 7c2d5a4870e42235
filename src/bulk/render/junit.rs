//! JUnit XML: a test case for each section, as Jenkins' schema has it. A section that is not as wanted is
//! a failure; one of which it is not known whether it is, is an error.

use std::io::{self, Write};

use quick_xml::{
    Writer,
    events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event},
};

use super::line;
use crate::bulk::document::{Document, DocumentSection, Outcome};

pub(super) fn write(out: &mut dyn Write, document: &Document) -> io::Result<()> {
    let mut xml = Writer::new_with_indent(&mut *out, b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let count = |outcome| document.count(outcome).to_string();
    let (tests, bad, open) = (
        document.sections.len().to_string(),
        count(Outcome::Bad),
        count(Outcome::Open),
    );
    let counts = [
        ("tests", tests.as_str()),
        ("failures", bad.as_str()),
        ("errors", open.as_str()),
    ];
    let title = line(&document.title);
    let mut suites = BytesStart::new("testsuites");
    suites.extend_attributes(counts);
    xml.write_event(Event::Start(suites))?;
    let mut suite = BytesStart::new("testsuite");
    suite.push_attribute(("name", title.as_str()));
    suite.extend_attributes(counts);
    xml.write_event(Event::Start(suite))?;
    xml.write_event(Event::Start(BytesStart::new("properties")))?;
    for (name, value) in &document.about {
        let mut property = BytesStart::new("property");
        property.push_attribute(("name", *name));
        property.push_attribute(("value", line(value).as_str()));
        xml.write_event(Event::Empty(property))?;
    }
    xml.write_event(Event::End(BytesEnd::new("properties")))?;
    for section in &document.sections {
        write_case(&mut xml, document, section)?;
    }
    if !document.warnings.is_empty() {
        xml.write_event(Event::Start(BytesStart::new("system-err")))?;
        let warnings: Vec<String> = document.warnings.iter().map(|w| line(w)).collect();
        xml.write_event(Event::Text(BytesText::new(&warnings.join("\n"))))?;
        xml.write_event(Event::End(BytesEnd::new("system-err")))?;
    }
    xml.write_event(Event::End(BytesEnd::new("testsuite")))?;
    xml.write_event(Event::End(BytesEnd::new("testsuites")))?;
    writeln!(xml.into_inner())
}

fn write_case(
    xml: &mut Writer<&mut dyn Write>,
    document: &Document,
    section: &DocumentSection,
) -> io::Result<()> {
    let mut case = BytesStart::new("testcase");
    case.push_attribute(("classname", format!("tsim.{}", document.kind).as_str()));
    case.push_attribute(("name", line(&section.name).as_str()));
    let element = match section.outcome {
        Outcome::Good => return xml.write_event(Event::Empty(case)),
        Outcome::Bad => "failure",
        Outcome::Open => "error",
    };
    xml.write_event(Event::Start(case))?;
    let word = document.word(section.outcome);
    let first = section
        .items
        .iter()
        .find(|item| item.outcome == section.outcome);
    let first = first.map(|item| {
        let answer = item.answer.first().map_or("", String::as_str);
        format!("{word}: {}: {answer}", item.what)
    });
    let mut found = BytesStart::new(element);
    found.push_attribute(("type", word));
    found.push_attribute(("message", line(first.as_deref().unwrap_or(word)).as_str()));
    xml.write_event(Event::Start(found))?;
    let mut text = String::new();
    for (name, value) in &section.about {
        text.push_str(&format!("{name}: {}\n", line(value)));
    }
    for item in &section.items {
        let answer: Vec<String> = item.answer.iter().map(|answer| line(answer)).collect();
        text.push_str(&format!(
            "{}: {}\n",
            line(&item.what),
            answer.join("\n    ")
        ));
    }
    xml.write_event(Event::Text(BytesText::new(&text)))?;
    xml.write_event(Event::End(BytesEnd::new(element)))?;
    xml.write_event(Event::End(BytesEnd::new("testcase")))
}
