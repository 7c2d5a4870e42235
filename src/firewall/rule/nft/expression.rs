//! Expressions of nft(8): what a test or a value is about, and how it is compared.

use super::{
    Reader,
    values::{
        Comparison, Kind, bits, connection, flags_test, joined, kinds_of_icmpv6, masked_test, meta,
        network, number_of, reads, transport, values_test,
    },
    varying::{NUMBER_SOURCES, about, is_total, varies},
};
use crate::{
    firewall::rule::{
        Alone, Caveat, Does, Field, RuleVerdict, Test, Varying,
        table::{self, About},
        words::unquoted,
    },
    netlink::object::Family,
};

/// What an expression is about: its words, and the field where that is understood.
#[derive(Debug, Clone)]
struct Key {
    text: String,
    of: Option<Kind>,
}

impl<'a> Reader<'a> {
    /// A test, or a statement that begins like one: `KEY set VALUE`, `KEY vmap { … }`.
    pub(super) fn expression(&mut self, word: &'a str) {
        let begin = self.at - 1;
        let key = self.key(word);
        let mut alone = true;
        while self.skip(&["."]) {
            alone = false;
            match self.next() {
                Some(word) => _ = self.key(word),
                None => return,
            }
        }
        let key = Key {
            of: key.of.filter(|_| alone),
            text: if alone {
                key.text
            } else {
                self.words[begin..self.at].join(" ")
            },
        };
        match self.peek() {
            Some("set") => {
                self.at += 1;
                self.set(&key);
            }
            Some("vmap") => {
                self.at += 1;
                self.vmap(&key);
            }
            _ => self.test(&key, alone),
        }
    }

    /// The words of a key, and what it is about. Names of protocols ask for the protocol.
    fn key(&mut self, word: &'a str) -> Key {
        let begin = self.at - 1;
        let mut of = None;
        match word {
            "meta" => {
                let field = self.next().unwrap_or_default();
                of = meta(field);
            }
            "ip" | "ip6" => of = self.network_key(word),
            "tcp" | "udp" | "th" | "udplite" | "sctp" | "dccp" | "icmp" | "icmpv6" | "igmp"
            | "esp" | "ah" => of = self.transport_key(word),
            "ct" => {
                self.skip(&["original", "reply", "expiration"]);
                self.skip(&["ip", "ip6"]);
                let field = self.next().unwrap_or_default();
                let plain = self.at == begin + 2;
                of = connection(field).filter(|_| plain);
            }
            _ if NUMBER_SOURCES.contains(&word) => self.number_source(),
            "fib" => {
                while let Some(word) = self.next() {
                    if matches!(word, "oif" | "oifname" | "type" | "check") {
                        break;
                    }
                }
            }
            "rt" => {
                self.skip(&["ip", "ip6"]);
                _ = self.next();
            }
            "ipsec" => {
                self.skip_words(&["spnum"], &["in", "out", "ip", "ip6"]);
                _ = self.next();
            }
            "ether" => {
                let field = self.next().unwrap_or_default();
                of = (field == "type").then_some(Kind::Family);
            }
            "osf" => {
                self.skip_words(&["ttl"], &[]);
                _ = self.next();
            }
            // `arp daddr ip`, `arp saddr ether`.
            "arp" => {
                let fields = ["htype", "ptype", "hlen", "plen", "operation"];
                self.skip_words(&["saddr", "daddr"], &fields);
            }
            "socket" | "vlan" | "frag" | "hbh" | "dst" | "mh" | "srh" | "exthdr" | "comp" => {
                _ = self.next();
            }
            _ if word.starts_with('@') => self.raw(),
            _ => of = meta(word),
        }
        Key {
            text: self.words[begin..self.at].join(" "),
            of,
        }
    }

    /// A field of the header of IPv4 (`ip`) or IPv6 (`ip6`), whose name asks for the family, too.
    fn network_key(&mut self, word: &str) -> Option<Kind> {
        let family = if word == "ip" { Family::V4 } else { Family::V6 };
        self.rule.ask(Test::Family(family), false);
        let field = self.next().unwrap_or_default();
        if field == "option" {
            self.at = (self.at + 2).min(self.words.len());
        }
        network(field)
    }

    /// A field of the transport header `word`. Its name asks for the protocol, too.
    fn transport_key(&mut self, word: &str) -> Option<Kind> {
        if word != "th"
            && let Some(number) = table::protocol(word)
        {
            let protocol = Test::Number {
                of: Field::Protocol,
                mask: u32::MAX,
                ranges: vec![(number, number)],
            };
            self.rule.ask(protocol, false);
        }
        let field = self.next().unwrap_or_default();
        if field == "option" {
            let begin = self.at - 1;
            self.at = (self.at + 2).min(self.words.len());
            return transport(word, &self.words[begin..self.at].join(" "));
        }
        transport(word, field)
    }

    /// `@th,16,16`: commas are words.
    fn raw(&mut self) {
        while self.skip(&[","]) {
            self.at = (self.at + 1).min(self.words.len());
        }
    }

    /// `numgen random mod 2 [offset 1]`, `jhash ip saddr mod 3 [seed 1]`.
    pub(super) fn number_source(&mut self) {
        while let Some(word) = self.next() {
            if word == "mod" {
                break;
            }
        }
        self.at = (self.at + 1).min(self.words.len());
        self.skip_words(&["seed", "offset"], &[]);
    }

    /// `KEY set VALUE`.
    fn set(&mut self, key: &Key) {
        let begin = self.at;
        let value = self.next().unwrap_or_default();
        // A value that is computed: everything up to the next statement belongs to it.
        let computed = self.is_key(value) || self.peek().is_some_and(is_operator);
        if computed {
            self.at = begin;
            self.computed();
        }
        let known = |of| number_of(of, value).filter(|_| !computed);
        let (field, mask, value) = match (key.of, key.text.as_str()) {
            (Some(Kind::Number(Field::Tos)), text) if text.ends_with("dscp") => (
                Field::Tos,
                0xfc,
                table::dscp(value).map(|d| d << 2).filter(|_| !computed),
            ),
            (Some(Kind::Number(of)), _) => (of, u32::MAX, known(of)),
            (Some(Kind::Address(of)), _) => (of, u32::MAX, None),
            (_, "meta priority") => (Field::Priority, u32::MAX, None),
            (_, "meta nftrace" | "meta secmark" | "ct secmark" | "ct label" | "ct event") => {
                return self.rule.does.push(Does::Note);
            }
            (_, text) if text.starts_with("ct ") => (Field::Tracking, u32::MAX, None),
            (_, text) if text.starts_with("tcp option") => (Field::TcpOptions, u32::MAX, None),
            (_, text) if text.starts_with("ether ") => (Field::Link, u32::MAX, None),
            _ => (Field::Other, u32::MAX, None),
        };
        self.rule.does.push(Does::Set { field, mask, value });
    }

    /// Passes over a computed value, such as `ct mark & 0xff` or `ip saddr map { … }`.
    fn computed(&mut self) {
        while let Some(word) = self.next() {
            match word {
                "map" => {
                    if self.peek() == Some("{") {
                        self.braces();
                    } else {
                        _ = self.next();
                    }
                    return;
                }
                _ if NUMBER_SOURCES.contains(&word) => {
                    let begin = self.at - 1;
                    self.number_source();
                    self.draw(begin, self.at);
                }
                _ if self.is_key(word) => {
                    self.skip(&["original", "reply"]);
                    // `mark` alone is a key of one word.
                    if word != "mark" {
                        _ = self.next();
                    }
                }
                _ => {}
            }
            let goes_on = self
                .peek()
                .is_some_and(|next| is_operator(next) || next == "map");
            if !goes_on && !is_operator(word) {
                return;
            }
        }
    }

    /// `KEY vmap { VALUE : VERDICT, … }` or `KEY vmap @MAP`.
    fn vmap(&mut self, key: &Key) {
        if let Some(varying) = varies(&key.text) {
            let alone = Alone::Chooses;
            let chosen = Test::Varies(Varying { alone, ..varying });
            self.rule.ask(chosen, false);
        }
        let whole = key.text.as_str();
        if self.peek() != Some("{") {
            let map = self.next().unwrap_or_default();
            self.rule.ask(
                Test::other(&format!("{whole} vmap {map}"), &reads(whole)),
                false,
            );
            let verdict = RuleVerdict::Unknown(format!("vmap {map}"));
            return self.rule.does.push(Does::Choose(vec![(None, verdict)]));
        }
        let elements = self.braces();
        let mut choices = Vec::new();
        let mut tests = Vec::new();
        for element in elements.split(|word| *word == ",") {
            let Some(at) = element.iter().rposition(|word| *word == ":") else {
                continue;
            };
            let (values, verdict) = element.split_at(at);
            let verdict = match verdict {
                [_, "jump", chain, ..] => RuleVerdict::Jump(unquoted(chain).into_owned()),
                [_, "goto", chain, ..] => RuleVerdict::Goto(unquoted(chain).into_owned()),
                [_, "accept", ..] => RuleVerdict::Accept,
                [_, "drop", ..] => RuleVerdict::Drop,
                [_, "return", ..] => RuleVerdict::Return,
                [_, "continue", ..] => continue,
                _ => RuleVerdict::Unknown(element.join(" ")),
            };
            let value = (key.of, values);
            let test = match value {
                (Some(of), [value]) => values_test(of, &[value], Comparison::Equal),
                _ => None,
            };
            tests.push(test.clone());
            choices.push((test, verdict));
        }
        // Without an element that fits, the rule does not match. One value of chance always fits.
        let all = is_total(&key.text, choices.len());
        if !all {
            match joined(&tests) {
                Some(test) => self.rule.ask(test, false),
                None => self.rule.ask(Test::other(whole, &reads(whole)), false),
            }
        }
        self.rule.does.push(Does::Choose(choices));
    }

    /// `KEY [OPERATOR] VALUE`.
    fn test(&mut self, key: &Key, alone: bool) {
        let begin = self.at;
        let mask = self.mask(key);
        let comparison = self.comparison();
        let negated = comparison == Comparison::Not;
        if let Some(varying) = self.varying(key, comparison) {
            return self.rule.ask(Test::Varies(varying), false);
        }
        let whole = key.text.ends_with(" exists") || key.text.ends_with(" missing");
        let values: Vec<&str> = match self.peek() {
            _ if whole => Vec::new(),
            Some("{") => {
                let within = self.braces();
                within.iter().copied().filter(|word| *word != ",").collect()
            }
            Some(_) => self.plain_values(alone),
            None => Vec::new(),
        };
        let of_kinds = || kinds_of_icmpv6(&key.text, &values).filter(|_| mask.is_none());
        let test = match (key.of, mask) {
            (Some(Kind::Number(Field::TcpFlags)), mask) => flags_test(&values, mask, comparison),
            (Some(Kind::Number(of)), Some(mask)) => masked_test(of, mask, &values),
            (Some(of), None) if alone => values_test(of, &values, comparison),
            _ => of_kinds(),
        };
        let text = || format!("{} {}", key.text, self.words[begin..self.at].join(" "));
        let test = test.unwrap_or_else(|| {
            let mut reads = reads(&key.text);
            if values.first().is_some_and(|value| value.starts_with('@')) {
                reads.push(Field::Sets);
            }
            Test::other(text().trim_end(), &reads)
        });
        self.rule.ask(test, negated);
    }

    /// `& MASK` or `and MASK`, as a number; 0 where it is something else.
    fn mask(&mut self, key: &Key) -> Option<u32> {
        if !self.skip(&["&", "and"]) {
            return None;
        }
        let mut words = Vec::new();
        let word = self.next().unwrap_or_default();
        words.push(word);
        if word.starts_with('(') {
            while words.last().is_some_and(|word| !word.ends_with(')')) {
                match self.next() {
                    Some(word) => words.push(word),
                    None => break,
                }
            }
        }
        let of = match key.of {
            Some(Kind::Number(of)) => of,
            _ => return Some(0),
        };
        Some(bits(of, &words).unwrap_or(0))
    }

    fn comparison(&mut self) -> Comparison {
        let found = match self.peek() {
            Some("!=" | "!") => Comparison::Not,
            Some("==" | "eq") => Comparison::Equal,
            Some("<") => Comparison::Less,
            Some("<=") => Comparison::LessOrEqual,
            Some(">") => Comparison::Greater,
            Some(">=") => Comparison::GreaterOrEqual,
            _ => return Comparison::Plain,
        };
        self.at += 1;
        found
    }

    /// One value, or several of flags separated by commas, or of a concatenation by points.
    fn plain_values(&mut self, alone: bool) -> Vec<&'a str> {
        let mut values: Vec<&str> = self.next().into_iter().collect();
        let between: &[&str] = if alone { &[",", "/", "|"] } else { &["."] };
        while self.peek().is_some_and(|word| between.contains(&word)) {
            if self.skip(&["/"]) {
                values.push("/");
            } else {
                self.at += 1;
            }
            values.extend(self.next());
        }
        values
    }

    /// A key that depends on more than the packet, with the words of its value.
    fn varying(&mut self, key: &Key, comparison: Comparison) -> Option<Varying> {
        let about = about(&key.text);
        if matches!(about, About::Packet(_)) {
            return None;
        }
        let operator = self.words.get(self.at.saturating_sub(1)).copied();
        let operator = operator.filter(|_| comparison != Comparison::Plain);
        let over = self.skip(&["over"]);
        let value = match self.peek() {
            Some("{") => self.braces().join(" "),
            _ => self.plain_values(true).join(" "),
        };
        let first = |n: usize| {
            let operator = operator.map(|o| format!(" {o}")).unwrap_or_default();
            let over = if over { " over" } else { "" };
            let text = format!("{}{operator}{over} {value}", key.text);
            text.split(' ').take(n).collect::<Vec<_>>().join(" ")
        };
        Some(match about {
            About::Open => {
                let limit: Option<u32> = value.parse().ok();
                let matches = limit.map(|limit| if over { limit < 1 } else { limit >= 1 });
                let alone = matches.map_or(Alone::Either, Alone::if_matches);
                Caveat::History(first(3)).alone(alone)
            }
            About::Moved => Caveat::History(first(4)).alone(Alone::AsMeasured),
            About::Clock => Caveat::TimeOfDay(first(3)).alone(Alone::AsMeasured),
            About::IpsecPolicy => Caveat::Ipsec(first(6)).alone(Alone::Either),
            About::System => Caveat::System(first(4)).alone(Alone::Either),
            _ => Caveat::Random(key.text.clone()).alone(Alone::Either),
        })
    }
}

fn is_operator(word: &str) -> bool {
    matches!(
        word,
        "&" | "|" | "^" | "and" | "or" | "xor" | "<<" | ">>" | "map"
    )
}
