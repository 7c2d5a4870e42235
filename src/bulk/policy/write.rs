//! The way back: a policy that says what was measured, as TOML.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    net::IpAddr,
};

use super::{
    CheckRule, Policy,
    file::{Endpoint, EndpointList, Except, Must, RuleFile, ServiceList},
};
use crate::{
    bulk::{
        addresses::Addresses,
        answers::{Answers, Cell, QuestionKey},
        matrix::Names,
    },
    model::Service,
    run::{report::Verdict, sentence::Span},
};

/// A policy that says what a matrix found: for each pair of addresses what must pass and what must not.
/// What is not known is a comment. `names` become `[addresses]`.
#[must_use]
pub fn of_answers(answers: &Answers, names: &Names) -> String {
    let mut text = head(&format!(
        "What was measured of lab {} at {}",
        answers.head.lab.name, answers.head.time
    ));
    let names: BTreeMap<IpAddr, String> = names
        .iter()
        .map(|(address, name)| (*address, format!("net-{}", name.replace(['/', ':'], "_"))))
        .collect();
    if !names.is_empty() {
        text.push_str("\n[addresses]\n");
        for (address, name) in &names {
            let _ = writeln!(text, "{} = {}", quoted(name), quoted(&address.to_string()));
        }
    }
    let place = |address: IpAddr| match names.get(&address) {
        Some(name) => Endpoint::Name(name.clone()),
        None => Endpoint::Addresses(Addresses::Range(address, address)),
    };
    for ((source, destination), found) in by_pair(answers) {
        write_pair(&mut text, &place(source), &place(destination), &found);
    }
    text
}

/// The services of one pair of addresses that pass, that are stopped, and of which neither is known.
type Found = [Vec<Service>; 3];

/// What was found for each pair, in the order of the answers.
fn by_pair(answers: &Answers) -> Vec<((IpAddr, IpAddr), Found)> {
    let mut found: Vec<((IpAddr, IpAddr), Found)> = Vec::new();
    let mut places: HashMap<(IpAddr, IpAddr), usize> = HashMap::new();
    for cell in &answers.cells {
        let pair = (cell.source, cell.destination);
        let at = *places.entry(pair).or_insert_with(|| {
            found.push((pair, Found::default()));
            found.len() - 1
        });
        let [yes, no, unknown] = &mut found[at].1;
        let list = match cell.end.result {
            Verdict::Yes => yes,
            Verdict::No => no,
            Verdict::Unknown => unknown,
        };
        list.push(cell.end.service());
    }
    found
}

/// Writes the rules for one pair, and what is not known as a comment.
fn write_pair(text: &mut String, from: &Endpoint, to: &Endpoint, [yes, no, unknown]: &Found) {
    for (must, services, word) in [
        (Must::Pass, yes, "passes"),
        (Must::NotPass, no, "is stopped"),
    ] {
        if services.is_empty() {
            continue;
        }
        let rule = RuleFile {
            name: format!("{from} → {to} {word}"),
            from: EndpointList(vec![from.clone()]),
            to: EndpointList(vec![to.clone()]),
            services: ServiceList(list(services)),
            must,
            except: Vec::new(),
            owner: None,
            ticket: None,
            note: None,
        };
        write_rule(text, &rule);
    }
    if !unknown.is_empty() {
        let _ = writeln!(text, "\n# not known: {from} → {to} {}", list(unknown));
    }
}

/// The policy changed so that it says what was measured: where a rule is contradicted, what is otherwise
/// is left out of it and said by a rule of its own; what is not known is left out. `own` is the text of
/// its file, whose names and groups stay. Comments within rules are not kept.
#[must_use]
pub fn updated(policy: &Policy, own: &str, answers: &HashMap<QuestionKey, &Cell>) -> String {
    let mut text = before_rules(own);
    let mut more = Vec::new();
    for rule in policy.rules.iter().filter(|rule| rule.file == policy.file) {
        let (kept, otherwise) = split(rule, answers);
        if let Some(kept) = kept {
            write_rule(&mut text, &kept);
        }
        more.extend(otherwise);
    }
    for rule in &more {
        write_rule(&mut text, rule);
    }
    text
}

/// The part of a TOML file before its first rule.
fn before_rules(own: &str) -> String {
    let lines = own.lines().take_while(|line| {
        let line = line.trim_start();
        !line.starts_with("[[rule")
    });
    let mut text = lines.collect::<Vec<_>>().join("\n").trim_end().to_owned();
    text.push('\n');
    text
}

/// What a rule becomes, and the rules about what is otherwise.
fn split(
    rule: &CheckRule,
    answers: &HashMap<QuestionKey, &Cell>,
) -> (Option<RuleFile>, Vec<RuleFile>) {
    let (wanted, opposite) = match rule.written.must {
        Must::Pass => (Verdict::Yes, Must::NotPass),
        Must::NotPass => (Verdict::No, Must::Pass),
    };
    let (as_stated, otherwise) = compared(rule, wanted, answers);
    if as_stated == 0 && otherwise.values().all(|[_, unknown]| unknown.is_empty()) {
        let flipped = RuleFile {
            must: opposite,
            ..rule.written.clone()
        };
        return (Some(flipped), Vec::new());
    }
    let mut kept = rule.written.clone();
    let mut more = Vec::new();
    for ((from, to), [other, unknown]) in otherwise {
        let place = |address| {
            EndpointList(vec![Endpoint::Addresses(Addresses::Range(
                address, address,
            ))])
        };
        for (services, note) in [(&other, "measured otherwise"), (&unknown, "not known")] {
            if !services.is_empty() {
                kept.except.push(Except {
                    from: Some(place(from)),
                    to: Some(place(to)),
                    services: Some(ServiceList(list(services))),
                    note: Some(note.to_owned()),
                });
            }
        }
        if !other.is_empty() {
            more.push(RuleFile {
                name: format!("{}: otherwise {from} → {to}", rule.written.name),
                from: place(from),
                to: place(to),
                services: ServiceList(list(&other)),
                must: opposite,
                except: Vec::new(),
                ..rule.written.clone()
            });
        }
    }
    ((as_stated > 0).then_some(kept), more)
}

/// Of each pair the services that were measured otherwise than a rule says, and those of which nothing
/// is known.
type Otherwise = BTreeMap<(IpAddr, IpAddr), [Vec<Service>; 2]>;

/// How many questions of `rule` have the answer that it says, and what is otherwise.
fn compared(
    rule: &CheckRule,
    wanted: Verdict,
    answers: &HashMap<QuestionKey, &Cell>,
) -> (usize, Otherwise) {
    let mut otherwise = Otherwise::new();
    let mut as_stated = 0;
    for key @ (from, to, service) in &rule.questions {
        let found = answers
            .get(key)
            .map_or(Verdict::Unknown, |cell| cell.end.result);
        if found == wanted {
            as_stated += 1;
            continue;
        }
        let [other, unknown] = otherwise.entry((*from, *to)).or_default();
        match found {
            Verdict::Unknown => unknown.push(*service),
            _ => other.push(*service),
        }
    }
    (as_stated, otherwise)
}

fn head(title: &str) -> String {
    format!("# {}\nversion = 1\n", title.replace(['\n', '\r'], " "))
}

/// Services as they are typed, neighbours folded.
fn list(services: &[Service]) -> String {
    let mut spans: Vec<Span> = Vec::new();
    for &service in services {
        if !spans.last_mut().is_some_and(|span| span.extend(service)) {
            spans.push(Span::one(service));
        }
    }
    let spans: Vec<String> = spans.iter().map(ToString::to_string).collect();
    spans.join(",")
}

fn write_rule(text: &mut String, rule: &RuleFile) {
    let must = match rule.must {
        Must::Pass => "pass",
        Must::NotPass => "not-pass",
    };
    let _ = write!(
        text,
        "\n[[rule]]\nname = {}\nfrom = {}\nto = {}\nservices = {}\nmust = \"{must}\"\n",
        quoted(&rule.name),
        places(&rule.from),
        places(&rule.to),
        quoted(&rule.services.0)
    );
    for (name, value) in [
        ("owner", &rule.owner),
        ("ticket", &rule.ticket),
        ("note", &rule.note),
    ] {
        if let Some(value) = value {
            let _ = writeln!(text, "{name} = {}", quoted(value));
        }
    }
    if rule.except.is_empty() {
        return;
    }
    text.push_str("except = [\n");
    for except in &rule.except {
        let fields = [
            ("from", except.from.as_ref().map(places)),
            ("to", except.to.as_ref().map(places)),
            (
                "services",
                except.services.as_ref().map(|list| quoted(&list.0)),
            ),
            ("note", except.note.as_deref().map(quoted)),
        ];
        let fields = fields.into_iter();
        let fields = fields.filter_map(|(name, value)| Some(format!("{name} = {}", value?)));
        let fields: Vec<String> = fields.collect();
        let _ = writeln!(text, "  {{ {} }},", fields.join(", "));
    }
    text.push_str("]\n");
}

fn places(places: &EndpointList) -> String {
    let all: Vec<String> = places
        .0
        .iter()
        .map(|place| quoted(&place.to_string()))
        .collect();
    match all.as_slice() {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    }
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
