//! Expressions of libnftables-json(5).

use serde_json::Value;

use super::{Object, Text, string};

/// Something that is not known here.
#[derive(Debug, thiserror::Error)]
#[error("`{0}`")]
pub(super) struct Unknown(pub(super) String);

pub(super) fn unknown(what: &(impl ToString + ?Sized)) -> Unknown {
    let text = what.to_string();
    Unknown(text.chars().take(80).collect())
}

/// A string, number or truth as one word.
pub(super) fn word(value: &Value) -> Text {
    match value {
        Value::String(text) if is_plain(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(unknown(other)),
    }
}

/// Whether it is one word to nft(8), and no more.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@_-./:*+".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

/// A name in quotes, as those of interfaces are written.
pub(super) fn quoted(value: &Value) -> Text {
    match value {
        Value::String(text) if !text.contains(['"', '\\', '\n']) => Ok(format!("\"{text}\"")),
        other => Err(unknown(other)),
    }
}

/// The one key of an object and what it has.
pub(super) fn only(value: &Value) -> Result<(&str, &Value), Unknown> {
    let object = value.as_object().filter(|object| object.len() == 1);
    let entry = object.and_then(|object| object.iter().next());
    entry
        .map(|(key, value)| (key.as_str(), value))
        .ok_or_else(|| unknown(value))
}

pub(super) fn object(value: &Value) -> Result<&Object, Unknown> {
    value.as_object().ok_or_else(|| unknown(value))
}

fn member<'a>(object: &'a Object, key: &str) -> Result<&'a Value, Unknown> {
    object
        .get(key)
        .ok_or_else(|| unknown(&format!("nothing at {key}")))
}

/// An element of a set or map, with what belongs to it.
pub(super) fn element(value: &Value) -> Text {
    match value {
        Value::Array(pair) => match pair.as_slice() {
            [key, data] => Ok(format!("{} : {}", element(key)?, side(data)?)),
            _ => Err(unknown(value)),
        },
        Value::Object(of) if of.contains_key("elem") => {
            let of = object(member(of, "elem")?)?;
            super::statement::known(of, &["val", "counter", "timeout", "expires", "comment"])?;
            let mut text = side(member(of, "val")?)?;
            // nft(8) reads what an element counts before its options only.
            if of.contains_key("counter") {
                text += " counter";
            }
            if let Some(timeout) = of.get("timeout") {
                text += &format!(" timeout {}s", word(timeout)?);
            }
            if let Some(comment) = of.get("comment") {
                text += &format!(" comment {}", quoted(comment)?);
            }
            Ok(text)
        }
        other => side(other),
    }
}

/// What a packet is held against, or a value that is set: names are in quotes unless nft(8) has
/// a word for them.
pub(super) fn side(value: &Value) -> Text {
    match value {
        Value::Array(all) => {
            let all: Result<Vec<_>, _> = all.iter().map(side).collect();
            Ok(all?.join(","))
        }
        Value::Object(_) => expression(value),
        other => word(other),
    }
}

/// The same of what an interface's name is compared with.
pub(super) fn named(value: &Value) -> Text {
    match value {
        Value::String(name) if !name.starts_with('@') => quoted(value),
        Value::Object(of) if of.contains_key("set") => {
            let all = of.get("set").and_then(Value::as_array);
            let all: Result<Vec<_>, _> = all.into_iter().flatten().map(named).collect();
            Ok(format!("{{ {} }}", all?.join(", ")))
        }
        Value::Array(pair) if pair.len() == 2 => {
            Ok(format!("{} : {}", named(&pair[0])?, side(&pair[1])?))
        }
        other => side(other),
    }
}

/// Whether an expression is the name of an interface.
pub(super) fn is_name(value: &Value) -> bool {
    let key = value.get("meta").and_then(|meta| meta.get("key"));
    key.and_then(Value::as_str).is_some_and(|key| {
        [
            "iif", "oif", "iifname", "oifname", "sdifname", "ibrname", "obrname",
        ]
        .contains(&key)
    })
}

/// An expression.
pub(super) fn expression(value: &Value) -> Text {
    if !value.is_object() {
        return side(value);
    }
    let (kind, of) = only(value)?;
    if let Value::Array(operands) = of
        && let [left, right] = operands.as_slice()
        && ["|", "&", "^", "<<", ">>"].contains(&kind)
    {
        let within = |side: &Value| {
            // Several flags stand in a list.
            if let Value::Array(flags) = side {
                return Ok(format!("({})", joined(flags, " | ")?));
            }
            let text = expression(side)?;
            let is_operation = side.as_object().and_then(|o| o.keys().next());
            let is_operation =
                is_operation.is_some_and(|key| ["|", "&", "^"].contains(&key.as_str()));
            Ok::<_, Unknown>(if is_operation && kind != "|" {
                format!("({text})")
            } else {
                text
            })
        };
        return Ok(format!("{} {kind} {}", within(left)?, within(right)?));
    }
    match (kind, of) {
        ("|", Value::Array(all)) => joined(all, " | "),
        ("concat", Value::Array(all)) => joined(all, " . "),
        ("range", Value::Array(ends)) => joined(ends, "-"),
        ("set", Value::Array(all)) => {
            let all: Result<Vec<_>, _> = all.iter().map(element).collect();
            Ok(format!("{{ {} }}", all?.join(", ")))
        }
        ("set", name @ Value::String(_)) => word(name),
        ("prefix", Value::Object(of)) => Ok(format!(
            "{}/{}",
            side(member(of, "addr")?)?,
            word(member(of, "len")?)?
        )),
        ("map", Value::Object(of)) => mapped(of, "map"),
        ("elem", _) => element(value),
        ("accept" | "drop" | "continue" | "return", Value::Null) => Ok(kind.to_owned()),
        ("jump" | "goto", Value::Object(of)) => {
            Ok(format!("{kind} {}", word(member(of, "target")?)?))
        }
        (kind, Value::Object(of)) => of_packet(kind, of),
        (kind, _) => Err(unknown(kind)),
    }
}

fn joined(all: &[Value], separator: &str) -> Text {
    let all: Result<Vec<_>, _> = all.iter().map(expression).collect();
    Ok(all?.join(separator))
}

/// `KEY map DATA`, `KEY vmap DATA`.
pub(super) fn mapped(of: &Object, keyword: &str) -> Text {
    let key = member(of, "key")?;
    let data = member(of, "data")?;
    let data = if is_name(key) {
        named(data)?
    } else {
        expression(data)?
    };
    Ok(format!("{} {keyword} {data}", expression(key)?))
}

/// Something of a packet, or beside it.
fn of_packet(kind: &str, of: &Object) -> Text {
    let part = Part { kind, of };
    match kind {
        "payload" => part.payload(),
        "exthdr" | "ip option" | "tcp option" | "sctp chunk" => part.extension(),
        "numgen" | "jhash" | "symhash" => part.number(),
        "meta" => {
            part.has_only(&["key"])?;
            let key = part.get("key")?;
            let short = ["iif", "oif"].iter().any(|start| key.starts_with(start));
            Ok(if short { key } else { format!("meta {key}") })
        }
        "ct" => {
            part.has_only(&["key", "family", "dir"])?;
            let (way, family) = (part.optional("dir", "")?, part.optional("family", "")?);
            Ok(format!("ct{way}{family} {}", part.get("key")?))
        }
        "rt" => {
            part.has_only(&["key", "family"])?;
            let family = part.optional("family", "")?;
            Ok(format!("rt{family} {}", part.get("key")?))
        }
        "fib" => {
            part.has_only(&["result", "flags"])?;
            let flags = super::list(member(of, "flags")?, " . ")?;
            Ok(format!("fib {flags} {}", part.get("result")?))
        }
        "socket" => {
            part.has_only(&["key"])?;
            Ok(format!("socket {}", part.get("key")?))
        }
        "osf" => {
            part.has_only(&["key", "ttl"])?;
            let ttl = part.optional("ttl", "ttl ")?;
            Ok(format!("osf{ttl} {}", part.get("key")?))
        }
        other => Err(unknown(&format!("{other} {}", string(of, "key")))),
    }
}

/// An expression that is an object with members, and its kind.
struct Part<'a> {
    kind: &'a str,
    of: &'a Object,
}

impl Part<'_> {
    fn get(&self, key: &str) -> Text {
        word(member(self.of, key)?)
    }

    /// The member `key` behind a blank and `before`; nothing where there is none.
    fn optional(&self, key: &str, before: &str) -> Text {
        match self.of.get(key) {
            Some(value) => Ok(format!(" {before}{}", word(value)?)),
            None => Ok(String::new()),
        }
    }

    /// Refuses members that are not listed here.
    fn has_only(&self, keys: &[&str]) -> Result<(), Unknown> {
        match self.of.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(other) => Err(unknown(&format!("{} {other}", self.kind))),
            None => Ok(()),
        }
    }

    /// A field of a header by its name, or by its place in the header.
    fn payload(&self) -> Text {
        if self.of.contains_key("base") {
            self.has_only(&["base", "offset", "len"])?;
            let (base, offset) = (self.get("base")?, self.get("offset")?);
            return Ok(format!("@{base},{offset},{}", self.get("len")?));
        }
        self.has_only(&["protocol", "field"])?;
        Ok(format!("{} {}", self.get("protocol")?, self.get("field")?))
    }

    /// A field of an extension header, an option or a chunk.
    fn extension(&self) -> Text {
        self.has_only(&["name", "field", "offset"])?;
        if self.of.contains_key("offset") {
            return Err(unknown("offset of an extension header"));
        }
        // A header of IPv6 by itself is asked for whether it is there: `exthdr frag exists`.
        let head = match self.kind {
            "exthdr" if self.of.contains_key("field") => String::new(),
            kind => format!("{kind} "),
        };
        let field = self.optional("field", "")?;
        Ok(format!("{head}{}{field}", self.get("name")?))
    }

    /// A number that is drawn, counted up or hashed.
    fn number(&self) -> Text {
        self.has_only(match self.kind {
            "numgen" => &["mode", "mod", "offset"],
            "jhash" => &["mod", "offset", "expr", "seed"],
            _ => &["mod", "offset"],
        })?;
        let of_what = match self.kind {
            "numgen" => format!(" {}", self.get("mode")?),
            "jhash" => format!(" {}", expression(member(self.of, "expr")?)?),
            _ => String::new(),
        };
        let seed = nonzero(self.optional("seed", "seed ")?);
        let offset = nonzero(self.optional("offset", "offset ")?);
        let modulus = self.get("mod")?;
        Ok(format!(
            "{}{of_what} mod {modulus}{seed}{offset}",
            self.kind
        ))
    }
}

/// Nothing, of what is 0 anyway.
fn nonzero(text: String) -> String {
    if text.ends_with(" 0") {
        String::new()
    } else {
        text
    }
}
