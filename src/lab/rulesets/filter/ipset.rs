//! What `ipset save` writes: `create` and `add` lines.
//!
//! Everything else that `ipset restore` takes is left out: `save` and `list` write files where they
//! are told to (`-file`), `quit` ends the tool in silence, `flush` and `destroy` undo what stands
//! before. The options of ipset(8) (`-file`, `-exist`, `-output` …) may stand anywhere in a line, so
//! no word may begin with a dash.

use std::collections::BTreeMap;

use super::{LeftOut, address::is_numeric, names_no_address, unfit};

/// ipset reads lines into 1,024 bytes (`ipset_parse_stream` in lib/ipset.c) and takes what is
/// behind for another line.
const MOST_BYTES: usize = 1000;

/// Options of `create` whose values are addresses, which ipset would look up.
const ADDRESSES: [&str; 5] = ["range", "from", "to", "netmask", "bitmask"];

pub(super) fn refused(lines: &[&str]) -> Vec<LeftOut> {
    // The type of each set says what its elements are made of.
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut refused = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match check(text, &mut types) {
            Ok(()) => {}
            Err(reason) => refused.push(LeftOut::line(at, reason)),
        }
    }
    refused
}

fn check<'a>(line: &'a str, types: &mut BTreeMap<&'a str, &'a str>) -> Result<(), String> {
    if let Some(reason) = unfit(line, MOST_BYTES) {
        return Err(reason);
    }
    let words = words(line)?;
    if let Some(option) = words.iter().find(|w| !w.quoted && w.text.starts_with('-')) {
        return Err(format!("`{}` is an option of the tool", option.text));
    }
    let text = |at: usize| words.get(at).map(|word| word.text);
    match (text(0), text(1), text(2)) {
        (Some("create"), Some(name), Some(kind)) => {
            types.insert(name, kind);
            let pairs = words.iter().zip(words.iter().skip(1)).skip(3);
            let is_name = |(option, value): &(&Word<'_>, &Word<'_>)| {
                ADDRESSES.contains(&option.text) && !is_numeric(value.text)
            };
            let found = pairs.into_iter().find(is_name);
            found.map_or(Ok(()), |(_, value)| Err(names_no_address(value.text)))
        }
        (Some("add"), Some(name), Some(element)) => {
            let kind = types.get(name).copied().unwrap_or_default();
            check_element(kind, element)
        }
        _ => Err("`ipset save` writes `create` and `add` lines only".to_owned()),
    }
}

/// Parts of an element that are addresses must not be names.
fn check_element(kind: &str, element: &str) -> Result<(), String> {
    let Some((_, parts)) = kind.split_once(':') else {
        return Ok(());
    };
    // A range of addresses has no comma, so the parts can be counted.
    for (part, value) in parts.split(',').zip(element.split(',')) {
        if matches!(part, "ip" | "net") && !is_numeric(value) {
            return Err(names_no_address(value));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word<'a> {
    text: &'a str,
    quoted: bool,
}

/// Cuts `line` as ipset does: at blanks, `"` around what has some.
fn words(line: &str) -> Result<Vec<Word<'_>>, String> {
    let open = || "a quote stays open, or stands within a word".to_owned();
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (text, quoted, after) = match rest.strip_prefix('"') {
            Some(inner) => {
                let (text, after) = inner.split_once('"').ok_or_else(open)?;
                (text, true, after)
            }
            None => {
                let (text, after) = rest.split_at(rest.find([' ', '\t']).unwrap_or(rest.len()));
                (text, false, after)
            }
        };
        let ends = after.is_empty() || after.starts_with([' ', '\t']);
        if !ends || (!quoted && text.contains(['"', '\\'])) || text.contains('\\') {
            return Err(open());
        }
        words.push(Word { text, quoted });
        rest = after.trim_start_matches([' ', '\t']);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use crate::lab::{
        rulesets::filter::sift,
        topology::{Clock, RulesetKind},
    };

    fn left(text: &str) -> Vec<(usize, String)> {
        let sifted = sift(RulesetKind::Ipset, text, Clock::UTC);
        let out = sifted.left_out.into_iter();
        out.map(|out| (out.first, out.reason)).collect()
    }

    #[test]
    fn what_ipset_saves_is_let_through() {
        let text = "create a hash:ip family inet hashsize 1024 maxelem 65536 comment\n\
            add a 10.0.0.1 comment \"the - first\"\nadd a 10.0.0.2-10.0.0.9\n\
            create n hash:net,port,net family inet6 hashsize 64 maxelem 9 timeout 0 counters\n\
            add n 2001:db8::/32,tcp:http,::/0 timeout 3 packets 1 bytes 2 nomatch\n\
            create b bitmap:ip range 10.0.0.0-10.0.0.255\nadd b 10.0.0.7\n\
            create p bitmap:port range 0-1024\nadd p 22\n\
            create i hash:net,iface family inet\nadd i 10.0.0.0/8,physdev:eth0.7\n\
            create l list:set size 8\nadd l a\ncreate m hash:mac\nadd m 02:00:00:00:00:01\n";
        assert_eq!(left(text), []);
    }

    #[test]
    fn what_writes_reads_or_ends_is_left_out() {
        for line in [
            "save -file /etc/shadow",
            "list -f /etc/shadow",
            "quit",
            "flush",
            "destroy",
            "swap a b",
            "create a hash:ip -file /etc/shadow",
            "add a 10.0.0.1 -f /etc/shadow",
            "-exist add a 10.0.0.1",
            "create",
            "add a \"10.0.0.1",
            "add a 10.0.0.1\u{1b}[2J",
        ] {
            let text = format!("create a hash:ip\n{line}\nadd a 10.0.0.2\n");
            let left = left(&text);
            assert_eq!(left.len(), 1, "{line}: {left:?}");
            assert_eq!(left[0].0, 1, "{line}");
        }
    }

    #[test]
    fn names_are_not_looked_up() {
        let text = "create a hash:ip,port\nadd a gw.example.org,tcp:80\nadd a 10.0.0.1,tcp:http\n\
            create b bitmap:ip range gw.example.org\n";
        let left = left(text);
        assert_eq!(left.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 3]);
        assert!(left[0].1.contains("`gw.example.org`"), "{}", left[0].1);
    }

    #[test]
    fn a_line_that_the_tool_would_cut_is_left_out() {
        let text = format!("create a hash:ip\nadd a 10.0.0.1{}quit\n", " ".repeat(1010));
        assert_eq!(left(&text).len(), 1);
    }
}
