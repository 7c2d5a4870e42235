//! What `--help` must have.

use std::process::Command;

use crate::support::{leaves, program};

#[test]
fn every_help_has_examples_that_call_the_command_itself() {
    for leaf in leaves() {
        let output = Command::new(program(&leaf.words[0]))
            .args(&leaf.words[1..])
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        let (_, examples) = help
            .split_once("Example")
            .unwrap_or_else(|| panic!("{} --help has no examples", leaf.name()));
        let own = format!("  {}", leaf.name());
        let either = own
            .replace("tsim quick", "tsim-quick")
            .replace("tsim detailed", "tsim-detailed");
        let shown = examples
            .lines()
            .any(|line| line.contains(&own[2..]) || line.starts_with(&either));
        assert!(
            shown,
            "{} is in none of its examples: {examples}",
            leaf.name()
        );
    }
}
