use std::io::Write as _;

use super::*;
use crate::{
    bulk::document::{DocumentSection, Grid, Item, Outcome},
    run::report::Verdict,
};

fn sample() -> Document {
    let item = |what: &str, answer: &[&str]| Item {
        what: what.to_owned(),
        outcome: Outcome::Bad,
        answer: answer.iter().map(|line| (*line).to_owned()).collect(),
    };
    let section = |name: &str, outcome, items| DocumentSection {
        name: name.to_owned(),
        outcome,
        about: vec![("owner", "net|ops @all".to_owned())],
        questions: 3,
        items,
    };
    Document {
        kind: "check",
        title: "Policy p.toml on lab l".to_owned(),
        words: ["CONTRADICTED", "UNKNOWN", "as stated"],
        about: vec![("lab", "l (identity 0123456789abcdef)".to_owned())],
        summary: "1 rule contradicted, 1 unknown, 1 as stated".to_owned(),
        sections: vec![
            section(
                "office <script>alert(1)</script>",
                Outcome::Bad,
                vec![item(
                    "10.0.0.1 → 10.0.0.2 22/tcp",
                    &[
                        "must pass, stops first at fw: dropped by \"x\"\u{1b}[31m & y",
                        "way fw a>b",
                    ],
                )],
            ),
            section(
                "lab",
                Outcome::Open,
                vec![item("10.0.0.1 → 10.0.0.3 80/tcp", &["is not known"])],
            ),
            section("printers", Outcome::Good, Vec::new()),
        ],
        grid: Some(Grid {
            columns: vec!["22/tcp".to_owned(), "ping".to_owned()],
            rows: vec![(
                "10.0.0.1".to_owned(),
                "10.0.0.2".to_owned(),
                vec![Some(Verdict::No), None],
            )],
        }),
        warnings: vec!["fw: \u{202e}odd".to_owned()],
    }
}

fn written(format: Format) -> String {
    let layout = Layout {
        width: 100,
        colour: false,
    };
    let mut out = Vec::new();
    write(&mut out, &sample(), format, layout).unwrap();
    String::from_utf8(out).unwrap()
}

/// Compares with the golden file, or writes it where TSIM_GOLDEN is set, to be read and committed.
fn golden(format: Format, name: &str) {
    let path = std::path::Path::new("src/bulk/render/golden").join(name);
    let found = written(format);
    if std::env::var_os("TSIM_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, wanted, "{name}");
}

#[test]
fn every_format_is_as_its_golden_file() {
    golden(Format::Text, "check.txt");
    golden(Format::Markdown, "check.md");
    golden(Format::Junit, "check.xml");
    golden(Format::Html, "check.html");
}

#[test]
fn what_facts_say_is_harmless_in_every_format() {
    for format in [Format::Text, Format::Markdown, Format::Junit, Format::Html] {
        let text = written(format);
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{202e}'),
            "{format}"
        );
        if format != Format::Text {
            assert!(!text.contains("<script>alert"), "{format}");
        }
    }
    let markdown = written(Format::Markdown);
    assert!(
        !markdown.contains("@all") && !markdown.contains("net|ops"),
        "{markdown}"
    );
}

#[test]
fn junit_is_xml_and_counts_what_it_has() {
    let text = written(Format::Junit);
    let mut reader = quick_xml::Reader::from_str(&text);
    let (mut cases, mut failures, mut errors) = (0, 0, 0);
    loop {
        use quick_xml::events::Event;
        match reader.read_event().unwrap() {
            Event::Eof => break,
            Event::Start(tag) | Event::Empty(tag) => match tag.name().as_ref() {
                "testcase" => cases += 1,
                "failure" => failures += 1,
                "error" => errors += 1,
                _ => {}
            },
            _ => {}
        }
    }
    assert_eq!((cases, failures, errors), (3, 1, 1));
    assert!(
        text.contains("tests=\"3\" failures=\"1\" errors=\"1\""),
        "{text}"
    );
}

#[test]
fn formats_have_names_and_endings() {
    for (name, format) in Format::ALL {
        assert_eq!(name.parse(), Ok(format));
        assert_eq!(format.to_string(), name);
    }
    assert_eq!(Format::of_file("out/report.xml"), Some(Format::Junit));
    assert_eq!(Format::of_file("report"), None);
    assert!("pdf".parse::<Format>().unwrap_err().contains("junit"));
}

/// By xmllint(1), which knows nothing of how we write it.
#[test]
fn junit_is_as_its_schema_says_and_the_schema_says_something() {
    let golden = written(Format::Junit);
    let mut nothing = sample();
    nothing.sections.clear();
    nothing.about.clear();
    nothing.warnings.clear();
    let mut out = Vec::new();
    let layout = Layout {
        width: 100,
        colour: false,
    };
    write(&mut out, &nothing, Format::Junit, layout).unwrap();
    let nothing = String::from_utf8(out).unwrap();
    for (text, valid) in [
        (golden.clone(), true),
        (nothing, true),
        (golden.replacen("tests=\"3\"", "tests=\"three\"", 1), false),
        (golden.replacen("classname", "class", 1), false),
        (golden.replace("failure", "flop"), false),
        (
            golden.replacen("<properties>", "<properties><other/>", 1),
            false,
        ),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut xmllint = std::process::Command::new("xmllint");
        xmllint.args(["--noout", "--nonet", "--schema", "docs/junit.xsd"]);
        let output = xmllint.arg(file.path()).output().unwrap();
        assert_eq!(output.status.success(), valid, "{output:?}\n{text}");
    }
}
