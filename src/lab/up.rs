//! Makes a lab: all of it or nothing.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    Lab, LabError,
    down::{self, Removed},
    drift, facts,
    links::Links,
    omission, plan, pool,
    progress::{UpProgress, UpStep},
    router::{self, RouterJob},
    rulesets::{self, Loaders, RouterRulesets},
    segments,
    state::{InterfaceState, LabDir, LabPhase, LabState, LockedLab, boot_id},
    swap,
    topology::{self, Origin, Router, RulesetKind, Severity, Topology, Warning},
    tunnels, unseen,
};
use crate::{
    config::Config,
    fault,
    model::{LabName, NetnsName, RouterId},
    netns::{NetnsDir, NetnsFd},
};

/// How a lab is to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpOptions {
    /// A lab that would differ from its facts is an error.
    pub strict: bool,
    /// iptables rulesets go through the legacy variant.
    pub legacy: bool,
}

/// What `up` did.
#[derive(Debug)]
pub struct Up {
    /// The lab.
    pub lab: Lab,
    /// False when it was up already, made from the same.
    pub changed: bool,
    /// How long each part took.
    pub timing: Vec<(&'static str, Duration)>,
}

/// Makes lab `name` from the facts in `facts_dir`, see [`up`].
///
/// # Errors
/// As [`up`], and when the facts cannot be read.
pub fn up_from(
    config: &Config,
    name: &LabName,
    facts_dir: &Path,
    options: UpOptions,
    progress: &dyn UpProgress,
) -> Result<Up, LabError> {
    let begin = Instant::now();
    let (topology, facts_dir) = plan(facts_dir, options, progress)?;
    let took = begin.elapsed();
    let mut up = up(config, name, &topology, facts_dir, options, progress)?;
    up.timing.insert(0, ("facts", took));
    Ok(up)
}

/// Reads the facts in `facts_dir` and plans a lab of them; with where they lie, for messages.
/// Nothing is changed.
pub(super) fn plan(
    facts_dir: &Path,
    options: UpOptions,
    progress: &dyn UpProgress,
) -> Result<(Topology, PathBuf), LabError> {
    progress.step(UpStep::Facts);
    let (facts, missing) = match options.strict {
        true => (facts::load_dir(facts_dir)?, Vec::new()),
        false => facts::load_usable(facts_dir)?,
    };
    let links = Links::load(facts_dir, &facts)?;
    let mut topology = topology::build_with(facts, &links);
    topology.warnings.extend(missing);
    let place = facts_dir
        .canonicalize()
        .unwrap_or_else(|_| facts_dir.into());
    Ok((topology, place))
}

/// Makes lab `name` from `topology`, or finds that it is there. `facts` is where the topology
/// comes from, for messages.
///
/// # Errors
/// [`LabError`]. Nothing is left of a lab that could not be made, unless the error says so.
pub fn up(
    config: &Config,
    name: &LabName,
    topology: &Topology,
    facts: PathBuf,
    options: UpOptions,
    progress: &dyn UpProgress,
) -> Result<Up, LabError> {
    check_strict(options, &topology.warnings)?;
    let kinds = topology.routers.iter().flat_map(rulesets::kinds);
    let loaders = Loaders::find(&config.tool_dirs, kinds, options.legacy)?;
    let routers = plan::routers(topology)?;
    let state = LabState::new(name.clone(), facts, options.legacy, topology, routers)?;
    let locked = LabDir::new(config, name).lock()?;
    if let Some(lab) = existing(config, &locked, name, topology, options, progress)? {
        return Ok(Up {
            lab,
            changed: false,
            timing: Vec::new(),
        });
    }
    let rulesets: Vec<_> = topology.routers.iter().map(RouterRulesets::new).collect();
    let builder = Builder {
        dir: NetnsDir::default().patient(config.lock_timeout),
        tool_dirs: &config.tool_dirs,
        topology,
        loaders,
        rulesets: &rulesets,
        options,
        progress,
        timing: Vec::new(),
        name: RouterId::netns,
    };
    // While namespaces are made, and then beside the loaders, which are programs of their own that
    // use one processor each.
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            rulesets.iter().for_each(RouterRulesets::make_ready);
            read_rules(topology)
        });
        builder.run(locked, name, state, || {
            reader.join().map_err(|_| LabError::Worker)
        })
    })
}

/// Makes the routers of `topology` aside, as `state` has them and beside what is in the lab's
/// segments, `hidden`; notes their identities and what they lack.
pub(super) fn make_aside(
    config: &Config,
    (topology, state): (&Topology, &mut LabState),
    hidden: &NetnsFd,
    options: UpOptions,
    progress: &dyn UpProgress,
) -> Result<(), LabError> {
    let kinds = topology.routers.iter().flat_map(rulesets::kinds);
    let rulesets: Vec<_> = topology.routers.iter().map(RouterRulesets::new).collect();
    let builder = Builder {
        dir: NetnsDir::default().patient(config.lock_timeout),
        tool_dirs: &config.tool_dirs,
        topology,
        loaders: Loaders::find(&config.tool_dirs, kinds, options.legacy)?,
        rulesets: &rulesets,
        options,
        progress,
        timing: Vec::new(),
        name: RouterId::netns_aside,
    };
    builder.loaders.load_modules();
    progress.step(UpStep::Namespaces(state.routers.len()));
    let routers = builder.routers(state)?;
    segments::make(state, hidden, &routers, true)?;
    progress.step(UpStep::Routers(routers.len()));
    builder.fill(state, &routers)
}

pub(super) fn check_strict(options: UpOptions, warnings: &[Warning]) -> Result<(), LabError> {
    let differs = |w: &&Warning| w.severity == Severity::Warning;
    let found: Vec<Warning> = warnings.iter().filter(differs).cloned().collect();
    if options.strict && !found.is_empty() {
        Err(LabError::Strict(found))
    } else {
        Ok(())
    }
}

/// The lab of this name, if it is up and made from the same. What an interrupted `up` left, or
/// what did not outlive a reboot, is removed.
fn existing(
    config: &Config,
    locked: &LockedLab,
    name: &LabName,
    topology: &Topology,
    options: UpOptions,
    progress: &dyn UpProgress,
) -> Result<Option<Lab>, LabError> {
    let Some(state) = locked.state()? else {
        return Ok(None);
    };
    let netns = NetnsDir::default();
    let state = match state.boot_id == boot_id()? {
        true => swap::settle(config, locked, state)?,
        false => state,
    };
    let intact = state.boot_id == boot_id()? && down::intact(&netns, &state)?;
    if state.phase == LabPhase::Up && intact {
        let same = state.legacy == options.legacy && locked.topology()?.as_ref() == Some(topology);
        if !same {
            return Err(LabError::Exists {
                lab: name.clone(),
                facts: state.facts,
            });
        }
        check_strict(options, &state.warnings)?;
        return Ok(Some(Lab::new(state)));
    }
    progress.step(UpStep::Sweep);
    let mut removed = Removed::default();
    let failures = down::remove_namespaces(&netns, &state, &mut removed);
    if failures.is_empty() {
        Ok(None)
    } else {
        Err(LabError::NotRemoved {
            lab: name.clone(),
            failures,
        })
    }
}

struct Builder<'a> {
    dir: NetnsDir,
    tool_dirs: &'a [PathBuf],
    topology: &'a Topology,
    loaders: Loaders,
    /// Those of each router, in order.
    rulesets: &'a [RouterRulesets<'a>],
    options: UpOptions,
    progress: &'a dyn UpProgress,
    timing: Vec<(&'static str, Duration)>,
    /// What the routers' namespaces are called while they are made.
    name: fn(&RouterId) -> NetnsName,
}

impl Builder<'_> {
    /// Builds, or undoes what was built. `read` waits for what the rules tell.
    fn run(
        mut self,
        locked: LockedLab,
        name: &LabName,
        state: LabState,
        read: impl FnOnce() -> Result<Vec<RulesRead>, LabError>,
    ) -> Result<Up, LabError> {
        let intent = state.clone();
        // Before the intent is written, which would claim them.
        let free = self.check_free(&state);
        self.loaders.load_modules();
        let built = free.and_then(|()| {
            let built = self.build(&locked, state, read);
            built.map_err(|error| (true, error))
        });
        let (made, cause) = match built {
            Ok(state) => {
                return Ok(Up {
                    lab: Lab::new(state),
                    changed: true,
                    timing: self.timing,
                });
            }
            Err(error) => error,
        };
        let mut failures = Vec::new();
        if made {
            let mut removed = Removed::default();
            // By the intent, which names all: identities may not be known yet.
            failures = down::remove_namespaces(&self.dir, &intent, &mut removed);
        }
        if failures.is_empty() {
            failures.extend(locked.remove().err());
        }
        Err(LabError::NotMade {
            lab: name.clone(),
            cause: Box::new(cause),
            failures,
        })
    }

    fn check_free(&self, state: &LabState) -> Result<(), (bool, LabError)> {
        for netns in down::namespaces(state).map(|(name, _)| name) {
            match self.dir.exists(&netns) {
                Ok(false) => {}
                // Every lab has a namespace of its segments.
                Ok(true)
                    if self
                        .dir
                        .exists(&NetnsName::segments(&state.lab))
                        .is_ok_and(|is| is) =>
                {
                    let lab = state.lab.clone();
                    return Err((false, LabError::Elsewhere { lab, netns }));
                }
                Ok(true) => return Err((false, LabError::Taken { netns })),
                Err(error) => return Err((false, error.into())),
            }
        }
        Ok(())
    }

    fn build(
        &mut self,
        locked: &LockedLab,
        mut state: LabState,
        read: impl FnOnce() -> Result<Vec<RulesRead>, LabError>,
    ) -> Result<LabState, LabError> {
        let mut clock = Instant::now();
        let mut lap = |timing: &mut Vec<_>, what| {
            timing.push((what, clock.elapsed()));
            clock = Instant::now();
        };
        locked.write_topology(self.topology)?;
        locked.write_state(&state)?;
        lap(&mut self.timing, "intent");

        self.progress
            .step(UpStep::Namespaces(state.routers.len() + 1));
        let (hidden, routers) = self.namespaces(&mut state)?;
        locked.write_state(&state)?;
        lap(&mut self.timing, "namespaces");

        self.progress.step(UpStep::Segments(state.segments.len()));
        segments::make(&state, &hidden, &routers, false)?;
        self.join_tunnels(&mut state, &hidden)?;
        lap(&mut self.timing, "segments");

        self.progress.step(UpStep::Routers(routers.len()));
        self.fill(&mut state, &routers)?;
        note_lacks(&mut state, self.topology, read()?);
        segments::settle(&state, &hidden)?;
        drift::keep(locked, &state, |_| true)?;
        lap(&mut self.timing, "routers");

        check_strict(self.options, &state.warnings)?;
        state.phase = LabPhase::Up;
        locked.write_state(&state)?;
        lap(&mut self.timing, "state");
        Ok(state)
    }

    /// Makes all namespaces and notes their identities; those of the routers in order.
    fn namespaces(&self, state: &mut LabState) -> Result<(NetnsFd, Vec<NetnsFd>), LabError> {
        let name = NetnsName::segments(&state.lab);
        let hidden = self.make(&name, || segments::settle_here(name.as_str()))?.0;
        state.segments_netns = Some(hidden.id());
        Ok((hidden, self.routers(state)?))
    }

    fn routers(&self, state: &mut LabState) -> Result<Vec<NetnsFd>, LabError> {
        let lab = &state.lab;
        let made = pool::each(&self.topology.routers, |router: &Router| {
            let name = (self.name)(&RouterId::new(lab.clone(), router.name.clone()));
            self.make(&name, || router::settle_here(router, name.as_str()))
        });
        let mut routers = Vec::with_capacity(made.len());
        for (result, router) in made.into_iter().zip(&mut state.routers) {
            let (netns, mut warnings) = result.ok_or(LabError::Worker)??;
            router.netns = Some(netns.id());
            state.warnings.append(&mut warnings);
            routers.push(netns);
        }
        Ok(routers)
    }

    fn make<T: Send>(
        &self,
        name: &NetnsName,
        inside: impl FnOnce() -> Result<T, LabError> + Send,
    ) -> Result<(NetnsFd, T), LabError> {
        fault::step("lab.namespace").map_err(|source| LabError::File {
            call: "make the namespace",
            path: self.dir.path(name),
            source,
        })?;
        let (netns, result) = self.dir.create_with(name, inside)?;
        Ok((netns, result?))
    }

    /// A lab whose tunnels lead nowhere is made all the same: only a whole way through it suffers.
    fn join_tunnels(&self, state: &mut LabState, hidden: &NetnsFd) -> Result<(), LabError> {
        let nft = std::iter::once(RulesetKind::Nft);
        let loaders = Loaders::find(self.tool_dirs, nft, false).ok();
        if let Some(reason) = tunnels::join(state, hidden, loaders.as_ref())?
            && let Some(router) = self.topology.routers.first()
        {
            let message = format!("tunnels lead no packet to their other ends: {reason}");
            let origin = Origin {
                file: state.facts.display().to_string(),
                line: 0,
            };
            state
                .warnings
                .push(Warning::new(origin, &router.name, message));
        }
        Ok(())
    }

    fn fill(&self, state: &mut LabState, netns: &[NetnsFd]) -> Result<(), LabError> {
        let jobs: Vec<RouterJob<'_>> = self
            .topology
            .routers
            .iter()
            .zip(&state.routers)
            .zip(netns)
            .zip(self.rulesets)
            .map(|(((router, planned), netns), rulesets)| RouterJob {
                lab: &state.lab,
                router,
                state: planned,
                netns,
                rulesets,
                loaders: &self.loaders,
                progress: self.progress,
            })
            .collect();
        let filled = pool::each(&jobs, |job| {
            let result = router::fill(job);
            self.progress.step(UpStep::Filled);
            result
        });
        drop(jobs);
        for result in filled {
            state.warnings.extend(result.ok_or(LabError::Worker)??);
        }
        Ok(())
    }
}

/// What the rules of a router tell about packets that no job sends, or before a job does.
pub(super) struct RulesRead {
    unseen: Vec<unseen::Unseen>,
    asks_hardware_addresses: bool,
    rewrites_tcp_options: bool,
    rewriting: Vec<String>,
    asking_port_sets: Vec<String>,
    translating: Vec<String>,
}

/// Reads the rules of each router of `topology`.
pub(super) fn read_rules(topology: &Topology) -> Vec<RulesRead> {
    let read = |router: &Router| RulesRead {
        unseen: unseen::unseen(router),
        asks_hardware_addresses: omission::asks_hardware_addresses(&router.rulesets),
        rewrites_tcp_options: omission::rewrites_tcp_options(&router.rulesets),
        rewriting: omission::rewriting(&router.rulesets),
        asking_port_sets: omission::asking_port_sets(&router.rulesets),
        translating: omission::translating(&router.rulesets),
    };
    topology.routers.iter().map(read).collect()
}

/// Notes in each router of the lab what was `read` of its rules, and what it lacks of its facts.
pub(super) fn note_lacks(state: &mut LabState, topology: &Topology, read: Vec<RulesRead>) {
    state.warnings.sort_by(|a, b| a.origin.cmp(&b.origin));
    let made = topology.routers.iter().zip(read);
    for (router, (made, read)) in state.routers.iter_mut().zip(made) {
        let own = |w: &&Warning| w.matters() && w.router.as_ref() == Some(&router.name);
        let lacks: Vec<&Warning> = state.warnings.iter().filter(own).collect();
        router.unseen = read.unseen;
        router.asks_hardware_addresses = read.asks_hardware_addresses;
        router.rewrites_tcp_options = read.rewrites_tcp_options;
        router.rewriting = read.rewriting;
        router.asking_port_sets = read.asking_port_sets;
        router.translating = read.translating;
        router.ruleset_incomplete = lacks.iter().any(|w| w.is_of_ruleset());
        if !lacks.is_empty() {
            router.redirecting = omission::redirecting(&made.rulesets);
        }
        let mut lost = lacks.iter().filter_map(|w| w.omission.as_ref());
        let stands_between = |bridge: &InterfaceState| !bridge.link.frame_rules.is_empty();
        if lost.any(|omission| omission.concern.rules().next().is_some())
            || router.interfaces.iter().any(stands_between)
        {
            router.rulesets.clone_from(&made.rulesets);
        }
    }
}
