//! What `ip -j` prints, put into the lines that ip(8) prints without it: one reader reads both.
//!
//! A key that is not known here becomes a word that the reader does not know, and is refused there.

use std::fmt;

use serde::{
    Deserialize,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value};

/// Lines, each with the number of the line that it stands for.
type Lines = Vec<(usize, String)>;

/// Whether `body` is JSON.
pub(super) fn is_json(body: &[(usize, &str)]) -> bool {
    let first = body.iter().find(|(_, text)| !text.trim().is_empty());
    first.is_some_and(|(_, text)| text.starts_with(['[', '{']))
}

/// The objects of `ip -j`, each put into lines by `lines`; all of it stands where it begins.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(
    body: &[(usize, &str)],
    lines: fn(&Map<String, Value>) -> Vec<String>,
) -> Result<Lines, (usize, String)> {
    let at = body.first().map_or(0, |(line, _)| *line);
    let texts: Vec<&str> = body.iter().map(|(_, text)| *text).collect();
    let all: Vec<Object> = serde_json::from_str(&texts.join("\n"))
        .map_err(|error| (at, format!("no JSON as `ip -j` prints it: {error}")))?;
    let lines = all.iter().flat_map(|Object(object)| lines(object));
    Ok(lines.map(|line| (at, line)).collect())
}

/// An object of which the first of several values with one key counts: behind a route's own `dst` and `src`
/// stand those of its `encap ip`.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = Object;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Object, A::Error> {
                let mut first = Map::new();
                while let Some((key, value)) = all.next_entry::<String, Value>()? {
                    first.entry(key).or_insert(value);
                }
                Ok(Object(first))
            }
        }
        from.deserialize_map(First)
    }
}

/// A value as one word; white space within would begin another.
fn word(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.replace(char::is_whitespace, "_")
}

/// A value by its key; empty where there is none.
fn value(object: &Map<String, Value>, key: &str) -> String {
    object.get(key).map_or_else(String::new, word)
}

/// `key value`, or the key alone where the value is null.
fn pair(key: &str, value: &Value) -> String {
    match value {
        Value::Null => key.to_owned(),
        value => format!("{key} {}", word(value)),
    }
}

/// One route of `ip -j route`.
pub(super) fn route(object: &Map<String, Value>) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(object.get("type").map(word));
    words.push(value(object, "dst"));
    for (key, value) in object {
        match (key.as_str(), value) {
            ("type" | "dst", _) => {}
            ("nexthops", Value::Array(hops)) => {
                for hop in hops.iter().filter_map(Value::as_object) {
                    words.push("nexthop".to_owned());
                    words.extend(hop.iter().flat_map(hop_words));
                }
            }
            ("metrics", Value::Array(metrics)) => {
                let metrics = metrics.iter().filter_map(Value::as_object).flatten();
                words.extend(metrics.map(|(key, value)| pair(key, value)));
            }
            (_, value) => words.extend(hop_words((key, value))),
        }
    }
    vec![words.join(" ")]
}

/// One entry of `bridge -j fdb`.
pub(super) fn forwarding(object: &Map<String, Value>) -> Vec<String> {
    let mut words = vec![value(object, "mac")];
    for (key, name) in [
        ("ifname", "dev"),
        ("vlan", "vlan"),
        ("master", "master"),
        ("dst", "dst"),
    ] {
        words.extend(object.get(key).map(|value| pair(name, value)));
    }
    words.extend(object.get("state").map(word));
    vec![words.join(" ")]
}

/// The VLANs of one port of `bridge -j vlan`, each with the port's name.
pub(super) fn vlans(object: &Map<String, Value>) -> Vec<String> {
    let port = value(object, "ifname");
    let all = object.get("vlans").and_then(Value::as_array);
    let vlan = |vlan: &Map<String, Value>| {
        let flags = vlan.get("flags").and_then(Value::as_array);
        let flags = flags.into_iter().flatten().map(word);
        let words = [port.clone(), value(vlan, "vlan")].into_iter().chain(flags);
        words.collect::<Vec<_>>().join(" ")
    };
    let all = all.into_iter().flatten().filter_map(Value::as_object);
    all.map(vlan).collect()
}

/// What may belong to a route and to one of its next hops.
fn hop_words((key, value): (&String, &Value)) -> Vec<String> {
    match (key.as_str(), value) {
        ("gateway", gateway) => vec![pair("via", gateway)],
        ("via", Value::Object(via)) => {
            vec![
                "via".to_owned(),
                self::value(via, "family"),
                self::value(via, "host"),
            ]
        }
        ("protocol", value) => vec![pair("proto", value)],
        ("prefsrc", value) => vec![pair("src", value)],
        ("flags", Value::Array(flags)) => flags.iter().map(word).collect(),
        (key, value) => vec![pair(key, value)],
    }
}

/// One rule of `ip -j rule`.
pub(super) fn rule(object: &Map<String, Value>) -> Vec<String> {
    let mut words = vec![format!("{}:", value(object, "priority"))];
    words.extend(object.contains_key("not").then(|| "not".to_owned()));
    let with = |key: &str, separator: &str, more: &str| match object.contains_key(more) {
        true => format!("{}{separator}{}", value(object, key), value(object, more)),
        false => value(object, key),
    };
    for (key, value) in object {
        match key.as_str() {
            "priority" | "not" | "srclen" | "dstlen" | "fwmask" | "sport_end" | "dport_end"
            | "uid_end" | "iif_detached" | "oif_detached" | "unresolved" => {}
            "src" => words.push(format!("from {}", with(key, "/", "srclen"))),
            "dst" => words.push(format!("to {}", with(key, "/", "dstlen"))),
            "fwmark" => words.push(format!("fwmark {}", with(key, "/", "fwmask"))),
            "sport_start" => words.push(format!("sport {}", with(key, "-", "sport_end"))),
            "dport_start" => words.push(format!("dport {}", with(key, "-", "dport_end"))),
            "uid_start" => words.push(format!("uidrange {}", with(key, "-", "uid_end"))),
            "table" => words.push(format!("lookup {}", word(value))),
            "suppress_prefixlen" => words.push(pair("suppress_prefixlength", value)),
            "protocol" => words.push(pair("proto", value)),
            "l3mdev" => words.push("lookup [l3mdev-table]".to_owned()),
            "action" => words.push(word(value)),
            key => words.push(pair(key, value)),
        }
    }
    vec![words.join(" ")]
}

/// One interface of `ip -j addr` or `ip -j -d link`.
pub(super) fn interface(object: &Map<String, Value>) -> Vec<String> {
    let array = |key: &str| {
        object
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let flags: Vec<String> = array("flags").map(word).collect();
    let mut head = format!(
        "{}: {}: <{}>",
        object.get("ifindex").map_or_else(|| "0".to_owned(), word),
        value(object, "ifname"),
        flags.join(",")
    );
    for key in ["mtu", "master", "group"] {
        if let Some(value) = object.get(key) {
            head += &format!(" {}", pair(key, value));
        }
    }
    if object.contains_key("xdp") {
        head += " xdp";
    }
    let mut lines = vec![head];
    let is_set = |key: &str| object.contains_key(key);
    if is_set("link_type") && is_set("address") {
        let [kind, own, far] = ["link_type", "address", "broadcast"].map(|key| value(object, key));
        let far = if far.is_empty() {
            far
        } else {
            format!(" brd {far}")
        };
        lines.push(format!("    link/{kind} {own}{far}"));
    }
    if let Some(info) = object.get("linkinfo").and_then(Value::as_object) {
        let slave = value(info, "info_slave_kind");
        let slave = format!("{slave}_slave");
        for (kind, data) in [
            (value(info, "info_kind"), "info_data"),
            (slave, "info_slave_data"),
        ] {
            if kind.is_empty() || kind == "_slave" {
                continue;
            }
            let data = info.get(data).and_then(Value::as_object);
            let told = data.into_iter().flatten();
            let told = told.filter(|(_, value)| !value.is_object() && !value.is_array());
            let words: Vec<String> = told.map(|(key, value)| pair(key, value)).collect();
            lines.push(format!("    {kind} {}", words.join(" ")));
        }
    }
    lines.extend(array("addr_info").filter_map(Value::as_object).map(address));
    lines
}

fn address(info: &Map<String, Value>) -> String {
    let local = info.get("local").or_else(|| info.get("address"));
    let local = local.map_or_else(String::new, word);
    let family = if local.contains(':') { "inet6" } else { "inet" };
    let len = value(info, "prefixlen");
    let mut line = format!("    {family} {local}");
    if let (Some(_), Some(peer)) = (info.get("local"), info.get("address")) {
        line += &format!(" peer {}", word(peer));
    }
    line += &format!("/{len}");
    if info.contains_key("scope") {
        line += &format!(" scope {}", value(info, "scope"));
    }
    for flag in ["noprefixroute", "dadfailed"] {
        if info.get(flag) == Some(&Value::Bool(true)) {
            line += &format!(" {flag}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, lines: fn(&Map<String, Value>) -> Vec<String>) -> Vec<String> {
        let body: Vec<(usize, &str)> = (7..).zip(text.lines()).collect();
        assert!(is_json(&body));
        let read = read(&body, lines).unwrap();
        assert!(read.iter().all(|(at, _)| *at == 7));
        read.into_iter().map(|(_, line)| line).collect()
    }

    /// As iproute2 6.1 prints them.
    #[test]
    fn routes_become_what_ip_route_shows() {
        let json = r#"[{"dst":"10.4.0.0/16","gateway":"10.0.0.2","dev":"e0","table":"100","flags":["onlink"]},
            {"dst":"10.1.0.0/16","gateway":"10.0.0.2","dev":"e0","protocol":"static","metric":5,"flags":[],
            "metrics":[{"mtu":1400}]},
            {"type":"blackhole","dst":"10.2.0.0/16","flags":[]},
            {"dst":"10.3.0.0/16","flags":[],"nexthops":[{"gateway":"10.0.0.2","dev":"e0","weight":2,"flags":[]},
            {"gateway":"10.0.0.3","dev":"e0","weight":1,"flags":["dead","linkdown"]}]},
            {"dst":"10.5.0.0/16","via":{"family":"inet6","host":"fe80::1"},"dev":"e0","prefsrc":"10.0.0.1"},
            {"dst":"2001:db8:5::/48","from":"2001:db8::/64","gateway":"2001:db8::2","nhid":7,"pref":"medium"},
            {"dst":"10.7.0.0/16","encap":"mpls","gateway":"10.0.0.2"}]"#;
        assert_eq!(
            of(json, route),
            [
                "10.4.0.0/16 via 10.0.0.2 dev e0 table 100 onlink",
                "10.1.0.0/16 via 10.0.0.2 dev e0 proto static metric 5 mtu 1400",
                "blackhole 10.2.0.0/16",
                "10.3.0.0/16 nexthop via 10.0.0.2 dev e0 weight 2 nexthop via 10.0.0.3 dev e0 \
                 weight 1 dead linkdown",
                "10.5.0.0/16 via inet6 fe80::1 dev e0 src 10.0.0.1",
                "2001:db8:5::/48 from 2001:db8::/64 via 2001:db8::2 nhid 7 pref medium",
                "10.7.0.0/16 encap mpls via 10.0.0.2",
            ]
        );
    }

    #[test]
    fn rules_become_what_ip_rule_shows() {
        let json = r#"[{"priority":0,"src":"all","table":"local"},
            {"priority":100,"not":null,"src":"10.0.0.0","srclen":8,"dst":"10.1.2.3","tos":"0x10",
            "fwmark":"0x1","fwmask":"0xff","iif":"e0","oif":"e1","ipproto":"tcp","sport_start":1024,
            "sport_end":2048,"dport":80,"table":"100","suppress_prefixlen":0},
            {"priority":101,"src":"10.9.0.0","srclen":16,"action":"blackhole"},
            {"priority":102,"src":"all","goto":32766},{"priority":103,"src":"all","nop":null},
            {"priority":104,"src":"all","uid_start":0,"uid_end":99,"table":"main"},
            {"priority":107,"src":"all","iif":"gone","iif_detached":null,"table":"main"},
            {"priority":108,"src":"all","l3mdev":null}]"#;
        assert_eq!(
            of(json, rule),
            [
                "0: from all lookup local",
                "100: not from 10.0.0.0/8 to 10.1.2.3 tos 0x10 fwmark 0x1/0xff iif e0 oif e1 ipproto \
                 tcp sport 1024-2048 dport 80 lookup 100 suppress_prefixlength 0",
                "101: from 10.9.0.0/16 blackhole",
                "102: from all goto 32766",
                "103: from all nop",
                "104: from all uidrange 0-99 lookup main",
                "107: from all iif gone lookup main",
                "108: from all lookup [l3mdev-table]",
            ]
        );
    }

    #[test]
    fn interfaces_become_what_ip_shows_with_details() {
        let json = r#"[{"ifindex":5,"link":"e0","ifname":"vx","flags":["BROADCAST","UP"],"mtu":1450,
            "master":"br0","group":"default","link_type":"ether","address":"86:15:70:c3:36:fa",
            "broadcast":"ff:ff:ff:ff:ff:ff","linkinfo":{"info_kind":"vxlan","info_data":{"id":9,
            "remote":"10.0.0.2","local":"10.0.0.1","port_range":{"low":0,"high":0}},
            "info_slave_kind":"bridge","info_slave_data":{"state":"forwarding"}},"addr_info":[
            {"family":"inet","local":"10.7.0.1","address":"10.7.0.2","prefixlen":32,"scope":"global"},
            {"local":"fe80::1","prefixlen":64,"scope":"link","noprefixroute":true}]}]"#;
        assert_eq!(
            of(json, interface),
            [
                "5: vx: <BROADCAST,UP> mtu 1450 master br0 group default",
                "    link/ether 86:15:70:c3:36:fa brd ff:ff:ff:ff:ff:ff",
                "    vxlan id 9 remote 10.0.0.2 local 10.0.0.1",
                "    bridge_slave state forwarding",
                "    inet 10.7.0.1 peer 10.7.0.2/32 scope global",
                "    inet6 fe80::1/64 scope link noprefixroute",
            ]
        );
    }

    #[test]
    fn what_is_no_json_says_so_with_its_line() {
        let (line, reason) = read(&[(9, "[{\"dst\":")], route).unwrap_err();
        assert_eq!(line, 9);
        assert!(reason.contains("ip -j"), "{reason}");
    }
}
