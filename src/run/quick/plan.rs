//! What is measured on every router, and the routers worked off side by side.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use super::{
    Closing, EXPLAIN_AUTO_MAX, ExplainMode, QuickError, QuickJob,
    conclude::conclude,
    measure::{Probing, Question, Spent, step},
    random,
};
use crate::{
    config::Config,
    firewall::{
        TagSpace, Taps,
        backend::{Backend, Site, choose},
        iptables::{OwnerMark, feature},
    },
    model::Dscp,
    netlink::object::Family,
    netns::{NetnsDir, tool::Tools},
    processors,
    registry::Owner,
    run::{
        explain::{self, Explainer, Explanation, Scrutiny},
        packet::{Headers, Probe},
        probe::Catalogue,
        report::Verdict,
        resolve::Part,
        verdict::Finding,
        way::Flow,
    },
};

/// TTL of the probes, Linux's default.
const TTL: u8 = 64;

/// The job's question in the form that routers are measured with.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) backend: Backend,
    explain: ExplainMode,
    tools: Tools,
    owner: OwnerMark,
    taps: Taps,
    probes: Vec<Probe>,
    pub(super) catalogue: Catalogue,
}

/// What became of one router's part.
#[derive(Debug)]
pub(super) enum Answer {
    /// It was measured.
    Measured(Measurement),
    /// No probe can be sent to it; why.
    Unmeasured(String),
}

/// What is known about one router when everything was measured and explained.
#[derive(Debug)]
pub(super) struct Measurement {
    /// By service index.
    pub(super) findings: BTreeMap<u32, Finding>,
    /// By service index, where the reason was looked into.
    pub(super) reasons: BTreeMap<u32, (Verdict, String)>,
    pub(super) doubts: Vec<String>,
    pub(super) owned: bool,
    pub(super) spent: Spent,
    /// Closing these waits for the kernel to settle; the caller does that last.
    pub(super) closing: Vec<Closing>,
}

/// The services that are looked at more closely.
#[derive(Default)]
struct Asked {
    probes: Vec<Probe>,
    /// What to say of those that are not.
    left_out: Vec<String>,
}

impl Plan {
    pub(super) fn new(
        job: &QuickJob,
        flow: &Flow,
        dscp: Dscp,
        config: &Config,
        parts: &[Part],
    ) -> Result<Self, QuickError> {
        let tools = Tools::new(config.tool_dirs.clone());
        let owner = Owner::current().map_err(|source| QuickError::System {
            what: "tell who this process is",
            source,
        })?;
        let owner = OwnerMark::from(&owner);
        let family = Family::of(job.destination);
        let backend = match parts.first() {
            Some(part) => choose(job.backend, |backend| {
                let site = Site {
                    netns: &part.way.netns,
                    tools: &tools,
                    owner: &owner,
                };
                feature::probe(backend, family, site)
            })?,
            None => Backend::Nft,
        };
        let catalogue = Catalogue::new(&job.services);
        let seed = job.pass_on.map_or_else(random, Ok)?;
        let tags = TagSpace::new(dscp, seed);
        let taps = Taps {
            run_id: job.run_id.clone(),
            family,
            tags,
            services: catalogue.len(),
            runs: catalogue.runs().clone(),
            from_itself: false,
            note_arrivals: false,
            by_tag: false,
            note_ways: false,
            pass_on: job.pass_on.is_some(),
        };
        let probe = |index: u32| {
            let service = catalogue.service(index)?;
            let headers = Headers {
                source: job.source,
                destination: job.destination,
                protocol: service.protocol,
                source_port: flow.source_port,
                destination_port: service.port,
                tos: job.probe_dscp.tos(),
                ttl: TTL,
            };
            Some(Probe { index, headers })
        };
        let probes = (0..catalogue.len()).filter_map(probe).collect();
        Ok(Self {
            backend,
            explain: job.explain,
            tools,
            owner,
            taps,
            probes,
            catalogue,
        })
    }

    /// Measures every part, as many at once as there are processors. The first failure ends the
    /// job; what is being measured then is finished and undone.
    pub(super) fn measure_all(
        &self,
        parts: &[Part],
        dir: &NetnsDir,
    ) -> Result<Vec<Answer>, QuickError> {
        let next = AtomicUsize::new(0);
        let answers = Mutex::new(BTreeMap::new());
        let work = || {
            while let Some((index, part)) = take(&next, parts) {
                let answer = self.measure(part, dir);
                if answer.is_err() {
                    next.store(parts.len(), Ordering::Relaxed);
                }
                answers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(index, answer);
            }
        };
        match processors::count().min(parts.len()) {
            0 | 1 => work(),
            workers => thread::scope(|scope| {
                // One worker is this thread.
                (1..workers).for_each(|_| _ = scope.spawn(work));
                work();
            }),
        }
        let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.into_values().collect()
    }

    fn measure(&self, part: &Part, dir: &NetnsDir) -> Result<Answer, QuickError> {
        let host = match &part.host {
            Ok(host) => dir.open(&host.id.netns())?,
            Err(why) => return Ok(Answer::Unmeasured(why.clone())),
        };
        let local = part.way.ends_here();
        let mut probing = Probing::open(self.question(), &part.way.netns, &host, local)?;
        let measured = probing.measure(&self.catalogue.all())?;
        let findings: BTreeMap<u32, Finding> = measured.findings.into_iter().collect();
        let mut closing = Vec::new();
        let begin = Instant::now();
        let scrutiny = match self.explain {
            ExplainMode::Never => Scrutiny::default(),
            _ => probing.scrutiny(findings.values())?,
        };
        let asked = self.worth_explaining(&findings, &scrutiny);
        let explained = if asked.probes.is_empty() {
            Explanation::default()
        } else {
            let mut explainer = Explainer::new(self.tools.clone());
            let probes = &asked.probes;
            let explained = self.explain(&mut explainer, part, &probing, probes, &scrutiny);
            closing.push(Closing::Explainer(explainer));
            explained?
        };
        let explain = begin.elapsed();
        closing.extend(probing.into_closing());
        let reasons = explained
            .reasons
            .iter()
            .filter_map(|e| Some((e.index, conclude(findings.get(&e.index)?, e)?)))
            .collect();
        let mut doubts = measured.doubts;
        doubts.extend(explained.warnings);
        doubts.extend(asked.left_out);
        let netns = &part.way.netns;
        if !dir
            .open(netns.name())
            .is_ok_and(|now| now.id() == netns.id())
        {
            doubts.push("the router was rebuilt or removed during the measurement".to_owned());
        }
        Ok(Answer::Measured(Measurement {
            findings,
            reasons,
            doubts,
            owned: measured.owned,
            spent: Spent {
                explain,
                ..measured.spent
            },
            closing,
        }))
    }

    /// The blocked services, whose reasons are to be found, and the others, where the router has
    /// something that makes a plain YES doubtful.
    fn worth_explaining(&self, findings: &BTreeMap<u32, Finding>, scrutiny: &Scrutiny) -> Asked {
        let most = match self.explain {
            ExplainMode::Never => return Asked::default(),
            ExplainMode::Auto => EXPLAIN_AUTO_MAX,
            ExplainMode::Always => usize::MAX,
        };
        let (mut blocked, mut passed, mut left) = (0, 0, 0);
        let mut probes = Vec::new();
        for (&index, finding) in findings {
            let count = match finding {
                Finding::Stopped | Finding::NotArrived => &mut blocked,
                Finding::Passed | Finding::Delivered if scrutiny.is_needed() => &mut passed,
                _ => continue,
            };
            *count += 1;
            let fits = *count <= most;
            left += usize::from(!fits && matches!(finding, Finding::Passed | Finding::Delivered));
            let at = self.probes.binary_search_by_key(&index, |p| p.index);
            let probe = at.ok().and_then(|at| self.probes.get(at));
            probes.extend(probe.filter(|_| fits));
        }
        let mut left_out = Vec::new();
        if blocked > most {
            left_out.push(format!(
                "only {most} of {blocked} blocked services were explained; --explain always takes \
                 all"
            ));
        }
        if left > 0 {
            left_out.push(format!(
                "{left} services got through and were not held against rules that decide by rate, \
                 quota, chance, time or history, and chains behind the last tap; --explain always \
                 does that"
            ));
        }
        Asked { probes, left_out }
    }

    fn explain(
        &self,
        explainer: &mut Explainer,
        part: &Part,
        probing: &Probing<'_>,
        probes: &[Probe],
        scrutiny: &Scrutiny,
    ) -> Result<Explanation, QuickError> {
        step("quick.explain")?;
        let question = explain::Question {
            netns: &part.way.netns,
            run_id: &self.taps.run_id,
            tags: self.taps.tags,
            from_itself: self.taps.from_itself,
            ingress: part.way.iface_in.as_ref(),
            probes,
            scrutiny,
            pass_on: self.taps.pass_on,
        };
        let mut send = |indexes: &[u32]| match probing.send(indexes).into_values().next() {
            None => Ok(()),
            Some(why) => Err(io::Error::other(why)),
        };
        explainer
            .explain(&question, &mut send)
            .map_err(|source| QuickError::Explain {
                router: part.way.router.to_string(),
                source,
            })
    }

    fn question(&self) -> Question<'_> {
        Question {
            taps: &self.taps,
            probes: &self.probes,
            backend: self.backend,
            tools: &self.tools,
            owner: &self.owner,
        }
    }
}

fn take<'a>(next: &AtomicUsize, parts: &'a [Part]) -> Option<(usize, &'a Part)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, parts.get(index)?))
}

/// A source port that no earlier run is likely to have used, so that no entry of connection
/// tracking answers in a rule's place.
pub(super) fn fresh_port() -> Result<u16, QuickError> {
    // Linux's range for clients, net.ipv4.ip_local_port_range: rules may look at it.
    const FIRST: u16 = 32_768;
    const COUNT: u64 = 28_232;
    Ok(FIRST + (random()? % COUNT) as u16)
}

/// The flow of the job's probes.
pub(super) fn flow(job: &QuickJob) -> Result<Flow, QuickError> {
    Ok(Flow {
        source: job.source,
        destination: job.destination,
        source_port: job.source_port.map_or_else(fresh_port, Ok)?,
        tos: job.probe_dscp.tos(),
    })
}
