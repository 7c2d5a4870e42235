//! `nft -j list ruleset`, libnftables-json(5), put into the words of `nft list ruleset`: what reads,
//! filters and weighs rulesets reads one form.
//!
//! A rule that has something which is not known here is left out, as one that nft(8) could not print.

mod expression;
mod statement;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use self::{expression::Unknown, statement::statement};

type Object = Map<String, Value>;
type Text = Result<String, Unknown>;

/// A ruleset as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Converted {
    pub(super) text: String,
    /// Lines, counted from 0, that stand for what is not known, with the reason.
    pub(super) lost: Vec<(usize, String)>,
}

/// A table in the making.
#[derive(Debug, Default)]
struct Table {
    /// Sets, maps and objects, each with its lines.
    objects: Vec<Vec<Line>>,
    /// Chains in the order of the dump.
    chains: Vec<String>,
    heads: BTreeMap<String, String>,
    rules: BTreeMap<String, Vec<Line>>,
    flags: Option<Line>,
}

/// A line, or why it is not known.
type Line = Result<String, String>;

/// Puts the JSON `text` into the words of `nft list ruleset`.
///
/// # Errors
/// Why it is not what `nft -j` prints.
pub(super) fn convert(text: &str) -> Result<Converted, String> {
    let whole: Object = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let list = whole.get("nftables").and_then(Value::as_array);
    let list = list.ok_or("it has no list `nftables`")?;
    let mut order: Vec<String> = Vec::new();
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    for entry in list {
        let entry = entry.as_object().and_then(|object| object.iter().next());
        let (kind, what) = entry.ok_or("an entry of `nftables` is no object")?;
        let Some(what) = what.as_object().filter(|_| kind != "metainfo") else {
            continue;
        };
        let name = if kind == "table" { "name" } else { "table" };
        let key = format!("{} {}", string(what, "family"), string(what, name));
        let table = tables.entry(key.clone()).or_insert_with(|| {
            order.push(key.clone());
            Table::default()
        });
        table.add(kind, what);
    }
    let mut converted = Converted::default();
    for key in &order {
        if let Some(table) = tables.get(key) {
            converted.table(key, table);
        }
    }
    Ok(converted)
}

fn string(object: &Object, key: &str) -> String {
    match object.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// The words of a list of strings, or of one.
fn list(value: &Value, separator: &str) -> Text {
    let words = match value {
        Value::Array(all) => all
            .iter()
            .map(expression::word)
            .collect::<Result<Vec<_>, _>>()?,
        one => vec![expression::word(one)?],
    };
    Ok(words.join(separator))
}

impl Table {
    fn add(&mut self, kind: &str, what: &Object) {
        let name = string(what, "name");
        match kind {
            "table" => self.flags = what.get("flags").map(table_flags),
            "chain" => match chain_head(what) {
                Ok(head) => {
                    self.heads.insert(name.clone(), head);
                    self.chains.push(name);
                }
                // Nobody knows which packets come to it.
                Err(unknown) => self
                    .objects
                    .push(vec![Err(format!("chain {name}: {unknown}"))]),
            },
            "rule" => {
                let line = rule(what).map_err(|unknown| unknown.to_string());
                self.rules
                    .entry(string(what, "chain"))
                    .or_default()
                    .push(line);
            }
            "set" | "map" => self.objects.push(set(kind, what)),
            _ => self.objects.push(object(kind, what)),
        }
    }
}

/// `flags dormant`. nft 1.0.6 has the table's family in the place of its flags.
fn table_flags(flags: &Value) -> Line {
    match list(flags, ",") {
        Ok(flags) if flags == "dormant" => Ok("flags dormant".to_owned()),
        _ => Err(format!("flags of the table: {flags}")),
    }
}

/// `type filter hook forward priority 0; policy drop;`, or nothing. nft 1.0.6 leaves out the device
/// of a chain that is for one.
fn chain_head(what: &Object) -> Text {
    if !what.contains_key("hook") {
        return Ok(String::new());
    }
    let of_device = ["ingress", "egress"].contains(&string(what, "hook").as_str());
    if of_device && !what.contains_key("dev") {
        return Err(Unknown("a device's chain without the device".to_owned()));
    }
    let device = match what.get("dev") {
        Some(dev) => match dev {
            Value::Array(all) => {
                let all = all
                    .iter()
                    .map(expression::quoted)
                    .collect::<Result<Vec<_>, _>>()?;
                format!(" devices = {{ {} }}", all.join(", "))
            }
            one => format!(" device {}", expression::quoted(one)?),
        },
        None => String::new(),
    };
    let policy = match string(what, "policy") {
        policy if policy.is_empty() => policy,
        policy => format!(" policy {policy};"),
    };
    let [kind, hook, priority] = ["type", "hook", "prio"].map(|key| string(what, key));
    Ok(format!(
        "type {kind} hook {hook}{device} priority {priority};{policy}"
    ))
}

fn rule(what: &Object) -> Text {
    let all = what.get("expr").and_then(Value::as_array);
    let all = all.ok_or_else(|| Unknown("a rule without `expr`".to_owned()))?;
    let words = all.iter().map(statement).collect::<Result<Vec<_>, _>>()?;
    let mut text = words.join(" ");
    if let Some(comment) = what.get("comment") {
        text += &format!(" comment {comment}");
    }
    Ok(text)
}

/// A set or map with its elements, one on each line: lines have an end.
fn set(kind: &str, what: &Object) -> Vec<Line> {
    let whole = || -> Result<Vec<Line>, Unknown> {
        let mut lines = vec![format!("{kind} {} {{", string(what, "name"))];
        let mut of = match what.get("type") {
            Some(of) if of.is_object() => return Err(Unknown("typeof".to_owned())),
            Some(of) => list(of, " . ")?,
            None => return Err(Unknown("a set without type".to_owned())),
        };
        if kind == "map" {
            let to = what
                .get("map")
                .ok_or_else(|| Unknown("a map to nothing".to_owned()))?;
            // Several types are a list in front of the colon, and one text behind it.
            let several = |text: &str| {
                let all = text.split(" . ").map(|one| expression::word(&one.into()));
                Ok::<_, Unknown>(all.collect::<Result<Vec<_>, _>>()?.join(" . "))
            };
            let to = to.as_str().map_or_else(|| list(to, " . "), several)?;
            of += &format!(" : {to}");
        }
        lines.push(format!("\ttype {of}"));
        if let Some(flags) = what.get("flags") {
            lines.push(format!("\tflags {}", list(flags, ",")?));
        }
        for (key, unit) in [("size", ""), ("timeout", "s"), ("gc-interval", "s")] {
            if let Some(value) = what.get(key) {
                lines.push(format!("\t{key} {}{unit}", expression::word(value)?));
            }
        }
        if what.get("auto-merge") == Some(&Value::Bool(true)) {
            lines.push("\tauto-merge".to_owned());
        }
        for statements in what
            .get("stmt")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            lines.push(format!("\t{}", statement(statements)?));
        }
        if let Some(comment) = what.get("comment") {
            lines.push(format!("\tcomment {comment}"));
        }
        let elements = what.get("elem").and_then(Value::as_array);
        let elements = elements.into_iter().flatten();
        let elements = elements
            .map(expression::element)
            .collect::<Result<Vec<_>, _>>()?;
        let last = elements.len().saturating_sub(1);
        for (at, element) in elements.iter().enumerate() {
            let before = if at == 0 { "\telements = { " } else { "\t\t" };
            let behind = if at == last { " }" } else { "," };
            lines.push(format!("{before}{element}{behind}"));
        }
        lines.push("}".to_owned());
        Ok(lines.into_iter().map(Ok).collect())
    };
    let name = string(what, "name");
    whole().unwrap_or_else(|unknown| vec![Err(format!("{kind} {name}: {unknown}"))])
}

/// A counter, quota, limit, flowtable or the like.
fn object(kind: &str, what: &Object) -> Vec<Line> {
    let name = string(what, "name");
    let within = match kind {
        "counter" => Some(String::new()),
        "quota" => statement::quota(what).ok(),
        "limit" => statement::limit(what).ok(),
        "flowtable" => flowtable(what),
        "ct helper" => Some(format!(
            "type \"{}\" protocol {}; l3proto {}",
            string(what, "type"),
            string(what, "protocol"),
            string(what, "l3proto")
        )),
        _ => None,
    };
    match within {
        Some(within) => [
            format!("{kind} {name} {{"),
            format!("\t{within}"),
            "}".to_owned(),
        ]
        .into_iter()
        .map(Ok)
        .collect(),
        None => vec![Err(format!("`{kind}` {name}"))],
    }
}

fn flowtable(what: &Object) -> Option<String> {
    let devices = match what.get("dev")? {
        Value::Array(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>(),
        one => vec![one.to_string()],
    };
    let (hook, priority) = (string(what, "hook"), string(what, "prio"));
    let devices = devices.join(", ");
    Some(format!(
        "hook {hook} priority {priority}; devices = {{ {devices} }};"
    ))
}

impl Converted {
    fn line(&mut self, indent: &str, line: &Line) {
        match line {
            Ok(text) if text.is_empty() => {}
            Ok(text) => self.text += &format!("{indent}{text}\n"),
            Err(reason) => {
                let at = self.text.lines().count();
                let reason = format!("of the JSON of nft this is not known: {reason}");
                self.lost.push((at, reason));
                self.text += &format!("{indent}unread\n");
            }
        }
    }

    fn table(&mut self, key: &str, table: &Table) {
        self.line("", &Ok(format!("table {key} {{")));
        if let Some(flags) = &table.flags {
            self.line("\t", flags);
        }
        for lines in &table.objects {
            lines.iter().for_each(|line| self.line("\t", line));
        }
        for name in &table.chains {
            self.line("\t", &Ok(format!("chain {name} {{")));
            let head = table.heads.get(name).cloned().unwrap_or_default();
            self.line("\t\t", &Ok(head));
            let rules = table.rules.get(name).map_or(&[][..], Vec::as_slice);
            rules.iter().for_each(|line| self.line("\t\t", line));
            self.line("\t", &Ok("}".to_owned()));
        }
        self.line("", &Ok("}".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_becomes_a_listing_and_what_is_not_known_is_lost() {
        let json = r#"{"nftables": [{"metainfo": {"json_schema_version": 1}},
            {"table": {"family": "inet", "name": "fw", "handle": 1}},
            {"chain": {"family": "inet", "table": "fw", "name": "forward", "handle": 1, "type": "filter",
            "hook": "forward", "prio": 0, "policy": "drop"}},
            {"set": {"family": "inet", "name": "bad", "table": "fw", "type": "ipv4_addr", "handle": 2,
            "flags": ["interval"], "elem": [{"prefix": {"addr": "10.1.0.0", "len": 16}}, "192.0.2.1"]}},
            {"rule": {"family": "inet", "table": "fw", "chain": "forward", "handle": 3, "expr": [
            {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}},
            {"accept": null}]}},
            {"rule": {"family": "inet", "table": "fw", "chain": "forward", "handle": 4, "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}},
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
            "right": {"set": [22, {"range": [80, 90]}]}}}, {"counter": {"packets": 1, "bytes": 2}},
            {"drop": null}], "comment": "a note"}},
            {"rule": {"family": "inet", "table": "fw", "chain": "forward", "handle": 5, "expr": [
            {"novelty": {"x": 1}}, {"drop": null}]}}]}"#;
        let converted = convert(json).unwrap();
        let want = "table inet fw {\n\tset bad {\n\t\ttype ipv4_addr\n\t\tflags interval\n\
            \t\telements = { 10.1.0.0/16,\n\t\t\t192.0.2.1 }\n\t}\n\tchain forward {\n\
            \t\ttype filter hook forward priority 0; policy drop;\n\
            \t\tct state established,related accept\n\
            \t\tiifname \"eth0\" tcp dport { 22, 80-90 } counter drop comment \"a note\"\n\
            \t\tunread\n\t}\n}\n";
        assert_eq!(converted.text, want);
        assert_eq!(converted.lost.len(), 1);
        assert_eq!(converted.lost[0].0, 11);
        assert!(
            converted.lost[0].1.contains("novelty"),
            "{:?}",
            converted.lost
        );
        assert!(convert("[]").is_err());
    }

    #[test]
    fn flags_in_a_list_and_maps_of_prefixes_are_written_as_nft_reads_them() {
        let json = r#"{"nftables": [{"metainfo": {"json_schema_version": 1}},
            {"table": {"family": "ip", "name": "fw", "handle": 1}},
            {"chain": {"family": "ip", "table": "fw", "name": "c", "handle": 1}},
            {"rule": {"family": "ip", "table": "fw", "chain": "c", "handle": 2, "expr": [
            {"match": {"op": "!=", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
            ["fin", "syn"]]}, "right": "syn"}}, {"drop": null}]}},
            {"rule": {"family": "ip", "table": "fw", "chain": "c", "handle": 3, "expr": [
            {"dnat": {"family": "ip", "addr": "10.9.0.1", "flags": "netmap", "type_flags": "prefix"}}]}}]}"#;
        let converted = convert(json).unwrap();
        assert!(converted.lost.is_empty(), "{:?}", converted.lost);
        let want = "\t\ttcp flags & (fin | syn) != syn drop\n\t\tdnat ip prefix to 10.9.0.1\n";
        assert!(converted.text.contains(want), "{}", converted.text);
    }

    /// As nft 1.0.6 prints them.
    #[test]
    fn flags_that_must_not_be_there_and_maps_to_several_values_are_written_as_nft_reads_them() {
        let json = r#"{"nftables": [{"table": {"family": "inet", "name": "x", "handle": 1}},
            {"map": {"family": "inet", "name": "m", "table": "x", "type": "inet_service", "handle": 3,
            "map": "ipv4_addr . inet_service", "elem": [[80, {"concat": ["10.2.0.9", 8080]}]]}},
            {"map": {"family": "inet", "name": "v", "table": "x", "type": ["ipv4_addr", "inet_service"],
            "handle": 4, "map": "verdict", "elem": [[{"concat": ["10.2.0.9", 22]}, {"drop": null}]]}},
            {"map": {"family": "inet", "name": "bad", "table": "x", "type": "inet_service", "handle": 5,
            "map": "ipv4_addr . a b"}},
            {"chain": {"family": "inet", "table": "x", "name": "f", "handle": 2}},
            {"rule": {"family": "inet", "table": "x", "chain": "f", "handle": 8, "expr": [{"match": {"op": "!",
            "left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": "syn"}}, {"drop": null}]}},
            {"rule": {"family": "inet", "table": "x", "chain": "f", "handle": 5, "expr": [{"dnat": {"family":
            "ip", "addr": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": "@m"}}}}
            ]}}]}"#;
        let converted = convert(json).unwrap();
        for line in [
            "type inet_service : ipv4_addr . inet_service",
            "elements = { 80 : 10.2.0.9 . 8080 }",
            "type ipv4_addr . inet_service : verdict",
            "elements = { 10.2.0.9 . 22 : drop }",
            "tcp flags ! syn drop",
            "dnat ip to tcp dport map @m",
        ] {
            let has = converted.text.lines().any(|text| text.trim() == line);
            assert!(has, "{line}: {}", converted.text);
        }
        let lost: Vec<_> = converted.lost.iter().map(|(_, why)| why).collect();
        assert!(lost.len() == 1 && lost[0].contains("map bad"), "{lost:?}");
    }

    #[test]
    fn what_an_element_counts_stands_before_its_options() {
        let json = r#"{"nftables": [{"table": {"family": "ip", "name": "x", "handle": 1}},
            {"set": {"family": "ip", "name": "s", "table": "x", "type": "ipv4_addr", "handle": 2,
            "flags": ["timeout"], "stmt": [{"counter": null}], "elem": [{"elem": {"val": "10.1.0.9",
            "comment": "a note", "counter": {"packets": 1, "bytes": 2}, "timeout": 60, "expires": 5}}]}}]}"#;
        let converted = convert(json).unwrap();
        assert!(converted.lost.is_empty(), "{:?}", converted.lost);
        let want = "elements = { 10.1.0.9 counter timeout 60s comment \"a note\" }";
        assert!(converted.text.contains(want), "{}", converted.text);
    }
}
