//! A JSON object of records, of which only those in use are looked into.
//!
//! An operation touches one or two records of maybe thousands. The others stay the text that they
//! were: that is what makes an operation cheap, and it keeps fields that tsim does not know.

use std::collections::{BTreeMap, btree_map};

use memchr::{memchr, memmem};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::registry::RegistryError;

type Records = BTreeMap<String, Box<RawValue>>;

/// The records of one file, by key.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// File name, for messages.
    file: &'static str,
    records: Records,
    /// Where the records are a member of the file's object: its name and the other members.
    nested: Option<(&'static str, Records)>,
}

impl Clone for Table {
    fn clone(&self) -> Self {
        Self {
            file: self.file,
            records: self.records.clone(),
            nested: self.nested.clone(),
        }
    }
}

impl Table {
    /// A file without records.
    pub(crate) fn empty(file: &'static str, nested: Option<&'static str>) -> Self {
        Self {
            file,
            records: Records::new(),
            nested: nested.map(|name| (name, Records::new())),
        }
    }

    /// Reads a file's content.
    pub(crate) fn parse(
        file: &'static str,
        nested: Option<&'static str>,
        text: &[u8],
    ) -> Result<Self, serde_json::Error> {
        let mut records: Records = serde_json::from_slice(text)?;
        records.values_mut().try_for_each(on_one_line)?;
        let Some(name) = nested else {
            return Ok(Self {
                file,
                records,
                nested: None,
            });
        };
        let inner = match records.remove(name) {
            Some(raw) => serde_json::from_str(raw.get())?,
            None => Records::new(),
        };
        Ok(Self {
            file,
            records: inner,
            nested: Some((name, records)),
        })
    }

    /// The file's content: one record per line.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.records.values().map(|r| r.get().len() + 80).sum());
        match &self.nested {
            None => write_object(&mut out, self.records.iter()),
            Some((name, others)) => {
                let mut inner = Vec::new();
                write_object(&mut inner, self.records.iter());
                out.extend_from_slice(b"{");
                for (key, raw) in others {
                    write_member(&mut out, key, raw.get().as_bytes());
                    out.extend_from_slice(b",\n");
                }
                write_member(&mut out, name, inner.trim_ascii_end());
                out.extend_from_slice(b"}\n");
            }
        }
        out
    }

    /// Finds one record in a file's content without reading the rest. None when the content is not
    /// laid out as [`Self::to_bytes`] does it, or the record is damaged: then parse it all.
    pub(crate) fn peek<T: DeserializeOwned>(text: &[u8], key: &str) -> Option<Option<T>> {
        // No line but the first begins a member unless this program has written the file, and a
        // string has no line feed in it, RFC 8259 section 7.
        if !text.starts_with(b"{\n\"") || !text.ends_with(b"\n}\n") {
            return (text == b"{}\n").then_some(None);
        }
        let mut needle = b"\n".to_vec();
        write_member(&mut needle, key, b"");
        let Some(at) = memmem::find(text, &needle) else {
            return Some(None);
        };
        let rest = &text[at + needle.len()..];
        let line = &rest[..memchr(b'\n', rest)?];
        let record = line.strip_suffix(b",").unwrap_or(line);
        serde_json::from_slice(record).ok().map(Some)
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.records.contains_key(key)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// One record.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, RegistryError> {
        let read = |raw: &RawValue| self.read(key, raw);
        self.records.get(key).map(|raw| read(raw)).transpose()
    }

    /// All records as the text that they are, in the order of their keys.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.records
            .iter()
            .map(|(key, raw)| (key.as_str(), raw.get()))
    }

    /// All records, or a part of each, in the order of their keys.
    pub(crate) fn iter<'a, T: Deserialize<'a>>(
        &'a self,
    ) -> impl Iterator<Item = Result<(&'a str, T), RegistryError>> {
        let records: btree_map::Iter<'a, _, _> = self.records.iter();
        records.map(|(key, raw)| Ok((key.as_str(), self.read(key, raw)?)))
    }

    /// Adds or replaces one record.
    pub(crate) fn put<T: Serialize>(&mut self, key: &str, record: &T) -> Result<(), RegistryError> {
        let raw = serde_json::value::to_raw_value(record).map_err(|e| self.damaged(key, &e))?;
        self.records.insert(key.to_owned(), raw);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.records.remove(key);
    }

    fn read<'a, T: Deserialize<'a>>(
        &self,
        key: &str,
        raw: &'a RawValue,
    ) -> Result<T, RegistryError> {
        serde_json::from_str(raw.get()).map_err(|e| self.damaged(key, &e))
    }

    /// The error for a record that does not have its shape.
    pub(crate) fn damaged(&self, key: &str, reason: &dyn std::fmt::Display) -> RegistryError {
        RegistryError::Corruption {
            file: self.file,
            key: key.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Line feeds between the tokens of a record that somebody else wrote become spaces.
fn on_one_line(raw: &mut Box<RawValue>) -> Result<(), serde_json::Error> {
    if memchr(b'\n', raw.get().as_bytes()).is_some() {
        *raw = RawValue::from_string(raw.get().replace('\n', " "))?;
    }
    Ok(())
}

fn write_object<'a>(
    out: &mut Vec<u8>,
    records: impl Iterator<Item = (&'a String, &'a Box<RawValue>)>,
) {
    let mut separator: &[u8] = b"{\n";
    for (key, raw) in records {
        out.extend_from_slice(separator);
        write_member(out, key, raw.get().as_bytes());
        separator = b",\n";
    }
    out.extend_from_slice(if separator == b"{\n" {
        b"{}\n"
    } else {
        b"\n}\n"
    });
}

fn write_member(out: &mut Vec<u8>, key: &str, raw: &[u8]) {
    // Writing text to a Vec cannot fail.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    out.extend_from_slice(raw);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_touched_stays_as_it_was() {
        let text = br#"{"a": {"x" : 1.50, "unknown":[1, 2]}, "b\n": {"x":2}}"#;
        let mut table = Table::parse("t.json", None, text).unwrap();
        table.put("c", &serde_json::json!({"x": 3})).unwrap();
        let out = String::from_utf8(table.to_bytes()).unwrap();
        assert!(
            out.contains(r#""a":{"x" : 1.50, "unknown":[1, 2]}"#),
            "{out}"
        );
        assert_eq!(
            Table::parse("t.json", None, out.as_bytes()).unwrap().len(),
            3
        );
    }

    #[test]
    fn a_nested_file_keeps_its_other_members() {
        let text = br#"{"version": 1, "allocations": {"r1": {"dscp": 32}}, "note": "x"}"#;
        let mut table = Table::parse("d.json", Some("allocations"), text).unwrap();
        assert_eq!(table.len(), 1);
        table.remove("r1");
        let out = String::from_utf8(table.to_bytes()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"version": 1, "allocations": {}, "note": "x"})
        );
    }

    #[test]
    fn one_record_is_found_without_reading_the_rest() {
        let text = b"{\"a\":\n {\"b\":\n 1}, \"b\": 2, \"c\\n\": 3}";
        assert_eq!(Table::peek::<u8>(text, "b"), None, "not our layout");
        let ours = Table::parse("t.json", None, text).unwrap().to_bytes();
        assert_eq!(Table::peek::<u8>(&ours, "b"), Some(Some(2)));
        assert_eq!(Table::peek::<u8>(&ours, "c\n"), Some(Some(3)));
        assert_eq!(Table::peek::<u8>(&ours, "d"), Some(None));
        assert_eq!(Table::peek::<u8>(&ours, "a"), None, "not of this shape");
        assert_eq!(
            Table::peek::<u8>(&ours[..ours.len() - 1], "b"),
            None,
            "cut short"
        );
        let empty = Table::empty("t.json", None).to_bytes();
        assert_eq!(Table::peek::<u8>(&empty, "b"), Some(None));
    }

    #[test]
    fn empty_tables_are_valid_files() {
        for nested in [None, Some("allocations")] {
            let out = Table::empty("t.json", nested).to_bytes();
            assert_eq!(Table::parse("t.json", nested, &out).unwrap().len(), 0);
        }
    }

    #[test]
    fn a_record_of_the_wrong_shape_is_named() {
        let table = Table::parse("t.json", None, br#"{"a": 1}"#).unwrap();
        let error = table.get::<Vec<u8>>("a").unwrap_err().to_string();
        assert!(error.contains("t.json") && error.contains(" a "), "{error}");
    }
}
