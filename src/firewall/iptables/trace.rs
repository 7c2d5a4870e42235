//! Following probes through the rules of iptables-legacy.
//!
//! A packet whose trace bit is set, be it by an nf_tables rule, is reported by ip_tables and
//! ip6_tables, too: each rule that matches, each return from a chain, and each policy, before it
//! takes effect (trace_packet(), net/ipv4/netfilter/ip_tables.c). The report is text and goes to
//! the logger that the namespace has set for its family. A new namespace's logger writes to the
//! kernel's log, and only for the first namespace of the machine; so for the time of a trace it is
//! nfnetlink_log, which sends to NFLOG group 0:
//!
//! ```text
//! TRACE: filter:FORWARD:rule:12
//! TRACE: filter:FORWARD:policy:13
//! ```
//!
//! A job that is killed meanwhile leaves that setting, and has noted before what it was: whoever
//! comes next puts it back ([`restore_logger`]).

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;

use super::{
    notes::{Delivery, Note, Notes},
    program,
    save::{IptablesSave, RuleSave as Saved},
    step::LegacyStep,
    turn::IptablesTurn,
};
use crate::{
    fault,
    firewall::{
        Caveat, Notebook, NotebookError, RulePlace, TableFamily, TagSpace,
        nft::{nature::Nature, trace::StepKind},
        place::HookPoint,
        rule::{OpenPorts, Packet, Rewritten, Rule, RuleVerdict, entries, walk::Program},
        ruletext::{RuleText, Shelf, kept},
    },
    netlink::{
        object::Family,
        sysctl::{self, SysctlError},
    },
    netns::{
        NetnsError, NetnsFd,
        tool::{ToolError, Tools},
    },
};

/// The NFLOG group that traces go to: nfulnl_log_packet() takes group 0 for whatever no rule sent.
const TRACE_GROUP: u16 = 0;
/// Steps per probe that the socket has room for.
const STEPS_PER_PROBE: usize = 48;
/// The logger that sends notes.
const LOGGER: &str = "nfnetlink_log";

/// A trace of iptables-legacy failed.
#[derive(Debug, Error)]
pub enum LegacyTraceError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The logger could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The socket failed.
    #[error("cannot {step} the trace of iptables-legacy (NFLOG group {TRACE_GROUP}): {source}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The rules could not be printed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// What is about to be set could not be noted, or the note not be struck.
    #[error("cannot note where the router's traces go")]
    Notebook(#[source] NotebookError),
}

/// The setting of a family, and what a note about it is called.
fn setting(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("net/netfilter/nf_log/2", "nf_log-2"),
        Family::V6 => ("net/netfilter/nf_log/10", "nf_log-10"),
    }
}

/// Puts back what a trace has set that was killed, as its note under the name `tool` says; false
/// when the note is not about that. Waits at most `patience` while another job traces there.
///
/// # Errors
/// [`LegacyTraceError`]; the setting is as it was then.
pub fn restore_logger(
    netns: &NetnsFd,
    (tool, made): (&str, &[String]),
    patience: Duration,
) -> Result<bool, LegacyTraceError> {
    let families = [Family::V4, Family::V6].map(setting);
    let Some((setting, _)) = families.into_iter().find(|(_, name)| *name == tool) else {
        return Ok(false);
    };
    let _turn = turn(netns, patience)?;
    // Whoever has set something else meanwhile knows why.
    if let [before] = made
        && sysctl::read(netns, &[setting])?.concat() == LOGGER
    {
        set_logger(netns, setting, before)?;
    }
    Ok(true)
}

fn turn(netns: &NetnsFd, patience: Duration) -> Result<IptablesTurn, LegacyTraceError> {
    let step = "wait for the turn of";
    let turn = IptablesTurn::wait(netns, patience)?;
    turn.map_err(|source| LegacyTraceError::Socket { step, source })
}

/// The ways of probes by index of the service.
pub type LegacyTrails = HashMap<u32, Vec<LegacyStep>>;

/// What was reported of the probes that were sent.
#[derive(Debug)]
pub enum LegacyDrained {
    /// All of it.
    Whole(LegacyTrails),
    /// Reports were lost: the probes are to be sent again, fewer at a time.
    Overrun,
    /// The same, and reports of other jobs' probes were among those that came.
    Crowded,
}

/// Follows the probes of one job through the legacy tables of one router.
#[derive(Debug)]
pub struct LegacyTrace<'a> {
    netns: &'a NetnsFd,
    notes: Notes,
    tags: TagSpace,
    family: Family,
    before: String,
    notebook: Option<&'a Arc<dyn Notebook>>,
    /// Only one job at a time can listen to the group.
    _turn: IptablesTurn,
}

impl<'a> LegacyTrace<'a> {
    /// Begins to listen, with room for the steps of `probes` probes between two drains. Waits at
    /// most `patience` while another job traces in the same router, and notes in `notebook` what is
    /// set. None where the router has no legacy tables.
    ///
    /// # Errors
    /// [`LegacyTraceError`]; nothing was changed then.
    pub fn start(
        netns: &'a NetnsFd,
        family: Family,
        tags: TagSpace,
        probes: usize,
        (notebook, patience): (Option<&'a Arc<dyn Notebook>>, Duration),
    ) -> Result<Option<Self>, LegacyTraceError> {
        if !netns.enter(|| has_tables_here(family))? {
            return Ok(None);
        }
        let turn = turn(netns, patience)?;
        let groups = TRACE_GROUP..TRACE_GROUP + 1;
        let open = || Notes::open_here(groups, Delivery::AtOnce, probes * STEPS_PER_PROBE);
        let step = "listen to";
        let notes = netns
            .enter(open)?
            .map_err(|source| LegacyTraceError::Socket { step, source })?;
        let mut trace = Self {
            netns,
            notes,
            tags,
            family,
            before: sysctl::read(netns, &[setting(family).0])?.concat(),
            notebook,
            _turn: turn,
        };
        trace.set()?;
        Ok(Some(trace))
    }

    /// Has traces sent here, and notes before what is to be put back.
    fn set(&mut self) -> Result<(), LegacyTraceError> {
        let (setting, name) = setting(self.family);
        if let Some(notebook) = self.notebook {
            // A job that was killed has set it, and nobody has put it back yet.
            if self.before == LOGGER {
                let others = notebook.of_others(name);
                let noted = others.map_err(LegacyTraceError::Notebook)?;
                self.before = noted.into_iter().next().unwrap_or(LOGGER.to_owned());
            }
            let noted = notebook.note(name, vec![self.before.clone()]);
            noted.map_err(LegacyTraceError::Notebook)?;
        }
        if let Err(error) = set_logger(self.netns, setting, LOGGER) {
            self.strike()?;
            return Err(error);
        }
        let traced = step("iptables.traced");
        if traced.is_err() {
            self.put_back()?;
        }
        traced
    }

    fn put_back(&self) -> Result<(), LegacyTraceError> {
        set_logger(self.netns, setting(self.family).0, &self.before)?;
        self.strike()
    }

    fn strike(&self) -> Result<(), LegacyTraceError> {
        let struck = self
            .notebook
            .map(|book| book.strike(setting(self.family).1));
        struck
            .transpose()
            .map(drop)
            .map_err(LegacyTraceError::Notebook)
    }

    /// How many probes may be sent between two drains so that their steps have room, if none takes
    /// more than 48.
    #[must_use]
    pub fn probes_at_once(&self) -> usize {
        (self.notes.room() / STEPS_PER_PROBE).max(1)
    }

    /// Reads what was reported of the probes that were sent since the last call.
    ///
    /// # Errors
    /// [`LegacyTraceError::Socket`].
    pub fn drain(&mut self) -> Result<LegacyDrained, LegacyTraceError> {
        let mut trails = LegacyTrails::new();
        let mut crowded = false;
        let tags = self.tags;
        let whole = self.notes.drain(&mut |note| {
            let Some(index) = index(&note, tags) else {
                crowded = true;
                return;
            };
            if let Some(step) = LegacyStep::read(&note) {
                trails.entry(index).or_default().push(step);
            }
        });
        let step = "receive";
        let whole = whole.map_err(|source| LegacyTraceError::Socket { step, source })?;
        Ok(match (whole, crowded) {
            (true, _) => LegacyDrained::Whole(trails),
            (false, true) => LegacyDrained::Crowded,
            (false, false) => LegacyDrained::Overrun,
        })
    }

    /// Ends the trace: the namespace's logger is what it was.
    ///
    /// # Errors
    /// [`LegacyTraceError::Sysctl`], [`LegacyTraceError::Notebook`].
    pub fn stop(self) -> Result<(), LegacyTraceError> {
        self.put_back()
    }
}

fn step(name: &'static str) -> Result<(), LegacyTraceError> {
    fault::step(name).map_err(|source| LegacyTraceError::Socket {
        step: "set the logger for",
        source,
    })
}

fn set_logger(
    netns: &NetnsFd,
    setting: &'static str,
    logger: &str,
) -> Result<(), LegacyTraceError> {
    step("iptables.logger")?;
    match sysctl::write(netns, &[(setting, logger)]) {
        Err(errors) => errors.into_iter().next().map_or(Ok(()), |e| Err(e.into())),
        Ok(()) => Ok(()),
    }
}

/// Whether any legacy table was ever looked into in the calling thread's namespace.
#[must_use]
pub fn has_tables_here(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // The first octet says it.
    let first = File::open(names).and_then(|mut names| names.read(&mut [0]));
    first.is_ok_and(|read| read > 0)
}

/// The service whose probe a report is about.
fn index(note: &Note, tags: TagSpace) -> Option<u32> {
    let (_, tag) = note.tag()?;
    tags.index(tag)
}

/// What stopped a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegacyStop {
    /// A rule.
    Rule(RuleText),
    /// The policy of this chain, e.g. `chain FORWARD (table filter)`.
    Policy(String),
}

/// The legacy rules of one router, as `iptables-legacy-save` prints them.
#[derive(Debug)]
pub struct LegacyRules {
    family: Family,
    save: IptablesSave,
}

impl LegacyRules {
    /// Reads them, from `shelf` where it has them as the kernel holds them.
    ///
    /// # Errors
    /// [`LegacyTraceError::Tool`].
    pub fn read(
        netns: &NetnsFd,
        (tools, shelf): (&Tools, Option<&Shelf>),
        family: Family,
    ) -> Result<Self, LegacyTraceError> {
        let tool = match family {
            Family::V4 => "iptables-legacy-save",
            Family::V6 => "ip6tables-legacy-save",
        };
        let print = || {
            let printed = netns.enter(|| tools.run(tool, &[], &[]))??;
            let text = String::from_utf8_lossy(&printed.stdout).into_owned();
            Ok::<_, LegacyTraceError>(text)
        };
        let save = IptablesSave::parse(&kept::legacy(shelf, netns, family, tool, print)?);
        Ok(Self { family, save })
    }

    /// Which source ports packets may have had as well.
    #[must_use]
    pub fn of_open_ports(mut self, open_ports: OpenPorts) -> Self {
        let tables = self.save.tables.values_mut();
        for rule in tables.flat_map(|table| &mut table.rules) {
            rule.open_ports = open_ports;
        }
        self
    }

    /// What other routers may have rewritten of packets.
    #[must_use]
    pub fn of_rewritten(mut self, rewritten: &Rewritten) -> Self {
        if !rewritten.is_empty() {
            let rewritten = Arc::new(rewritten.clone());
            let tables = self.save.tables.values_mut();
            for rule in tables.flat_map(|table| &mut table.rules) {
                rule.rewritten = Some(Arc::clone(&rewritten));
            }
        }
        self
    }

    /// What stopped a probe that did not get past `hook`, by its last step there; none when that
    /// step does not end a packet's way.
    #[must_use]
    pub fn stopped_by(&self, steps: &[LegacyStep], hook: HookPoint) -> Option<LegacyStop> {
        let step = steps.last().filter(|step| step.hook == hook)?;
        let table = self.save.tables.get(&step.table)?;
        let at = step.position.checked_sub(1)?;
        // A rule without a match that accepts, drops or returns is reported as the end of its
        // chain (get_chainname_rulenum()); its position tells it from that.
        let Some(rule) = table.chain(&step.chain).nth(at) else {
            let drops = step.kind == StepKind::Policy && table.policy(&step.chain) != "ACCEPT";
            return drops.then(|| LegacyStop::Policy(self.chain_name(step)));
        };
        let chain = |name: &str| table.chains.iter().any(|chain| chain.name == name);
        let ends = rule.parsed().verdicts().any(|verdict| match verdict {
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => !chain(name),
            RuleVerdict::Accept | RuleVerdict::Return => false,
            _ => true,
        });
        ends.then(|| LegacyStop::Rule(self.text(step, step.position, &rule.spec)))
    }

    /// What the rules may do with packets.
    #[must_use]
    pub fn nature(&self) -> Nature {
        let mut nature = Nature::default();
        for table in self.save.tables.values() {
            for rule in &table.rules {
                nature |= table.nature(rule);
            }
        }
        nature
    }

    /// Whether any rule decides by more than the packet, remembers or copies packets.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        let mut rules = self.save.tables.values().flat_map(|table| &table.rules);
        rules.any(|rule| rule.parsed().is_volatile())
    }

    /// Rules by which probes left an entry somewhere, with where.
    #[must_use]
    pub fn memories(&self, steps: &[LegacyStep], subject: &Packet) -> Vec<(String, RuleText)> {
        let mut found = Vec::new();
        for (last, step) in last_in_chains(steps) {
            let rules = self.parsed(step);
            let asked = program::asked(&rules, steps, last);
            let matched = |at: usize| {
                let here = |s: &LegacyStep| s.chain == step.chain && s.table == step.table;
                let rule = |s: &&LegacyStep| s.position == at + 1 && s.kind == StepKind::Rule;
                steps.iter().filter(rule).any(here)
            };
            for (at, place) in entries(&rules, asked, matched, subject) {
                found.extend(Some(place.to_owned()).zip(self.nth(step, at + 1)));
            }
        }
        found
    }

    /// Rules that a probe was held against and that decide by more than the packet, as far as
    /// they concern it.
    #[must_use]
    pub fn caveats(&self, steps: &[LegacyStep], subject: &Packet) -> Vec<(Caveat, RuleText)> {
        let mut found = Vec::new();
        for (last, step) in last_in_chains(steps) {
            let rules = self.parsed(step);
            for (position, rule) in (1..=program::asked(&rules, steps, last)).zip(&rules) {
                if let Some(caveat) = rule.caveat().filter(|_| rule.concerns(subject)) {
                    found.extend(Some(caveat.clone()).zip(self.nth(step, position)));
                }
            }
        }
        found
    }

    /// The rules of the chain that a step is about.
    fn parsed(&self, step: &LegacyStep) -> Vec<Rule> {
        let table = self.save.tables.get(&step.table);
        let rules = table.into_iter().flat_map(|t| t.chain(&step.chain));
        rules.map(Saved::parsed).collect()
    }

    /// The rule at this position of the chain that a step is about.
    fn nth(&self, step: &LegacyStep, position: usize) -> Option<RuleText> {
        let table = self.save.tables.get(&step.table)?;
        let rule = table.chain(&step.chain).nth(position.checked_sub(1)?)?;
        Some(self.text(step, position, &rule.spec))
    }

    /// Whether a probe with these steps was stopped by one of the rules or policies.
    #[must_use]
    pub fn stop(&self, steps: &[LegacyStep]) -> bool {
        let last = steps.last();
        last.is_some_and(|last| self.stopped_by(steps, last.hook).is_some())
    }

    /// Adds the rules to a program.
    pub fn add_to(&self, program: &mut Program) {
        program::add(&self.save, self.table_family(), program);
    }

    /// Notes in a program what rules said of a probe.
    pub fn note_in(&self, steps: &[LegacyStep], program: &mut Program) {
        program::note(self.table_family(), steps, program);
    }

    /// The rule of a chain of a program, by its index; none where the chain is not of these tables.
    #[must_use]
    pub fn text_at(&self, place: &RulePlace, index: usize) -> Option<RuleText> {
        let step = LegacyStep {
            hook: HookPoint::Forward,
            table: program::table(place)?.to_owned(),
            chain: place.chain.clone(),
            kind: StepKind::Rule,
            position: index + 1,
        };
        self.nth(&step, index + 1)
    }

    /// The number that the chain of a rule has in a program.
    #[must_use]
    pub fn number_in(&self, program: &Program, place: &RulePlace) -> Option<usize> {
        program::number(program, self.table_family(), &place.table, &place.chain)
    }

    fn text(&self, step: &LegacyStep, position: usize, spec: &str) -> RuleText {
        RuleText {
            place: RulePlace {
                family: self.table_family(),
                table: step.table.clone(),
                chain: step.chain.clone(),
                handle: 0,
            },
            position: Some(position),
            text: Some(format!("-A {} {spec}", step.chain)),
            xtables: true,
        }
    }

    fn chain_name(&self, step: &LegacyStep) -> String {
        let LegacyStep { table, chain, .. } = step;
        match self.family {
            Family::V4 => format!("chain {chain} (table {table})"),
            Family::V6 => format!("chain {chain} (table ip6 {table})"),
        }
    }

    fn table_family(&self) -> TableFamily {
        match self.family {
            Family::V4 => TableFamily::IP,
            Family::V6 => TableFamily::IP6,
        }
    }
}

/// The last step in each chain, with its number.
fn last_in_chains(steps: &[LegacyStep]) -> impl Iterator<Item = (usize, &LegacyStep)> {
    steps.iter().enumerate().filter(|(at, step)| {
        let same = |s: &LegacyStep| (&s.table, &s.chain) == (&step.table, &step.chain);
        !steps[at + 1..].iter().any(same)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::rule::{Field, walk::ChainRules},
        model::Protocol,
    };

    fn note(prefix: &str, hook: u8) -> Note {
        Note {
            oif: 0,
            mark: 0,
            prefix: prefix.to_owned(),
            hook,
            packet: Vec::new(),
        }
    }

    fn forward(chain: &str, kind: StepKind, position: usize) -> LegacyStep {
        LegacyStep {
            hook: HookPoint::Forward,
            table: "filter".to_owned(),
            chain: chain.to_owned(),
            kind,
            position,
        }
    }

    #[test]
    fn reports_are_read() {
        let read = LegacyStep::read(&note("TRACE: filter:FORWARD:rule:12 ", 2)).unwrap();
        assert_eq!(read, forward("FORWARD", StepKind::Rule, 12));
        let read = LegacyStep::read(&note("TRACE: filter:a:b:policy:1 ", 2)).unwrap();
        assert_eq!(read, forward("a:b", StepKind::Policy, 1));
        for (text, hook) in [
            ("o", 4),
            ("TRACE: filter:FORWARD:rule:x ", 2),
            ("TRACE: filter:FORWARD:comment:1 ", 2),
            ("TRACE: filter:FORWARD:rule:1 ", 3),
        ] {
            assert_eq!(LegacyStep::read(&note(text, hook)), None, "{text}");
        }
    }

    #[test]
    fn the_last_step_at_the_hook_is_what_stopped_it_if_it_can() {
        let saved = "*filter\n:FORWARD DROP [0:0]\n:mine - [0:0]\n\
                     -A FORWARD -j mine\n-A mine -m limit --limit 1/sec -j ACCEPT\n\
                     -A mine -p udp -m limit --limit 1/sec -j ACCEPT\n-A mine -j REJECT\n";
        let rules = LegacyRules {
            family: Family::V4,
            save: IptablesSave::parse(saved),
        };
        let at = HookPoint::Forward;
        let jump = forward("FORWARD", StepKind::Rule, 1);
        let reject = forward("mine", StepKind::Rule, 3);
        let steps = [jump.clone(), reject];
        let Some(LegacyStop::Rule(rule)) = rules.stopped_by(&steps, at) else {
            panic!();
        };
        assert_eq!(
            rule.to_string(),
            "rule 3 of chain mine (table filter): -A mine -j REJECT"
        );
        let caveats = rules.caveats(
            &steps,
            &Packet::of(Family::V4)
                .with(Field::Protocol, Protocol::Tcp.number())
                .with(Field::DestinationPort, 80u32),
        );
        let positions: Vec<_> = caveats.iter().map(|(_, rule)| rule.position).collect();
        assert_eq!(positions, [Some(1)]);
        let policy = [jump.clone(), forward("FORWARD", StepKind::Policy, 2)];
        let name = "chain FORWARD (table filter)".to_owned();
        assert_eq!(
            rules.stopped_by(&policy, at),
            Some(LegacyStop::Policy(name))
        );
        for steps in [vec![], vec![jump.clone()]] {
            assert_eq!(rules.stopped_by(&steps, at), None);
        }
        assert_eq!(rules.stopped_by(&policy, HookPoint::Input), None);
    }

    #[test]
    fn rules_behind_one_that_leaves_a_built_in_chain_were_not_asked() {
        for leaves in ["-g mine", "-j RETURN"] {
            let saved = format!(
                "*filter\n:FORWARD DROP [0:0]\n:mine - [0:0]\n-A FORWARD -p tcp {leaves}\n\
                 -A FORWARD -m limit --limit 1/sec -j ACCEPT\n-A mine -p udp -j ACCEPT\n"
            );
            let rules = LegacyRules {
                family: Family::V4,
                save: IptablesSave::parse(&saved),
            };
            let mut steps = vec![forward("FORWARD", StepKind::Rule, 1)];
            if leaves.contains("mine") {
                steps.push(forward("mine", StepKind::Return, 2));
            }
            steps.push(forward("FORWARD", StepKind::Policy, 3));
            assert_eq!(rules.caveats(&steps, &Packet::of(Family::V4)), []);
            let mut program = Program::default();
            rules.add_to(&mut program);
            rules.note_in(&steps, &mut program);
            let chain = |chain: &&ChainRules| chain.place.chain == "FORWARD";
            let chain = program.chains.iter().find(chain).unwrap();
            assert_eq!(chain.said, [Some(true), None], "{leaves}");
        }
    }

    #[test]
    fn a_rule_without_a_match_that_is_reported_as_the_end_of_its_chain_is_still_a_rule() {
        let saved = "*filter\n:FORWARD ACCEPT [0:0]\n:mine - [0:0]\n\
                     -A FORWARD -p udp -j mine\n-A FORWARD -j DROP\n-A mine -j DROP\n";
        let rules = LegacyRules {
            family: Family::V4,
            save: IptablesSave::parse(saved),
        };
        for (step, want) in [
            (
                forward("FORWARD", StepKind::Policy, 2),
                "rule 2 of chain FORWARD (table filter): -A FORWARD -j DROP",
            ),
            (
                forward("mine", StepKind::Return, 1),
                "rule 1 of chain mine (table filter): -A mine -j DROP",
            ),
        ] {
            let Some(LegacyStop::Rule(rule)) = rules.stopped_by(&[step], HookPoint::Forward) else {
                panic!("{want}");
            };
            assert_eq!(rule.to_string(), want);
        }
    }
}
