//! Installing, reading and removing the taps of one job in one router.

use std::{collections::BTreeMap, io};

use super::{
    IptablesError,
    command::{Iptables, Variant},
    departure::{self, LaterNat},
    feature,
    identity::{Identity, MadeByTaps, Mark, OwnerMark, PARTS, chain_name},
    notes::{Delivery, Note, Notes},
    others::Others,
    place::{self, HOOK_INPUT, HOOK_POSTROUTING, Spot, TapPlace},
    removal::{marks, remove_made, remove_marked},
    render::{self, Matcher, Tap, TapPlan, letter},
    save::IptablesSave,
};
use crate::{
    firewall::{
        Reading, Support, TapSite, Taps, Undecided,
        taps::{Indexes, ProbeWays},
    },
    model::Dscp,
};

/// The first NFLOG group that a job tries, so that jobs seldom meet and people's own groups, which
/// are small numbers, are left alone.
const FIRST_GROUP: u16 = 0x4000;
/// How many groups are tried.
const GROUP_ATTEMPTS: u16 = 64;
/// Most notes per probe: one at each of three taps, and one at the head of a chain.
const NOTES_PER_PROBE: usize = 4;

/// The taps of one job in one router's iptables.
#[derive(Debug)]
pub struct IptablesTaps {
    iptables: Iptables,
    plan: TapPlan,
    notes: Notes,
    /// What nat may still do with what comes to the tap at POSTROUTING.
    behind: LaterNat,
    /// How probes came to the last taps.
    ways: ProbeWays,
    /// What was noted so far, by letter of the tap.
    noted: BTreeMap<char, Noted>,
    foreign: usize,
    /// Why taps at POSTROUTING and INPUT do not decide, as far as they do not.
    doubts: Doubts,
    /// What the last reading saw of the tables.
    last: Option<IptablesSave>,
}

/// [`Notes::drain`] or [`Notes::take_all`].
type TakeNotes = fn(&mut Notes, &mut dyn FnMut(Note)) -> io::Result<bool>;

/// What one tap noted.
#[derive(Debug)]
struct Noted {
    services: Indexes,
    /// Notes, repeated ones included.
    packets: u64,
}

#[derive(Debug, Default)]
struct Doubts {
    out: Doubt,
    local: Doubt,
}

/// How far the word of a tap goes.
#[derive(Debug, Default)]
struct Doubt {
    /// Packets seen at the head of the chain and not at its end may have gone through.
    between: Option<String>,
    /// Packets seen at the tap may have been stopped behind it.
    behind: Option<String>,
}

impl Doubt {
    fn new(place: &TapPlace, behind: Option<String>) -> Self {
        match &place.spot {
            Spot::Both { reason } => Self {
                between: Some(reason.clone()),
                behind,
            },
            Spot::Undecided { reason } => Self {
                between: Some(reason.clone()),
                behind: None,
            },
            _ => Self {
                between: None,
                behind,
            },
        }
    }
}

impl IptablesTaps {
    /// Puts the taps of `taps` into a router.
    ///
    /// # Errors
    /// [`IptablesError`]; what was installed by then is removed again.
    pub fn install(variant: Variant, site: TapSite<'_>, taps: Taps) -> Result<Self, IptablesError> {
        let iptables = Iptables::new(variant, taps.family, site);
        let _turn = iptables.turn()?;
        let before = iptables.save(None)?;
        let others = Others::look(&iptables)?;
        let (out, local) = (place::out(&before), others.place_local(&before));
        let notes = listen(&iptables, &taps)?;
        let points = render::points(&taps, &place::arrival(&before), &out, &local);
        let behind = LaterNat::new(&before);
        let ways = ProbeWays::new(taps.services);
        let doubts = Doubts {
            out: Doubt::new(&out, others.behind(HOOK_POSTROUTING, "mangle")),
            local: Doubt::new(&local, others.behind(HOOK_INPUT, local.table)),
        };
        let plan = TapPlan {
            identity: identity(&taps, site.owner),
            matcher: Matcher::U32,
            group: notes.group(),
            made: made(&before, iptables.noted_by_others()?, &others, &points),
            points,
            taps,
        };
        let mut installed = Self {
            iptables,
            plan,
            notes,
            behind,
            ways,
            noted: BTreeMap::new(),
            foreign: 0,
            doubts,
            last: None,
        };
        installed.iptables.note(&installed.plan.made)?;
        match installed.install_with_any_matcher() {
            Ok(()) => Ok(installed),
            Err(failed) => match installed.clear().and_then(|()| installed.iptables.strike()) {
                Ok(()) => Err(failed),
                // It stays noted.
                Err(undo) => Err(IptablesError::Undo {
                    failed: Box::new(failed),
                    undo: Box::new(undo),
                }),
            },
        }
    }

    /// The variant of iptables that holds the taps.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.iptables.variant
    }

    /// The match that recognises probes.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        self.plan.matcher
    }

    fn install_with_any_matcher(&mut self) -> Result<(), IptablesError> {
        let mut missing = Vec::new();
        for matcher in [Matcher::U32, Matcher::Bpf] {
            self.plan.matcher = matcher;
            let Err(error) = self.install_once() else {
                return Ok(());
            };
            if !matches!(error, IptablesError::Refused { .. }) {
                return Err(error);
            }
            // Asked only now, because it takes four tools and nearly every kernel has u32.
            let support = feature::matcher(&self.iptables, &self.plan);
            remove_made(&self.iptables, &self.plan.made)?;
            match support {
                Support::No(why) => missing.push((matcher, why)),
                _ => return Err(error),
            }
        }
        Err(IptablesError::NoMatcher(missing))
    }

    fn install_once(&mut self) -> Result<(), IptablesError> {
        let Err(failed) = self.iptables.restore(&self.plan.install()) else {
            return Ok(());
        };
        // Table by table: those before the one that was refused are in force.
        match self.clear() {
            Ok(()) => Err(failed),
            Err(undo) => Err(IptablesError::Undo {
                failed: Box::new(failed),
                undo: Box::new(undo),
            }),
        }
    }

    /// How many probes may be sent before [`Self::collect`] has to make room for further notes.
    #[must_use]
    pub fn probes_at_once(&self) -> usize {
        (self.notes.room() / NOTES_PER_PROBE).max(1)
    }

    /// Takes the notes that wait.
    ///
    /// # Errors
    /// [`IptablesError`]; [`IptablesError::Overrun`] when some were lost.
    pub fn collect(&mut self) -> Result<(), IptablesError> {
        self.take_notes(Notes::drain)
    }

    /// Reads what the taps saw so far.
    ///
    /// # Errors
    /// [`IptablesError`]; [`IptablesError::NotesLost`] when it is not known which probes came.
    pub fn read(&mut self) -> Result<Reading, IptablesError> {
        let save = self.save_tables()?;
        let mut counters = Vec::new();
        for tap in &self.plan.points {
            counters.push((tap.letter, self.count(&save, tap)?));
        }
        self.last = Some(save);
        self.take_notes(Notes::take_all)?;
        // While another iptables-legacy is at work, counters read less than they are, never more.
        for (letter, counted) in counters {
            let noted = self.packets(letter);
            if noted < counted {
                return Err(IptablesError::NotesLost { counted, noted });
            }
        }
        let mut reading = Reading {
            packets_in: self.packets(letter::ARRIVAL),
            packets_out: self.packets(letter::OUT),
            packets_local: self.packets(letter::LOCAL),
            arrived: Some(self.seen(letter::ARRIVAL)),
            foreign: self.foreign,
            ways: self.plan.taps.note_ways.then(|| self.ways.clone()),
            ..Reading::default()
        };
        let Doubts { out, local } = &self.doubts;
        reading.out = self.decided(letter::OUT_HEAD, letter::OUT, out, &mut reading.undecided);
        let undecided = &mut reading.undecided;
        reading.local = self.decided(letter::LOCAL_HEAD, letter::LOCAL, local, undecided);
        Ok(reading)
    }

    /// The services that got through for sure at one place; those that only may have are added to
    /// `undecided`.
    fn decided(
        &self,
        head: char,
        end: char,
        doubt: &Doubt,
        undecided: &mut Vec<Undecided>,
    ) -> Indexes {
        let through = self.seen(end);
        if let Some(reason) = &doubt.between {
            let came = self.seen(head);
            let between = came.iter().filter(|&i| !through.contains(i));
            undecided.extend(doubtful(&self.plan.taps, between.collect(), reason));
        }
        let Some(reason) = &doubt.behind else {
            return through;
        };
        undecided.extend(doubtful(&self.plan.taps, through.iter().collect(), reason));
        Indexes::new(self.plan.taps.services)
    }

    fn seen(&self, letter: char) -> Indexes {
        let none = || Indexes::new(self.plan.taps.services);
        let noted = self.noted.get(&letter).map(|n| n.services.clone());
        noted.unwrap_or_else(none)
    }

    fn packets(&self, letter: char) -> u64 {
        self.noted.get(&letter).map_or(0, |noted| noted.packets)
    }

    /// The probes that one tap counted.
    fn count(&self, save: &IptablesSave, tap: &Tap) -> Result<u64, IptablesError> {
        let chain = chain_name(&self.plan.taps.run_id, tap.letter);
        // All rules of the chain count every probe; the first one does so whatever the others do.
        let first = save.tables.get(tap.table).and_then(|table| {
            let mut rules = table.chain(&chain);
            rules.next().map(|rule| rule.packets)
        });
        first.ok_or(IptablesError::Gone {
            chain,
            table: tap.table,
        })
    }

    /// Notes what `take` finds.
    fn take_notes(&mut self, take: TakeNotes) -> Result<(), IptablesError> {
        let taps = &self.plan.taps;
        let (noted, foreign) = (&mut self.noted, &mut self.foreign);
        let (ways, behind) = (&mut self.ways, &self.behind);
        let whole = take(&mut self.notes, &mut |note| {
            let letter = note.prefix.chars().next().unwrap_or_default();
            let none = || Noted {
                services: Indexes::new(taps.services),
                packets: 0,
            };
            let noted = noted.entry(letter).or_insert_with(none);
            noted.packets += 1;
            match service(&note, taps) {
                Some(index) => {
                    noted.services.insert(index);
                    if taps.note_ways {
                        note_way(ways, behind, index, letter, &note);
                    }
                }
                None => *foreign += 1,
            }
        });
        let fail = |source| IptablesError::Notes {
            step: "receive",
            source,
        };
        if whole.map_err(fail)? {
            Ok(())
        } else {
            Err(IptablesError::Overrun)
        }
    }

    /// The tables that hold taps.
    fn save_tables(&self) -> Result<IptablesSave, IptablesError> {
        // That variant reads all tables from the kernel, whatever it is to print.
        if self.iptables.variant == Variant::Nft {
            return self.iptables.save(None);
        }
        let mut save = IptablesSave::default();
        for tap in &self.plan.points {
            if !save.tables.contains_key(tap.table) {
                let one = self.iptables.save(Some(tap.table))?;
                save.tables.extend(one.tables);
            }
        }
        Ok(save)
    }

    /// Removes the taps, and what came into being with them.
    ///
    /// # Errors
    /// [`IptablesError`]; what is already gone is no error.
    pub fn remove(mut self) -> Result<(), IptablesError> {
        let _turn = self.iptables.turn()?;
        self.clear()?;
        self.iptables.strike()
    }

    /// Removes everything. The caller has its turn.
    fn clear(&mut self) -> Result<(), IptablesError> {
        let mine = self.plan.identity.clone();
        let last = self.last.take();
        remove_marked(&self.iptables, last, |mark| mark.identity == mine)?;
        remove_made(&self.iptables, &self.plan.made).map(drop)
    }
}

fn doubtful(taps: &Taps, services: Vec<u32>, reason: &str) -> Option<Undecided> {
    let mut undecided = Undecided {
        services: Indexes::new(taps.services),
        reason: reason.to_owned(),
    };
    for index in services {
        undecided.services.insert(index);
    }
    (!undecided.services.is_empty()).then_some(undecided)
}

/// What installing will bring into being: what is not there, and what is there only because of
/// other jobs' taps.
fn made(
    before: &IptablesSave,
    noted: Vec<&'static MadeByTaps>,
    others: &Others,
    points: &[Tap],
) -> Vec<&'static MadeByTaps> {
    let mut inherited = noted;
    inherited.extend(marks(before).flat_map(|mark| mark.made));
    let used = |part: &&MadeByTaps| {
        points
            .iter()
            .any(|tap| tap.table == part.table && part.chain.is_none_or(|chain| chain == tap.base))
    };
    let missing = |part: &&MadeByTaps| !others.own.has(part.table, part.chain);
    let parts = PARTS.iter().filter(used);
    parts
        .filter(|part| missing(part) || inherited.contains(part))
        .collect()
}

/// The job as its comments will show it: what a comment cannot hold is left out here too, or the
/// job would not find its own rules again.
fn identity(taps: &Taps, owner: &OwnerMark) -> Identity {
    // The DSCP is the first six bits of every tag, so it is one that is allowed.
    let dscp = Dscp::new((taps.tags.prefix().0 >> 26) as u8).unwrap_or(Dscp::DEFAULT);
    let mark = Mark {
        identity: Identity {
            run_id: taps.run_id.clone(),
            dscp,
            owner: owner.clone(),
        },
        point: letter::OUT,
        made: Vec::new(),
    };
    Mark::parse(&mark.comment()).unwrap_or(mark).identity
}

fn listen(iptables: &Iptables, taps: &Taps) -> Result<Notes, IptablesError> {
    let (base, _) = taps.tags.prefix();
    let first = FIRST_GROUP + (base >> 17) as u16 % FIRST_GROUP;
    let groups = first..first + GROUP_ATTEMPTS;
    let expected = NOTES_PER_PROBE * taps.services as usize;
    let notes = iptables.inside(|| Notes::open_here(groups, Delivery::Together, expected))?;
    notes.map_err(|source| IptablesError::Notes {
        step: "listen to",
        source,
    })
}

/// Notes how a probe came to one of the last taps.
fn note_way(ways: &mut ProbeWays, behind: &LaterNat, index: u32, letter: char, note: &Note) {
    let out = [letter::OUT, letter::OUT_HEAD].contains(&letter);
    if !out && letter != letter::LOCAL {
        return;
    }
    let Some(left) = departure::left(note) else {
        return ways.doubt(index, "its headers were not seen".to_owned());
    };
    let Some((protocol, _)) = note.tag() else {
        return ways.doubt(index, "its headers were not seen".to_owned());
    };
    match behind.doubt(protocol, &left).filter(|_| out) {
        Some(why) => ways.doubt(index, why),
        None => ways.insert(index, left),
    }
}

/// The service whose probe `note` shows; none if it is no probe of this job.
fn service(note: &Note, taps: &Taps) -> Option<u32> {
    let (protocol, tag) = note.tag()?;
    let run = taps.runs.of(protocol);
    taps.tags.index(tag).filter(|index| run.contains(index))
}
