//! `iptables -S` in the place of `iptables-save`.

use super::section::Section;

/// Whether the section shows `iptables -S` and not `iptables-save`.
pub(super) fn is_listing(section: &Section<'_>) -> bool {
    let has = |start: &str| section.body.iter().any(|(_, line)| line.starts_with(start));
    has("-P ") && !has("*")
}

/// `iptables -S`, which shows table filter only, as `iptables-save` would print it: one line more
/// in front.
pub(super) fn from_listing(section: &Section<'_>) -> String {
    let mut text = "*filter\n".to_owned();
    for (_, line) in &section.body {
        let words: Vec<&str> = line.split_whitespace().collect();
        let rule;
        let line = match words.iter().position(|word| *word == "-c") {
            // `iptables -S -v` counts within its rules.
            Some(at) if words.first() == Some(&"-A") && is_count(words.get(at + 1..at + 3)) => {
                let rest = words.get(at + 3..).unwrap_or_default();
                rule = [words.get(..at).unwrap_or_default(), rest]
                    .concat()
                    .join(" ");
                &rule
            }
            _ => *line,
        };
        match words[..] {
            ["-P", chain, policy, ..] => text.push_str(&format!(":{chain} {policy} [0:0]")),
            ["-N", chain, ..] => text.push_str(&format!(":{chain} - [0:0]")),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text + "COMMIT\n"
}

fn is_count(words: Option<&[&str]>) -> bool {
    words.is_some_and(|words| words.iter().all(|word| word.parse::<u64>().is_ok()))
}
