//! Model check: every interleaving of a few jobs that enter, wait, hold, leave and die.
//!
//! A job is a program counter; one step of it is one system call, as in `lock.rs`. The explorer
//! visits every state that any schedule reaches, with a death possible before each step.

use std::collections::{BTreeMap, HashSet};

use super::{LockMode, Numbered, blocks, nearest, next_number};

/// Where a job is; named after the system call that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum At {
    LockDirectory,
    List,
    OpenFifo(u64),
    Rename(u64),
    UnlockDirectory(u64),
    Look(u64),
    Probe { mine: u64, ahead: u64 },
    Poll { mine: u64, ahead: u64 },
    RemoveDead { mine: u64, ahead: u64 },
    Holding(u64),
    Close(u64),
    Dead,
    Done,
}

/// A ticket in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    mode: LockMode,
    /// Whether its owner has the FIFO open.
    open: bool,
}

impl Numbered for (u64, Entry) {
    fn place(&self) -> (u64, LockMode) {
        (self.0, self.1.mode)
    }
}

impl PartialOrd for LockMode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for LockMode {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

/// A mistake put into the protocol on purpose, to see that the explorer finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The number is taken without locking the directory.
    NoDirectoryLock,
    /// A shared job does not mind exclusive ones that wait.
    SharedOvertakes,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    jobs: Vec<(LockMode, At, u8)>,
    directory: BTreeMap<u64, Entry>,
    locked_by: Option<usize>,
    deaths_left: u8,
}

impl State {
    fn new(modes: &[LockMode], rounds: u8, deaths_left: u8) -> Self {
        Self {
            jobs: modes
                .iter()
                .map(|&m| (m, At::LockDirectory, rounds))
                .collect(),
            directory: BTreeMap::new(),
            locked_by: None,
            deaths_left,
        }
    }

    fn entries(&self) -> Vec<(u64, Entry)> {
        self.directory.iter().map(|(&n, &e)| (n, e)).collect()
    }

    /// The state after job `j`'s next step; none while it sleeps or is at its end.
    fn step(&self, j: usize, flaw: Flaw) -> Option<Self> {
        let mut next = self.clone();
        let (mode, at, rounds) = self.jobs[j];
        let after = match at {
            At::LockDirectory if flaw == Flaw::NoDirectoryLock => At::List,
            At::LockDirectory if self.locked_by.is_some() => return None,
            At::LockDirectory => {
                next.locked_by = Some(j);
                At::List
            }
            At::List => At::OpenFifo(next_number(self.directory.keys().copied())),
            At::OpenFifo(n) => At::Rename(n),
            At::Rename(n) => {
                next.directory.insert(n, Entry { mode, open: true });
                At::UnlockDirectory(n)
            }
            At::UnlockDirectory(n) => {
                next.locked_by = None;
                At::Look(n)
            }
            At::Look(mine) => self.look(mine, mode, flaw),
            At::Probe { mine, ahead } => match self.directory.get(&ahead) {
                Some(entry) if entry.open => At::Poll { mine, ahead },
                Some(_) => At::RemoveDead { mine, ahead },
                None => At::Look(mine),
            },
            At::RemoveDead { mine, ahead } => {
                // By name: whatever has that name by now.
                next.directory.remove(&ahead);
                At::Look(mine)
            }
            At::Poll { ahead, .. } if self.directory.get(&ahead).is_some_and(|e| e.open) => {
                return None;
            }
            At::Poll { mine, .. } => At::Look(mine),
            At::Holding(n) => {
                next.directory.remove(&n);
                At::Close(n)
            }
            At::Close(_) if rounds > 1 => At::LockDirectory,
            At::Close(_) => At::Done,
            At::Dead | At::Done => return None,
        };
        let left = rounds - u8::from(matches!(at, At::Close(_)) && rounds > 1);
        next.jobs[j] = (mode, after, left);
        Some(next)
    }

    fn look(&self, mine: u64, mode: LockMode, flaw: Flaw) -> At {
        let mut entries = self.entries();
        if flaw == Flaw::SharedOvertakes && mode == LockMode::Shared {
            let held = |n: u64| self.jobs.iter().any(|j| j.1 == At::Holding(n));
            entries.retain(|(n, _)| held(*n));
        }
        match nearest(&entries, (mine, mode)) {
            Some(&(ahead, _)) => At::Probe { mine, ahead },
            None => At::Holding(mine),
        }
    }

    /// The state after job `j` was killed: the kernel closes its FIFO and frees its lock.
    fn death(&self, j: usize) -> Option<Self> {
        let (mode, at, rounds) = self.jobs[j];
        if self.deaths_left == 0 || matches!(at, At::Dead | At::Done) {
            return None;
        }
        let mut next = self.clone();
        next.deaths_left -= 1;
        next.jobs[j] = (mode, At::Dead, rounds);
        if self.locked_by == Some(j) {
            next.locked_by = None;
        }
        if let Some(n) = number(at)
            && let Some(entry) = next.directory.get_mut(&n)
        {
            entry.open = false;
        }
        Some(next)
    }

    /// What must hold in every state.
    fn check(&self) -> Result<(), String> {
        let holding: Vec<(u64, LockMode)> = self
            .jobs
            .iter()
            .filter_map(|(mode, at, _)| match at {
                At::Holding(n) => Some((*n, *mode)),
                _ => None,
            })
            .collect();
        if holding.len() > 1 && holding.iter().any(|h| h.1 == LockMode::Exclusive) {
            return Err(format!("held together: {holding:?}"));
        }
        // No overtaking: nobody who waits came before somebody who holds and is in the way.
        for (mode, at, _) in &self.jobs {
            let (At::Look(n)
            | At::Probe { mine: n, .. }
            | At::Poll { mine: n, .. }
            | At::RemoveDead { mine: n, .. }) = *at
            else {
                continue;
            };
            if let Some(h) = holding.iter().find(|h| blocks((n, *mode), **h)) {
                return Err(format!("{h:?} overtook {n}"));
            }
        }
        Ok(())
    }
}

/// The number of a job's linked ticket.
fn number(at: At) -> Option<u64> {
    match at {
        At::UnlockDirectory(n) | At::Look(n) | At::Holding(n) => Some(n),
        At::Probe { mine, .. } | At::Poll { mine, .. } | At::RemoveDead { mine, .. } => Some(mine),
        _ => None,
    }
}

/// Visits every reachable state; returns how many there are.
fn explore(start: State, flaw: Flaw) -> Result<usize, String> {
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        state.check().map_err(|e| format!("{e} in {state:?}"))?;
        let jobs = 0..state.jobs.len();
        let steps: Vec<State> = jobs.clone().filter_map(|j| state.step(j, flaw)).collect();
        let at_end = |j: &(LockMode, At, u8)| matches!(j.1, At::Dead | At::Done);
        if steps.is_empty() && !state.jobs.iter().all(at_end) {
            return Err(format!("everybody sleeps in {state:?}"));
        }
        let deaths = jobs.filter_map(|j| state.death(j));
        for next in steps.into_iter().chain(deaths) {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    Ok(seen.len())
}

/// Three jobs of any modes; who is first does not matter, because every schedule is tried.
fn mixes() -> [[LockMode; 3]; 4] {
    use LockMode::{Exclusive as X, Shared as S};
    [[S, S, S], [S, S, X], [S, X, X], [X, X, X]]
}

#[test]
fn no_schedule_breaks_exclusion_order_or_progress() {
    let mut states = 0;
    for modes in mixes() {
        states += explore(State::new(&modes, 2, 1), Flaw::None).unwrap();
        states += explore(State::new(&modes, 1, 3), Flaw::None).unwrap();
    }
    assert!(states > 30_000, "{states} states: the model got smaller");
}

#[test]
fn the_explorer_finds_what_is_wrong_on_purpose() {
    for (flaw, want) in [
        (Flaw::NoDirectoryLock, "held together"),
        (Flaw::SharedOvertakes, "overtook"),
    ] {
        let broken = mixes()
            .iter()
            .find_map(|modes| explore(State::new(modes, 2, 1), flaw).err());
        let broken = broken.unwrap_or_default();
        assert!(broken.contains(want), "{flaw:?}: {broken:?}");
    }
}
