//! What `iptables-save` and `ip6tables-save` write: tables, chains with their policies, rules.
//!
//! A rule is passed to iptables(8)'s own command line, so its words are cut as iptables-restore
//! cuts them (`add_param_to_argv` in iptables/xshared.c) and looked at: a saved rule has the options
//! in [`SHORT`] and long ones of its matches and target, and no other of the options that belong to
//! iptables itself, of which `--modprobe` runs a program and `--help` ends the tool in silence.

use std::borrow::Cow;

use super::{BY_KERNELS_ZONE, LeftOut, address::is_numeric, names_no_address, unfit};
use crate::lab::topology::Clock;

/// iptables-restore reads lines into 10,240 bytes and takes what is behind for another line.
const MOST_BYTES: usize = 10_000;

/// Tables of both families that a saved ruleset can have.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// Policies of built-in chains, and what chains of one's own have in their place.
const POLICIES: [&str; 4] = ["ACCEPT", "DROP", "QUEUE", "-"];

/// The short options of saved rules.
const SHORT: [&str; 10] = ["-A", "-s", "-d", "-p", "-i", "-o", "-f", "-m", "-j", "-g"];

/// Long options of iptables itself; getopt_long(3) takes any beginning for the whole.
const OWN: [&str; 29] = [
    "append",
    "delete",
    "check",
    "insert",
    "replace",
    "list",
    "list-rules",
    "flush",
    "zero",
    "new-chain",
    "delete-chain",
    "rename-chain",
    "policy",
    "source",
    "destination",
    "protocol",
    "in-interface",
    "jump",
    "goto",
    "table",
    "match",
    "numeric",
    "out-interface",
    "verbose",
    "version",
    "help",
    "line-numbers",
    "modprobe",
    "set-counters",
];

/// Those in [`OWN`] that say what a rule matches and does; generators write them.
const LONG: [(&str, &str); 8] = [
    ("--source", "-s"),
    ("--destination", "-d"),
    ("--protocol", "-p"),
    ("--in-interface", "-i"),
    ("--out-interface", "-o"),
    ("--match", "-m"),
    ("--jump", "-j"),
    ("--goto", "-g"),
];

/// Options of extensions that are beginnings of those in [`OWN`]: recent, policy.
const NOT_OWN: [&str; 3] = ["set", "pol", "proto"];

/// Options whose value is any text.
const TEXTS: [&str; 6] = [
    "--comment",
    "--log-prefix",
    "--nflog-prefix",
    "--ulog-prefix",
    "--string",
    "--hex-string",
];

/// Options whose value is an address, which iptables would look up.
const ADDRESSES: [&str; 20] = [
    "-s",
    "-d",
    "--src-range",
    "--dst-range",
    "--ctorigsrc",
    "--ctorigdst",
    "--ctreplsrc",
    "--ctrepldst",
    "--tunnel-src",
    "--tunnel-dst",
    "--vaddr",
    "--to",
    "--to-source",
    "--to-destination",
    "--on-ip",
    "--gateway",
    "--mask",
    "--rt-0-addrs",
    "--dst-opts-addr",
    "--mnp",
];

/// Targets that act outside the network namespace: on the machine's LEDs, in its sysfs, in its
/// audit log.
const OUTSIDE: [&str; 3] = ["LED", "IDLETIMER", "AUDIT"];

pub(super) fn refused(lines: &[&str], clock: Clock) -> Vec<LeftOut> {
    let mut refused = Vec::new();
    let mut table: Option<Table> = None;
    for (at, line) in lines.iter().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            refused.extend(table.take().map(|open| open.not_committed(at - 1)));
            let name = name.trim_end();
            table = Some(Table {
                head: at,
                known: TABLES.contains(&name),
            });
        } else if line.trim_end() == "COMMIT" {
            match table.take() {
                Some(Table { head, known: false }) => {
                    let reason = format!("the tables are {}", TABLES.join(", "));
                    refused.push(LeftOut::lines(head, at, reason));
                }
                Some(Table { known: true, .. }) => {}
                None => refused.push(LeftOut::line(at, "no table begins before it")),
            }
        } else {
            let reason = match table {
                None => Err("it stands in no table".to_owned()),
                Some(Table { known: false, .. }) => continue,
                Some(Table { known: true, .. }) => check(line, clock),
            };
            refused.extend(reason.err().map(|reason| LeftOut::line(at, reason)));
        }
    }
    refused.extend(table.map(|open| open.not_committed(lines.len().saturating_sub(1))));
    refused
}

struct Table {
    head: usize,
    known: bool,
}

impl Table {
    fn not_committed(&self, last: usize) -> LeftOut {
        LeftOut::lines(
            self.head,
            last,
            "the table has no COMMIT: the ruleset was cut",
        )
    }
}

fn check(line: &str, clock: Clock) -> Result<(), String> {
    if let Some(reason) = unfit(line, MOST_BYTES) {
        return Err(reason);
    }
    match line.strip_prefix(':') {
        Some(chain) => check_chain(chain),
        None => check_rule(line, clock),
    }
}

/// `FORWARD DROP [12:345]`
fn check_chain(text: &str) -> Result<(), String> {
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let fits = match words.as_slice() {
        [name, policy] => is_chain(name) && POLICIES.contains(policy),
        [name, policy, count] => is_chain(name) && POLICIES.contains(policy) && is_count(count),
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err("a chain is written `:NAME POLICY [PACKETS:BYTES]`".to_owned())
    }
}

fn is_chain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(['-', '!']) && !name.contains(['"', '\'', '\\'])
}

/// `[12:345]`
fn is_count(word: &str) -> bool {
    let inner = word.strip_prefix('[').and_then(|w| w.strip_suffix(']'));
    let digits = |n: &str| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit());
    inner
        .and_then(|counts| counts.split_once(':'))
        .is_some_and(|(packets, bytes)| digits(packets) && digits(bytes))
}

/// `-A FORWARD -s 10.0.0.0/8 -j ACCEPT`, counters before it or not.
fn check_rule(line: &str, clock: Clock) -> Result<(), String> {
    let rule = match line.split_once(' ') {
        Some((count, rule)) if is_count(count) => rule,
        _ => line,
    };
    let words = words(rule)?;
    let mut words = words.iter().map(AsRef::as_ref);
    let chain = match (words.next(), words.next()) {
        (Some("-A"), Some(chain)) => chain,
        _ => return Err("a rule is written `-A CHAIN …`".to_owned()),
    };
    if !is_chain(chain) {
        return Err(format!("`{chain}` is no name of a chain"));
    }
    let mut before = chain;
    for word in words {
        if !is_among(before, &TEXTS) {
            if word == "--kerneltz" && !clock.kernel_in_utc {
                return Err(BY_KERNELS_ZONE.to_owned());
            }
            check_word(before, word)?;
        }
        let mut long = LONG.iter().filter(|_| word.starts_with("--"));
        let long = long.find(|(long, _)| *long == word);
        before = long.map_or(word, |(_, short)| short);
    }
    Ok(())
}

/// Whether `word` is one of these `options`; most words are values.
fn is_among(word: &str, options: &[&str]) -> bool {
    word.starts_with('-') && options.contains(&word)
}

fn check_word(before: &str, word: &str) -> Result<(), String> {
    if is_among(before, &ADDRESSES) {
        return if is_numeric(word) {
            Ok(())
        } else {
            Err(names_no_address(word))
        };
    }
    if matches!(before, "-m" | "-p" | "-j" | "-g") && !is_extension(word) {
        return Err(format!(
            "`{word}` is no name of a match, protocol, target or chain"
        ));
    }
    if before == "-j" && OUTSIDE.contains(&word) {
        return Err(format!("the target {word} acts outside the router"));
    }
    match word.strip_prefix("--") {
        Some(option) => check_long(option),
        None if !word.starts_with('-') || SHORT[1..].contains(&word) => Ok(()),
        // `--limit -1`: a value.
        None if before.starts_with("--") && word[1..].chars().all(|c| c.is_ascii_digit()) => Ok(()),
        None => Err(format!("no saved rule has the option `{word}`")),
    }
}

fn check_long(option: &str) -> Result<(), String> {
    if LONG
        .iter()
        .any(|(long, _)| long.strip_prefix("--") == Some(option))
    {
        return Ok(());
    }
    let name = option.split('=').next().unwrap_or(option);
    let own = OWN.iter().any(|own| own.starts_with(name)) && !NOT_OWN.contains(&name);
    // bpf(8): `--object-pinned PATH`; shortened, too.
    let file = name.len() > 2 && "object-pinned".starts_with(name);
    if own || file || name == "bytecode-file" {
        let why = if file || name == "bytecode-file" {
            "it names a file"
        } else {
            "no saved rule has it"
        };
        return Err(format!("the option `--{name}` is not let through: {why}"));
    }
    Ok(())
}

/// Extensions are files, found by their names.
fn is_extension(word: &str) -> bool {
    !word.is_empty() && !word.starts_with(['-', '.']) && !word.contains('/')
}

/// Cuts `rule` as iptables-restore does: at blanks, `"` around what has some, `\` before what is
/// meant as it is between quotes.
fn words(rule: &str) -> Result<Vec<Cow<'_, str>>, String> {
    const BLANKS: [char; 2] = [' ', '\t'];
    // More than most rules have.
    const WORDS: usize = 24;
    let is_blank = |byte| matches!(byte, b' ' | b'\t');
    let unclear = || "a quote stays open, or stands within a word".to_owned();
    let mut words = Vec::with_capacity(WORDS);
    let mut rest = rule.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let (word, behind) = match rest.strip_prefix('"') {
            Some(inner) => quoted(inner).ok_or_else(unclear)?,
            None => {
                let end = rest.bytes().position(is_blank).unwrap_or(rest.len());
                let (word, behind) = rest.split_at(end);
                if word.contains('"') {
                    return Err(unclear());
                }
                (Cow::Borrowed(word), behind)
            }
        };
        words.push(word);
        rest = behind.trim_start_matches(BLANKS);
        if !rest.is_empty() && rest.len() == behind.len() {
            return Err(unclear());
        }
    }
    Ok(words)
}

/// A quoted word, of which `inner` is what stands behind its first quote, and what is behind it; none
/// where it stays open.
fn quoted(inner: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = inner.find(['"', '\\'])?;
    let (plain, rest) = inner.split_at(end);
    if let Some(behind) = rest.strip_prefix('"') {
        return Some((Cow::Borrowed(plain), behind));
    }
    let mut word = plain.to_owned();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '\\' => word.push(chars.next()?),
            '"' => return Some((Cow::Owned(word), chars.as_str())),
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::lab::{
        rulesets::filter::sift,
        topology::{Clock, RulesetKind},
    };

    fn left(rules: &str) -> Vec<(usize, usize)> {
        let out = sift(RulesetKind::Iptables, rules, Clock::UTC)
            .left_out
            .into_iter();
        out.map(|out| (out.first, out.last)).collect()
    }

    fn of_rule(rule: &str) -> Option<String> {
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n");
        let mut sifted = sift(RulesetKind::Iptables, &text, Clock::UTC);
        assert_eq!(sifted.lines[3], "COMMIT");
        sifted.left_out.pop().map(|out| out.reason)
    }

    #[test]
    fn what_iptables_saves_is_let_through() {
        for rule in [
            "-A FORWARD -j ACCEPT",
            "[12:345] -A FORWARD ! -s 10.0.0.0/8 -i eth0.7 ! -o lo+ -p tcp -m tcp --dport 80 -g web",
            "-A FORWARD -m comment --comment \"--help -M \\\"x\\\" it's\" -j LOG --log-prefix \"-j \"",
            "-A FORWARD --source 10.0.0.0/8 --match state --state NEW --jump ACCEPT",
            "-A FORWARD -m policy --dir in --pol ipsec --proto esp -j ACCEPT",
            "-A FORWARD -m recent --set --name DEFAULT --mask 255.255.255.255 --rsource",
            "-A FORWARD -m statistic --mode random --probability 0.5 -j DROP",
            "-A FORWARD -m mark --mark 0x1/0xff -j MARK --set-xmark 0x2/0xffffffff",
            "-A PREROUTING -j DNAT --to-destination 10.0.0.1-10.0.0.9:80-90 --random",
            "-A PREROUTING -j NETMAP --to 10.0.0.0/24",
            "-A FORWARD -m string --string \"a b\" --algo bm --to 65535 -j DROP",
            "-A FORWARD -m bpf --bytecode \"4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0\" -j ACCEPT",
            "-A FORWARD -f -m u32 --u32 \"0x0>>0x16&0x3c@0x0&0xffff=0x1\" -j DROP",
            "-A FORWARD -m set ! --match-set a src,dst -j SET --add-set b src --exist --timeout 5",
        ] {
            assert_eq!(of_rule(rule), None, "{rule}");
        }
    }

    #[test]
    fn what_runs_reads_or_ends_is_left_out() {
        for rule in [
            "-A FORWARD --modprobe=/tmp/x -j ACCEPT",
            "-A FORWARD --modp /tmp/x",
            "-A FORWARD -M /tmp/x",
            "-A FORWARD -nM/tmp/x",
            "-A FORWARD \"-M\" /tmp/x",
            "-A FORWARD -m comment --comment x --help",
            "-A FORWARD -p tcp -h",
            "-A FORWARD --versio",
            "-F FORWARD",
            "-I FORWARD -j ACCEPT",
            "-t nat -A PREROUTING -j ACCEPT",
            "-A FORWARD -m bpf --object-pinned /sys/fs/bpf/x",
            "-A FORWARD -m bpf --obj /sys/fs/bpf/x",
            "-A FORWARD -m ../../tmp/x -j ACCEPT",
            "-A FORWARD -j LED --led-trigger-id x",
            "-A FORWARD -m comment --comment \"x\"-M /tmp/x",
            "-A FORWARD -m comment --comment \"x",
            "-A FORWARD -m comment --comment \"\u{1b}[2J\" -j ACCEPT",
            "FORWARD -j ACCEPT",
        ] {
            assert!(of_rule(rule).is_some(), "{rule}");
        }
        let long = format!("-A FORWARD -m comment --comment \"{}\"", "x".repeat(10_240));
        assert!(of_rule(&long).is_some());
    }

    #[test]
    fn names_are_not_looked_up() {
        for rule in [
            "-A FORWARD -s gw.example.org -j ACCEPT",
            "-A FORWARD --source gw.example.org --jump ACCEPT",
            "-A FORWARD -d 10.0.0.1,localhost -j ACCEPT",
            "-A FORWARD -m conntrack --ctorigdst gw -j ACCEPT",
            "-A FORWARD -j TEE --gateway gw",
        ] {
            let reason = of_rule(rule).unwrap();
            assert!(
                reason.contains("names are not looked up"),
                "{rule}: {reason}"
            );
        }
    }

    #[test]
    fn one_bad_table_leaves_the_others() {
        let good = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
        assert_eq!(
            left(&format!("*broute\n:X DROP [0:0]\nCOMMIT\n{good}")),
            [(0, 2)]
        );
        assert_eq!(
            left(&format!("*nat\n:PREROUTING ACCEPT [0:0]\n{good}")),
            [(0, 1)]
        );
        assert_eq!(
            left(&format!("{good}*nat\n-A PREROUTING -j ACCEPT\n")),
            [(3, 4)]
        );
        assert_eq!(
            left(&format!("-A FORWARD -j DROP\n{good}COMMIT\n")),
            [(0, 0), (4, 4)]
        );
        let chain = "*filter\n:FORWARD DROP [0:0]\n:FORWARD -j DROP\n:-F - [0:0]\nCOMMIT\n";
        assert_eq!(left(chain), [(2, 2), (3, 3)]);
    }
}
