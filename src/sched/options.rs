//! What a job may be told beside its question: as JSON in the queue and the API, under the names
//! that the runners' options have, and as arguments of the runner.

use std::{num::NonZeroU16, path::Path, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::refused::{Mode, RefusedJob};
use crate::{
    firewall::backend::BackendChoice,
    lab::trace::{EntryName, Trace},
    model::{Dscp, Protocol},
    run::quick::ExplainMode,
};

/// Longest text of a trace in bytes; a way of a hundred routers has a fifth of it.
const TRACE_MAX: usize = 64 * 1024;
/// Longest time that an option may name.
const SECONDS_MAX: f64 = 24.0 * 3600.0;

/// What a job is told beside its question; what is not set is as the runner has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobOptions {
    /// ROUTER or ROUTER:INTERFACE where the packets enter the lab; without, wherever they may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EntryName>,
    /// Verdicts also where the lab lacks something of the facts that can change them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub trust_facts: bool,
    /// Protocol of services that name none; tcp unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["tcp", "udp", "sctp"]))]
    pub default_proto: Option<Protocol>,
    /// The source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<NonZeroU16>,
    /// Seconds to wait for router locks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = SECONDS_MAX))]
    pub lock_timeout: Option<f64>,
    /// The way, as `tsim trace --json` prints it: the content, never the name of a file; at most 64 KiB, and
    /// not beside routers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Map<String, Value>>")]
    pub trace: Option<Box<Trace>>,
    /// All but detailed jobs: when to look for reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<ExplainMode>,
    /// All but detailed jobs: what measures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendChoice>,
    /// All but detailed jobs: the DSCP value that the routers' own rules see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_dscp: Option<Dscp>,
    /// Detailed jobs: seconds to wait for an answer of which nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = SECONDS_MAX), extend("exclusiveMinimum" = 0))]
    pub timeout: Option<f64>,
    /// Detailed jobs: wait that long for every answer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub patient: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(super) fn is_false(value: &bool) -> bool {
    !*value
}

impl JobOptions {
    /// Checks what the types cannot, for a job of this mode.
    pub(super) fn check(&self, mode: Mode) -> Result<(), RefusedJob> {
        if let Some(option) = self.foreign(mode) {
            return Err(RefusedJob::NotForMode { option, mode });
        }
        for (option, seconds, least) in [
            ("timeout", self.timeout, f64::MIN_POSITIVE),
            ("lock_timeout", self.lock_timeout, 0.0),
        ] {
            if let Some(found) = seconds.filter(|s| !(least..=SECONDS_MAX).contains(s)) {
                return Err(RefusedJob::Seconds { option, found });
            }
        }
        if let Some(trace) = &self.trace {
            let found = serde_json::to_vec(trace).map_or(0, |text| text.len());
            if found > TRACE_MAX {
                return Err(RefusedJob::TooLong {
                    what: "trace",
                    found,
                    max: TRACE_MAX,
                    unit: "bytes",
                });
            }
        }
        Ok(())
    }

    /// An option that jobs of this mode do not have.
    fn foreign(&self, mode: Mode) -> Option<&'static str> {
        use Mode::{Check, Detailed, Quick};
        let mode = mode.lane();
        let options: [(_, _, &[Mode]); 8] = [
            ("timeout", self.timeout.is_some(), &[Detailed]),
            ("patient", self.patient, &[Detailed]),
            ("explain", self.explain.is_some(), &[Quick, Check]),
            ("backend", self.backend.is_some(), &[Quick, Check]),
            ("probe_dscp", self.probe_dscp.is_some(), &[Quick, Check]),
            (
                "default_proto",
                self.default_proto.is_some(),
                &[Quick, Detailed],
            ),
            ("sport", self.sport.is_some(), &[Quick, Detailed]),
            ("trace", self.trace.is_some(), &[Quick, Detailed]),
        ];
        let foreign = |(_, set, modes): &(_, bool, &[Mode])| *set && !modes.contains(&mode);
        options.into_iter().find(foreign).map(|(option, ..)| option)
    }

    /// The runner's arguments; `trace` is the file that has the trace.
    pub(super) fn arguments(&self, trace: &Path) -> Vec<String> {
        let seconds = |s: f64| Duration::try_from_secs_f64(s).map(|d| d.as_secs_f64().to_string());
        let values = [
            ("--from", self.from.as_ref().map(ToString::to_string)),
            (
                "--default-proto",
                self.default_proto.map(|proto| proto.to_string()),
            ),
            ("--sport", self.sport.map(|port| port.to_string())),
            (
                "--lock-timeout",
                self.lock_timeout.and_then(|s| seconds(s).ok()),
            ),
            (
                "--trace",
                self.trace.as_ref().map(|_| trace.display().to_string()),
            ),
            ("--explain", self.explain.map(|when| when.to_string())),
            ("--backend", self.backend.map(|backend| backend.to_string())),
            ("--probe-dscp", self.probe_dscp.map(|dscp| dscp.to_string())),
            ("--timeout", self.timeout.and_then(|s| seconds(s).ok())),
        ];
        let flags = [
            ("--trust-facts", self.trust_facts),
            ("--patient", self.patient),
        ];
        let values = values.into_iter().filter_map(|(name, value)| {
            // One argument, so that no value can be taken for an option.
            value.map(|value| format!("{name}={value}"))
        });
        let flags = flags.into_iter().filter(|(_, set)| *set);
        values
            .chain(flags.map(|(name, _)| name.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::{detailed::TsimDetailed, quick::TsimQuick, tsim::Tsim};

    fn options(value: Value) -> JobOptions {
        serde_json::from_value(value).unwrap()
    }

    fn arguments(options: &JobOptions) -> Vec<String> {
        let question = "x --lab l -s 10.0.0.1 -d 10.0.0.2 -P 80".split(' ');
        let question = question.map(str::to_owned);
        question.chain(options.arguments(Path::new("/t"))).collect()
    }

    #[test]
    fn every_option_is_one_of_the_runners() {
        let quick = options(
            json!({"from": "gw:eth0", "trust_facts": true, "default_proto": "udp",
            "sport": 4000, "lock_timeout": 2.5, "explain": "always", "backend": "iptables-nft",
            "probe_dscp": 46}),
        );
        assert!(quick.check(Mode::Quick).is_ok());
        let given = arguments(&quick);
        for argument in ["--from=gw:eth0", "--lock-timeout=2.5", "--probe-dscp=46"] {
            assert!(given.iter().any(|given| given == argument), "{given:?}");
        }
        TsimQuick::try_parse_from(given).unwrap();
        let detailed = options(json!({"from": "gw", "timeout": 0.5, "patient": true}));
        assert!(detailed.check(Mode::Detailed).is_ok());
        TsimDetailed::try_parse_from(arguments(&detailed)).unwrap();
        assert_eq!(arguments(&JobOptions::default()).len(), 9);
        let check = options(
            json!({"from": "gw", "trust_facts": true, "lock_timeout": 2.5,
            "explain": "never", "backend": "nft", "probe_dscp": 46}),
        );
        assert!(check.check(Mode::Check).is_ok());
        let given = check.arguments(Path::new("/t"));
        Tsim::try_parse_from(
            ["tsim", "check", "l", "p.toml"]
                .map(str::to_owned)
                .into_iter()
                .chain(given),
        )
        .unwrap();
    }

    #[test]
    fn options_of_the_other_mode_and_odd_times_are_refused_by_name() {
        for (value, mode, want) in [
            (json!({"explain": "auto"}), Mode::Detailed, "explain"),
            (json!({"backend": "auto"}), Mode::Detailed, "backend"),
            (json!({"probe_dscp": 0}), Mode::Detailed, "probe_dscp"),
            (json!({"timeout": 1.0}), Mode::Quick, "timeout"),
            (json!({"timeout": 1.0}), Mode::Check, "timeout"),
            (json!({"sport": 4000}), Mode::Check, "sport"),
            (json!({"patient": true}), Mode::Quick, "patient"),
            (json!({"timeout": 0.0}), Mode::Detailed, "timeout"),
            (json!({"timeout": -1.0}), Mode::Detailed, "timeout"),
            (json!({"lock_timeout": 1e300}), Mode::Quick, "lock_timeout"),
        ] {
            let refused = options(value.clone()).check(mode).unwrap_err().to_string();
            assert!(refused.contains(want), "{value}: {refused}");
        }
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        assert_eq!(
            serde_json::to_value(JobOptions::default()).unwrap(),
            json!({})
        );
    }
}
