//! One router's measurement: taps in, probes through, taps read, taps out.

use std::{
    iter,
    net::IpAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{QuickClosing, QuickError, client_port::port_behind};
use crate::{
    fault,
    firewall::{
        Notebook, Reading, Support, TagSpace, Taps,
        backend::{Backend, InstalledTaps, TapSite, TapsError},
        iptables::{
            OwnerMark,
            trace::{LegacyRules, LegacyTraceError, has_tables_here},
        },
        nft::{
            NftError, NftSocket, NftTaps, Ownership,
            census::Census,
            inventory::support_here,
            nature::Nature,
            plain::PlainRulesets,
            watch::{RulesetChanges, RulesetWatch},
        },
        rule::Rewritten,
        ruletext::Shelf,
        taps::ProbeWays,
    },
    netns::{NetnsFd, tool::Tools, visit},
    run::{
        explain::{RulesetSockets, Scrutiny},
        packet::Probe,
        probe::{ProbeSocket, RefusedProbes},
        verdict::{Finding, Findings, Observed, doubts, judge},
    },
};

/// Where texts of rules are kept, opened when it is first needed.
pub(super) type LazyShelf = LazyLock<Option<Shelf>, Box<dyn FnOnce() -> Option<Shelf> + Send>>;

/// What all routers of a job are measured with.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeQuestion<'a> {
    pub(super) taps: &'a Taps,
    pub(super) probes: &'a [Probe],
    pub(super) backend: Backend,
    pub(super) tools: &'a Tools,
    pub(super) shelf: Option<&'a LazyShelf>,
    /// Rulesets that need no census; none in a copy, whose rules nobody measures again.
    pub(super) plain: Option<&'a PlainRulesets>,
    pub(super) owner: &'a OwnerMark,
    /// Where taps in this router are noted; none in a copy, which goes with the job.
    pub(super) notes: Option<&'a Arc<dyn Notebook>>,
    /// How long to wait for others in the router's iptables.
    pub(super) patience: Duration,
    /// What other routers may have rewritten of the probes.
    pub(super) rewritten: &'a Rewritten,
    /// How many threads measure a router now, this one included.
    pub(super) workers: &'a AtomicUsize,
}

/// What it takes to measure one router: a socket to its nf_tables, and one out of its source host.
#[derive(Debug)]
pub(super) struct Probing<'a> {
    question: ProbeQuestion<'a>,
    router: Arc<NetnsFd>,
    nft: Option<NftSocket>,
    /// With nf_tables taps only: those of iptables change tables of the router.
    watch: Option<RulesetWatch>,
    probes: ProbeSocket,
    /// Whether the router has tables of iptables-legacy.
    legacy: bool,
    /// The census of plain rules, until somebody changes them.
    plain: Option<Census>,
}

/// Where probes come from.
pub(super) enum From<'a> {
    /// A source host.
    Host(&'a NetnsFd),
    /// The router itself, from this address of its own.
    Itself(IpAddr),
    /// The hidden sender.
    Wire(ProbeSocket),
}

/// How long each part took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) install: Duration,
    pub(super) probe: Duration,
    pub(super) read: Duration,
    pub(super) undo: Duration,
    pub(super) explain: Duration,
}

/// What one router's measurement found.
#[derive(Debug)]
pub(super) struct RouterMeasured {
    pub(super) findings: Findings,
    /// How probes left, where that was noted.
    pub(super) ways: Option<ProbeWays>,
    pub(super) doubts: Vec<String>,
    /// Whether something came out with a tag and without the mark.
    unmarked: bool,
    /// Whether the kernel removes the taps if this process dies.
    pub(super) owned: bool,
    pub(super) spent: Spent,
}

impl<'a> Probing<'a> {
    /// Opens the sockets, all from one thread, but for one to nf_tables that is there.
    pub(super) fn open(
        question: ProbeQuestion<'a>,
        router: &Arc<NetnsFd>,
        from: From<'_>,
        mut kept: Option<NftSocket>,
    ) -> Result<Self, QuickError> {
        let (mut nft, mut probes, mut legacy) = (None, None, false);
        let host = match from {
            From::Host(host) => Some(host),
            From::Wire(_) | From::Itself(_) => None,
        };
        let places: Vec<&NetnsFd> = iter::once(&**router).chain(host).collect();
        visit(&places, |netns| {
            if host.is_some_and(|host| netns.id() == host.id()) {
                probes = Some(ProbeSocket::open_here(question.taps.family));
                return;
            }
            if let From::Itself(source) = from {
                probes = Some(ProbeSocket::of_router_here(source));
            }
            legacy = has_tables_here(question.taps.family);
            if question.backend == Backend::Nft {
                let mut socket = || kept.take().map_or_else(NftSocket::open_here, Ok);
                nft = Some(RulesetWatch::open_here().and_then(|watch| Ok((socket()?, watch))));
            }
        })?;
        let name = router.name();
        let probes = match from {
            From::Wire(socket) => socket,
            From::Host(_) | From::Itself(_) => {
                let opened = probes.ok_or_else(|| QuickError::NoHost {
                    netns: name.to_string(),
                })?;
                opened.map_err(|source| QuickError::ProbeSocket {
                    host: host.unwrap_or(router).name().to_string(),
                    source,
                })?
            }
        };
        let nft = nft
            .transpose()
            .map_err(|source: NftError| QuickError::Taps {
                router: name.to_string(),
                source: source.into(),
            })?;
        let (nft, watch) = nft.unzip();
        Ok(Self {
            question,
            router: Arc::clone(router),
            nft,
            watch,
            probes,
            legacy,
            plain: None,
        })
    }

    /// What the router's rules may do with packets.
    pub(super) fn nature(&self, census: &Census) -> Nature {
        let mut nature = census.nature;
        // The tables of iptables-legacy stay when its taps have gone.
        if self.legacy {
            nature |= match self.legacy_rules() {
                Ok(rules) => rules.nature(),
                Err(_) => Nature::ANYTHING,
            };
        }
        nature
    }

    fn legacy_rules(&self) -> Result<LegacyRules, LegacyTraceError> {
        let family = self.question.taps.family;
        let ProbeQuestion { tools, shelf, .. } = self.question;
        let shelf = shelf.and_then(|shelf| LazyLock::force(shelf).as_ref());
        LegacyRules::read(&self.router, (tools, shelf), family)
    }

    /// Looks for what makes a plain measurement doubtful.
    pub(super) fn census(&mut self) -> Result<Census, QuickError> {
        let rewritten = self.question.rewritten;
        let family = self.question.taps.family;
        let remembered = self.remembered();
        let census = match (&mut self.nft, remembered) {
            (Some(socket), Some(rulesets)) => rulesets.census(socket, family),
            (Some(socket), None) => Census::read(socket, family, rewritten),
            (None, _) => self.router.enter(|| {
                if matches!(support_here(), Support::No(_)) {
                    return Ok(Census::default());
                }
                NftSocket::open_here()
                    .and_then(|mut socket| Census::read(&mut socket, family, rewritten))
            })?,
        };
        let census = census.map_err(|e| self.failed(e.into()))?;
        self.plain = census.is_plain().then(|| census.clone());
        Ok(census)
    }

    /// Rulesets that need no census; none where the census has to know what other routers rewrote.
    fn remembered(&self) -> Option<&'a PlainRulesets> {
        let ProbeQuestion {
            plain, rewritten, ..
        } = self.question;
        plain.filter(|_| rewritten.is_empty())
    }

    /// Spares the next job the census, where nobody has changed the rules since this one's.
    fn remember(&mut self) {
        let (rulesets, family) = (self.remembered(), self.question.taps.family);
        if let (Some(rulesets), Some(census), Some(socket), Some(watch)) =
            (rulesets, &self.plain, &mut self.nft, &mut self.watch)
        {
            rulesets.remember(census, family, (socket, watch));
        }
    }

    /// What makes verdicts doubtful that a plain measurement gave, if it gave any.
    pub(super) fn scrutiny(&self, census: Census, findings: &Findings) -> Scrutiny {
        // Where a rule of nf_tables varies, what legacy rules say of other ways counts, too. Rules
        // that cannot be printed are looked at more closely, and that says why not.
        let varies = || {
            let rewritten = self.question.rewritten;
            self.legacy_rules()
                .map_or(true, |rules| rules.of_rewritten(rewritten).is_volatile())
        };
        let legacy = self.legacy && (census.volatile || varies());
        let plain = |finding: &_| matches!(finding, Finding::Passed | Finding::Delivered);
        let varying = census.open.clone();
        let came_in = |finding: &_| plain(finding) || *finding == Finding::Stopped;
        let past_ingress =
            !census.at_ingress && findings.iter().all(|(_, finding)| came_in(finding));
        let census = if findings.iter().any(|(_, finding)| plain(finding)) {
            census
        } else {
            // What stopped a probe may have been an entry that another probe of this job left in a set.
            Census {
                nature: census.nature,
                asks_changed_sets: census.asks_changed_sets,
                ..Census::default()
            }
        };
        Scrutiny {
            census,
            varying,
            legacy,
            past_ingress,
        }
    }

    /// Its sockets to the router's rules, for the reasons.
    pub(super) fn lend(&mut self) -> Option<RulesetSockets> {
        let both = self.nft.take().zip(self.watch.take());
        both.map(|(nft, watch)| RulesetSockets {
            nft,
            watch,
            changed: false,
        })
    }

    /// Takes back what was lent.
    pub(super) fn take_back(&mut self, sockets: Option<RulesetSockets>) {
        let Some(RulesetSockets {
            nft,
            watch,
            changed,
        }) = sockets
        else {
            return;
        };
        (self.nft, self.watch) = (Some(nft), Some(watch));
        if changed {
            self.plain = None;
        }
    }

    /// Ends the measurement: the sockets that are left to close.
    pub(super) fn into_closing(mut self) -> impl Iterator<Item = QuickClosing> {
        self.remember();
        if let Some(watch) = &self.watch {
            watch.end();
        }
        let nft = self.nft.map(QuickClosing::Nft);
        nft.into_iter().chain(self.watch.map(QuickClosing::Watch))
    }

    /// Measures the services with `indexes`, and once more if somebody changed the ruleset
    /// meanwhile. With `note_ways` it is noted how each probe leaves.
    pub(super) fn measure(
        &mut self,
        indexes: &[u32],
        note_ways: bool,
    ) -> Result<RouterMeasured, QuickError> {
        let first = self.measure_once(indexes, note_ways)?;
        let changes = match self.changes()? {
            RulesetChanges::None => return Ok(first),
            changes => changes,
        };
        self.plain = None;
        let mut second = self.measure_once(indexes, true)?;
        second.spent.add(first.spent);
        second.doubts.push(match self.changes()? {
            RulesetChanges::None => {
                format!("{changes} changed during the measurement; the verdicts are from after it")
            }
            again => format!(
                "{again} changed during the measurement and again when it was repeated: verdicts \
                may be of different rules"
            ),
        });
        Ok(second)
    }

    fn changes(&mut self) -> Result<RulesetChanges, QuickError> {
        let changes = self.watch.as_mut().map(RulesetWatch::changes);
        changes
            .unwrap_or(Ok(RulesetChanges::None))
            .map_err(|e| self.failed(e.into()))
    }

    /// Measures the services with `indexes`, and some of them once more in another way: noting
    /// arrivals, where it stays unclear whether their probes came in, and by tag alone, where
    /// something came out that has lost its mark.
    fn measure_once(
        &mut self,
        indexes: &[u32],
        note_ways: bool,
    ) -> Result<RouterMeasured, QuickError> {
        let ProbeQuestion { taps, probes, .. } = self.question;
        let taps = Taps {
            note_ways,
            ..taps.clone()
        };
        self.measure_by(taps, probes, indexes)
    }

    /// Measures other probes than the question's, with taps for them.
    pub(super) fn measure_others(
        &mut self,
        taps: &Taps,
        probes: &[Probe],
    ) -> Result<RouterMeasured, QuickError> {
        let indexes: Vec<u32> = probes.iter().map(|probe| probe.index).collect();
        self.measure_by(taps.clone(), probes, &indexes)
    }

    fn measure_by(
        &mut self,
        taps: Taps,
        probes: &[Probe],
        indexes: &[u32],
    ) -> Result<RouterMeasured, QuickError> {
        let mut first = self.pass(taps.clone(), probes, indexes)?;
        let unclear = first.findings.with(Finding::is_unclear);
        if !unclear.is_empty() {
            let noting = Taps {
                note_arrivals: true,
                ..taps.clone()
            };
            let second = self.pass(noting, probes, &unclear)?;
            first.correct(second);
        }
        let stopped = first.findings.with(|finding| *finding == Finding::Stopped);
        if first.unmarked && !stopped.is_empty() {
            let by_tag = Taps {
                by_tag: true,
                ..taps
            };
            let second = self.pass(by_tag, probes, &stopped)?;
            first.correct(second);
        }
        Ok(first)
    }

    /// Sends the probes with `indexes` once more, from source ports that are `later` behind theirs;
    /// whoever calls watches them in another way.
    pub(super) fn send_again(&self, indexes: &[u32], later: u16) -> RefusedProbes {
        let ProbeQuestion { taps, probes, .. } = self.question;
        if later == 0 {
            return self.send_some(taps.tags, probes, indexes);
        }
        let mut probes = probes.to_vec();
        for probe in &mut probes {
            let port = &mut probe.headers.source_port;
            *port = port_behind(*port, later);
        }
        self.send_some(taps.tags, &probes, indexes)
    }

    fn send_some(&self, tags: TagSpace, probes: &[Probe], indexes: &[u32]) -> RefusedProbes {
        let others = self.question.workers.load(Ordering::Relaxed);
        let others = others.saturating_sub(1);
        if indexes.len() == probes.len() {
            return self.probes.send_beside(others, tags, probes);
        }
        let wanted = |probe: &&Probe| indexes.binary_search(&probe.index).is_ok();
        let some: Vec<Probe> = probes.iter().filter(wanted).copied().collect();
        self.probes.send_beside(others, tags, &some)
    }

    /// Puts taps in, probes, reads, and takes the taps out again whatever happened.
    fn pass(
        &mut self,
        taps: Taps,
        probes: &[Probe],
        indexes: &[u32],
    ) -> Result<RouterMeasured, QuickError> {
        let tags = taps.tags;
        let mut spent = Spent::default();
        let mut clock = Instant::now();
        let mut lap = |part: &mut Duration| {
            let now = Instant::now();
            *part = now - std::mem::replace(&mut clock, now);
        };
        step("quick.install")?;
        let mut installed = self.install(taps).map_err(|e| self.failed(e))?;
        lap(&mut spent.install);
        let sent = step("quick.probe")
            .and_then(|()| self.send_collecting(&mut installed, (tags, probes), indexes));
        lap(&mut spent.probe);
        let reading =
            step("quick.read").and_then(|()| installed.read().map_err(|e| self.failed(e)));
        lap(&mut spent.read);
        // A fault here must not keep the taps in: it is reported after the removal.
        let fault = step("quick.remove");
        let owned = owned(&installed);
        let (socket, removed) = installed.remove();
        self.nft = socket;
        lap(&mut spent.undo);
        let (refused, reading) = (sent?, reading?);
        removed.map_err(|e| self.failed(e))?;
        fault?;
        Ok(found(&refused, reading, indexes, owned, spent))
    }

    /// Sends the probes, as many at a time as the taps can note before they are asked.
    fn send_collecting(
        &self,
        installed: &mut InstalledTaps,
        (tags, probes): (TagSpace, &[Probe]),
        indexes: &[u32],
    ) -> Result<RefusedProbes, QuickError> {
        let at_once = installed.probes_at_once().unwrap_or(usize::MAX);
        let mut refused = RefusedProbes::new();
        for batch in indexes.chunks(at_once) {
            refused.extend(self.send_some(tags, probes, batch));
            installed.collect().map_err(|e| self.failed(e))?;
        }
        Ok(refused)
    }

    fn install(&mut self, taps: Taps) -> Result<InstalledTaps, TapsError> {
        let ProbeQuestion {
            backend,
            tools,
            owner,
            notes,
            patience,
            ..
        } = self.question;
        match self.nft.take() {
            Some(socket) => Ok(InstalledTaps::Nft(NftTaps::install(socket, taps)?)),
            None => {
                let site = TapSite {
                    netns: &self.router,
                    tools,
                    owner,
                    notes,
                    patience,
                };
                InstalledTaps::install(backend, site, taps)
            }
        }
    }

    fn failed(&self, source: TapsError) -> QuickError {
        QuickError::Taps {
            router: self.router.name().to_string(),
            source,
        }
    }
}

fn found(
    refused: &RefusedProbes,
    reading: Reading,
    indexes: &[u32],
    owned: bool,
    spent: Spent,
) -> RouterMeasured {
    let observed = Observed {
        probed: indexes,
        refused,
        reading: &reading,
    };
    RouterMeasured {
        findings: judge(&observed),
        doubts: doubts(&observed),
        unmarked: reading.unmarked > 0,
        ways: reading.ways,
        owned,
        spent,
    }
}

impl RouterMeasured {
    /// Takes over what another measurement of some of the services found.
    fn correct(&mut self, other: Self) {
        if let (Some(ways), Some(better)) = (&mut self.ways, &other.ways) {
            ways.correct(better, other.findings.iter().map(|(index, _)| index));
        }
        self.findings.take_over(other.findings);
        self.doubts.extend(other.doubts);
        self.spent.add(other.spent);
    }
}

impl Spent {
    pub(super) fn add(&mut self, other: Self) {
        self.install += other.install;
        self.probe += other.probe;
        self.read += other.read;
        self.undo += other.undo;
    }
}

/// Whether the kernel removes the taps if this process dies.
fn owned(taps: &InstalledTaps) -> bool {
    matches!(taps, InstalledTaps::Nft(taps) if taps.ownership() == Ownership::Owned)
}

pub(super) fn step(name: &'static str) -> Result<(), QuickError> {
    fault::step(name).map_err(|source| QuickError::Fault { step: name, source })
}
