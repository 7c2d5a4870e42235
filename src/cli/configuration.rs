//! `tsim config`: which configuration is in force, and what is wrong with it.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use serde::Serialize;
use toml::Value;

use super::{Context, Exit, Failure, Run};
use crate::config::{
    Lines, Setting,
    check::{ConfigFinding, Grade, check},
};

/// Show the configuration that is in force, and check it
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tsim config show --origin\n  tsim config check")]
pub(super) struct Configuration {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    Show(ConfigShow),
    Check(ConfigCheck),
}

impl Run for Configuration {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.command {
            ConfigCommand::Show(args) => args.run(context),
            ConfigCommand::Check(args) => args.run(context),
        }
    }
}

/// The lines of the file that the configuration was read from.
fn lines(context: &Context) -> Result<Lines, Failure> {
    match &context.config.file {
        Some(file) => Ok(Lines::of(&fs::read_to_string(file)?)),
        None => Ok(Lines::default()),
    }
}

const SHOW_EXAMPLES: &str = "Examples:
  tsim config show
  tsim config show --origin
  tsim config show --config trial.toml --json
  tsimd --print-config                          explains every key

The file is the one of --config, else of the environment variable TSIM_CONFIG, else an ordinary \
user's ~/.config/tsim/tsim.toml, else /etc/tsim/tsim.toml.";

/// Print every key with the value that is in force, as a configuration file
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct ConfigShow {
    /// Say of each value whether it is the default or where it is set
    #[arg(long)]
    origin: bool,
}

#[derive(Serialize)]
struct Settings {
    file: Option<PathBuf>,
    settings: Vec<Setting>,
}

impl Run for ConfigShow {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let lines = lines(context)?;
        let shown = Settings {
            file: context.config.file.clone(),
            settings: context.config.settings(&lines),
        };
        context.print(&shown, |out| write_settings(out, &shown, self.origin))?;
        Ok(Exit::Ok)
    }
}

/// As TOML: tables come after the keys that are in none.
fn write_settings(out: &mut dyn Write, shown: &Settings, origin: bool) -> io::Result<()> {
    let file = shown.file.as_ref().map(|file| file.display().to_string());
    let file = file.unwrap_or_else(|| "no file; all are defaults".to_owned());
    writeln!(out, "# {file}")?;
    let mut table = "";
    for setting in &shown.settings {
        let (of, key) = setting.key.rsplit_once('.').unwrap_or(("", &setting.key));
        if of != table {
            writeln!(out, "\n[{of}]")?;
            table = of;
        }
        let text = match &setting.value {
            Some(value) => format!("{key} = {}", written(value)),
            None => format!("#{key} ="),
        };
        match (origin, setting.line) {
            (false, _) => writeln!(out, "{text}")?,
            (true, Some(line)) => writeln!(out, "{text:<44}  # {file}:{line}")?,
            (true, None) => writeln!(out, "{text:<44}  # default")?,
        }
    }
    Ok(())
}

/// A value as TOML has it on one line.
fn written(value: &Value) -> String {
    match value {
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(written).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}

const CHECK_EXAMPLES: &str = "Examples:
  tsim config check
  tsim config check --config new.toml && cp new.toml /etc/tsim/tsim.toml

Exit code 2 means that something would be refused; warnings alone are 0. Nothing is changed.";

/// Say what in the configuration would be refused or would not be as it seems, with its line
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
struct ConfigCheck {}

#[derive(Serialize)]
struct Findings {
    file: Option<PathBuf>,
    findings: Vec<ConfigFinding>,
}

impl Run for ConfigCheck {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let checked = Findings {
            findings: check(&context.config, &lines(context)?),
            file: context.config.file.clone(),
        };
        context.print(&checked, |out| write_findings(out, &checked))?;
        let bad = checked.findings.iter();
        Ok(match bad.filter(|f| f.grade == Grade::Error).count() {
            0 => Exit::Ok,
            _ => Exit::Usage,
        })
    }
}

fn write_findings(out: &mut dyn Write, checked: &Findings) -> io::Result<()> {
    let file = checked.file.as_ref().map(|file| file.display().to_string());
    let file = file.unwrap_or_else(|| "defaults".to_owned());
    for finding in &checked.findings {
        let word = match finding.grade {
            Grade::Error => "error",
            Grade::Warning => "warning",
        };
        let line = match finding.line {
            Some(line) => format!("{file}:{line}"),
            None => "default".to_owned(),
        };
        writeln!(out, "{word}: {line}: {}: {}", finding.key, finding.what)?;
    }
    let errors = checked.findings.iter();
    let errors = errors.filter(|f| f.grade == Grade::Error).count();
    let warnings = checked.findings.len() - errors;
    match (errors, warnings) {
        (0, 0) => writeln!(out, "{file}: nothing is wrong"),
        _ => writeln!(out, "{file}: {errors} errors, {warnings} warnings"),
    }
}
