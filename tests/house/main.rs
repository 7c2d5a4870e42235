//! The state of the source in figures: how much there is, what stands twice, what runs in circles.
//!
//! ```text
//! cargo test --test house -- --nocapture
//! ```
//!
//! prints every figure with the places behind it. The test fails where a figure is above its limit in
//! [`LIMITS`]; a change that lowers a figure lowers its limit with it, so that it does not rise again.
//! Test code is left out: modules under `#[cfg(test)]`, and files whose name ends with `tests.rs`.

#![allow(clippy::print_stdout, clippy::panic)]

mod circles;
mod documents;
mod repeated;
mod source;

use std::path::Path;

use source::Source;

/// Figures, and how high each may be. Function lengths are in lines from the signature to the last brace.
const LIMITS: Limits = Limits {
    longest_function: 60,
    names_twice: 1,
    circles: 0,
    repeated_runs: 0,
};

struct Limits {
    longest_function: usize,
    names_twice: usize,
    circles: usize,
    repeated_runs: usize,
}

#[test]
fn no_figure_is_above_its_limit() {
    let source = source();
    println!("lines of code          {}", source.code_lines());
    println!("public items           {}", source.public_items());

    let functions = source.longest_functions();
    for (lines, place) in functions.iter().take(5) {
        println!("function of {lines} lines: {place}");
    }
    let twice = source.names_defined_twice();
    println!("names defined twice    {}", twice.len());
    for (name, files) in &twice {
        println!("    {name}: {}", files.join(", "));
    }
    let circles = circles::among(&source);
    println!("import circles         {}", circles.len());
    for circle in &circles {
        println!("    {}", circle.join(" "));
    }
    let repeated = repeated::runs(&source);
    println!("repeated runs          {}", repeated.len());
    for run in &repeated {
        println!("    {run}");
    }

    let longest = functions.first().map_or(0, |(lines, _)| *lines);
    let above: Vec<String> = [
        ("longest function", longest, LIMITS.longest_function),
        ("names defined twice", twice.len(), LIMITS.names_twice),
        ("import circles", circles.len(), LIMITS.circles),
        ("repeated runs", repeated.len(), LIMITS.repeated_runs),
    ]
    .into_iter()
    .filter(|(_, figure, limit)| figure > limit)
    .map(|(what, figure, limit)| format!("{what}: {figure}, at most {limit}"))
    .collect();
    assert!(above.is_empty(), "{}", above.join("; "));
}

#[test]
fn the_architecture_names_files_that_there_are() {
    let missing = documents::named_and_missing(root(), &source()).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        missing.is_empty(),
        "docs/ARCHITECTURE.md names {}",
        missing.join(", ")
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source() -> Source {
    Source::read(root()).unwrap_or_else(|e| panic!("{e}"))
}
