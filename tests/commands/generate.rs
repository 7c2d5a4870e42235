//! Man pages without a fault, and completions in the shells themselves.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::support::{Site, leaves, program};

fn generated(what: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let output = Command::new(program("tsim"))
        .args(["generate", what])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    dir
}

#[test]
fn every_command_has_a_man_page_and_mandoc_finds_nothing_in_it() {
    let dir = generated("man");
    let pages: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for leaf in leaves() {
        let page = dir.path().join(format!("{}.1", leaf.words.join("-")));
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        for section in ["NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES", "EXIT STATUS"] {
            let head = format!(".SH {section}\n");
            assert!(text.contains(&head), "{} lacks {section}", page.display());
        }
    }
    let lint = Command::new("mandoc")
        .args(["-T", "lint"])
        .args(&pages)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&lint.stdout);
    assert!(lint.status.success() && said.is_empty(), "{said}");
}

/// What `shell` offers for `line`, the words of which are parted by blanks; the last one, which may
/// be empty, is completed.
fn offered(shell: &str, completions: &Path, site: &Site, line: &str) -> String {
    let script = match shell {
        "bash" => {
            r#"source "$1/bash/tsim"
            read -r -a COMP_WORDS <<<"$2"
            [[ $2 == *" " ]] && COMP_WORDS+=("")
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9
            _clap_complete_tsim tsim "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\n' "${COMPREPLY[@]}""#
        }
        // The completion system needs a terminal, which zsh makes for itself.
        "zsh" => {
            r#"zmodload zsh/zpty
            zpty shell zsh -f -i
            zpty -w shell "PS1=; fpath=($1/zsh \$fpath); autoload -Uz compinit; compinit -u -D"
            zpty -w shell 'setopt menu_complete; show() { zle complete-word; print -r -- "<""<$BUFFER>>" }'
            zpty -w shell "zle -N show; bindkey '^I' show; echo rea''dy"
            zpty -r shell text '*ready*'
            zpty -w -n shell "$2"$'\t'
            zpty -r shell text '*<<*>>*'
            print -r -- "$text""#
        }
        _ => {
            r#"source "$argv[1]/fish/tsim.fish"
            complete -C "$argv[2]""#
        }
    };
    let path = format!(
        "{}:{}",
        program("tsim").parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = Command::new(shell);
    command.env("PATH", path).env("TSIM_CONFIG", site.config());
    match shell {
        "bash" => command.args(["--norc", "-c", script, "bash"]),
        "zsh" => command.args(["-f", "-c", script, "zsh"]),
        _ => command.args(["--no-config", "-c", script]),
    };
    let output = command.arg(completions).arg(line).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn shells_offer_the_names_that_there_are_now() {
    let site = Site::new();
    let dir = generated("completions");
    let add = [
        "tsim",
        "host",
        "add",
        "--lab",
        &site.lab,
        "--router",
        "r1",
        "--address",
    ];
    let add = site.run(&[&add[..], &["10.81.1.77", "--name", "client7"]].concat());
    assert!(add.status.success(), "{add:?}");
    let asked = [
        "tsim",
        "submit",
        "quick",
        "--lab",
        &site.lab,
        "-s",
        "10.81.1.10",
        "-d",
    ];
    let asked = [
        &asked[..],
        &["10.81.3.10", "-P", "22", "--run-id", "change-4711"],
    ]
    .concat();
    let asked = site.run(&asked);
    assert!(asked.status.success(), "{asked:?}");

    let lab = &site.lab;
    for shell in ["bash", "zsh", "fish"] {
        for (line, wanted) in [
            ("tsim lab do".to_owned(), "down"),
            ("tsim trace --sou".to_owned(), "--source"),
            ("tsim lab status c".to_owned(), lab.as_str()),
            (format!("tsim quick --lab {lab} --routers r1,r"), "r1,r1"),
            (format!("tsim shell {lab} r"), "r1"),
            (format!("tsim host remove --lab {lab} cl"), "client7"),
            ("tsim watch ch".to_owned(), "change-4711"),
            (format!("tsim quick --lab {lab} -P htt"), "http"),
        ] {
            let offered = offered(shell, dir.path(), &site, &line);
            assert!(offered.contains(wanted), "{shell}: {line}: {offered:?}");
        }
    }
    let gone = site.run(&["tsim", "host", "remove", "--lab", lab, "client7"]);
    assert!(gone.status.success(), "{gone:?}");
}

#[test]
fn asking_for_completions_makes_no_registry() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("tsim.toml");
    let registry = dir.path().join("registry");
    fs::write(
        &config,
        format!("registry_dir = \"{}\"\n", registry.display()),
    )
    .unwrap();
    for line in ["watch", "host remove --lab x", "lab status"] {
        let output = Command::new(program("tsim"))
            .env("TSIM_CONFIG", &config)
            .env("TSIM_COMPLETE", "fish")
            .args(["--", "tsim"])
            .args(line.split(' '))
            .arg("")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(!registry.exists());
}
