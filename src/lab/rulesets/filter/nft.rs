//! What `nft list ruleset` writes: tables and what is in them.
//!
//! nft(8) takes far more: `include` reads files, `define` and `$` give words another meaning,
//! `monitor` never ends, `flush`, `delete` and `reset` undo what stands before. All of these are
//! commands, which a listing has none of. `include` and `define` may stand wherever a statement
//! begins, so no word outside quotes may be one of them.

use super::{
    BY_KERNELS_ZONE, LeftOut,
    address::is_domain_name,
    names_no_address,
    nft_words::{Word, words},
    unfit,
};
use crate::lab::topology::Clock;

/// nft has no longest line; elements of a large set may stand in one.
const MOST_BYTES: usize = usize::MAX;

/// What a table holds between braces.
const OBJECTS: [&str; 12] = [
    "chain",
    "set",
    "map",
    "meter",
    "flowtable",
    "counter",
    "quota",
    "limit",
    "ct",
    "secmark",
    "synproxy",
    "tunnel",
];

/// Families of tables.
const FAMILIES: [&str; 6] = ["ip", "ip6", "inet", "arp", "bridge", "netdev"];

/// Commands to the scanner, anywhere.
const COMMANDS: [&str; 4] = ["include", "define", "redefine", "undefine"];

/// A block that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    kind: Kind,
    first: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    /// A chain, a set …
    Object,
    /// Braces within a statement.
    Inner,
    /// A block that is not let through.
    Foreign,
}

/// A statement that has begun.
#[derive(Debug, Default)]
struct Statement<'a> {
    words: Vec<Word<'a>>,
    first: usize,
}

#[derive(Default)]
struct Sieve<'a> {
    open: Vec<Block>,
    /// First and last line of each block that was closed, [`Kind::Inner`] aside.
    closed: Vec<(usize, usize)>,
    statement: Statement<'a>,
    refused: Vec<LeftOut>,
    /// Whether anything stood before, at the top.
    begun: bool,
    clock: Clock,
}

pub(super) fn refused(lines: &[&str], clock: Clock) -> Vec<LeftOut> {
    let mut sieve = Sieve {
        clock,
        ..Sieve::default()
    };
    for (at, line) in lines.iter().enumerate() {
        sieve.line(at, line);
    }
    let last = lines.len().saturating_sub(1);
    sieve.give_up(last, "the table does not end: the ruleset was cut");
    whole(sieve.refused, &sieve.closed, lines.len())
}

impl<'a> Sieve<'a> {
    fn line(&mut self, at: usize, line: &'a str) {
        // A listing has tables at the beginning of a line, and nothing else of that name there.
        if line.starts_with("table ") && !self.open.is_empty() {
            self.give_up(at.saturating_sub(1), "its braces do not match");
        }
        let words = match unfit(line, MOST_BYTES) {
            Some(reason) => Err(reason),
            None => words(line),
        };
        match words {
            Ok(words) => words.into_iter().for_each(|word| self.word(at, word)),
            Err(reason) => self.refused.push(LeftOut::line(at, reason)),
        }
        if !matches!(
            self.open.last(),
            Some(Block {
                kind: Kind::Inner,
                ..
            })
        ) {
            self.end(at);
        }
    }

    fn word(&mut self, at: usize, word: Word<'a>) {
        if self.statement.words.is_empty() {
            self.statement.first = at;
        }
        match word {
            Word::Open => self.open(at),
            Word::Close => self.close(at),
            Word::End if self.within_statement() => self.statement.words.push(word),
            Word::End => self.end(at),
            Word::Comma | Word::Quoted | Word::Plain(_) => self.statement.words.push(word),
        }
    }

    fn within_statement(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Block {
                kind: Kind::Inner,
                ..
            })
        )
    }

    fn open(&mut self, at: usize) {
        let kind = match self.open.last().map(|block| block.kind) {
            None if is_table(&self.statement.words) => Kind::Table,
            Some(Kind::Table) if is_object(&self.statement.words) => Kind::Object,
            None | Some(Kind::Table | Kind::Foreign) => Kind::Foreign,
            Some(Kind::Object | Kind::Inner) => Kind::Inner,
        };
        let first = self.statement.first;
        self.open.push(Block { kind, first });
        if kind == Kind::Inner {
            self.statement.words.push(Word::Open);
        } else {
            self.begun = true;
            self.statement = Statement {
                words: Vec::new(),
                first: at,
            };
        }
    }

    fn close(&mut self, at: usize) {
        match self.open.last().copied() {
            Some(Block {
                kind: Kind::Inner, ..
            }) => {
                self.statement.words.push(Word::Close);
                self.open.pop();
            }
            Some(block) => {
                self.end(at);
                self.open.pop();
                self.closed.push((block.first, at));
                let within = self.open.last().map(|outer| outer.kind);
                if block.kind == Kind::Foreign && within != Some(Kind::Foreign) {
                    let reason = "`nft list ruleset` writes nothing of this kind";
                    self.refused.push(LeftOut::lines(block.first, at, reason));
                }
            }
            None => {
                self.statement.words.clear();
                let reason = "it closes what was not opened";
                self.refused.push(LeftOut::line(at, reason));
            }
        }
    }

    /// A statement ends in line `at`, if one has begun.
    fn end(&mut self, at: usize) {
        let statement = std::mem::take(&mut self.statement);
        if statement.words.is_empty() {
            return;
        }
        let kind = self.open.last().map(|block| block.kind);
        let reason = match kind {
            Some(Kind::Foreign) => None,
            Some(Kind::Table) => Some(check_in_table(&statement.words)).and_then(Result::err),
            Some(Kind::Object | Kind::Inner) => check(&statement.words)
                .and_then(|()| check_time(&statement.words, self.clock))
                .err(),
            None => Some("`nft list ruleset` writes tables only".to_owned()),
        };
        let Some(reason) = reason else { return };
        let mut out = LeftOut::lines(statement.first, at, reason);
        // Before everything else there is nothing to flush.
        let flush = [Word::Plain("flush"), Word::Plain("ruleset")];
        out.matters = kind.is_some() || self.begun || statement.words != flush;
        self.begun = true;
        self.refused.push(out);
    }

    /// Leaves out what is still open, up to line `last`.
    fn give_up(&mut self, last: usize, reason: &str) {
        if let Some(outermost) = self.open.first() {
            self.refused
                .push(LeftOut::lines(outermost.first, last, reason));
        }
        self.open.clear();
        self.statement = Statement::default();
    }
}

/// `table inet NAME`
fn is_table(words: &[Word<'_>]) -> bool {
    match words {
        [Word::Plain("table"), Word::Plain(family), name] => {
            FAMILIES.contains(family) && is_name(*name)
        }
        [Word::Plain("table"), name] => is_name(*name),
        _ => false,
    }
}

/// `chain NAME`, `ct helper NAME`
fn is_object(words: &[Word<'_>]) -> bool {
    let Some((Word::Plain(head), rest)) = words.split_first() else {
        return false;
    };
    OBJECTS.contains(head) && matches!(rest.len(), 1 | 2) && rest.iter().all(|word| is_name(*word))
}

fn is_name(word: Word<'_>) -> bool {
    match word {
        Word::Plain(name) => !name.contains('$') && !COMMANDS.contains(&name),
        Word::Quoted => true,
        _ => false,
    }
}

fn check_in_table(words: &[Word<'_>]) -> Result<(), String> {
    match words.first() {
        Some(Word::Plain("flags" | "comment")) => check(words),
        _ => Err("a table has flags, a comment, and blocks".to_owned()),
    }
}

/// A rule, or a property of a set or chain.
fn check(words: &[Word<'_>]) -> Result<(), String> {
    // Whether an address may come next.
    let mut address = words.first() == Some(&Word::Plain("elements"));
    let elements = address;
    for word in words {
        let Word::Plain(text) = word else { continue };
        if COMMANDS.contains(text) || text.contains('$') {
            return Err(format!("`{text}` is a command of nft; a listing has none"));
        }
        if address && is_domain_name(text) {
            return Err(names_no_address(text));
        }
        let before_address = matches!(*text, "saddr" | "daddr" | "to" | "!=" | "==" | "=");
        let literal = text.starts_with(|c: char| c.is_ascii_digit() || c == ':');
        address = elements || before_address || (address && literal);
    }
    Ok(())
}

/// Whether a rule asks for the time, and nobody knows in whose time zone it does. A set says of what kind
/// it is in the same words.
fn check_time(words: &[Word<'_>], clock: Clock) -> Result<(), String> {
    if words.first() == Some(&Word::Plain("typeof")) {
        return Ok(());
    }
    let asks = |wanted: &[&str]| {
        words.windows(2).any(|pair| match pair {
            [Word::Plain("meta"), Word::Plain(key)] => wanted.contains(key),
            _ => false,
        })
    };
    if asks(&["hour", "time"]) && !clock.prints_utc {
        return Err(
            "its time zone is not told: `TZ=UTC0 nft list ruleset` prints UTC, and says so"
                .to_owned(),
        );
    }
    if asks(&["day"]) && !clock.kernel_in_utc {
        return Err(BY_KERNELS_ZONE.to_owned());
    }
    Ok(())
}

/// Makes ranges of lines of `refused` that can be blanked: a block whose beginning is among them
/// goes as a whole, and so does one whose end is.
fn whole(mut refused: Vec<LeftOut>, closed: &[(usize, usize)], lines: usize) -> Vec<LeftOut> {
    // By line: the farthest that the blocks which begin or end there reach.
    let mut reach: Vec<Option<(usize, usize)>> = vec![None; lines];
    for &(first, last) in closed {
        for at in [first, last] {
            if let Some(slot) = reach.get_mut(at) {
                let (from, to) = slot.unwrap_or((first, last));
                *slot = Some((from.min(first), to.max(last)));
            }
        }
    }
    for out in &mut refused {
        let (mut from, mut to) = (out.first, out.last);
        let mut at = from;
        while at <= to {
            if let Some((first, last)) = reach.get(at).copied().flatten() {
                to = to.max(last);
                if first < from {
                    from = first;
                    at = first;
                    continue;
                }
            }
            at += 1;
        }
        (out.first, out.last) = (from, to);
    }
    refused
}

#[cfg(test)]
mod tests {
    use crate::lab::{
        rulesets::filter::sift,
        topology::{Clock, RulesetKind},
    };

    const LISTING: &str = "table inet x { # handle 1\n\tcomment \"include\"\n\tset s {\n\
        \t\ttype ipv4_addr . inet_service\n\t\tflags interval,timeout\n\
        \t\telements = { 10.0.0.1 . 80 timeout 5s,\n\t\t\t     10.0.0.2-10.0.0.9 . 443 }\n\t}\n\
        \tct helper ftp {\n\t\ttype \"ftp\" protocol tcp\n\t\tl3proto inet\n\t}\n\
        \tflowtable f {\n\t\thook ingress priority filter\n\t\tdevices = { \"eth0.7\" }\n\t}\n\
        \tchain c {\n\t\ttype filter hook forward priority filter; policy drop;\n\
        \t\tiifname { \"eth0.7\", \"lo\" } ip saddr { 10.0.0.0/8,\n\t\t\t10.1.1.1 } accept\n\
        \t\tip saddr . tcp dport @s jump d.e comment \"$x {\"\n\
        \t\tip daddr vmap { 10.0.0.1 : accept, 10.0.0.2 : jump d.e }\n\
        \t\tdnat ip to tcp dport map { 80 : 10.0.0.1 . 8080 }\n\t}\n\
        \tchain d.e {\n\t}\n}\ntable ip \"y\" {\n}\n";

    fn left(text: &str) -> Vec<(usize, usize)> {
        let out = sift(RulesetKind::Nft, text, Clock::UTC)
            .left_out
            .into_iter();
        out.map(|out| (out.first, out.last)).collect()
    }

    fn in_chain(rule: &str) -> Vec<(usize, usize)> {
        left(&format!(
            "table ip x {{\n\tchain c {{\n{rule}\n\t\tdrop\n\t}}\n}}\n"
        ))
    }

    #[test]
    fn what_nft_lists_is_let_through() {
        let sifted = sift(RulesetKind::Nft, LISTING, Clock::UTC);
        assert_eq!(sifted.left_out, []);
        let one_line = "table ip x { chain c { type filter hook input priority 0; drop; }; }";
        assert_eq!(left(one_line), []);
    }

    #[test]
    fn commands_are_left_out_wherever_they_stand() {
        for command in [
            "include \"/etc/shadow\"",
            "define x = 1",
            "flush ruleset",
            "monitor",
            "reset counters",
            "add rule ip x c accept",
            "delete table ip x",
            "list ruleset",
            "export vm json",
        ] {
            let text = format!("{LISTING}{command}\n{LISTING}");
            let at = LISTING.lines().count();
            assert_eq!(left(&text), [(at, at)], "{command}");
        }
        for rule in [
            "include \"/etc/shadow\"",
            "\t\taccept; include \"/etc/shadow\"",
            "ip saddr $x accept",
            "jump { include \"/etc/shadow\"\n }",
            "accept comment \"x",
            "accept comment \"\u{1b}[2J\"",
        ] {
            let left = in_chain(rule);
            assert_eq!(left.first().map(|l| l.0), Some(2), "{rule}: {left:?}");
            assert!(left.iter().all(|l| l.1 < 4), "{rule}: {left:?}");
        }
        let in_table = "table ip x {\n\tinclude \"/etc/shadow\"\n\tchain c {\n\t}\n}\n";
        assert_eq!(left(in_table), [(1, 1)]);
        let same_line = "table ip x { include \"/etc/shadow\"\n\tchain c {\n\t}\n}\n";
        assert_eq!(left(same_line), [(0, 3)], "half a table is none");
        let foreign = "flush chain ip x c\nadd table ip y {\n\tflags dormant;\n}\n";
        assert_eq!(left(foreign), [(0, 0), (1, 3)]);
    }

    #[test]
    fn times_of_an_unknown_time_zone_are_left_out() {
        let (unknown, printed) = (
            Clock::default(),
            Clock {
                prints_utc: true,
                kernel_in_utc: false,
            },
        );
        for (rule, clock, lost) in [
            ("meta hour \"09:00\"-\"17:00\" accept", unknown, true),
            ("meta hour \"09:00\"-\"17:00\" accept", printed, false),
            ("meta time < \"2001-01-01 00:00:00\" drop", unknown, true),
            ("meta time < \"2001-01-01 00:00:00\" drop", printed, false),
            ("meta day \"Monday\" drop", printed, true),
            ("meta day \"Monday\" drop", Clock::UTC, false),
            (
                "meta day . meta hour { \"Monday\" . \"09:00\" } drop",
                printed,
                true,
            ),
            ("jump hour comment \"meta hour\"", unknown, false),
        ] {
            let text = format!("table ip x {{\n\tchain c {{\n\t\t{rule}\n\t\tdrop\n\t}}\n}}\n");
            let left_out = sift(RulesetKind::Nft, &text, clock).left_out;
            let lines: Vec<_> = left_out.iter().map(|out| (out.first, out.last)).collect();
            assert_eq!(lines == [(2, 2)], lost, "{rule} {clock:?}: {left_out:?}");
        }
        let set = "table ip x {\n\tset s {\n\t\ttypeof meta hour\n\t}\n}\n";
        assert_eq!(sift(RulesetKind::Nft, set, unknown).left_out, []);
    }

    #[test]
    fn a_quote_that_stays_open_hides_nothing() {
        let text = "table ip x {\n\tchain c {\n\t\taccept comment \"}\n\t\tinclude \"/etc/shadow\"\n\
            \t}\n}\n";
        assert_eq!(left(text), [(2, 2), (3, 3)]);
    }

    #[test]
    fn names_are_not_looked_up() {
        for rule in [
            "ip saddr gw.example.org accept",
            "ip saddr != { 10.0.0.1, gw.example.org } accept",
            "dnat to gw.example.org",
        ] {
            assert_eq!(in_chain(rule), [(2, 2)], "{rule}");
        }
        let set = "table ip x {\n\tset s {\n\t\ttype ipv4_addr\n\
            \t\telements = { 10.0.0.1, gw.example.org }\n\t}\n}\n";
        assert_eq!(left(set), [(3, 3)]);
    }

    #[test]
    fn one_bad_table_leaves_the_others() {
        let lines = LISTING.lines().count();
        let cut = "table ip z {\n\tchain c {\n\t\taccept\n";
        assert_eq!(left(&format!("{cut}{LISTING}")), [(0, 2)]);
        assert_eq!(left(&format!("{LISTING}{cut}")), [(lines, lines + 2)]);
        let closed = "table ip z {\n}\n}\n";
        assert_eq!(left(&format!("{closed}{LISTING}")), [(2, 2)]);
    }

    #[test]
    fn a_flush_before_everything_takes_nothing_away() {
        let first = format!("#!/usr/sbin/nft -f\n\nflush ruleset\n{LISTING}");
        let sifted = sift(RulesetKind::Nft, &first, Clock::UTC);
        assert_eq!(sifted.left_out.len(), 1);
        assert!(!sifted.left_out[0].matters);
        let last = format!("{LISTING}flush ruleset\n");
        let sifted = sift(RulesetKind::Nft, &last, Clock::UTC);
        assert!(sifted.left_out[0].matters);
    }
}
