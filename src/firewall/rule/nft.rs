//! Rules as nft(8) lists them.

use super::{
    Alone, Caveat, Does, Field, Goal, Rule, Test, Varying, Verdict,
    table::{self, About, Action},
    words::{pieces, unquoted},
    xtables::{net, port_range, translation},
};
use crate::netlink::object::Family;

impl Rule {
    /// Reads a rule of nft(8). What is not understood is in the rule as something that may hold.
    #[must_use]
    pub fn of_nft(text: &str) -> Self {
        let words = pieces(text);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut reader = Reader {
            words: &words,
            at: 0,
            rule: Self::default(),
        };
        while let Some(word) = reader.next() {
            reader.statement(word);
        }
        reader.rule
    }
}

struct Reader<'a> {
    words: &'a [&'a str],
    at: usize,
    rule: Rule,
}

/// What an expression is about: its words, and the field where that is understood.
#[derive(Debug, Clone)]
struct Key {
    text: String,
    of: Option<Kind>,
}

/// A field with the way its values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address(Field),
    Device(Field),
    Number(Field),
    Family,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// No operator: equal, or some bits of it.
    Plain,
    Equal,
    Not,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    /// Passes over the next word if it is one of these.
    fn skip(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| words.contains(&word));
        self.at += usize::from(found);
        found
    }

    /// What is within the braces that come next, without them.
    fn braces(&mut self) -> &'a [&'a str] {
        if self.peek() != Some("{") {
            return &[];
        }
        let begin = self.at + 1;
        let mut depth = 0;
        while let Some(word) = self.next() {
            match word {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        let end = self.at.saturating_sub(1).max(begin);
        self.words.get(begin..end).unwrap_or_default()
    }

    fn statement(&mut self, word: &'a str) {
        match word {
            "comment" => _ = self.next(),
            "continue" | ";" | "," => {}
            // A listing hides in a comment what it cannot express.
            "#" => {
                self.at = self.words.len();
                self.unknown("what the listing hides in a comment");
            }
            "xt" => self.extension(),
            "jump" | "goto" => {
                let chain = unquoted(self.next().unwrap_or_default());
                self.rule.decide(match word {
                    "jump" => Verdict::Jump(chain),
                    _ => Verdict::Goto(chain),
                });
            }
            "limit" | "quota" => self.limit(word, self.at - 1),
            "meter" => self.meter(),
            "add" | "update" | "delete" if self.peek().is_some_and(|w| w.starts_with('@')) => {
                self.dynamic(word);
            }
            _ => match table::action(word) {
                // `ip` and `ip6` are heads of expressions, and targets are in capitals.
                Some(action) if word.starts_with(char::is_lowercase) => self.act(word, action),
                _ => self.expression(word),
            },
        }
    }

    fn unknown(&mut self, text: &str) {
        self.rule.ask(other(text, &[Field::Other]), false);
        self.rule.decide(Verdict::Unknown(text.to_owned()));
    }

    /// `xt match "name"`, `xt target "NAME"`: extensions of iptables that nft cannot express.
    fn extension(&mut self) {
        let kind = self.next().unwrap_or_default();
        let name = unquoted(self.next().unwrap_or_default());
        match (kind, table::action(&name)) {
            ("target", Some(_)) => {
                let rule = Rule::of_iptables(&format!("-j {name}"));
                self.rule.matches.extend(rule.matches);
                self.rule.does.extend(rule.does);
            }
            ("match", _) => match by_name(&name) {
                Some(caveat) => self
                    .rule
                    .ask(Test::Varies(caveat.alone(Alone::Either)), false),
                None => self.rule.ask(other(&name, &[Field::Other]), false),
            },
            _ => self.unknown(&name),
        }
    }

    /// A statement that is not a test.
    fn act(&mut self, word: &str, action: Action) {
        match action {
            Action::Accept => self.rule.decide(Verdict::Accept),
            Action::Drop => self.rule.decide(Verdict::Drop),
            Action::Return => self.rule.decide(Verdict::Return),
            Action::Reject => self.reject(),
            Action::Queue => self.queue(),
            Action::Note | Action::CountRate => {
                self.note(word);
                self.rule.does.push(Does::Note);
            }
            Action::AnswerItself => {
                self.skip_words(&["name", "mss", "wscale"], &["timestamp", "sack-perm"]);
                self.rule.decide(Verdict::AnswerItself);
            }
            Action::SendOn | Action::Copy => {
                self.skip_words(&["to", "device"], &["ip", "ip6"]);
                self.rule.does.push(match action {
                    Action::Copy => Does::Copy,
                    _ => Does::Decide(Verdict::SendOn),
                });
            }
            Action::Proxy => {
                self.skip(&["ip", "ip6"]);
                let to = if self.skip(&["to"]) {
                    self.next()
                } else {
                    None
                };
                let port = to.and_then(|to| to.rsplit_once(':')?.1.parse().ok());
                self.rule.decide(Verdict::Proxy {
                    port,
                    or_drop: false,
                });
            }
            Action::TranslateSource
            | Action::TranslateDestination
            | Action::TranslateEither
            | Action::Redirect => self.translate(action),
            Action::Set(field) => {
                if word == "reset" {
                    self.at = (self.at + 3).min(self.words.len());
                }
                self.rule.does.push(Does::Set {
                    field,
                    mask: u32::MAX,
                    value: None,
                });
            }
            Action::Remember => self.rule.does.push(Does::Remember("a set".to_owned())),
        }
    }

    /// Passes over words: each of `pairs` with one that follows it, and each of `flags`.
    fn skip_words(&mut self, pairs: &[&str], flags: &[&str]) {
        loop {
            if self.skip(pairs) {
                self.at = (self.at + 1).min(self.words.len());
            } else if !self.skip(flags) {
                return;
            }
        }
    }

    fn note(&mut self, word: &str) {
        match word {
            "counter" => self.skip_words(&["packets", "bytes", "name"], &[]),
            "last" => self.skip_words(&["used"], &["never"]),
            "flow" => self.skip_words(&["add"], &["offload"]),
            _ => {
                let pairs = ["prefix", "level", "group", "snaplen", "queue-threshold"];
                self.skip_words(&pairs, &[]);
                while self.skip(&[
                    "flags", "tcp", "ip", "sequence", "options", "skuid", "ether", "all", ",",
                ]) {}
                self.skip_words(&pairs, &[]);
            }
        }
    }

    fn reject(&mut self) {
        let mut with = "port-unreachable".to_owned();
        if self.skip(&["with"]) {
            let family = self.next().unwrap_or_default();
            self.skip(&["type"]);
            let code = self.next().unwrap_or_default();
            with = format!("{family} {code}");
        }
        self.rule.decide(Verdict::Reject(with));
    }

    fn queue(&mut self) {
        let (mut number, mut bypass) = (None, false);
        while let Some(word) = self.peek() {
            match word {
                "bypass" => bypass = true,
                "num" | "to" | "flags" | "fanout" | "," => {}
                _ => {
                    let first = word.split('-').next().and_then(|n| n.parse().ok());
                    if first.is_none() {
                        break;
                    }
                    number = number.or(first);
                }
            }
            self.at += 1;
        }
        let number = number.unwrap_or(0);
        self.rule.decide(Verdict::Queue { number, bypass });
    }

    /// `dnat [ip|ip6] [prefix] to ADDRESS[:PORT]`, or to what a map gives.
    fn translate(&mut self, action: Action) {
        let begin = self.at;
        self.skip_words(
            &[],
            &["ip", "ip6", "addr", ".", "port", "prefix", "interval"],
        );
        let mut found = translation(action, "");
        if self.skip(&["to"]) {
            let simple = self.peek().filter(|word| !self.is_key(word));
            match simple {
                Some(word) => {
                    self.at += 1;
                    found = translation(action, word.trim_start_matches(':'));
                }
                None => found.to = self.mapped(),
            }
        }
        self.skip_words(&[], &["random", "fully-random", "persistent", ","]);
        debug_assert!(self.at >= begin);
        self.rule.does.push(Does::Translate(found));
    }

    fn is_key(&self, word: &str) -> bool {
        NUMBER_SOURCES.contains(&word)
            || matches!(
                word,
                "ip" | "ip6"
                    | "tcp"
                    | "udp"
                    | "th"
                    | "meta"
                    | "ct"
                    | "iifname"
                    | "oifname"
                    | "iif"
                    | "oif"
                    | "mark"
                    | "fib"
            )
    }

    /// `KEY map { value : address [. port], … }`: what it holds; nothing where that is not all there.
    fn mapped(&mut self) -> Vec<Goal> {
        let begin = self.at;
        while self.next().is_some_and(|word| word != "map") {}
        let end = self.at.saturating_sub(1).max(begin);
        self.draw(begin, end);
        if self.peek() != Some("{") {
            _ = self.next();
            return Vec::new();
        }
        let elements = self.braces();
        let values = elements.split(|word| *word == ",");
        let one = |words: &[&str]| {
            let at = words.iter().position(|word| *word == ":")?;
            let ports = match words.get(at + 2..)? {
                [".", ports, ..] => Some(port_range(ports)?),
                _ => None,
            };
            let net = Some(net(words.get(at + 1)?)?);
            Some(Goal { net, ports })
        };
        values
            .map(one)
            .collect::<Option<Vec<_>>>()
            .unwrap_or_default()
    }

    /// Where chance has a part in a value that these words compute, the rule depends on it.
    fn draw(&mut self, begin: usize, end: usize) {
        let words = self.words.get(begin..end).unwrap_or_default();
        let source = |word: &&str| NUMBER_SOURCES.contains(word);
        let Some(at) = words.iter().position(source) else {
            return;
        };
        let text = words[at..].join(" ");
        if is_drawn(&text) {
            let caveat = Caveat::Random(text);
            self.rule
                .ask(Test::Varies(caveat.alone(Alone::Chooses)), false);
        }
    }

    /// `limit rate [over] N/unit [burst N packets]`, `limit name "x"`, and the same of quotas.
    fn limit(&mut self, word: &str, begin: usize) {
        let rest = &self.words[begin..];
        let varying = match word {
            "limit" => rate(rest),
            _ => quota(rest),
        };
        if word == "limit" {
            self.skip(&["rate", "name"]);
            self.skip(&["over"]);
            self.at = (self.at + 1).min(self.words.len());
            if self.peek().is_some_and(|word| word.contains("bytes/")) {
                self.at += 1;
            }
            if self.skip(&["burst"]) {
                self.at = (self.at + 2).min(self.words.len());
            }
        } else if self.skip(&["name"]) {
            self.at = (self.at + 1).min(self.words.len());
        } else {
            self.skip(&["over", "until"]);
            self.at = (self.at + 2).min(self.words.len());
            if self.skip(&["used"]) {
                self.at = (self.at + 2).min(self.words.len());
            }
        }
        self.rule.ask(Test::Varies(varying), false);
    }

    /// `meter NAME [size N] { KEY limit … }`.
    fn meter(&mut self) {
        let name = unquoted(self.next().unwrap_or_default());
        self.skip_words(&["size"], &[]);
        let held = held(self.braces());
        let alone = held.map_or(Alone::Either, |held| held.alone);
        let caveat = Caveat::History(format!("meter {name}"));
        self.rule.ask(Test::Varies(caveat.alone(alone)), false);
        self.rule.does.push(Does::Remember(format!("set {name}")));
    }

    /// `add @SET { KEY [limit …] }`.
    fn dynamic(&mut self, word: &str) {
        let set = self.next().unwrap_or_default().trim_start_matches('@');
        if let Some(held) = held(self.braces()) {
            self.rule.ask(Test::Varies(held), false);
        }
        self.rule.does.push(match word {
            "delete" => Does::Note,
            _ => Does::Remember(format!("set {set}")),
        });
    }

    /// A test, or a statement that begins like one: `KEY set VALUE`, `KEY vmap { … }`.
    fn expression(&mut self, word: &'a str) {
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
            "ip" | "ip6" => {
                let family = if word == "ip" { Family::V4 } else { Family::V6 };
                self.rule.ask(Test::Family(family), false);
                let field = self.next().unwrap_or_default();
                of = network(field);
                if field == "option" {
                    self.at = (self.at + 2).min(self.words.len());
                }
            }
            "tcp" | "udp" | "th" | "udplite" | "sctp" | "dccp" | "icmp" | "icmpv6" | "igmp"
            | "esp" | "ah" => {
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
                of = transport(word, field);
                if field == "option" {
                    self.at = (self.at + 2).min(self.words.len());
                }
            }
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
            "socket" | "osf" | "ether" | "vlan" | "arp" | "frag" | "hbh" | "dst" | "mh" | "srh"
            | "exthdr" | "comp" => _ = self.next(),
            _ if word.starts_with('@') => self.raw(),
            _ => of = meta(word),
        }
        Key {
            text: self.words[begin..self.at].join(" "),
            of,
        }
    }

    /// `@th,16,16`: commas are words.
    fn raw(&mut self) {
        while self.skip(&[","]) {
            self.at = (self.at + 1).min(self.words.len());
        }
    }

    /// `numgen random mod 2 [offset 1]`, `jhash ip saddr mod 3 [seed 1]`.
    fn number_source(&mut self) {
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
            self.rule
                .ask(other(&format!("{whole} vmap {map}"), &reads(whole)), false);
            let verdict = Verdict::Unknown(format!("vmap {map}"));
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
                [_, "jump", chain, ..] => Verdict::Jump(unquoted(chain)),
                [_, "goto", chain, ..] => Verdict::Goto(unquoted(chain)),
                [_, "accept", ..] => Verdict::Accept,
                [_, "drop", ..] => Verdict::Drop,
                [_, "return", ..] => Verdict::Return,
                [_, "continue", ..] => continue,
                _ => Verdict::Unknown(element.join(" ")),
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
                None => self.rule.ask(other(whole, &reads(whole)), false),
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
        let values: Vec<&str> = match self.peek() {
            Some("{") => {
                let within = self.braces();
                within.iter().copied().filter(|word| *word != ",").collect()
            }
            Some(_) => self.plain_values(alone),
            None => Vec::new(),
        };
        let test = match (key.of, mask) {
            (Some(Kind::Number(Field::TcpFlags)), mask) => flags_test(&values, mask, comparison),
            (Some(Kind::Number(of)), Some(mask)) => masked_test(of, mask, &values),
            (Some(of), None) if alone => values_test(of, &values, comparison),
            _ => None,
        };
        let text = || format!("{} {}", key.text, self.words[begin..self.at].join(" "));
        let test = test.unwrap_or_else(|| {
            let mut reads = reads(&key.text);
            if values.first().is_some_and(|value| value.starts_with('@')) {
                reads.push(Field::Sets);
            }
            other(&text(), &reads)
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
            _ => Caveat::Random(key.text.clone()).alone(Alone::Either),
        })
    }
}

/// What a statement that changes a set holds within its braces. One without a limit, a quota or a
/// count always does the same.
fn held(words: &[&str]) -> Option<Varying> {
    let at = |word: &str| words.iter().position(|w| *w == word);
    if let Some(limit) = at("limit") {
        return Some(rate(&words[limit..]));
    }
    if let Some(at) = at("quota") {
        return Some(quota(&words[at..]));
    }
    let count = at("ct").filter(|ct| words.get(ct + 1) == Some(&"count"))?;
    let over = words.get(count + 2) == Some(&"over");
    let limit = words.get(count + 2 + usize::from(over));
    let limit: Option<u32> = limit.and_then(|limit| limit.parse().ok());
    let matches = limit.map(|limit| if over { limit < 1 } else { limit >= 1 });
    let alone = matches.map_or(Alone::Either, Alone::if_matches);
    Some(Caveat::History(words[count..].join(" ")).alone(alone))
}

/// `limit rate [over] N/unit [burst N packets|bytes]`, `limit name "x"`.
fn rate(words: &[&str]) -> Varying {
    let mut rest = words.iter().copied().skip(1);
    if rest.next() == Some("name") {
        let text = words.iter().take(3).copied().collect::<Vec<_>>().join(" ");
        return Caveat::RateLimited(text).alone(Alone::Either);
    }
    let mut text = rest.next().unwrap_or_default().to_owned();
    let over = text == "over";
    if over {
        text = format!("over {}", rest.next().unwrap_or_default());
    }
    let mut more: Vec<&str> = rest.take(4).collect();
    // Bytes: `1 mbytes/second`.
    if more.first().is_some_and(|word| word.contains("bytes/")) {
        text = format!("{text} {}", more.remove(0));
    }
    if let ["burst", number, ..] = more[..] {
        text = format!("{text} burst {number}");
    }
    Caveat::RateLimited(text).alone(Alone::if_matches(!over))
}

/// `quota [over|until] N unit`, `quota name "x"`.
fn quota(words: &[&str]) -> Varying {
    let text = |n: usize| {
        words
            .iter()
            .skip(1)
            .take(n)
            .copied()
            .collect::<Vec<_>>()
            .join(" ")
    };
    match words.get(1) {
        Some(&"name") => Caveat::Quota(format!("quota {}", text(2))).alone(Alone::Either),
        Some(&"over") => Caveat::Quota(text(3)).alone(Alone::Fails),
        Some(&"until") => Caveat::Quota(text(3)).alone(Alone::Matches),
        _ => Caveat::Quota(text(2)).alone(Alone::Matches),
    }
}

/// The first two words of a key, which say what it is about; `ct original bytes` is `ct bytes`.
fn two(key: &str) -> &str {
    let mut words = key.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("ct"), Some("original" | "reply"), Some("bytes")) => "ct bytes",
        (Some("ct"), Some("original" | "reply"), Some("packets")) => "ct packets",
        (Some("ct"), Some("original" | "reply"), Some("avgpkt")) => "ct avgpkt",
        (Some("meta" | "ct" | "rt" | "tcp"), Some(second), _) => {
            let name = key.find(second).and_then(|at| key.get(..at + second.len()));
            name.filter(|name| is_listed(name))
                .unwrap_or_else(|| key.split(' ').next().unwrap_or_default())
        }
        (Some("time" | "hour" | "day" | "random" | "secpath"), None, _) => bare(key),
        (Some(first), ..) => first,
        _ => key,
    }
}

fn is_listed(name: &str) -> bool {
    table::about(name) != About::Packet(&[Field::Other])
}

/// Keys of `meta` that may be written without that word.
fn bare(key: &str) -> &str {
    match key {
        "random" => "meta random",
        "secpath" => "meta secpath",
        _ => "meta time",
    }
}

fn varies(key: &str) -> Option<Varying> {
    match about(key) {
        About::Packet(_) => None,
        About::Chance => Some(Caveat::Random(key.to_owned()).alone(Alone::Either)),
        About::Clock => Some(Caveat::TimeOfDay(key.to_owned()).alone(Alone::AsMeasured)),
        About::IpsecPolicy => Some(Caveat::Ipsec(key.to_owned()).alone(Alone::Either)),
        _ => Some(Caveat::History(key.to_owned()).alone(Alone::Either)),
    }
}

/// What a match of iptables depends on whose options are not known.
pub(super) fn by_name(name: &str) -> Option<Caveat> {
    let name_of = || name.to_owned();
    Some(match table::about(name) {
        About::Packet(_) => return None,
        About::Rate => Caveat::RateLimited(name_of()),
        About::Quota | About::Moved => Caveat::Quota(name_of()),
        About::Chance => Caveat::Random(name_of()),
        About::Clock => Caveat::TimeOfDay(name_of()),
        About::Seen | About::Open | About::Outside => Caveat::History(name_of()),
        About::IpsecPolicy => Caveat::Ipsec(name_of()),
    })
}

/// Expressions of nft(8) that make a number.
const NUMBER_SOURCES: [&str; 3] = ["numgen", "jhash", "symhash"];

/// What a key is about. A number may be one of chance.
fn about(key: &str) -> About {
    match key.split(' ').next() {
        Some(first) if NUMBER_SOURCES.contains(&first) && is_drawn(key) => About::Chance,
        Some(first) if NUMBER_SOURCES.contains(&first) => table::about("jhash"),
        _ => table::about(two(key)),
    }
}

/// Whether a number is one of chance. It is not where there is only one (`mod 1`), and where it is a
/// hash with a seed of its own over what a question fixes. Without a seed the kernel draws one.
fn is_drawn(source: &str) -> bool {
    const FIXED: [&str; 5] = ["saddr", "daddr", "dport", "protocol", "l4proto"];
    let words: Vec<&str> = source.split(' ').collect();
    let behind = |word: &str| {
        let at = words.iter().position(|w| *w == word)?;
        words.get(at + 1).copied()
    };
    if behind("mod") == Some("1") {
        return false;
    }
    let over = source
        .strip_prefix("jhash ")
        .and_then(|rest| rest.split_once(" mod "));
    let Some((over, _)) = over.filter(|_| behind("seed").is_some()) else {
        return true;
    };
    let fixed = |part: &str| {
        FIXED
            .iter()
            .any(|field| part.ends_with(&format!(" {field}")))
    };
    !over.split(" . ").all(fixed)
}

/// Whether a map from numbers below N has all N of them.
fn is_total(key: &str, elements: usize) -> bool {
    let modulus = key.split(' ').skip_while(|word| *word != "mod").nth(1);
    key.split(' ')
        .next()
        .is_some_and(|word| NUMBER_SOURCES.contains(&word))
        && modulus.and_then(|n| n.parse().ok()) == Some(elements)
}

/// One test that any of several fulfils; none where one of them is not understood.
fn joined(tests: &[Option<Test>]) -> Option<Test> {
    let mut tests = tests.iter();
    let mut all = tests.next()?.clone()?;
    for test in tests {
        match (&mut all, test.as_ref()?) {
            (Test::Number { ranges, .. }, Test::Number { ranges: more, .. }) => ranges.extend(more),
            (Test::Address { nets, .. }, Test::Address { nets: more, .. }) => nets.extend(more),
            (Test::Device { names, .. }, Test::Device { names: more, .. }) => {
                names.extend(more.iter().cloned());
            }
            _ => return None,
        }
    }
    Some(all)
}

fn is_operator(word: &str) -> bool {
    matches!(
        word,
        "&" | "|" | "^" | "and" | "or" | "xor" | "<<" | ">>" | "map"
    )
}

fn meta(field: &str) -> Option<Kind> {
    Some(match field {
        "mark" => Kind::Number(Field::Mark),
        "l4proto" => Kind::Number(Field::Protocol),
        "length" => Kind::Number(Field::Length),
        "iifname" | "iif" => Kind::Device(Field::Incoming),
        "oifname" | "oif" => Kind::Device(Field::Outgoing),
        "nfproto" | "protocol" => Kind::Family,
        _ => return None,
    })
}

fn network(field: &str) -> Option<Kind> {
    Some(match field {
        "saddr" => Kind::Address(Field::Source),
        "daddr" => Kind::Address(Field::Destination),
        "protocol" | "nexthdr" => Kind::Number(Field::Protocol),
        "dscp" => Kind::Number(Field::Tos),
        "ttl" | "hoplimit" => Kind::Number(Field::Ttl),
        "length" => Kind::Number(Field::Length),
        _ => return None,
    })
}

fn transport(protocol: &str, field: &str) -> Option<Kind> {
    Some(match (protocol, field) {
        (_, "sport") => Kind::Number(Field::SourcePort),
        (_, "dport") => Kind::Number(Field::DestinationPort),
        ("tcp", "flags") => Kind::Number(Field::TcpFlags),
        _ => return None,
    })
}

fn connection(field: &str) -> Option<Kind> {
    Some(match field {
        "state" => Kind::Number(Field::State),
        "mark" => Kind::Number(Field::ConnectionMark),
        _ => return None,
    })
}

/// What a key reads.
fn reads(key: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    for part in key.split(" . ") {
        let mut words = part.split(' ');
        let kind = match (words.next(), words.next()) {
            (Some("meta"), Some(field)) => meta(field),
            (Some("ip" | "ip6"), Some(field)) => network(field),
            (Some("ct"), Some(field)) => connection(field),
            (Some(protocol), Some(field)) => transport(protocol, field),
            (Some(field), None) => meta(field),
            _ => None,
        };
        match kind {
            Some(Kind::Address(of) | Kind::Device(of) | Kind::Number(of)) => fields.push(of),
            Some(Kind::Family) => {}
            None => match table::about(two(part)) {
                About::Packet(more) => fields.extend(more),
                _ => fields.push(Field::Other),
            },
        }
    }
    fields
}

/// One value of a numeric field.
fn number_of(of: Field, word: &str) -> Option<u32> {
    match of {
        Field::Protocol => table::protocol(word),
        Field::State => table::state(word),
        Field::TcpFlags => table::tcp_flag(word).or_else(|| table::number(word)),
        Field::Tos => table::dscp(word),
        _ => table::number(word),
    }
}

/// Bits written as `(fin | syn)` or `0xff`.
fn bits(of: Field, words: &[&str]) -> Option<u32> {
    let parts = words.iter().flat_map(|word| word.split(['(', ')', '|']));
    let mut parts = parts.map(str::trim).filter(|part| !part.is_empty());
    parts.try_fold(0, |bits, part| Some(bits | number_of(of, part)?))
}

/// `tcp flags syn`, `tcp flags syn / fin,syn`, `tcp flags & (fin | syn) == syn`.
fn flags_test(values: &[&str], mask: Option<u32>, comparison: Comparison) -> Option<Test> {
    let test = |mask, ranges| Test::Number {
        of: Field::TcpFlags,
        mask,
        ranges,
    };
    let of = Field::TcpFlags;
    if let Some(at) = values.iter().position(|value| *value == "/") {
        let value = bits(of, &values[..at])?;
        return Some(test(bits(of, &values[at + 1..])?, vec![(value, value)]));
    }
    let value = bits(of, values)?;
    match (mask, comparison) {
        (Some(0), _) => None,
        (Some(mask), Comparison::Not) if value == 0 => Some(test(mask, vec![(0, 0)])),
        (Some(mask), _) => Some(test(mask, vec![(value, value)])),
        // Without an operator any of these bits.
        (None, Comparison::Plain) => Some(test(value, vec![(1, value)])),
        (None, Comparison::Equal | Comparison::Not) => Some(test(0xff, vec![(value, value)])),
        _ => None,
    }
}

fn masked_test(of: Field, mask: u32, values: &[&str]) -> Option<Test> {
    let value = match values {
        [value] => number_of(of, value)?,
        _ => return None,
    };
    (mask != 0).then(|| Test::Number {
        of,
        mask,
        ranges: vec![(value, value)],
    })
}

/// A test of one or several values.
fn values_test(kind: Kind, values: &[&str], comparison: Comparison) -> Option<Test> {
    if values.is_empty() || values.iter().any(|value| value.starts_with(['@', '$'])) {
        return None;
    }
    let equal = matches!(
        comparison,
        Comparison::Plain | Comparison::Equal | Comparison::Not
    );
    Some(match kind {
        _ if !equal && !matches!(kind, Kind::Number(_)) => return None,
        Kind::Address(of) => Test::Address {
            of,
            nets: values
                .iter()
                .map(|value| nets(value))
                .collect::<Option<Vec<_>>>()?
                .concat(),
        },
        Kind::Device(of) => Test::Device {
            of,
            names: values.iter().map(|value| unquoted(value)).collect(),
        },
        Kind::Family => match values {
            ["ipv4" | "ip"] => Test::Family(Family::V4),
            ["ipv6" | "ip6"] => Test::Family(Family::V6),
            _ => return None,
        },
        Kind::Number(Field::Tos) => Test::Number {
            of: Field::Tos,
            mask: 0xfc,
            ranges: (values.iter())
                .map(|value| table::dscp(value).map(|d| (d << 2, d << 2)))
                .collect::<Option<Vec<_>>>()
                .filter(|_| equal)?,
        },
        Kind::Number(of) => Test::Number {
            of,
            mask: u32::MAX,
            ranges: numbers(of, values, comparison)?,
        },
    })
}

/// An address, a net, or a range of addresses.
fn nets(value: &str) -> Option<Vec<ipnet::IpNet>> {
    use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

    if let Some(net) = net(value) {
        return Some(vec![net]);
    }
    let (first, last) = value.split_once('-')?;
    Some(match (first.parse().ok()?, last.parse().ok()?) {
        (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) => {
            Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
        }
        (std::net::IpAddr::V6(first), std::net::IpAddr::V6(last)) => {
            Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
        }
        _ => return None,
    })
}

fn numbers(of: Field, values: &[&str], comparison: Comparison) -> Option<Vec<(u32, u32)>> {
    let one = |value: &&str| -> Option<(u32, u32)> {
        match value.split_once('-') {
            Some((first, last)) => Some((number_of(of, first)?, number_of(of, last)?)),
            None => number_of(of, value).map(|number| (number, number)),
        }
    };
    let ranges: Vec<(u32, u32)> = values.iter().map(one).collect::<Option<_>>()?;
    let single = ranges.first().map(|(first, _)| *first)?;
    Some(match comparison {
        Comparison::Plain | Comparison::Equal | Comparison::Not => ranges,
        Comparison::Less => vec![(0, single.checked_sub(1)?)],
        Comparison::LessOrEqual => vec![(0, single)],
        Comparison::Greater => vec![(single.checked_add(1)?, u32::MAX)],
        Comparison::GreaterOrEqual => vec![(single, u32::MAX)],
    })
}

fn other(text: &str, reads: &[Field]) -> Test {
    Test::Other {
        text: text.to_owned(),
        reads: reads.to_vec(),
    }
}
