//! Elements of sets that stay as long as the lab does. Pure.
//!
//! The kernel takes elements with a timeout away when their time is over (ipset(8), nft(8)): a ban for
//! ten minutes would be missing in a lab that is up for eleven, and a blocked service would get through.
//! A lab answers for the facts as they were collected, and then the element was there. Rules that give an
//! element of a set another timeout (`update` of nft, `--exist` of iptables' SET) would do the same to it
//! with the packets of a job.

use crate::lab::topology::RulesetKind;

/// Instead of every timeout of nft: ten years, which no lab is up for.
const FOR_EVER: &str = "3650d";
/// The same for ipset: its element does not time out.
const NEVER: &str = "0";
/// Blocks of a table that have elements.
const SETS: [&str; 3] = ["set ", "map ", "meter "];

/// Whether a ruleset of this `text` may have elements that time out.
pub(super) fn may_end(kind: RulesetKind, text: &str) -> bool {
    let words: &[&str] = match kind {
        RulesetKind::Ipset => &["timeout "],
        RulesetKind::Nft => &["timeout ", "expires "],
        RulesetKind::Iptables | RulesetKind::Ip6tables => &["--add-set "],
    };
    words.iter().any(|word| text.contains(word))
}

/// Lets no element of the ruleset in these `lines` time out.
pub(super) fn lasting(kind: RulesetKind, lines: &mut [String]) {
    match kind {
        RulesetKind::Ipset => lines.iter_mut().for_each(of_ipset),
        RulesetKind::Nft => of_nft(lines),
        RulesetKind::Iptables | RulesetKind::Ip6tables => lines.iter_mut().for_each(of_iptables),
    }
}

/// `add SET ELEMENT timeout SECONDS`; what a set has for elements without one stays.
fn of_ipset(line: &mut String) {
    if line.starts_with("add ") && line.contains(" timeout ") {
        *line = unquoted(line, |part| without_end(part, NEVER));
    }
}

/// `-j SET --add-set SET src --exist [--timeout SECONDS]`; without, the set says for how long.
fn of_iptables(line: &mut String) {
    if line.contains("--add-set ") && line.contains(" --exist") {
        *line = unquoted(line, |part| {
            let mut words = part.split(' ');
            let mut kept: Vec<&str> = Vec::new();
            while let Some(word) = words.next() {
                match word {
                    "--timeout" => _ = words.next(),
                    "--exist" => kept.extend(["--exist", "--timeout", NEVER]),
                    _ => kept.push(word),
                }
            }
            kept.join(" ")
        });
    }
}

fn of_nft(lines: &mut [String]) {
    let mut depth = 0_usize;
    let mut within = false;
    for line in lines {
        let begins = depth == 1 && SETS.iter().any(|word| line.trim_start().starts_with(word));
        within |= begins;
        let (opened, closed) = braces(line);
        depth = (depth + opened).saturating_sub(closed);
        let updates = line.contains("update @");
        if (within || updates) && (line.contains("timeout ") || line.contains("expires ")) {
            *line = unquoted(line, |part| without_end(part, FOR_EVER));
        }
        within &= depth > 1;
    }
}

/// How many braces a line opens and closes.
fn braces(line: &str) -> (usize, usize) {
    let parts = line.split('"').step_by(2);
    parts.fold((0, 0), |(opened, closed), part| {
        let count = |brace| part.matches(brace).count();
        (opened + count('{'), closed + count('}'))
    })
}

/// Changes what stands outside quotes, which no listing has within others.
fn unquoted(line: &str, change: impl Fn(&str) -> String) -> String {
    let parts = line.split('"').enumerate();
    let changed = parts.map(|(number, part)| match number % 2 {
        0 => change(part),
        _ => part.to_owned(),
    });
    changed.collect::<Vec<_>>().join("\"")
}

/// Gives every `timeout` the value `timeout`, and takes away what is left of the time (`expires`).
fn without_end(text: &str, timeout: &str) -> String {
    let mut out = String::new();
    let mut option = "";
    for piece in text.split_inclusive([' ', '\t']) {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric());
        let (word, rest) = piece.split_at(end.unwrap_or(piece.len()));
        match option {
            "timeout" if is_duration(word) => out = out + timeout + rest,
            "expires" if is_duration(word) => {
                out.truncate(out.trim_end().len().saturating_sub(option.len()));
                out += rest;
            }
            _ => out += piece,
        }
        option = if rest.trim().is_empty() { word } else { "" };
    }
    out
}

/// `1d2h3m4s`, or seconds.
fn is_duration(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word
            .chars()
            .all(|c| c.is_ascii_digit() || "wdhms".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(kind: RulesetKind, text: &str) -> String {
        if !may_end(kind, text) {
            return text.to_owned();
        }
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lasting(kind, &mut lines);
        lines.join("\n")
    }

    #[test]
    fn elements_of_ipset_do_not_time_out() {
        for (line, want) in [
            (
                "create a hash:ip timeout 600",
                "create a hash:ip timeout 600",
            ),
            ("add a 10.0.0.1 timeout 4", "add a 10.0.0.1 timeout 0"),
            (
                "add a 10.0.0.1,tcp:80 timeout 4 packets 1 bytes 2 comment \"for timeout 5 s\"",
                "add a 10.0.0.1,tcp:80 timeout 0 packets 1 bytes 2 comment \"for timeout 5 s\"",
            ),
            ("add a 10.0.0.1", "add a 10.0.0.1"),
        ] {
            assert_eq!(changed(RulesetKind::Ipset, line), want);
        }
    }

    #[test]
    fn rules_of_iptables_give_no_element_an_end() {
        for (rule, want) in [
            (
                "-A f -j SET --add-set a src --exist --timeout 5",
                "-A f -j SET --add-set a src --exist --timeout 0",
            ),
            (
                "-A f -j SET --add-set a src --timeout 5 --exist",
                "-A f -j SET --add-set a src --exist --timeout 0",
            ),
            (
                "-A f -j SET --add-set a src --exist",
                "-A f -j SET --add-set a src --exist --timeout 0",
            ),
            (
                "-A f -j SET --add-set a src --timeout 5",
                "-A f -j SET --add-set a src --timeout 5",
            ),
            (
                "-A f -m comment --comment \"--add-set --exist --timeout 5\" -j DROP",
                "-A f -m comment --comment \"--add-set --exist --timeout 5\" -j DROP",
            ),
        ] {
            assert_eq!(changed(RulesetKind::Iptables, rule), want);
        }
    }

    #[test]
    fn elements_of_nft_do_not_time_out_by_themselves_or_by_rules() {
        let text = "table ip x {\n\tset a {\n\t\ttype ipv4_addr\n\t\tflags dynamic,timeout\n\
            \t\ttimeout 1h30m\n\t\tgc-interval 5s\n\
            \t\telements = { 10.0.0.1 timeout 4s expires 3s, 10.0.0.2 expires 3s,\n\
            \t\t\t     10.0.0.3 timeout 1d comment \"timeout 5s {\" }\n\t}\n\
            \tmap m { type ipv4_addr : mark; flags timeout; elements = { 10.0.0.1 timeout 1s expires 900ms : 0x1 }; }\n\
            \tchain c {\n\t\tupdate @a { ip saddr timeout 1m }\n\t\tadd @a { ip saddr timeout 1m }\n\t}\n}";
        let want = "table ip x {\n\tset a {\n\t\ttype ipv4_addr\n\t\tflags dynamic,timeout\n\
            \t\ttimeout 3650d\n\t\tgc-interval 5s\n\
            \t\telements = { 10.0.0.1 timeout 3650d , 10.0.0.2 ,\n\
            \t\t\t     10.0.0.3 timeout 3650d comment \"timeout 5s {\" }\n\t}\n\
            \tmap m { type ipv4_addr : mark; flags timeout; elements = { 10.0.0.1 timeout 3650d  : 0x1 }; }\n\
            \tchain c {\n\t\tupdate @a { ip saddr timeout 3650d }\n\t\tadd @a { ip saddr timeout 1m }\n\t}\n}";
        assert_eq!(changed(RulesetKind::Nft, text), want);
    }
}
