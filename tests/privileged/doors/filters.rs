//! Rulesets with lines that no saved ruleset has: they are named, change nothing, and the rest is
//! loaded.

use std::{fs, path::PathBuf};

use tsim::lab::{Up, UpOptions, topology::Severity};

use crate::lab::{Place, router_name, tool};

/// A lab of one router `r`, and a file outside it that nothing may read or change.
struct Stranger {
    place: Place,
    decoy: PathBuf,
}

const SECRET: &str = "root:$y$secret:20000:0:99999:7:::\n";

impl Stranger {
    fn new() -> Self {
        let place = Place::new();
        let decoy = place.dir.path().join("decoy");
        fs::write(&decoy, SECRET).unwrap();
        Self { place, decoy }
    }

    /// Brings the lab up with `text`, in which DECOY is the decoy's path, as the ruleset `key`.
    fn up(&self, key: &str, text: &str, options: UpOptions) -> Up {
        let facts = self
            .place
            .facts(&[("r", &format!("\"{key}\": {{\"file\": \"ruleset\"}}"))]);
        let text = text.replace("DECOY", &self.decoy.display().to_string());
        fs::write(facts.join("ruleset"), text).unwrap();
        self.place.up_with(&facts, options).unwrap()
    }

    fn saved(&self, name: &str, arguments: &[&str]) -> String {
        tool(&self.place.router("r"), name, arguments)
    }

    /// The lines that were left out are `lines`, all of them said to matter; the decoy is as it was
    /// and its content in no warning.
    fn assert_left_out(&self, up: &Up, lines: &[usize]) {
        let warnings = &up.lab.warnings;
        let found: Vec<_> = warnings.iter().map(|w| w.origin.line).collect();
        assert_eq!(found, lines, "{warnings:#?}");
        assert!(warnings.iter().all(|w| w.origin.file.ends_with("ruleset")));
        let matters = |w: &tsim::lab::topology::Warning| {
            let omission = w.omission.as_ref();
            w.severity == Severity::Warning && omission.is_some_and(|o| o.kind.is_of_ruleset())
        };
        assert!(warnings.iter().all(matters), "{warnings:#?}");
        assert!(up.lab.router(&router_name("r")).unwrap().ruleset_incomplete);
        assert!(!format!("{warnings:?}").contains("secret"), "{warnings:#?}");
        assert_eq!(fs::read_to_string(&self.decoy).unwrap(), SECRET);
    }
}

#[test]
fn ipset_writes_no_file_and_does_not_end_early() {
    let stranger = Stranger::new();
    let text = "create a hash:ip\nadd a 10.0.0.1\nsave -file DECOY\nlist -f DECOY\nquit\n\
        add a 10.0.0.2 -file DECOY\nadd a 10.0.0.3\n";
    let up = stranger.up("ipset", text, UpOptions::default());
    stranger.assert_left_out(&up, &[3, 4, 5, 6]);
    let saved = stranger.saved("ipset", &["save"]);
    assert!(
        saved.contains("add a 10.0.0.1") && saved.contains("add a 10.0.0.3"),
        "{saved}"
    );
    assert!(!saved.contains("10.0.0.2"), "{saved}");
}

#[test]
fn nft_reads_no_file_and_flushes_nothing() {
    let stranger = Stranger::new();
    let table = "table ip x {\n\tchain c {\n\t\ttype filter hook forward priority 0; policy drop;\n\
        \t\ttcp dport 22 accept\n\t}\n}\n";
    let text = format!(
        "{table}include \"DECOY\"\nflush ruleset\nmonitor\n{}",
        table
            .replace("ip x", "ip6 y")
            .replace("\t\ttcp", "\t\tinclude \"DECOY\"\n\t\ttcp")
    );
    let up = stranger.up("nft", &text, UpOptions::default());
    stranger.assert_left_out(&up, &[7, 8, 9, 13]);
    let saved = stranger.saved("nft", &["list", "ruleset"]);
    assert_eq!(saved.matches("tcp dport 22 accept").count(), 2, "{saved}");
    assert_eq!(saved.matches("policy drop").count(), 2, "{saved}");
}

/// `save` is what shows the rules of the variant that `options` choose.
fn assert_iptables_runs_nothing(options: UpOptions, save: &str) {
    let stranger = Stranger::new();
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD --modprobe=DECOY -m nosuch -j ACCEPT\n\
        -A FORWARD -p tcp --help\n-F FORWARD\n-A FORWARD -p tcp -m tcp --dport 22 -j ACCEPT\n\
        COMMIT\n*broute\n:X DROP [0:0]\nCOMMIT\n*mangle\n:FORWARD ACCEPT [0:0]\n\
        -A FORWARD -p tcp -m tcp --dport 23 -j ACCEPT\nCOMMIT\n*raw\n:OUTPUT ACCEPT [0:0]\n";
    let up = stranger.up("iptables", text, options);
    stranger.assert_left_out(&up, &[3, 4, 5, 8, 15]);
    let saved = stranger.saved(save, &[]);
    assert!(saved.contains(":FORWARD DROP"), "{saved}");
    assert!(
        saved.contains("--dport 22") && saved.contains("--dport 23"),
        "{saved}"
    );
}

#[test]
fn iptables_runs_nothing_and_one_bad_table_leaves_the_others() {
    assert_iptables_runs_nothing(UpOptions::default(), "iptables-nft-save");
}

#[test]
fn iptables_legacy_runs_nothing_and_one_bad_table_leaves_the_others() {
    let options = UpOptions {
        legacy: true,
        ..UpOptions::default()
    };
    assert_iptables_runs_nothing(options, "iptables-legacy-save");
}

#[test]
fn one_bad_nft_table_leaves_the_others() {
    let stranger = Stranger::new();
    let good = |name: &str| format!("table ip {name} {{\n\tchain c {{\n\t\taccept\n\t}}\n}}\n");
    // Braces that do not match; a property that no chain has; one that a set lacks.
    let text = format!(
        "table ip a {{\n\tchain c {{\n\t\taccept\n\t}}\n{}\
        table ip b {{\n\tchain c : d {{\n\t\taccept\n\t}}\n}}\n{}",
        good("x"),
        good("y")
    );
    let up = stranger.up("nft", &text, UpOptions::default());
    stranger.assert_left_out(&up, &[1, 11]);
    let saved = stranger.saved("nft", &["list", "ruleset"]);
    assert!(
        saved.contains("table ip x") && saved.contains("table ip y"),
        "{saved}"
    );
    assert!(!saved.contains("table ip a"), "{saved}");
}

#[test]
fn a_name_in_the_place_of_an_address_is_left_out_before_the_loader_sees_it() {
    let stranger = Stranger::new();
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s gw.example.org -j ACCEPT\n\
        -A FORWARD -m conntrack --ctorigsrc gw.example.org -j ACCEPT\nCOMMIT\n";
    let up = stranger.up("iptables", text, UpOptions::default());
    // The loader, which would look the name up, never sees it.
    stranger.assert_left_out(&up, &[3, 4]);
    for warning in &up.lab.warnings {
        assert!(
            warning.message.contains("`gw.example.org` is no address"),
            "{warning}"
        );
    }
}

#[test]
fn characters_that_act_on_a_terminal_are_written_out() {
    let stranger = Stranger::new();
    let text = "table ip x {\n\tchain c {\n\t\taccept comment \"\u{1b}[2J\"\n\t}\n}\n\u{202e}x\n";
    let up = stranger.up("nft", text, UpOptions::default());
    stranger.assert_left_out(&up, &[3, 6]);
    let all = format!("{:?}", up.lab.warnings);
    assert!(all.contains("u{1b}") && all.contains("u{202e}"), "{all}");
    let raw = |c: char| c.is_control() || c == '\u{202e}';
    assert!(up.lab.warnings.iter().all(|w| !w.to_string().contains(raw)));
}
