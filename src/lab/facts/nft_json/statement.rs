//! Statements of libnftables-json(5).

use serde_json::Value;

use super::{
    Object, Text,
    expression::{
        Unknown, expression, is_name, mapped, named, object, only, quoted, side, unknown, word,
    },
    list, string,
};

/// A statement of a rule.
pub(super) fn statement(value: &Value) -> Text {
    let (kind, of) = only(value)?;
    match (kind, of) {
        ("accept" | "drop" | "continue" | "return" | "notrack", Value::Null) => Ok(kind.to_owned()),
        ("jump" | "goto", _) => expression(value),
        ("match", of) => matched(object(of)?),
        ("vmap", of) => mapped(object(of)?, "vmap"),
        ("counter", Value::Null | Value::Object(_)) => Ok("counter".to_owned()),
        ("counter" | "quota" | "limit", name @ Value::String(_)) => {
            Ok(format!("{kind} name {}", quoted(name)?))
        }
        ("quota", of) => Ok(format!("quota {}", quota(object(of)?)?)),
        ("limit", of) => Ok(format!("limit {}", limit(object(of)?)?)),
        ("mangle", of) => mangle(object(of)?),
        ("log", Value::Null) => Ok("log".to_owned()),
        ("log", of) => log(object(of)?),
        ("reject", Value::Null) => Ok("reject".to_owned()),
        ("reject", of) => reject(object(of)?),
        ("snat" | "dnat", of) => translation(kind, object(of)?),
        ("masquerade" | "redirect", Value::Null) => Ok(kind.to_owned()),
        ("masquerade" | "redirect", of) => translation(kind, object(of)?),
        ("set", of) => dynamic(object(of)?),
        ("ct count", of) => {
            let of = object(of)?;
            known(of, &["val", "inv"])?;
            Ok(format!("ct count {}{}", over(of), get(of, "val")?))
        }
        ("ct helper", name) => Ok(format!("ct helper set {}", quoted(name)?)),
        ("flow", of) => {
            let of = object(of)?;
            known(of, &["op", "flowtable"])?;
            Ok(format!("flow {} {}", get(of, "op")?, get(of, "flowtable")?))
        }
        ("queue", Value::Null) => Ok("queue".to_owned()),
        ("queue", of) => queue(object(of)?),
        ("tproxy", of) => tproxy(object(of)?),
        ("synproxy", Value::Null) => Ok("synproxy".to_owned()),
        ("synproxy", of) => synproxy(object(of)?),
        ("dup", of) => sent("dup", object(of)?),
        ("fwd", of) => sent("fwd", object(of)?),
        (kind, _) => Err(unknown(kind)),
    }
}

fn get(of: &Object, key: &str) -> Text {
    word(
        of.get(key)
            .ok_or_else(|| unknown(&format!("nothing at {key}")))?,
    )
}

/// Refuses what has other keys: a word that is passed over may be what matters.
pub(super) fn known(of: &Object, keys: &[&str]) -> Result<(), Unknown> {
    match of.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(other) => Err(unknown(other)),
        None => Ok(()),
    }
}

fn over(of: &Object) -> &'static str {
    match of.get("inv") {
        Some(Value::Bool(true)) => "over ",
        _ => "",
    }
}

/// `tcp dport 22`, `ct state new,established`, `tcp flags & (fin | syn) == syn`.
fn matched(of: &Object) -> Text {
    known(of, &["op", "left", "right"])?;
    let (Some(left), Some(right)) = (of.get("left"), of.get("right")) else {
        return Err(unknown("a match without sides"));
    };
    let text = expression(left)?;
    // Words that are flags match in two ways, and an operation's end has to be said.
    let flags = left.get("&").is_some()
        || left
            .pointer("/payload/field")
            .is_some_and(|field| field == "flags")
        || left.get("ct").is_some_and(|ct| {
            ["state", "status", "label", "event"].contains(&string_of(ct, "key").as_str())
        });
    let operator = match string(of, "op").as_str() {
        "==" if flags => "== ",
        "==" | "in" => "",
        "!=" => "!= ",
        // None of these flags.
        "!" => "! ",
        "<" => "< ",
        ">" => "> ",
        "<=" => "<= ",
        ">=" => ">= ",
        other => return Err(unknown(other)),
    };
    let right = match right {
        Value::Bool(true) => "exists".to_owned(),
        Value::Bool(false) => "missing".to_owned(),
        right if is_name(left) => named(right)?,
        right => side(right)?,
    };
    Ok(format!("{text} {operator}{right}"))
}

fn string_of(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// `over 10 mbytes`
pub(super) fn quota(of: &Object) -> Text {
    let (amount, unit) = match (of.get("val"), of.get("bytes")) {
        (Some(_), _) => (get(of, "val")?, get(of, "val_unit")?),
        (None, _) => (get(of, "bytes")?, "bytes".to_owned()),
    };
    Ok(format!("{}{amount} {unit}", over(of)))
}

/// `rate over 10/second burst 5 packets`
pub(super) fn limit(of: &Object) -> Text {
    let unit = string(of, "rate_unit");
    let unit = match unit.as_str() {
        "" | "packets" => String::new(),
        unit => format!(" {unit}"),
    };
    let mut text = format!(
        "rate {}{}{unit}/{}",
        over(of),
        get(of, "rate")?,
        get(of, "per")?
    );
    if let Some(burst) = of.get("burst").filter(|burst| **burst != 0) {
        let unit = match string(of, "burst_unit") {
            unit if !unit.is_empty() => unit,
            _ if unit.is_empty() => "packets".to_owned(),
            _ => "bytes".to_owned(),
        };
        text += &format!(" burst {} {unit}", word(burst)?);
    }
    Ok(text)
}

fn mangle(of: &Object) -> Text {
    known(of, &["key", "value"])?;
    let (Some(key), Some(value)) = (of.get("key"), of.get("value")) else {
        return Err(unknown("mangle"));
    };
    Ok(format!("{} set {}", expression(key)?, expression(value)?))
}

fn log(of: &Object) -> Text {
    let mut text = "log".to_owned();
    for (key, value) in of {
        text += &match key.as_str() {
            "prefix" => format!(" prefix {}", quoted(value)?),
            "group" | "snaplen" | "queue-threshold" | "level" => format!(" {key} {}", word(value)?),
            "flags" => format!(" flags {}", list(value, ",")?),
            other => return Err(unknown(other)),
        };
    }
    Ok(text)
}

fn reject(of: &Object) -> Text {
    known(of, &["type", "expr"])?;
    let kind = match string(of, "type").as_str() {
        "" => return Ok("reject".to_owned()),
        "tcp reset" => return Ok("reject with tcp reset".to_owned()),
        kind => kind.to_owned(),
    };
    Ok(format!("reject with {kind} {}", get(of, "expr")?))
}

/// `dnat ip to 10.1.0.9:80 random`, `masquerade to :1024-2048`.
fn translation(kind: &str, of: &Object) -> Text {
    known(of, &["addr", "family", "port", "flags", "type_flags"])?;
    let mut text = kind.to_owned();
    if of.contains_key("family") {
        text += &format!(" {}", get(of, "family")?);
    }
    if let Some(Value::String(flags)) = of.get("type_flags") {
        text += &format!(" {flags}");
    } else if let Some(flags) = of.get("type_flags") {
        text += &format!(" {}", list(flags, " ")?);
    }
    let address = match of.get("addr") {
        Some(address) => expression(address)?,
        None => String::new(),
    };
    let six = address.contains(':') && !address.contains(' ') && of.contains_key("port");
    let address = if six { format!("[{address}]") } else { address };
    let port = match of.get("port") {
        Some(port) => format!(":{}", expression(port)?),
        None => String::new(),
    };
    if !address.is_empty() || !port.is_empty() {
        text += &format!(" to {address}{port}");
    }
    // nft(8) says netmap itself of a map of prefixes.
    if let Some(flags) = of.get("flags").filter(|flags| *flags != "netmap") {
        text += &format!(" {}", list(flags, ",")?);
    }
    Ok(text)
}

/// `add @seen { ip saddr timeout 60s limit rate 1/second }`
fn dynamic(of: &Object) -> Text {
    known(of, &["op", "elem", "set", "stmt"])?;
    let element = super::expression::element(of.get("elem").ok_or_else(|| unknown("set"))?)?;
    let mut text = format!("{} {} {{ {element}", get(of, "op")?, get(of, "set")?);
    for one in of
        .get("stmt")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        text += &format!(" {}", statement(one)?);
    }
    Ok(text + " }")
}

fn queue(of: &Object) -> Text {
    known(of, &["num", "flags"])?;
    let mut text = "queue".to_owned();
    if let Some(flags) = of.get("flags") {
        text += &format!(" flags {}", list(flags, ",")?);
    }
    if let Some(number) = of.get("num") {
        text += &format!(" to {}", expression(number)?);
    }
    Ok(text)
}

fn tproxy(of: &Object) -> Text {
    known(of, &["family", "addr", "port"])?;
    let mut text = "tproxy".to_owned();
    if of.contains_key("family") {
        text += &format!(" {}", get(of, "family")?);
    }
    let mut to = match of.get("addr") {
        Some(address) => expression(address)?,
        None => String::new(),
    };
    if to.contains(':') {
        to = format!("[{to}]");
    }
    if let Some(port) = of.get("port") {
        to += &format!(":{}", expression(port)?);
    }
    Ok(format!("{text} to {to}"))
}

fn synproxy(of: &Object) -> Text {
    known(of, &["mss", "wscale", "flags"])?;
    let mut text = "synproxy".to_owned();
    for key in ["mss", "wscale"] {
        if of.contains_key(key) {
            text += &format!(" {key} {}", get(of, key)?);
        }
    }
    if let Some(flags) = of.get("flags") {
        text += &format!(" {}", list(flags, " ")?);
    }
    Ok(text)
}

/// `dup to 10.1.0.9 device "eth0"`, `fwd to "eth0"`.
fn sent(kind: &str, of: &Object) -> Text {
    known(of, &["addr", "dev", "family"])?;
    let value = |key: &str| of.get(key);
    let device = |dev: &Value| {
        if dev.is_string() {
            quoted(dev)
        } else {
            expression(dev)
        }
    };
    match (kind, value("addr"), value("dev")) {
        ("dup", Some(address), None) => Ok(format!("dup to {}", expression(address)?)),
        // In a chain of a device the address is the device's name.
        ("dup", Some(address), Some(dev)) => Ok(format!(
            "dup to {} device {}",
            expression(address)?,
            device(dev)?
        )),
        ("fwd", None, Some(dev)) => Ok(format!("fwd to {}", device(dev)?)),
        ("fwd", Some(address), Some(dev)) => {
            let family = get(of, "family")?;
            Ok(format!(
                "fwd {family} to {} device {}",
                expression(address)?,
                device(dev)?
            ))
        }
        _ => Err(unknown(kind)),
    }
}
