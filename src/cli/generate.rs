//! `tsim generate`: man pages and completions, made from the description that parses the command
//! line. Packages ship them.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Command, ValueEnum, builder::Resettable};
use clap_complete::env::Shells;
use clap_mangen::Man;

use super::{Context, Exit, Failure, Run, complete::VARIABLE, exit::TABLE, programs};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A page for every program and command
    Man,
    /// Completions for bash, zsh and fish, below directories of these names
    Completions,
}

const EXAMPLES: &str = "Examples:
  tsim generate man ~/.local/share/man/man1
  tsim generate completions completions
  cp completions/bash/tsim ~/.local/share/bash-completion/completions/tsim
  cp completions/fish/tsim.fish ~/.config/fish/completions/tsim.fish
  cp completions/zsh/_tsim /usr/local/share/zsh/site-functions/_tsim";

/// Write man pages, or completions for bash, zsh and fish, into a directory
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Generate {
    /// What to write
    what: What,
    /// Where to; it is made if it is missing
    dir: PathBuf,
}

impl Run for Generate {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let dir = &self.dir;
        let failed = |error: io::Error| {
            Failure::cannot_run(format!("cannot write below {}: {error}", dir.display()))
        };
        let written = match self.what {
            What::Man => man_pages(dir),
            What::Completions => completions(dir),
        };
        let written = written.map_err(failed)?;
        context.print(&written, |out| {
            let mut paths = written.iter();
            paths.try_for_each(|path| writeln!(out, "{}", path.display()))
        })?;
        Ok(Exit::Ok)
    }
}

/// Of the man pages: when a command's text was last changed.
const DATE: &str = "2026-11-29";
/// Longest line of a man page's source, which mandoc(1) takes for legible.
const WIDTH: usize = 80;

/// Programs that are commands of `tsim`, too, and have their pages by themselves.
const TWICE: [&str; 2] = ["tsim-quick", "tsim-detailed"];

fn man_pages(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(dir)?;
    let mut written = Vec::new();
    for program in programs() {
        let twice = TWICE.contains(&program.get_name());
        let mut program = program.disable_help_subcommand(true);
        program.build();
        let own = if twice { Vec::new() } else { TWICE.to_vec() };
        pages(&program, dir, &own, &mut written)?;
    }
    Ok(written)
}

/// Writes the page of `command` and those of the commands below it, `left_out` excepted.
fn pages(
    command: &Command,
    dir: &Path,
    left_out: &[&str],
    written: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    if left_out.contains(&name) || command.is_hide_set() {
        return Ok(());
    }
    let text = page(command, name)?;
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, text)?;
    written.push(path);
    for below in command.get_subcommands() {
        pages(below, dir, left_out, written)?;
    }
    Ok(())
}

/// One page, as mandoc(1) has nothing to say about.
fn page(command: &Command, name: &str) -> io::Result<String> {
    let after = command.get_after_help().map(ToString::to_string);
    let plain = command.clone().after_help(Resettable::Reset);
    let page = Man::new(plain)
        .title(name.to_uppercase())
        .date(DATE)
        .source(format!("tsim {}", env!("CARGO_PKG_VERSION")))
        .manual("tsim");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let mut text = tidy(&String::from_utf8_lossy(&text));
    let after = after.unwrap_or_default();
    for section in after.split("\n\n") {
        write_section(&mut text, section);
    }
    if !text.contains(".SH EXIT STATUS\n") {
        text += ".SH EXIT STATUS\n";
        for (code, meaning) in TABLE {
            text += &format!(".TP\n{code}\n{}", filled(meaning));
        }
    }
    Ok(text)
}

/// A part of what stands below the options: lines under a heading as they are, or a paragraph.
fn write_section(text: &mut String, section: &str) {
    match section.split_once('\n') {
        Some((head, lines)) if head.ends_with(':') => {
            let head = match head.trim_end_matches(':') {
                "Example" | "Examples" => "EXAMPLES".to_owned(),
                head if head.starts_with("Exit codes") => "EXIT STATUS".to_owned(),
                head => head.to_uppercase(),
            };
            *text += &format!(".SH {head}\n.nf\n");
            for line in lines.lines() {
                let line = line.strip_prefix("  ").unwrap_or(line);
                *text += &format!("{}\n", escaped(line));
            }
            *text += ".fi\n";
        }
        _ if section.trim().is_empty() => {}
        _ => {
            let words: Vec<&str> = section.split_whitespace().collect();
            *text += &format!(".SH NOTES\n{}", filled(&words.join(" ")));
        }
    }
}

/// Text that roff takes for text: `-` that can be copied, no line that begins like a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

/// Text in lines of at most 80 bytes.
fn filled(text: &str) -> String {
    wrap(&escaped(text))
}

/// Breaks a line at blanks; roff fills lines anew.
fn wrap(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            lines += &line;
            lines.push('\n');
            // A word that comes to stand at the beginning is no request.
            line = match word.starts_with(['.', '\'']) {
                true => "\\&".to_owned(),
                false => String::new(),
            };
        } else if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines + &line + "\n"
}

/// What clap_mangen writes, without the breaks that another one makes needless.
fn tidy(page: &str) -> String {
    let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let beside = [at.checked_sub(1), Some(at + 1)];
        let mut beside = beside.into_iter().flatten().filter_map(|at| lines.get(at));
        if *line == ".br" && beside.any(|line| line.is_empty() || *line == ".sp") {
            continue;
        }
        match *line {
            "" => text += ".sp\n",
            line if line.starts_with('.') => text += &format!("{line}\n"),
            line => text += &wrap(line),
        }
    }
    text
}

fn completions(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let shells = Shells::builtins();
    for shell in ["bash", "zsh", "fish"] {
        let Some(completer) = shells.completer(shell) else {
            continue;
        };
        let dir = dir.join(shell);
        fs::create_dir_all(&dir)?;
        for program in programs() {
            let name = program.get_name();
            let file = match shell {
                "zsh" => format!("_{name}"),
                "fish" => format!("{name}.fish"),
                _ => name.to_owned(),
            };
            let mut text = Vec::new();
            completer.write_registration(VARIABLE, name, name, name, &mut text)?;
            if shell == "zsh" {
                text.extend(first_call(name).into_bytes());
            }
            let path = dir.join(file);
            fs::File::create(&path)?.write_all(&text)?;
            written.push(path);
        }
    }
    Ok(written)
}

/// zsh loads a file of its search path when it is called the first time, and takes it for the body
/// of the function: what only registers another one would leave the first Tab without an answer.
fn first_call(name: &str) -> String {
    let function = name.replace('-', "_");
    format!(
        "if [ \"$funcstack[1]\" = \"_{name}\" ]; then\n    \
         _clap_dynamic_completer_{function} \"$@\"\nfi\n"
    )
}
