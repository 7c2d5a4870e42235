//! Command lines made from what the programs say of themselves, and a lab to try them on.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
};

use clap::Arg;
use tempfile::TempDir;

/// Arguments that a command must have although clap does not always want them: something else may stand in
/// their place.
const NEEDED: [(&str, &[&str]); 5] = [
    ("tsim submit", &["lab", "source", "destination", "ports"]),
    ("tsim check", &["lab", "policy"]),
    ("tsim matrix", &["source", "destination"]),
    ("tsim diff", &["source", "destination", "services"]),
    (
        "tsim what-if",
        &["router", "route", "source", "destination", "services"],
    ),
];

/// A command that does something by itself, e.g. `tsim lab up`.
pub(crate) struct Leaf {
    /// The words by which it is called, the program first.
    pub(crate) words: Vec<String>,
    pub(crate) command: clap::Command,
}

impl Leaf {
    pub(crate) fn name(&self) -> String {
        self.words.join(" ")
    }

    /// What it takes under the identifier `id`.
    pub(crate) fn argument(&self, id: &str) -> Option<&Arg> {
        self.command.get_arguments().find(|arg| arg.get_id() == id)
    }

    /// Whether [`Leaf::line`] has `arg`.
    pub(crate) fn needs(&self, arg: &Arg) -> bool {
        let name = self.name();
        let needed = NEEDED.iter().find(|(command, _)| *command == name);
        let listed = needed.is_some_and(|(_, ids)| ids.contains(&arg.get_id().as_str()));
        arg.is_required_set() || listed
    }

    /// The words that call it with everything that it must have, `value` saying what.
    pub(crate) fn line(&self, value: impl Fn(&Arg) -> String) -> Vec<String> {
        let mut line = self.words.clone();
        let required = self.command.get_arguments().filter(|arg| self.needs(arg));
        let (places, options): (Vec<_>, Vec<_>) = required.partition(|arg| arg.is_positional());
        for arg in options {
            line.push(format!("--{}", arg.get_long().unwrap()));
            line.push(value(arg));
        }
        line.extend(places.into_iter().map(value));
        line
    }
}

/// All commands of all programs that do something by themselves.
pub(crate) fn leaves() -> Vec<Leaf> {
    fn below(words: &[String], command: &clap::Command, leaves: &mut Vec<Leaf>) {
        let words = [words, &[command.get_name().to_owned()]].concat();
        if !command.has_subcommands() {
            leaves.push(Leaf {
                words,
                command: command.clone(),
            });
            return;
        }
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            below(&words, sub, leaves);
        }
    }
    let mut leaves = Vec::new();
    for mut program in tsim::cli::programs() {
        program.build();
        below(&[], &program, &mut leaves);
    }
    leaves
}

/// Where one of the programs is.
pub(crate) fn program(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_BIN_EXE_tsim"));
    let path = here.with_file_name(name);
    assert!(path.exists(), "{} was not built", path.display());
    path
}

/// One rule about the site's lab.
const POLICY: &str = r#"
version = 1
[[rule]]
name = "web"
from = "10.81.1.10"
to = "10.81.3.10"
services = "443"
must = "pass"
"#;

/// A registry of its own with the lab `small3`, which is taken down at the end.
pub(crate) struct Site {
    dir: TempDir,
    pub(crate) lab: String,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().display();
        let config = format!("registry_dir = \"{path}/registry\"\n");
        std::fs::write(dir.path().join("tsim.toml"), config).unwrap();
        let questions = "10.81.1.10 10.81.3.10 443\n";
        std::fs::write(dir.path().join("questions.txt"), questions).unwrap();
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        // The names of namespaces are the machine's: tests beside each other have labs of their own.
        static SITES: AtomicUsize = AtomicUsize::new(0);
        let number = SITES.fetch_add(1, Ordering::Relaxed);
        let lab = format!("c{}x{number}", std::process::id());
        let site = Self { dir, lab };
        let facts = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-fixtures/small3");
        let up = site.run(&["tsim", "lab", "up", &site.lab, "--facts", facts]);
        assert!(up.status.success(), "{up:?}");
        site
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("tsim.toml")
    }

    /// A file of this site: `questions.txt` or `policy.toml`.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs a command line with this site's configuration.
    pub(crate) fn run<S: AsRef<str>>(&self, line: &[S]) -> Output {
        let [name, rest @ ..] = line else {
            panic!("no command line is empty");
        };
        let mut command = Command::new(program(name.as_ref()));
        command.arg("--config").arg(self.config());
        command.args(rest.iter().map(AsRef::as_ref));
        command.output().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.run(&["tsim", "lab", "down", &self.lab, "--force"]);
    }
}
