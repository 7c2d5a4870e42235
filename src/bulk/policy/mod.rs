//! Policies: what must pass and what must not, in a file that people keep.
//!
//! [`file`] is the file as written, [`Policy::load`] resolves it: includes, named addresses, service
//! groups, exceptions; every rule becomes the questions that it is about. [`write`](mod@write) is the way
//! back: a policy that says what was measured.

pub mod file;
pub mod text;
pub mod write;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use self::text::PolicyText;
use self::{
    file::{Endpoint, Except, File, Must, RuleFile, ServiceList},
    text::PolicyFiles,
};
use super::{addresses::Addresses, answers::QuestionKey};
use crate::model::{DidYouMean, Groups, Protocol, Service, ServiceLimits, alike, parse_services};

/// The schema of a policy's file, for editors.
pub const SCHEMA: &str = include_str!("../../../docs/policy.schema.json");

/// More questions than these in one policy are not kept in memory; `tsim sweep` asks any number.
pub const MOST_QUESTIONS: usize = 2_000_000;
/// Files that include files that include files.
const DEPTH: usize = 8;

/// A policy with everything resolved.
#[derive(Debug)]
pub struct Policy {
    /// The file that was named.
    pub file: PathBuf,
    /// Rules in the order of the files, included ones where they are included.
    pub rules: Vec<CheckRule>,
    /// Every file that was read for it.
    pub text: PolicyText,
}

/// One rule with its questions.
#[derive(Debug, Clone)]
pub struct CheckRule {
    /// As written.
    pub written: RuleFile,
    /// The file that it stands in.
    pub file: PathBuf,
    /// The line where it begins; none where it was not found.
    pub line: Option<usize>,
    /// What it is about, each question once.
    pub questions: Vec<QuestionKey>,
}

/// A policy that cannot be used.
#[derive(Debug, Error)]
#[error("{place}: {what}")]
pub struct PolicyError {
    /// File and line.
    pub place: String,
    /// Field, value and what is allowed.
    pub what: String,
}

/// All files of a policy read so far.
struct Reading<'a> {
    source: PolicyFiles<'a>,
    addresses: BTreeMap<String, (Vec<Addresses>, PathBuf)>,
    groups: BTreeMap<String, crate::model::ServiceGroup>,
    rules: Vec<(RuleFile, PathBuf, Option<usize>)>,
    /// The text of each file; those with lists of services are read while the rules are resolved.
    texts: RefCell<BTreeMap<PathBuf, String>>,
    open: Vec<PathBuf>,
}

impl Policy {
    /// Reads the policy in `path` with everything that it includes; `groups` are those that there are
    /// beside its own.
    ///
    /// # Errors
    /// [`PolicyError`] with file, line, field, value and what is allowed.
    pub fn load(path: &Path, groups: &Groups) -> Result<Self, PolicyError> {
        Self::read(path, PolicyFiles::Disk, groups)
    }

    /// A policy whose files are all in `text`: nothing that it names is looked for elsewhere.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn of_text(text: &PolicyText, groups: &Groups) -> Result<Self, PolicyError> {
        Self::read(Path::new(&text.name), PolicyFiles::Text(text), groups)
    }

    fn read(path: &Path, source: PolicyFiles<'_>, groups: &Groups) -> Result<Self, PolicyError> {
        let mut reading = Reading {
            source,
            addresses: BTreeMap::new(),
            groups: BTreeMap::new(),
            rules: Vec::new(),
            texts: RefCell::default(),
            open: Vec::new(),
        };
        reading.read(path)?;
        let own = std::mem::take(&mut reading.groups);
        let groups = groups
            .and(own)
            .map_err(|error| refuse(path, None, format!("groups: {error}")))?;
        let mut rules = Vec::new();
        let mut total = 0;
        for (written, file, line) in &reading.rules {
            let resolver = Resolver {
                reading: &reading,
                groups: &groups,
                file,
                rule: &written.name,
                line: *line,
            };
            let questions = resolver.questions(written)?;
            total += questions.len();
            if total > MOST_QUESTIONS {
                let what = format!(
                    "more than {MOST_QUESTIONS} questions up to here, the most in one policy; ask \
                     about fewer addresses, or with `tsim sweep`"
                );
                return Err(resolver.refuse("from", &what));
            }
            rules.push(CheckRule {
                written: written.clone(),
                file: file.clone(),
                line: *line,
                questions,
            });
        }
        let policy = Self {
            file: path.to_owned(),
            rules,
            text: PolicyText::of_files(path, &reading.texts.take()),
        };
        policy.check_names()?;
        policy.check_contradictions()?;
        Ok(policy)
    }

    /// Reports name rules, so each name is one rule's.
    fn check_names(&self) -> Result<(), PolicyError> {
        let mut known: HashMap<&str, &CheckRule> = HashMap::new();
        for rule in &self.rules {
            if let Some(other) = known.insert(&rule.written.name, rule) {
                let what = format!(
                    "rule {:?}: the rule at {} has that name, too; every rule has a name of its own",
                    rule.written.name,
                    other.place()
                );
                return Err(refuse(&rule.file, rule.line, what));
            }
        }
        Ok(())
    }

    /// What one rule says must pass and another must not cannot hold, whatever is measured.
    fn check_contradictions(&self) -> Result<(), PolicyError> {
        let mut said: HashMap<QuestionKey, &CheckRule> = HashMap::new();
        for rule in &self.rules {
            for &question in &rule.questions {
                let other = *said.entry(question).or_insert(rule);
                if other.written.must == rule.written.must {
                    continue;
                }
                let (from, to, service) = question;
                let what = format!(
                    "rule {:?}: {from} -> {to} {service} {}, and rule {:?} at {} says that it {}; leave \
                     it out of one of them with `except`",
                    rule.written.name,
                    rule.written.must,
                    other.written.name,
                    other.place(),
                    other.written.must
                );
                return Err(refuse(&rule.file, rule.line, what));
            }
        }
        Ok(())
    }

    /// Every question of every rule, in their order.
    pub fn questions(&self) -> impl Iterator<Item = QuestionKey> + '_ {
        self.rules
            .iter()
            .flat_map(|rule| rule.questions.iter().copied())
    }
}

impl CheckRule {
    /// Where it stands, as `FILE:LINE`.
    #[must_use]
    pub fn place(&self) -> String {
        place(&self.file, self.line)
    }
}

fn place(file: &Path, line: Option<usize>) -> String {
    let line = line.map(|line| format!(":{line}")).unwrap_or_default();
    format!("{}{line}", file.display())
}

fn refuse(file: &Path, line: Option<usize>, what: impl fmt::Display) -> PolicyError {
    PolicyError {
        place: place(file, line),
        what: what.to_string(),
    }
}

impl Reading<'_> {
    fn read(&mut self, path: &Path) -> Result<(), PolicyError> {
        if self.open.len() == DEPTH || self.open.iter().any(|open| open == path) {
            return Err(refuse(
                path,
                None,
                "include: files include each other, or too deep",
            ));
        }
        let text = self.source.policy(path);
        let text = text.map_err(|error| refuse(path, None, error))?;
        let parsed = File::parse(path, &text).map_err(|error| refuse(path, None, error))?;
        self.open.push(path.to_owned());
        for other in &parsed.include {
            let dir = path.parent().unwrap_or_else(|| Path::new(""));
            self.read(&dir.join(other))?;
        }
        self.open.pop();
        for (name, list) in parsed.addresses {
            let line = file::line_of(&text, &name);
            if !file::is_name(&name) {
                let what = format!("addresses: {name:?}: {}", file::NAMES);
                return Err(refuse(path, line, what));
            }
            if let Some((_, other)) = self.addresses.get(&name) {
                let what = format!("addresses: {name:?} is in {}, too", other.display());
                return Err(refuse(path, line, what));
            }
            self.addresses.insert(name, (list.0, path.to_owned()));
        }
        for (name, group) in parsed.groups {
            if self.groups.contains_key(&name) {
                let line = file::line_of(&text, &name);
                let what = format!("groups: {name:?} is in another file, too");
                return Err(refuse(path, line, what));
            }
            self.groups.insert(name, group);
        }
        for rule in parsed.rule {
            let line = file::line_of(&text, &rule.name);
            self.rules.push((rule, path.to_owned(), line));
        }
        self.texts.get_mut().insert(path.to_owned(), text);
        Ok(())
    }
}

/// Makes questions of one rule.
struct Resolver<'a> {
    reading: &'a Reading<'a>,
    groups: &'a Groups,
    file: &'a Path,
    rule: &'a str,
    line: Option<usize>,
}

/// What an exception leaves out; none for everything.
struct LeftOut {
    from: Option<HashSet<IpAddr>>,
    to: Option<HashSet<IpAddr>>,
    services: Option<HashSet<Service>>,
}

impl LeftOut {
    fn has(&self, (from, to, service): &QuestionKey) -> bool {
        self.from.as_ref().is_none_or(|all| all.contains(from))
            && self.to.as_ref().is_none_or(|all| all.contains(to))
            && self
                .services
                .as_ref()
                .is_none_or(|all| all.contains(service))
    }
}

impl Resolver<'_> {
    fn refuse(&self, field: &str, what: impl fmt::Display) -> PolicyError {
        refuse(
            self.file,
            self.line,
            format!("rule {:?}: {field}: {what}", self.rule),
        )
    }

    fn questions(&self, rule: &RuleFile) -> Result<Vec<QuestionKey>, PolicyError> {
        let sources = self.places("from", &rule.from.0)?;
        let destinations = self.places("to", &rule.to.0)?;
        let most = sources.len().saturating_mul(destinations.len());
        if most > MOST_QUESTIONS {
            let what = format!("{most} pairs of addresses; {MOST_QUESTIONS} questions are allowed");
            return Err(self.refuse("from", what));
        }
        let services = self.services("services", &rule.services)?;
        let except = rule.except.iter().map(|except| self.left_out(except));
        let except = except.collect::<Result<Vec<_>, _>>()?;
        let mut by_family: [Option<Vec<Service>>; 2] = [None, None];
        let mut seen = HashSet::new();
        let mut questions = Vec::new();
        for &from in &sources {
            for &to in &destinations {
                if from == to || from.is_ipv4() != to.is_ipv4() {
                    continue;
                }
                let v6 = from.is_ipv6();
                let [v4s, v6s] = &mut by_family;
                let known = if v6 { v6s } else { v4s };
                let services = match known {
                    Some(services) => services,
                    None => known.insert(self.in_family(&services, v6)?),
                };
                for &service in services.iter() {
                    let key = (from, to, service);
                    if !except.iter().any(|left_out| left_out.has(&key)) && seen.insert(key) {
                        questions.push(key);
                    }
                }
                if questions.len() > MOST_QUESTIONS {
                    let what =
                        format!("more than {MOST_QUESTIONS} questions, the most in one policy");
                    return Err(self.refuse("services", what));
                }
            }
        }
        match questions.is_empty() {
            true => Err(self.refuse(
                "from",
                "it asks nothing: source and destination are one address or of two families, or \
                 everything is left out by `except`",
            )),
            false => Ok(questions),
        }
    }

    fn in_family(&self, services: &[Service], v6: bool) -> Result<Vec<Service>, PolicyError> {
        let services = services.iter().map(|service| service.in_family(v6));
        let services: Result<Vec<Service>, _> = services.collect();
        services.map_err(|error| self.refuse("services", error))
    }

    fn left_out(&self, except: &Except) -> Result<LeftOut, PolicyError> {
        let places = |field: &str, list: &Option<file::EndpointList>| -> Result<_, PolicyError> {
            let list = list.as_ref().map(|list| self.places(field, &list.0));
            Ok(list
                .transpose()?
                .map(|all| all.into_iter().collect::<HashSet<IpAddr>>()))
        };
        let services = except.services.as_ref();
        let services = services.map(|list| self.services("except.services", list));
        // A ping that is left out is left out of both families.
        let both = |service: Service| {
            let families = [false, true].map(|v6| service.in_family(v6).ok());
            families.into_iter().flatten().chain([service])
        };
        if except.from.is_none() && except.to.is_none() && except.services.is_none() {
            let what = "one of `from`, `to` and `services` is wanted";
            return Err(self.refuse("except", what));
        }
        Ok(LeftOut {
            from: places("except.from", &except.from)?,
            to: places("except.to", &except.to)?,
            services: services
                .transpose()?
                .map(|all| all.into_iter().flat_map(both).collect()),
        })
    }

    fn places(&self, field: &str, list: &[Endpoint]) -> Result<Vec<IpAddr>, PolicyError> {
        let mut all = Vec::new();
        for place in list {
            match place {
                Endpoint::Addresses(addresses) => all.extend(addresses.iter()),
                Endpoint::Name(name) => match self.reading.addresses.get(name) {
                    Some((addresses, _)) => all.extend(addresses.iter().flat_map(Addresses::iter)),
                    None => {
                        let names = self.reading.addresses.keys().map(String::as_str);
                        let alike = DidYouMean(alike(name, names));
                        let what =
                            format!("{name:?} is no address and no name under [addresses]{alike}");
                        return Err(self.refuse(field, what));
                    }
                },
            }
        }
        if all.is_empty() {
            return Err(self.refuse(field, "the list is empty"));
        }
        Ok(all)
    }

    fn services(&self, field: &str, list: &ServiceList) -> Result<Vec<Service>, PolicyError> {
        let dir = self.file.parent().unwrap_or_else(|| Path::new(""));
        let expanded = self.groups.expand_from(&list.0, &|name| {
            let path = dir.join(name);
            let text = self.reading.source.list(&path)?;
            let keep = |text: &String| {
                let mut texts = self.reading.texts.borrow_mut();
                texts.insert(path.clone(), text.clone());
            };
            Ok(text.inspect(keep))
        });
        let expanded = expanded.map_err(|error| self.refuse(field, error))?;
        let limits = ServiceLimits::default();
        parse_services(&expanded, Protocol::Tcp, limits).map_err(|error| self.refuse(field, error))
    }
}

impl fmt::Display for Must {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "must pass",
            Self::NotPass => "must not pass",
        })
    }
}

#[cfg(test)]
mod tests;
