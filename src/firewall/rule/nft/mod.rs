//! Rules as nft(8) lists them: statements here, what they ask for and compute in `expression`.

mod expression;
mod values;
mod varying;

pub(crate) use self::values::nets;
pub(super) use self::varying::by_name;
use self::{
    values::reads,
    varying::{NUMBER_SOURCES, held, is_drawn, is_fixed, key_of, quota, rate},
};
use super::{
    Alone, Caveat, Does, Field, Goal, Rule, RuleVerdict, Test,
    table::{self, TargetAction},
    words::{pieces, unquoted},
    xtables::{drawn_port, net, port_range, translation},
};

impl Rule {
    /// Reads a rule of nft(8). What is not understood is in the rule as something that may hold.
    #[must_use]
    pub fn of_nft(text: &str) -> Self {
        let words = pieces(text);
        let mut reader = Reader {
            words: &words,
            at: 0,
            rule: Self::default(),
        };
        while let Some(word) = reader.next() {
            reader.statement(word);
        }
        reader.ask_maps();
        reader.rule.open_made_up()
    }
}

struct Reader<'a> {
    words: &'a [&'a str],
    at: usize,
    rule: Rule,
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
                let chain = unquoted(self.next().unwrap_or_default()).into_owned();
                self.rule.decide(match word {
                    "jump" => RuleVerdict::Jump(chain),
                    _ => RuleVerdict::Goto(chain),
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
        self.rule.ask(Test::other(text, &[Field::Other]), false);
        self.rule.decide(RuleVerdict::Unknown(text.to_owned()));
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
                None => self.rule.ask(Test::other(&name, &[Field::Other]), false),
            },
            _ => self.unknown(&name),
        }
    }

    /// A statement that is not a test.
    fn act(&mut self, word: &str, action: TargetAction) {
        match action {
            TargetAction::Accept => self.rule.decide(RuleVerdict::Accept),
            TargetAction::Drop => self.rule.decide(RuleVerdict::Drop),
            TargetAction::Return => self.rule.decide(RuleVerdict::Return),
            TargetAction::Reject => self.reject(),
            TargetAction::Queue => self.queue(),
            TargetAction::Note | TargetAction::CountRate => {
                self.note(word);
                self.rule.does.push(Does::Note);
            }
            TargetAction::AnswerItself => {
                self.skip_words(&["name", "mss", "wscale"], &["timestamp", "sack-perm"]);
                self.rule.decide(RuleVerdict::AnswerItself);
            }
            TargetAction::SendOn | TargetAction::Copy => {
                self.skip_words(&["to", "device"], &["ip", "ip6"]);
                self.rule.does.push(match action {
                    TargetAction::Copy => Does::Copy,
                    _ => Does::Decide(RuleVerdict::SendOn),
                });
            }
            TargetAction::Proxy => {
                self.skip(&["ip", "ip6"]);
                let to = if self.skip(&["to"]) {
                    self.next()
                } else {
                    None
                };
                let port = to.and_then(|to| to.rsplit_once(':')?.1.parse().ok());
                self.rule.decide(RuleVerdict::Proxy {
                    port,
                    or_drop: false,
                });
            }
            TargetAction::TranslateSource
            | TargetAction::TranslateDestination
            | TargetAction::TranslateEither
            | TargetAction::Redirect => self.translate(action),
            TargetAction::Set(field) => {
                if word == "reset" {
                    self.at = (self.at + 3).min(self.words.len());
                }
                self.rule.does.push(Does::Set {
                    field,
                    mask: u32::MAX,
                    value: None,
                });
            }
            TargetAction::Remember => self.rule.does.push(Does::Remember("a set".to_owned())),
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
        self.rule.decide(RuleVerdict::Reject(with));
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
        self.rule.decide(RuleVerdict::Queue { number, bypass });
    }

    /// `dnat [ip|ip6] [prefix] to ADDRESS[:PORT]`, or to what a map gives.
    fn translate(&mut self, action: TargetAction) {
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
                None => (found.to, found.fixed) = self.mapped(),
            }
        }
        let flags = self.at;
        self.skip_words(&[], &["random", "fully-random", "persistent", ","]);
        debug_assert!(self.at >= begin);
        let flags = self.words.get(flags..self.at).unwrap_or_default();
        found.random = flags.iter().any(|flag| flag.ends_with("random"));
        if found.random
            && let Some(caveat) = drawn_port(&found)
        {
            self.rule
                .ask(Test::Varies(caveat.alone(Alone::Chooses)), false);
        }
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

    /// `KEY map { value : address [. port], … }`: what it holds, nothing where that is not all there, and
    /// whether a question fixes the key.
    fn mapped(&mut self) -> (Vec<Goal>, bool) {
        let begin = self.at;
        while self.next().is_some_and(|word| word != "map") {}
        let end = self.at.saturating_sub(1).max(begin);
        self.draw(begin, end);
        let fixed = is_fixed(&self.words.get(begin..end).unwrap_or_default().join(" "));
        if self.peek() != Some("{") {
            _ = self.next();
            return (Vec::new(), fixed);
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
        let goals = values.map(one).collect::<Option<Vec<_>>>();
        (goals.unwrap_or_default(), fixed)
    }

    /// `KEY map @MAP`, wherever a value is computed: of a packet that the map has no element for, the kernel
    /// says that the rule does not match, as it does of one that is not in a set.
    fn ask_maps(&mut self) {
        for (at, pair) in self.words.windows(2).enumerate() {
            let [word, map] = pair else { continue };
            if *word != "map" || !map.starts_with('@') {
                continue;
            }
            let before = self.words.get(..at).unwrap_or_default();
            let begin = before.iter().rposition(|word| ["set", "to"].contains(word));
            let key = before.get(begin.map_or(0, |begin| begin + 1)..);
            let key = key.unwrap_or_default().join(" ");
            let mut read = reads(&key);
            read.push(Field::Sets);
            self.rule
                .ask(Test::other(&format!("{key} map {map}"), &read), false);
        }
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
        let element = self.braces();
        if let Some(held) = held(element) {
            self.rule.ask(Test::Varies(held), false);
        }
        let renews = self
            .rule
            .asks_to_be_in(&format!("{} @{set}", key_of(element)));
        self.rule.does.push(match word {
            "delete" => Does::Forget(format!("set {set}")),
            _ if renews => Does::Note,
            _ => Does::Remember(format!("set {set}")),
        });
    }
}
