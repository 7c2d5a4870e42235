//! Answers from end to end, as they are kept, compared and written.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    lab::{LabState, topology::Topology},
    model::{IfName, RouterName, Service, fnv1a},
    run::{
        quick::{Pair, sweep::AnsweredQuestion},
        report::{EndKind, EndToEnd, Leg, Verdict, VerdictScope},
        sentence::sentence,
    },
};

/// The version of everything that is written as JSON here.
pub const VERSION: u32 = 1;

/// One question with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The service, and whether it gets there.
    #[serde(flatten)]
    pub end: EndToEnd,
}

/// What a question is known by.
pub type QuestionKey = (IpAddr, IpAddr, Service);

impl From<AnsweredQuestion<'_>> for Cell {
    fn from(answer: AnsweredQuestion<'_>) -> Self {
        Self {
            source: answer.pair.source,
            destination: answer.pair.destination,
            end: answer.end,
        }
    }
}

impl Cell {
    /// What the question is known by.
    #[must_use]
    pub fn key(&self) -> QuestionKey {
        (self.source, self.destination, self.end.service())
    }

    /// Verdict and reason as the rest of a sentence that begins with the question.
    #[must_use]
    pub fn why(&self) -> String {
        let EndToEnd {
            result,
            end,
            router,
            reason,
            ..
        } = &self.end;
        let router = router.as_ref().map(RouterName::as_str);
        sentence(
            *result,
            *end,
            router,
            reason.as_deref(),
            VerdictScope::Whole,
        )
    }

    /// The routers of its way with their interfaces; nothing where none was passed.
    #[must_use]
    pub fn way(&self) -> String {
        let leg = |leg: &Leg| {
            let name = |iface: Option<&IfName>| iface.map_or("-", IfName::as_str).to_owned();
            let hop = &leg.hop;
            format!(
                "{} {}>{}",
                hop.router,
                name(hop.iface_in.as_ref()),
                name(hop.iface_out.as_ref())
            )
        };
        let legs = self.end.way.iter().map(leg);
        legs.collect::<Vec<_>>().join(", ")
    }
}

/// Questions between two addresses that have the same answer, but for their ports.
#[derive(Debug, Clone)]
pub struct Folded<'a> {
    /// Any of them.
    pub cell: &'a Cell,
    /// The services.
    pub services: Vec<Service>,
}

/// Answers that are alike but for the service, together; each with its first place.
pub fn fold<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Vec<Folded<'a>> {
    type Alike<'a> = (
        IpAddr,
        IpAddr,
        Verdict,
        EndKind,
        Option<&'a str>,
        Option<&'a str>,
    );
    let mut known: HashMap<Alike<'_>, usize> = HashMap::new();
    let mut all: Vec<Folded<'_>> = Vec::new();
    for cell in cells {
        let end = &cell.end;
        let router = end.router.as_ref().map(RouterName::as_str);
        let alike = (
            cell.source,
            cell.destination,
            end.result,
            end.end,
            router,
            end.reason.as_deref(),
        );
        let at = *known.entry(alike).or_insert_with(|| {
            all.push(Folded {
                cell,
                services: Vec::new(),
            });
            all.len() - 1
        });
        if let Some(folded) = all.get_mut(at) {
            folded.services.push(end.service());
        }
    }
    all
}

/// The lab that answered, and how to tell whether another one is the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabIdentity {
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub made: String,
    /// Directory of its facts.
    pub facts: String,
    /// What the lab was made of, as a number: two labs with the same one are alike.
    pub identity: String,
}

impl LabIdentity {
    /// That of a lab.
    #[must_use]
    pub fn of(lab: &LabState, topology: &Topology) -> Self {
        // What can be kept as JSON was read from it.
        let mut topology = serde_json::to_value(topology).unwrap_or_default();
        forget_files(&mut topology);
        let topology = topology.to_string();
        Self {
            name: lab.lab.to_string(),
            made: lab.created_at.clone(),
            facts: lab.facts.display().to_string(),
            identity: format!("{:016x}", fnv1a(topology.as_bytes())),
        }
    }
}

/// Where facts lie says nothing of what they are.
fn forget_files(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.shift_remove("file");
            fields.values_mut().for_each(forget_files);
        }
        serde_json::Value::Array(all) => all.iter_mut().for_each(forget_files),
        _ => {}
    }
}

/// How many answers of each kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCounts {
    /// Services that get there.
    pub yes: u64,
    /// Services that do not.
    pub no: u64,
    /// Services of which it is not known.
    pub unknown: u64,
}

impl VerdictCounts {
    /// VerdictCounts one more.
    pub fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Yes => self.yes += 1,
            Verdict::No => self.no += 1,
            Verdict::Unknown => self.unknown += 1,
        }
    }

    /// The worst of them: UNKNOWN, then NO, then YES. UNKNOWN where there is none, since nothing is
    /// known then.
    #[must_use]
    pub fn overall(self) -> Verdict {
        match self {
            Self {
                yes: 1..,
                no: 0,
                unknown: 0,
            } => Verdict::Yes,
            Self {
                no: 1..,
                unknown: 0,
                ..
            } => Verdict::No,
            _ => Verdict::Unknown,
        }
    }
}

/// A line of what was asked and answered, at the head of every result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadLine {
    /// [`VERSION`].
    pub version: u32,
    /// What the result is: `matrix`, `check` or `diff`.
    pub kind: String,
    /// The release of tsim that measured.
    pub tsim: String,
    /// When, RFC 3339.
    pub time: String,
    /// What was measured.
    pub lab: LabIdentity,
    /// What measured: `nft`, `iptables-nft` or `iptables-legacy`.
    pub backend: String,
}

impl HeadLine {
    /// That of a result of this release, as of now.
    #[must_use]
    pub fn now(kind: &str, lab: LabIdentity, backend: String) -> Self {
        Self {
            version: VERSION,
            kind: kind.to_owned(),
            tsim: env!("CARGO_PKG_VERSION").to_owned(),
            time: jiff::Timestamp::now().to_string(),
            lab,
            backend,
        }
    }
}

/// Everything that one sweep was asked and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Who measured what when.
    #[serde(flatten)]
    pub head: HeadLine,
    /// How many answers of each kind there are.
    pub counts: VerdictCounts,
    /// The answers in the order of the questions.
    pub cells: Vec<Cell>,
    /// What a reader should know beside the verdicts.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Answers {
    /// The answers by their questions.
    #[must_use]
    pub fn by_key(&self) -> HashMap<QuestionKey, &Cell> {
        self.cells.iter().map(|cell| (cell.key(), cell)).collect()
    }

    /// Says `to` wherever a reason or warning says `from`: a name that means nothing to the reader.
    pub fn rename(&mut self, from: &str, to: &str) {
        for warning in &mut self.warnings {
            *warning = warning.replace(from, to);
        }
        for cell in &mut self.cells {
            if let Some(reason) = &mut cell.end.reason
                && reason.contains(from)
            {
                *reason = reason.replace(from, to).into();
            }
        }
    }

    /// The questions, as pairs in the order in which they were asked.
    #[must_use]
    pub fn pairs(&self) -> Vec<Pair> {
        pairs(self.cells.iter().map(Cell::key))
    }
}

/// Questions as pairs: each is asked once, those between the same addresses together.
pub fn pairs(questions: impl IntoIterator<Item = QuestionKey>) -> Vec<Pair> {
    let mut at: HashMap<(IpAddr, IpAddr), usize> = HashMap::new();
    let mut asked: HashSet<QuestionKey> = HashSet::new();
    let mut pairs: Vec<Pair> = Vec::new();
    for (source, destination, service) in questions {
        if !asked.insert((source, destination, service)) {
            continue;
        }
        let at = *at.entry((source, destination)).or_insert_with(|| {
            pairs.push(Pair {
                source,
                destination,
                services: Vec::new(),
            });
            pairs.len() - 1
        });
        if let Some(pair) = pairs.get_mut(at) {
            pair.services.push(service);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_is_no_yes() {
        let counts = |yes, no, unknown| VerdictCounts { yes, no, unknown }.overall();
        assert_eq!(counts(0, 0, 0), Verdict::Unknown);
        assert_eq!(counts(3, 0, 0), Verdict::Yes);
        assert_eq!(counts(3, 1, 0), Verdict::No);
        assert_eq!(counts(3, 1, 1), Verdict::Unknown);
    }

    #[test]
    fn questions_between_the_same_addresses_are_one_pair_and_each_is_asked_once() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (a, b, c) = (
            address("10.0.0.1"),
            address("10.0.0.2"),
            address("10.0.0.3"),
        );
        let service = |port| Service {
            port,
            protocol: crate::model::Protocol::Tcp,
        };
        let asked = [
            (a, b, service(1)),
            (a, c, service(1)),
            (a, b, service(2)),
            (a, b, service(1)),
        ];
        let pairs = pairs(asked);
        let sizes: Vec<_> = pairs
            .iter()
            .map(|p| (p.destination, p.services.len()))
            .collect();
        assert_eq!(sizes, [(b, 2), (c, 1)]);
    }
}
