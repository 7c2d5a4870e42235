//! Rules as iptables-save(8) prints them.

use std::borrow::Cow;

use ipnet::IpNet;

use super::{
    Alone, Caveat, Does, Field, Goal, Rule, RuleVerdict, Test, Translation, Varying,
    table::{self, About, TargetAction},
    words::{unquoted, words},
};

impl Rule {
    /// Reads a rule of iptables-save(8), with or without `-A CHAIN`. What is not understood is in
    /// the rule as something that may hold.
    #[must_use]
    pub fn of_iptables(text: &str) -> Self {
        let words: Vec<Cow<'_, str>> = words(text).into_iter().map(unquoted).collect();
        let mut reader = Reader {
            words: &words,
            at: 0,
            negated: false,
            rule: Self::default(),
        };
        while let Some(word) = reader.next() {
            reader.option(word);
        }
        reader.rule.open_made_up()
    }
}

struct Reader<'a> {
    words: &'a [Cow<'a, str>],
    at: usize,
    /// Whether a `!` came before the option.
    negated: bool,
    rule: Rule,
}

/// An option of a match or target, with its values.
#[derive(Debug)]
struct Given<'a> {
    name: &'a str,
    negated: bool,
    values: Vec<&'a str>,
}

impl Given<'_> {
    fn first(&self) -> Option<&str> {
        self.values.first().copied()
    }
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn value(&mut self) -> &'a str {
        // `-p ! tcp`, as iptables before 1.4.3 wrote it.
        if self.words.get(self.at).is_some_and(|word| word == "!") {
            self.at += 1;
            self.negated = true;
        }
        self.next().unwrap_or_default()
    }

    /// The options that follow up to the next match, target or option of iptables itself.
    fn options(&mut self) -> Vec<Given<'a>> {
        const OWN: [&str; 20] = [
            "-m",
            "--match",
            "-j",
            "--jump",
            "-g",
            "--goto",
            "-p",
            "--protocol",
            "-s",
            "--source",
            "-d",
            "--destination",
            "-i",
            "-o",
            "-c",
            "-f",
            "--src",
            "--dst",
            "--in-interface",
            "--out-interface",
        ];
        let mut options: Vec<Given<'a>> = Vec::new();
        let mut negated = false;
        while let Some(word) = self.words.get(self.at) {
            // A free text may look like an option.
            let is_free = |given: &&mut Given<'_>| {
                const FREE: [&str; 5] = [
                    "--comment",
                    "--log-prefix",
                    "--nflog-prefix",
                    "--string",
                    "--hex-string",
                ];
                FREE.contains(&given.name) && given.values.is_empty()
            };
            if let Some(last) = options.last_mut().filter(is_free) {
                last.values.push(word);
                self.at += 1;
                continue;
            }
            if OWN.contains(&word.as_ref()) {
                self.negated = negated;
                break;
            }
            self.at += 1;
            match options.last_mut() {
                _ if word == "!" => negated = true,
                _ if word.starts_with("--") => options.push(Given {
                    name: word,
                    negated: std::mem::take(&mut negated),
                    values: Vec::new(),
                }),
                Some(last) => last.values.push(word),
                None => {}
            }
        }
        options
    }

    fn option(&mut self, word: &'a str) {
        let negated = std::mem::take(&mut self.negated);
        match word {
            "!" => self.negated = true,
            "-A" | "-I" | "--append" => _ = self.next(),
            "-c" => _ = (self.next(), self.next()),
            "-p" | "--protocol" => {
                let name = self.value();
                let negated = negated | std::mem::take(&mut self.negated);
                if name != "all" && name != "0" {
                    let number = table::protocol(name).map(|n| (n, n));
                    self.number(Field::Protocol, word, number.into_iter().collect(), negated);
                }
            }
            "-s" | "--source" | "--src" => self.address(Field::Source, negated),
            "-d" | "--destination" | "--dst" => self.address(Field::Destination, negated),
            "-i" | "--in-interface" => self.device(Field::Incoming, negated),
            "-o" | "--out-interface" => self.device(Field::Outgoing, negated),
            "-f" => self.rule.ask(Test::other("-f", &[]), negated),
            "-m" | "--match" => {
                let module = self.next().unwrap_or_default();
                let options = self.options();
                self.module(module, &options);
            }
            "-j" | "--jump" => {
                let target = self.next().unwrap_or_default();
                let options = self.options();
                self.target(target, &options);
            }
            "-g" | "--goto" => {
                let chain = self.next().unwrap_or_default().to_owned();
                self.rule.decide(RuleVerdict::Goto(chain));
            }
            _ if word.starts_with('-') => {
                // An option of `-p tcp` without `-m tcp`, as people write it.
                self.at -= 1;
                self.negated = false;
                let mut options = self.options();
                if let Some(first) = options.first_mut() {
                    first.negated |= negated;
                }
                self.module("tcp", &options);
            }
            _ => self.rule.ask(Test::other(word, &[Field::Other]), negated),
        }
    }

    fn address(&mut self, of: Field, negated: bool) {
        let text = self.value();
        let negated = negated | std::mem::take(&mut self.negated);
        let nets: Option<Vec<IpNet>> = text.split(',').map(net).collect();
        let test = match nets {
            Some(nets) => Test::Address { of, nets },
            None => Test::other(text, &[of]),
        };
        self.rule.ask(test, negated);
    }

    fn device(&mut self, of: Field, negated: bool) {
        let name = self.value();
        let negated = negated | std::mem::take(&mut self.negated);
        let names = vec![wildcard(name)];
        self.rule.ask(Test::Device { of, names }, negated);
    }

    /// A test of a number; what could not be read is asked without being understood.
    fn number(&mut self, of: Field, text: &str, ranges: Vec<(u32, u32)>, negated: bool) {
        let test = if ranges.is_empty() {
            Test::other(text, &[of])
        } else {
            Test::Number {
                of,
                mask: u32::MAX,
                ranges,
            }
        };
        self.rule.ask(test, negated);
    }

    /// `-m MODULE` with its options.
    fn module(&mut self, module: &str, options: &[Given<'_>]) {
        let get = |name: &str| options.iter().find(|o| o.name == name);
        if let Some(always) = surely(module, options) {
            if !always {
                let (of, mask, ranges) = (Field::Protocol, u32::MAX, vec![(0, u8::MAX.into())]);
                self.rule.ask(Test::Number { of, mask, ranges }, true);
            }
        } else if let Some(varying) = varying(module, options) {
            self.rule.ask(Test::Varies(varying), false);
        } else if module == "socket" {
            let names = options.iter().map(|option| option.name);
            let text: Vec<&str> = [module].into_iter().chain(names).collect();
            self.rule
                .ask(Test::other(&text.join(" "), reads(module)), false);
        } else if module == "recent" {
            // `--set` always matches. `--remove` matches what was there.
            let never = get("--set").is_some_and(|set| set.negated);
            if never || get("--set").is_none() {
                self.rule.ask(Test::other(module, &[Field::Sets]), never);
            }
        } else {
            for option in options {
                self.plain(module, option);
            }
            let without_options = ["rpfilter", "eui64", "state", "ipv6header"];
            if options.is_empty() && without_options.contains(&module) {
                self.rule.ask(Test::other(module, reads(module)), false);
            }
        }
        let remembers = get("--set").or_else(|| get("--update"));
        if module == "recent" && get("--set").is_some_and(|_| remembers.is_some()) {
            self.rule.does.push(Does::Remember(recent_list(options)));
        }
    }

    /// An option of a match that depends on the packet alone.
    fn plain(&mut self, module: &str, option: &Given<'_>) {
        let text = option.first().unwrap_or_default();
        let (of, ranges) = match (module, option.name) {
            ("comment", _) => return,
            (_, "--sport" | "--source-port" | "--sports" | "--source-ports") => {
                (Field::SourcePort, ranges(text))
            }
            (_, "--dport" | "--destination-port" | "--dports" | "--destination-ports") => {
                (Field::DestinationPort, ranges(text))
            }
            (_, "--ctstate" | "--state") => (Field::State, states(text)),
            ("icmp", "--icmp-type") => return self.icmp_type(text, option.negated),
            (_, "--icmpv6-type") => {
                let number = table::icmpv6_type(text).map(|n| (n, n));
                (Field::Icmpv6Type, number.into_iter().collect())
            }
            ("ttl" | "hl", "--ttl-eq" | "--hl-eq") => (Field::Ttl, ranges(text)),
            ("ttl" | "hl", "--ttl-lt" | "--hl-lt") => {
                let below = table::number(text).and_then(|n| n.checked_sub(1));
                (Field::Ttl, below.map(|n| (0, n)).into_iter().collect())
            }
            ("ttl" | "hl", "--ttl-gt" | "--hl-gt") => {
                let above = table::number(text).filter(|n| *n < 255);
                (
                    Field::Ttl,
                    above.map(|n| (n + 1, 255)).into_iter().collect(),
                )
            }
            ("length", "--length") => (Field::Length, ranges(text)),
            ("tcpmss", "--mss") => (Field::TcpOptions, ranges(text)),
            _ => return self.masked(module, option),
        };
        self.number(of, text, ranges, option.negated);
    }

    /// `--icmp-type any`, `8`, `3/1` or a name. A code narrows it further: whether that is the packet's is
    /// not known.
    fn icmp_type(&mut self, text: &str, negated: bool) {
        let (number, code) = text.split_once('/').unwrap_or((text, ""));
        match table::icmp_type(number) {
            _ if ["any", "255"].contains(&text) && !negated => {}
            Some(kind) if code.is_empty() => {
                self.number(Field::IcmpType, text, vec![(kind, kind)], negated);
            }
            Some(kind) if !negated => {
                self.number(Field::IcmpType, text, vec![(kind, kind)], false);
                self.rule.ask(Test::other("icmp code", &[]), false);
            }
            _ => self
                .rule
                .ask(Test::other("icmp", &[Field::IcmpType]), negated),
        }
    }

    /// An option that compares some bits.
    fn masked(&mut self, module: &str, option: &Given<'_>) {
        let text = option.first().unwrap_or_default();
        let found = match (module, option.name) {
            ("mark", "--mark") => masked(text, u32::MAX).map(|m| (Field::Mark, m)),
            ("connmark", "--mark") => masked(text, u32::MAX).map(|m| (Field::ConnectionMark, m)),
            ("tos", "--tos") => masked(text, 0xff).map(|m| (Field::Tos, m)),
            ("dscp", "--dscp" | "--dscp-class") => {
                table::dscp(text).map(|dscp| (Field::Tos, (dscp << 2, 0xfc)))
            }
            (_, "--tcp-flags") => flags(option).map(|m| (Field::TcpFlags, m)),
            (_, "--syn") => Some((Field::TcpFlags, (0x02, 0x17))),
            _ => None,
        };
        let test = match found {
            Some((of, (value, mask))) => Test::Number {
                of,
                mask,
                ranges: vec![(value, value)],
            },
            None => {
                let text = format!("{module} {} {}", option.name, option.values.join(" "));
                Test::other(text.trim(), reads(module))
            }
        };
        self.rule.ask(test, option.negated);
    }

    /// `-j TARGET` with its options.
    fn target(&mut self, target: &str, options: &[Given<'_>]) {
        let get = |name: &str| options.iter().find(|o| o.name == name)?.first();
        let port = |name| get(name).and_then(|text| text.parse::<u16>().ok());
        let Some(action) =
            table::action(target).filter(|_| !target.starts_with(char::is_lowercase))
        else {
            return self.rule.decide(RuleVerdict::Jump(target.to_owned()));
        };
        let does = match action {
            TargetAction::Accept => Does::Decide(RuleVerdict::Accept),
            TargetAction::Drop => Does::Decide(RuleVerdict::Drop),
            TargetAction::Return => Does::Decide(RuleVerdict::Return),
            TargetAction::Reject => {
                let with = get("--reject-with").unwrap_or("icmp-port-unreachable");
                Does::Decide(RuleVerdict::Reject(with.to_owned()))
            }
            TargetAction::Queue => {
                let named = get("--queue-num").or_else(|| get("--queue-balance"));
                let first = named.and_then(|range| range.split(':').next()?.parse().ok());
                Does::Decide(RuleVerdict::Queue {
                    number: first.unwrap_or(0),
                    bypass: options.iter().any(|o| o.name == "--queue-bypass"),
                })
            }
            TargetAction::Proxy => Does::Decide(RuleVerdict::Proxy {
                port: port("--on-port").filter(|port| *port != 0),
                or_drop: true,
            }),
            TargetAction::AnswerItself => Does::Decide(RuleVerdict::AnswerItself),
            TargetAction::SendOn => Does::Decide(RuleVerdict::SendOn),
            TargetAction::TranslateSource
            | TargetAction::TranslateDestination
            | TargetAction::TranslateEither
            | TargetAction::Redirect => translated(action, options),
            TargetAction::Copy => Does::Copy,
            TargetAction::Note | TargetAction::CountRate => Does::Note,
            TargetAction::Remember => match get("--add-set").or(get("--del-set")) {
                Some(_) if self.renews(options) => Does::Note,
                Some(set) if get("--add-set").is_some() => Does::Remember(format!("set {set}")),
                Some(set) => Does::Forget(format!("set {set}")),
                None if options.is_empty() => Does::Remember("a set".to_owned()),
                None => set(Field::Mark, u32::MAX, None),
            },
            TargetAction::Set(field) => sets(field, options),
        };
        if let Some(mark) = get("--tproxy-mark").and_then(|text| masked(text, u32::MAX)) {
            self.rule.does.push(set(Field::Mark, mark.1, Some(mark.0)));
        }
        self.vary(target, action, &does);
        self.rule.does.push(does);
    }

    /// Whether SET adds what the rule asks for already, so that it only renews an entry's time.
    fn renews(&self, options: &[Given<'_>]) -> bool {
        let added = options.iter().find(|option| option.name == "--add-set");
        let asked = |added: &Given<'_>| format!("set --match-set {}", added.values.join(" "));
        added.is_some_and(|added| self.rule.asks_to_be_in(&asked(added)))
    }

    /// Notes where a target does not do the same with every packet.
    fn vary(&mut self, target: &str, action: TargetAction, does: &Does) {
        if let Does::Translate(to) = does
            && to.random
            && let Some(caveat) = drawn_port(to)
        {
            self.rule
                .ask(Test::Varies(caveat.alone(Alone::Chooses)), false);
        }
        if action == TargetAction::CountRate {
            let caveat = Caveat::RateLimited(target.to_owned());
            self.rule
                .ask(Test::Varies(caveat.alone(Alone::Either)), false);
        }
    }
}

/// The options that name a rate.
const RATES: [&str; 4] = [
    "--limit",
    "--hashlimit-upto",
    "--hashlimit-above",
    "--hashlimit",
];

/// What a match depends on that asks for the counters of a set's entry, `--packets-gt` and the like: how
/// much was seen before.
fn counters(module: &str, options: &[Given<'_>]) -> Option<Varying> {
    let counts = |option: &Given<'_>| {
        let mut starts = ["--packets-", "--bytes-"].iter();
        starts.any(|start| option.name.starts_with(start))
    };
    let set = options.iter().find(|option| option.name == "--match-set");
    let set = set.and_then(Given::first).unwrap_or_default();
    let asks = module == "set" && options.iter().any(counts);
    asks.then(|| Caveat::Contents(format!("counters of set {set}")).alone(Alone::Either))
}

/// What `-m statistic` says of every packet: `--every 1`, and a probability of 1 or 0; none where it draws.
fn surely(module: &str, options: &[Given<'_>]) -> Option<bool> {
    let number = |name: &str| {
        let option = options.iter().find(|o| o.name == name)?;
        Some((option.first()?.parse::<f64>().ok()?, option.negated))
    };
    let (always, negated) = match (module, number("--every"), number("--probability")) {
        ("statistic", Some((1.0, negated)), _) => (true, negated),
        ("statistic", None, Some((1.0, negated))) => (true, negated),
        ("statistic", None, Some((0.0, negated))) => (false, negated),
        _ => return None,
    };
    Some(always != negated)
}

/// What a match depends on beyond the packet; none where it does not.
fn varying(module: &str, options: &[Given<'_>]) -> Option<Varying> {
    let get = |name: &str| options.iter().find(|o| o.name == name);
    let value = |name: &str| get(name).and_then(Given::first);
    let named = || module.to_owned();
    Some(match table::about(module) {
        About::Packet(_) => return counters(module, options),
        About::Rate => {
            let Some(limit) = RATES.into_iter().find_map(get) else {
                return Some(Caveat::RateLimited(named()).alone(Alone::Either));
            };
            let burst = value("--limit-burst").or_else(|| value("--hashlimit-burst"));
            let rate = limit.first().unwrap_or_default();
            let text = burst.map_or_else(|| rate.to_owned(), |b| format!("{rate} burst {b}"));
            let over = (limit.name == "--hashlimit-above") ^ limit.negated;
            Caveat::RateLimited(text).alone(Alone::if_matches(!over))
        }
        About::Quota => {
            let over = get("--quota").is_some_and(|quota| quota.negated);
            let text = value("--quota").map_or_else(named, str::to_owned);
            Caveat::Quota(text).alone(Alone::if_matches(!over))
        }
        About::Moved => {
            let text = value("--connbytes").unwrap_or_default();
            Caveat::Quota(format!("{module} {text}")).alone(Alone::AsMeasured)
        }
        About::Chance => {
            let mut texts = ["--probability", "--every", "--cpu"]
                .into_iter()
                .filter_map(value);
            let chance = texts.next().map_or_else(named, str::to_owned);
            Caveat::Random(chance).alone(Alone::Either)
        }
        About::Clock => Caveat::TimeOfDay(named()).alone(Alone::AsMeasured),
        About::Seen => return seen(options),
        About::Open => {
            let count = |name| value(name).and_then(|n| n.parse::<u32>().ok());
            let above = count("--connlimit-above").map(|limit| limit < 1);
            let upto = count("--connlimit-upto").map(|limit| limit >= 1);
            let alone = above.or(upto).map_or(Alone::Either, Alone::if_matches);
            let negated = options.iter().any(|o| o.negated);
            let alone = if negated { alone.opposite() } else { alone };
            Caveat::History(named()).alone(alone)
        }
        About::System => {
            let system = value("--genre").unwrap_or_default();
            Caveat::System(format!("{module} {system}")).alone(Alone::Either)
        }
        About::Outside => Caveat::History(named()).alone(Alone::Either),
        About::IpsecPolicy => {
            let of = |o: &Given<'_>| {
                let not = if o.negated { "! " } else { "" };
                format!(" {not}{} {}", o.name, o.values.join(" "))
            };
            let words: String = options.iter().map(of).collect();
            Caveat::Ipsec(format!("{module}{words}")).alone(Alone::Either)
        }
    })
}

/// `-m recent`: a list is empty until somebody comes by.
fn seen(options: &[Given<'_>]) -> Option<Varying> {
    let get = |name: &str| options.iter().find(|o| o.name == name);
    let asks = get("--rcheck").or_else(|| get("--update"));
    let asks = asks.or_else(|| get("--remove"))?;
    let alone = Alone::if_matches(asks.negated);
    let hits = get("--hitcount").and_then(Given::first);
    let one = hits.is_none_or(|hits| matches!(hits, "0" | "1"));
    Some(Varying {
        list: one.then(|| recent_list(options)),
        ..Caveat::History("recent".to_owned()).alone(alone)
    })
}

/// The list that a rule of `recent` is about.
fn recent_list(options: &[Given<'_>]) -> String {
    let name = options.iter().find(|o| o.name == "--name");
    let name = name.and_then(Given::first).unwrap_or("DEFAULT");
    format!("recent list {name}")
}

fn translated(action: TargetAction, options: &[Given<'_>]) -> Does {
    let get = |name: &str| options.iter().find(|o| o.name == name)?.first();
    let names = ["--to-destination", "--to-source", "--to", "--to-ports"];
    let text = names.iter().find_map(|name| get(name)).unwrap_or_default();
    let random = |given: &Given<'_>| RANDOM.contains(&given.name);
    Does::Translate(Translation {
        random: options.iter().any(random),
        ..translation(action, text)
    })
}

/// Options by which a port is drawn.
const RANDOM: [&str; 2] = ["--random", "--random-fully"];

/// What chance decides where a destination is sent to a random one of several ports.
pub(super) fn drawn_port(to: &Translation) -> Option<Caveat> {
    let several = |goal: &&Goal| goal.ports.is_some_and(|(first, last)| first < last);
    let (first, last) = to.to.iter().find(several).filter(|_| !to.source)?.ports?;
    Some(Caveat::Random(format!("one of the ports {first}-{last}")))
}

/// What is written as `ADDRESS[-ADDRESS][:PORT[-PORT]]`, or only ports.
pub(super) fn translation(action: TargetAction, text: &str) -> Translation {
    let (address, ports) = match (text.strip_prefix('['), text.matches(':').count()) {
        (Some(rest), _) => {
            let (address, rest) = rest.split_once(']').unwrap_or((rest, ""));
            (address, rest.strip_prefix(':').unwrap_or_default())
        }
        (None, 1) => text.split_once(':').unwrap_or((text, "")),
        (None, _)
            if net(text).is_none()
                && text.starts_with(|c: char| c.is_ascii_digit())
                && !text.contains('.') =>
        {
            ("", text)
        }
        (None, _) => (text, ""),
    };
    let goal = Goal {
        // Of a range of addresses any may be taken.
        net: net(address),
        ports: port_range(ports),
    };
    Translation {
        source: action == TargetAction::TranslateSource,
        to: (goal.net.is_some() || goal.ports.is_some())
            .then_some(goal)
            .into_iter()
            .collect(),
        fixed: false,
        here: action == TargetAction::Redirect,
        random: false,
    }
}

/// `PORT` or `FIRST-LAST[/BASE]`.
pub(super) fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let last = last.split('/').next().unwrap_or_default();
    first.parse().ok().zip(last.parse().ok())
}

/// What a target that changes `field` makes of it.
fn sets(field: Field, options: &[Given<'_>]) -> Does {
    let get = |name: &str| options.iter().find(|o| o.name == name)?.first();
    let has = |name: &str| options.iter().any(|o| o.name == name);
    let (bits, value) = match field {
        Field::ConnectionMark if has("--restore-mark") => return set(Field::Mark, u32::MAX, None),
        Field::ConnectionMark if has("--save-mark") => (u32::MAX, None),
        Field::Mark | Field::ConnectionMark => {
            let exact = get("--set-xmark").or_else(|| get("--set-mark"));
            match exact.and_then(|text| masked(text, u32::MAX)) {
                Some((value, mask)) => (mask, Some(value)),
                None => (u32::MAX, None),
            }
        }
        Field::Tos => {
            let dscp = get("--set-dscp").or_else(|| get("--set-dscp-class"));
            let tos = get("--set-tos").and_then(|text| masked(text, 0xff));
            match (dscp.and_then(table::dscp), tos) {
                (Some(dscp), _) => (0xfc, Some(dscp << 2)),
                (None, Some((value, mask))) => (mask, Some(value)),
                (None, None) => (0xff, None),
            }
        }
        Field::Ttl => {
            let value = get("--ttl-set").or_else(|| get("--hl-set"));
            (u32::MAX, value.and_then(table::number))
        }
        _ => (u32::MAX, None),
    };
    set(field, bits, value)
}

fn set(field: Field, mask: u32, value: Option<u32>) -> Does {
    Does::Set { field, mask, value }
}

fn reads(module: &str) -> &'static [Field] {
    match table::about(module) {
        About::Packet(fields) => fields,
        _ => &[],
    }
}

/// `eth+` of iptables is `eth*`.
fn wildcard(name: &str) -> String {
    name.strip_suffix('+')
        .map_or_else(|| name.to_owned(), |beginning| format!("{beginning}*"))
}

/// An address or a net, with its length or its mask.
pub(super) fn net(text: &str) -> Option<IpNet> {
    let one = || {
        text.parse()
            .ok()
            .map(|address: std::net::IpAddr| address.into())
    };
    let masked = || {
        let (address, mask) = text.split_once('/')?;
        IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()
    };
    let net: IpNet = text.parse().ok().or_else(one).or_else(masked)?;
    Some(net.trunc())
}

/// Ranges such as `22,79:81`, `:1023`, `1024:`; nothing where one of them is something else.
fn ranges(text: &str) -> Vec<(u32, u32)> {
    let range = |text: &str| match text.split_once(':') {
        Some((first, last)) => {
            let first = if first.is_empty() {
                Some(0)
            } else {
                table::number(first)
            };
            let last = if last.is_empty() {
                Some(u32::from(u16::MAX))
            } else {
                table::number(last)
            };
            first.zip(last)
        }
        None => table::number(text).map(|number| (number, number)),
    };
    let all: Option<Vec<_>> = text.split(',').map(range).collect();
    all.unwrap_or_default()
}

fn states(text: &str) -> Vec<(u32, u32)> {
    let one = |name: &str| table::state(name).map(|bit| (bit, bit));
    let all: Option<Vec<_>> = text.split(',').map(one).collect();
    all.unwrap_or_default()
}

/// `VALUE` or `VALUE/MASK`, as (value, mask).
fn masked(text: &str, all: u32) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((table::number(value)?, table::number(mask)?)),
        None => Some((table::number(text)?, all)),
    }
}

/// `--tcp-flags MASK SET`, as (value, mask).
fn flags(option: &Given<'_>) -> Option<(u32, u32)> {
    let bits = |list: &&str| -> Option<u32> {
        list.split(',')
            .try_fold(0, |bits, name| Some(bits | table::tcp_flag(name)?))
    };
    let mask = option.values.first().and_then(bits)?;
    let value = option.values.get(1).and_then(bits)?;
    Some((value, mask))
}
