//! Jobs as they are submitted, queued, running and finished; checked where they come in.

use std::{fmt, io, net::IpAddr, str::FromStr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::options::{JobOptions, is_false};
pub use super::refused::{Mode, RefusedJob};
use crate::{
    bulk::{
        addresses::{AskedAddresses, Sides},
        policy::{Policy, PolicyText},
    },
    lab::LabState,
    model::{
        Dscp, Groups, LabName, Protocol, RouterName, RunId, Service, ServiceLimits, parse_services,
        text_in_json,
    },
    run::report::Verdict,
};

/// Longest user name in characters.
const USER_MAX: usize = 64;
/// Longest service list in bytes; every port of both protocols fits many times.
const PORTS_MAX: usize = 16 * 1024;
/// Most routers that one job may name.
const ROUTERS_MAX: usize = 1024;

impl RefusedJob {
    /// The field of the submission that is wrong, where it is one.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        Some(match self {
            Self::Name(_) => return None,
            Self::Services(_) => "ports",
            Self::Families { .. } | Self::ToItself(_) | Self::NoPair => "destination",
            Self::Address { what, .. }
            | Self::Mapped { what, .. }
            | Self::TooLong { what, .. }
            | Self::Several { what, .. } => what,
            Self::SameLab(_) => "before",
            Self::NoRouters | Self::RouterTwice(_) => "routers",
            Self::RoutersAndTrace | Self::OtherTrace(_) => "trace",
            Self::NotForMode { option, .. }
            | Self::Missing { option, .. }
            | Self::Seconds { option, .. } => option,
            Self::Policy(_) => "policy",
            Self::DefaultProtocol(_) => "default_proto",
            Self::User(_) => "username",
        })
    }
}

/// Who submitted a job: any printable text; escape it where it is shown.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("minLength" = 1, "maxLength" = USER_MAX))]
pub struct UserName(String);

impl UserName {
    /// Checks `name` and wraps it.
    ///
    /// # Errors
    /// [`RefusedJob::User`] when it is empty, too long or has control characters.
    pub fn new(name: impl Into<String>) -> Result<Self, RefusedJob> {
        let name = name.into();
        let count = name.chars().count();
        if count == 0 || count > USER_MAX || name.chars().any(is_unprintable) {
            return Err(RefusedJob::User(name));
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Control characters, and the marks that turn the direction of the text around them.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

text_in_json!(UserName);

impl FromStr for UserName {
    type Err = RefusedJob;
    fn from_str(name: &str) -> Result<Self, RefusedJob> {
        Self::new(name)
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is known of a policy without its text, which is in a file of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyAbout {
    /// The name of its file.
    pub name: String,
    /// Tells its text from any other.
    pub identity: String,
    /// How many rules it has.
    #[schemars(range(min = 1))]
    pub rules: usize,
    /// How many questions it asks.
    #[schemars(range(min = 1))]
    pub questions: usize,
}

impl PolicyAbout {
    /// Resolves a policy that was sent here, reading no other file.
    ///
    /// # Errors
    /// [`RefusedJob::Policy`].
    pub fn of(text: &PolicyText, groups: &Groups) -> Result<Self, RefusedJob> {
        text.check().map_err(RefusedJob::Policy)?;
        let policy = Policy::of_text(text, groups);
        let policy = policy.map_err(|error| RefusedJob::Policy(error.to_string()))?;
        if policy.rules.is_empty() {
            let none = "no rule says what must pass or must not: [[rule]] is wanted";
            return Err(RefusedJob::Policy(none.to_owned()));
        }
        Ok(Self {
            name: text.name.clone(),
            identity: text.identity(),
            rules: policy.rules.len(),
            questions: policy.questions().count(),
        })
    }
}

/// What a job asks: source, destination and ports, or a policy; becomes the runner's arguments. May have
/// fields of other programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Params {
    /// The lab to measure in.
    pub lab: LabName,
    /// Diffs: the lab that `lab` is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<LabName>,
    /// An IP address; of a matrix or diff addresses, ranges (10.1.1.10-10.1.1.20) and networks (10.1.1.0/28)
    /// by commas, at most 65,536 addresses. None where a policy says them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<AskedAddresses>,
    /// As the source, of the same version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<AskedAddresses>,
    /// Matrices and diffs: the lab's end networks where source or destination is left out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub networks: bool,
    /// For example 22,443/tcp,53/udp,8000-8100; none where a policy says them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// What is checked, or compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyAbout>,
    /// The routers to measure; without, the path is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = ROUTERS_MAX))]
    pub routers: Option<Vec<RouterName>>,
    /// What it is told beside that.
    #[serde(flatten)]
    pub options: JobOptions,
    /// Fields that other programs put there; kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Params {
    /// Checks what the types cannot: the services, the addresses, the sizes, the options for a job
    /// of this mode. The services that it asks about are returned.
    ///
    /// # Errors
    /// [`RefusedJob`] for the first thing that is wrong.
    pub fn check(&self, mode: Mode, limits: ServiceLimits) -> Result<Vec<Service>, RefusedJob> {
        self.check_fields(mode)?;
        self.options.check(mode)?;
        if mode.lane() == Mode::Check {
            return match self.policy {
                Some(_) => Ok(Vec::new()),
                None => self.services(limits),
            };
        }
        let from = one(mode, "source", self.source.as_ref())?;
        let to = one(mode, "destination", self.destination.as_ref())?;
        check_addresses(from, to)?;
        self.check_routers()?;
        let services = self.services(limits)?.into_iter();
        let services = services.map(|service| service.in_family(to.is_ipv6()));
        let services: Vec<Service> = services.collect::<Result<_, _>>()?;
        if let Some(trace) = &self.options.trace
            && let Some(what) = trace.of_another(&self.lab, from, to, &services)
        {
            return Err(RefusedJob::OtherTrace(what));
        }
        Ok(services)
    }

    /// What jobs of this mode have is there, and nothing else.
    fn check_fields(&self, mode: Mode) -> Result<(), RefusedJob> {
        let policy = mode == Mode::Check || mode == Mode::Diff && self.policy.is_some();
        let many = mode.lane() == Mode::Check && !policy;
        for (option, there, wanted, needed) in [
            ("before", self.before.is_some(), mode == Mode::Diff, true),
            ("source", self.source.is_some(), !policy, !self.networks),
            (
                "destination",
                self.destination.is_some(),
                !policy,
                !self.networks,
            ),
            ("networks", self.networks, many, false),
            ("ports", self.ports.is_some(), !policy, true),
            ("policy", self.policy.is_some(), policy, true),
            (
                "routers",
                self.routers.is_some(),
                mode.lane() != Mode::Check,
                false,
            ),
        ] {
            match (there, wanted) {
                (true, false) => return Err(RefusedJob::NotForMode { option, mode }),
                (false, true) if needed => return Err(RefusedJob::Missing { option, mode }),
                _ => {}
            }
        }
        match &self.before {
            Some(before) if *before == self.lab => Err(RefusedJob::SameLab(before.clone())),
            _ => Ok(()),
        }
    }

    /// What it asks in one line, for people.
    #[must_use]
    pub fn question(&self) -> String {
        let mut words = self.ends().to_vec();
        words.extend(self.ports.clone());
        words.extend(self.before.as_ref().map(|lab| format!("before: {lab}")));
        words.join(" ")
    }

    /// From where to where; of a policy its name, and how many rules it has.
    #[must_use]
    pub fn ends(&self) -> [String; 2] {
        if let Some(policy) = &self.policy {
            return [policy.name.clone(), format!("{} rules", policy.rules)];
        }
        [&self.source, &self.destination].map(|side| match side {
            Some(list) => list.to_string(),
            None if self.networks => "networks".to_owned(),
            None => String::new(),
        })
    }

    /// What a matrix or diff asks about, with the end networks of `lab` where those are wanted.
    #[must_use]
    pub fn asked(&self, lab: &LabState) -> Sides {
        let [sources, destinations] = [&self.source, &self.destination]
            .map(|side| side.as_ref().map_or(&[][..], AskedAddresses::entries));
        Sides::of(sources, destinations, Some(lab).filter(|_| self.networks))
    }

    fn services(&self, limits: ServiceLimits) -> Result<Vec<Service>, RefusedJob> {
        let ports = self.ports.as_deref().unwrap_or_default();
        if ports.len() > PORTS_MAX {
            return Err(too_long("ports", ports.len(), PORTS_MAX, "bytes"));
        }
        let default = self.options.default_proto.unwrap_or(Protocol::Tcp);
        if !matches!(default, Protocol::Tcp | Protocol::Udp | Protocol::Sctp) {
            return Err(RefusedJob::DefaultProtocol(default));
        }
        Ok(parse_services(ports, default, limits)?)
    }

    fn check_routers(&self) -> Result<(), RefusedJob> {
        match self.routers.as_deref() {
            Some([]) => Err(RefusedJob::NoRouters),
            Some(routers) if routers.len() > ROUTERS_MAX => {
                Err(too_long("routers", routers.len(), ROUTERS_MAX, "names"))
            }
            Some(_) if self.options.trace.is_some() => Err(RefusedJob::RoutersAndTrace),
            Some(routers) => match twice(routers) {
                Some(router) => Err(RefusedJob::RouterTwice(router.clone())),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// The address of a job that asks about one.
fn one(
    mode: Mode,
    what: &'static str,
    list: Option<&AskedAddresses>,
) -> Result<IpAddr, RefusedJob> {
    let missing = RefusedJob::Missing { option: what, mode };
    let list = list.ok_or(missing)?;
    list.one().ok_or_else(|| RefusedJob::Several {
        what,
        found: list.to_string(),
        mode,
    })
}

fn check_addresses(source: IpAddr, destination: IpAddr) -> Result<(), RefusedJob> {
    check_address("source", source)?;
    check_address("destination", destination)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(RefusedJob::Families {
            source_address: source,
            destination,
        });
    }
    match source == destination {
        true => Err(RefusedJob::ToItself(source)),
        false => Ok(()),
    }
}

fn too_long(what: &'static str, found: usize, max: usize, unit: &'static str) -> RefusedJob {
    RefusedJob::TooLong {
        what,
        found,
        max,
        unit,
    }
}

/// Whether packets between routers can have this address.
///
/// # Errors
/// [`RefusedJob::Address`] or [`RefusedJob::Mapped`], which call it `what`.
pub fn check_address(what: &'static str, address: IpAddr) -> Result<(), RefusedJob> {
    if address.to_canonical() != address {
        return Err(RefusedJob::Mapped { what, address });
    }
    if address.is_unspecified() || address.is_loopback() || is_for_many(address) {
        return Err(RefusedJob::Address { what, address });
    }
    Ok(())
}

/// Whether an address is not one host's: a quick job tells what becomes of such.
pub fn is_for_many(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

/// The first router that is named a second time.
pub fn twice(routers: &[RouterName]) -> Option<&RouterName> {
    let again = |(at, router): &(usize, &RouterName)| routers[..*at].contains(router);
    routers
        .iter()
        .enumerate()
        .find(again)
        .map(|(_, router)| router)
}

/// A job as somebody wants it, before it has a place in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Its name.
    pub run_id: RunId,
    /// Who wants it.
    pub username: UserName,
    /// How it measures.
    pub mode: Mode,
    /// What it asks.
    pub params: Params,
    /// The policy of a check, or of a diff.
    pub policy: Option<PolicyText>,
}

/// A job in `queue.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueuedJob {
    /// Its name.
    pub run_id: RunId,
    /// Who wants it.
    pub username: UserName,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// Always `QUEUED`.
    #[schemars(extend("const" = "QUEUED"))]
    pub status: Status,
    /// What it asks.
    pub params: Params,
    /// Quick or detailed.
    pub analysis_mode: Mode,
    /// Fields that other programs put there; kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A job in `current.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ListedJob")]
pub struct RunningJob {
    /// Its name.
    pub run_id: RunId,
    /// Who wants it.
    pub username: UserName,
    /// Always `RUNNING`.
    #[schemars(extend("const" = "RUNNING"))]
    pub status: Status,
    /// Quick or detailed.
    #[serde(rename = "type")]
    pub mode: Mode,
    /// The DSCP value that it holds; none for detailed jobs.
    pub dscp: Option<Dscp>,
    /// When it left the queue.
    pub started_at: Timestamp,
    /// What it asks.
    pub params: Params,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// Who wants it to end, once somebody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<UserName>,
    /// Fields that other programs put there; kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RunningJob {
    /// The job as it leaves the queue.
    #[must_use]
    pub fn from_queued(job: QueuedJob, dscp: Option<Dscp>, started_at: Timestamp) -> Self {
        Self {
            run_id: job.run_id,
            username: job.username,
            status: Status::Running,
            mode: job.analysis_mode,
            dscp,
            started_at,
            params: job.params,
            created_at: job.created_at,
            cancelled_by: None,
            extra: job.extra,
        }
    }

    /// The job as it goes back to the queue, because it never ran.
    #[must_use]
    pub fn into_queued(self) -> QueuedJob {
        QueuedJob {
            run_id: self.run_id,
            username: self.username,
            created_at: self.created_at,
            status: Status::Queued,
            params: self.params,
            analysis_mode: self.mode,
            extra: self.extra,
        }
    }
}

/// Where a job stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Waiting.
    Queued,
    /// Its runner was started.
    Running,
    /// Its runner came to a result, whatever the verdicts.
    Done,
    /// Its runner ended without a result.
    Failed,
    /// Somebody ended it.
    Cancelled,
    /// It ran out of time.
    #[serde(rename = "TIMED_OUT")]
    TimedOut,
}

impl Status {
    /// All of them, in the order of a job's life.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
    ];

    /// The word for it in files and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Done => "DONE",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::TimedOut => "TIMED_OUT",
        }
    }

    /// Whether the job is over.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many services got which verdict from end to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdicts {
    /// Services that pass.
    pub yes: u64,
    /// Services that do not.
    pub no: u64,
    /// Services of which it cannot be known.
    pub unknown: u64,
}

impl FromIterator<Verdict> for Verdicts {
    fn from_iter<I: IntoIterator<Item = Verdict>>(verdicts: I) -> Self {
        let mut counted = Self::default();
        for verdict in verdicts {
            match verdict {
                Verdict::Yes => counted.yes += 1,
                Verdict::No => counted.no += 1,
                Verdict::Unknown => counted.unknown += 1,
            }
        }
        counted
    }
}

/// A job that is over: one line of the history, and `job.json` in its run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FinishedJob {
    /// Its name.
    pub run_id: RunId,
    /// Who wanted it.
    pub username: UserName,
    /// How it ended.
    #[schemars(extend("enum" = ["DONE", "FAILED", "CANCELLED", "TIMED_OUT"]))]
    pub status: Status,
    /// Quick or detailed.
    #[serde(rename = "type")]
    pub mode: Mode,
    /// The DSCP value that it held.
    pub dscp: Option<Dscp>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its runner was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Timestamp,
    /// What it asked.
    pub params: Params,
    /// The runner's exit code, where the scheduler saw it.
    pub exit_code: Option<i32>,
    /// The verdicts counted, where there is a result.
    pub verdicts: Option<Verdicts>,
    /// What its runner left takes so many bytes on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why there is no result, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl FinishedJob {
    /// As it is shown to those who may not see its result: who asked what, and that it is over.
    #[must_use]
    pub fn without_result(self) -> Self {
        Self {
            exit_code: None,
            verdicts: None,
            bytes: None,
            reason: None,
            ..self
        }
    }
}

/// A run id for a job whose user gave none: mode, time and 40 random bits.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn fresh_run_id(mode: Mode, now: Timestamp) -> io::Result<RunId> {
    let mut bytes = [0u8; 5];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    let random: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let time = now.strftime("%Y%m%dT%H%M%SZ");
    // Digits, letters and `-` only: always a valid run id.
    RunId::new(format!("{mode}-{time}-{random}")).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(ports: &str, source: &str, destination: &str) -> Params {
        Params {
            lab: LabName::new("corp10").unwrap(),
            before: None,
            source: Some(source.parse().unwrap()),
            destination: Some(destination.parse().unwrap()),
            networks: false,
            ports: Some(ports.to_owned()),
            policy: None,
            routers: None,
            options: JobOptions::default(),
            extra: Map::new(),
        }
    }

    #[test]
    fn a_bad_question_is_refused_by_name() {
        for (ports, source, destination, want) in [
            ("0", "10.0.0.1", "10.0.0.2", "port 0"),
            ("", "10.0.0.1", "10.0.0.2", "empty entry"),
            ("80", "10.0.0.1", "fd00::1", "different IP versions"),
            ("80", "0.0.0.0", "10.0.0.2", "source 0.0.0.0"),
            ("80", "10.0.0.1", "224.0.0.1", "destination 224.0.0.1"),
            ("80", "10.0.0.1", "255.255.255.255", "unicast"),
        ] {
            let refused =
                params(ports, source, destination).check(Mode::Quick, ServiceLimits::default());
            let text = refused.unwrap_err().to_string();
            assert!(
                text.contains(want),
                "{ports} {source} {destination}: {text}"
            );
        }
        let mut none = params("80", "10.0.0.1", "10.0.0.2");
        assert!(none.check(Mode::Quick, ServiceLimits::default()).is_ok());
        none.routers = Some(Vec::new());
        assert_eq!(
            none.check(Mode::Quick, ServiceLimits::default()),
            Err(RefusedJob::NoRouters)
        );
    }

    #[test]
    fn user_names_may_be_any_printable_text() {
        assert!(UserName::new("<b>Zoë</b> & co").is_ok());
        for bad in ["", "a\nb", "\u{1b}[31m", "abc\u{202e}def"] {
            assert!(UserName::new(bad).is_err(), "{bad:?}");
        }
        assert!(UserName::new("x".repeat(65)).is_err());
    }

    #[test]
    fn a_queue_entry_reads_back_with_its_unknown_fields() {
        let text = r#"{"run_id":"r1","username":"ann","created_at":"2026-01-02T03:04:05Z",
            "status":"QUEUED","params":{"lab":"corp10","source":"10.0.0.1",
            "destination":"10.0.0.2","ports":"80","trace_file":"x"},
            "analysis_mode":"quick","note":[1,2]}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        let job: QueuedJob = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&job).unwrap(), value);
        let running = RunningJob::from_queued(job.clone(), None, Timestamp::UNIX_EPOCH);
        assert_eq!(running.extra["note"][1], 2);
        assert_eq!(running.into_queued(), job);
    }

    #[test]
    fn fresh_run_ids_are_valid_and_differ() {
        let a = fresh_run_id(Mode::Quick, Timestamp::UNIX_EPOCH).unwrap();
        let b = fresh_run_id(Mode::Quick, Timestamp::UNIX_EPOCH).unwrap();
        assert!(a.as_str().starts_with("quick-19700101T000000Z-"));
        assert_ne!(a, b);
    }
}
