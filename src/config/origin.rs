//! Where each value of the configuration comes from, and all of them as they are in force.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Value, de::DeTable};

use super::Config;

/// The line on which each key of a file stands, as `scheduler.quick_jobs`; lines count from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines(BTreeMap<String, usize>);

impl Lines {
    /// Of no key where the text is not TOML.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut lines = BTreeMap::new();
        if let Ok(table) = DeTable::parse(text) {
            note(text, "", table.get_ref(), &mut lines);
        }
        Self(lines)
    }

    /// The line of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<usize> {
        self.0.get(key).copied()
    }

    /// The line of the key with which `message` begins, if it begins with one.
    pub(super) fn named_first(&self, message: &str) -> Option<usize> {
        let key = message.split([' ', ':', ',']).next()?;
        self.get(key)
    }
}

fn note(text: &str, above: &str, table: &DeTable, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table.iter() {
        let name = format!("{above}{}", key.get_ref());
        let before = text.get(..key.span().start).unwrap_or_default();
        lines.insert(name.clone(), before.matches('\n').count() + 1);
        if let Some(table) = value.get_ref().as_table() {
            note(text, &format!("{name}."), table, lines);
        }
    }
}

/// Keys of `[scheduler]` that have no value unless the file sets them.
const OPTIONAL: [&str; 6] = [
    "runner_dir",
    "socket",
    "max_user_seconds",
    "socket_group",
    "admin_group",
    "token_file",
];

/// One key with the value that is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its name, with that of its table.
    pub key: String,
    /// Its value; none where the key is optional and not set.
    pub value: Option<Value>,
    /// The line of the file that sets it; none where this is the default.
    pub line: Option<usize>,
}

impl Config {
    /// Every key with its value, in the order in which the example has them. `lines` are those of
    /// the file that this configuration was read from.
    #[must_use]
    pub fn settings(&self, lines: &Lines) -> Vec<Setting> {
        let path = |path: &std::path::Path| Some(Value::String(path.display().to_string()));
        let number = |n: usize| Some(Value::Integer(i64::try_from(n).unwrap_or(i64::MAX)));
        let tools = self.tool_dirs.iter().filter_map(|dir| path(dir));
        let mut all = vec![
            ("rootless".to_owned(), self.rootless.map(Value::Boolean)),
            ("registry_dir".to_owned(), path(&self.registry_dir)),
            ("results_dir".to_owned(), path(&self.results_dir)),
            ("labs_dir".to_owned(), path(&self.labs_dir)),
            (
                "use_registry".to_owned(),
                Some(Value::Boolean(self.use_registry)),
            ),
            (
                "dscp_first".to_owned(),
                number(self.dscp.first().get().into()),
            ),
            (
                "dscp_last".to_owned(),
                number(self.dscp.last().get().into()),
            ),
            (
                "max_services".to_owned(),
                number(self.services.max_services),
            ),
            (
                "lock_timeout_seconds".to_owned(),
                Some(Value::Float(self.lock_timeout.as_secs_f64())),
            ),
            ("tool_dirs".to_owned(), Some(Value::Array(tools.collect()))),
        ];
        // Optional keys that are not set are absent from the table.
        let scheduler = Value::try_from(&self.scheduler).ok();
        let table = scheduler.as_ref().and_then(Value::as_table);
        let mut keys: Vec<(String, Option<Value>)> = table
            .into_iter()
            .flatten()
            .map(|(key, value)| (format!("scheduler.{key}"), Some(value.clone())))
            .collect();
        for key in OPTIONAL {
            let key = format!("scheduler.{key}");
            if !keys.iter().any(|(there, _)| *there == key) {
                keys.push((key, None));
            }
        }
        all.append(&mut keys);
        for (name, group, shipped) in self.groups.all() {
            if !shipped {
                let value = Value::String(group.services.clone());
                all.push((format!("service_groups.{name}.services"), Some(value)));
            }
        }
        let setting = |(key, value): (String, Option<Value>)| Setting {
            line: lines.get(&key),
            key,
            value,
        };
        all.into_iter().map(setting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_on_their_lines() {
        let text = "# head\nregistry_dir = \"/x\"\n\n[scheduler]\njobs = 3\n";
        let lines = Lines::of(text);
        assert_eq!(lines.get("registry_dir"), Some(2));
        assert_eq!(lines.get("scheduler.jobs"), Some(5));
        assert_eq!(lines.get("labs_dir"), None);
        assert_eq!(lines.named_first("scheduler.jobs = 3: too many"), Some(5));
    }

    #[test]
    fn all_keys_of_the_example_are_shown() {
        let settings = Config::default().settings(&Lines::default());
        for line in crate::config::EXAMPLE.lines() {
            let Some((key, _)) = line
                .strip_prefix('#')
                .and_then(|line| line.split_once(" = "))
            else {
                continue;
            };
            if key.contains(' ') || ["title", "services"].contains(&key) {
                continue;
            }
            let shown = settings
                .iter()
                .any(|s| s.key == key || s.key == format!("scheduler.{key}"));
            assert!(shown, "{key}");
        }
    }
}
