//! The policy against its promises: by example, and under random events against a simple world.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    quick: 3,
    detailed: 2,
    check: 1,
    total: 4,
    overtakes: 2,
    quick_time: Duration::from_secs(10),
    detailed_time: Duration::from_secs(100),
    check_time: Duration::from_secs(50),
    grace: Duration::from_secs(5),
};
const NOW: Duration = Duration::ZERO;

fn id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

/// Jobs named `q…` are quick, those named `c…` checks, all others detailed.
fn queue(names: &str) -> Event {
    let jobs = names.split_whitespace().map(|name| (id(name), mode(name)));
    Event::Queue(jobs.collect())
}

fn mode(name: &str) -> Mode {
    match name.chars().next() {
        Some('q') => Mode::Quick,
        Some('c') => Mode::Check,
        _ => Mode::Detailed,
    }
}

fn started(actions: &[Action]) -> Vec<&str> {
    let starts = actions.iter().filter_map(|action| match action {
        Action::Start(run_id) => Some(run_id.as_str()),
        _ => None,
    });
    starts.collect()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn each_mode_keeps_its_order_and_its_limit() {
    let mut state = State::new(LIMITS);
    let actions = state.step(queue("d1 d2 d3 q1 q2 q3"), NOW);
    // Two quick jobs overtake d1; then it is d1's turn, and the total is reached.
    assert_eq!(started(&actions), ["q1", "q2", "d1", "q3"]);
    assert_eq!(started(&state.step(Event::Ended(id("q2")), NOW)), ["d2"]);
    assert!(started(&state.step(Event::Ended(id("q1")), NOW)).is_empty());
    assert_eq!(started(&state.step(Event::Ended(id("d1")), NOW)), ["d3"]);
}

#[test]
fn a_detailed_job_is_overtaken_a_bounded_number_of_times() {
    let limits = Limits { total: 1, ..LIMITS };
    let mut state = State::new(limits);
    assert_eq!(started(&state.step(queue("d1 q1 q2 q3 q4"), NOW)), ["q1"]);
    let mut order = Vec::new();
    let mut last = id("q1");
    while let Some(next) = started(&state.step(Event::Ended(last), NOW)).first() {
        order.push((*next).to_owned());
        last = id(next);
    }
    assert_eq!(order, ["q2", "d1", "q3", "q4"]);
}

#[test]
fn quick_jobs_that_came_first_do_not_count_as_overtaking() {
    let limits = Limits {
        total: 1,
        overtakes: 0,
        ..LIMITS
    };
    let mut state = State::new(limits);
    assert_eq!(started(&state.step(queue("q1 q2 d1 q3"), NOW)), ["q1"]);
    assert_eq!(started(&state.step(Event::Ended(id("q1")), NOW)), ["q2"]);
    assert_eq!(started(&state.step(Event::Ended(id("q2")), NOW)), ["d1"]);
}

#[test]
fn a_check_comes_behind_both_and_is_overtaken_a_bounded_number_of_times() {
    let mut state = State::new(LIMITS);
    let actions = state.step(queue("c1 c2 d1 q1"), NOW);
    assert_eq!(started(&actions), ["q1", "d1", "c1"]);
    // One at a time, and it needs a DSCP value as a quick job does.
    assert!(started(&state.step(queue("c2"), NOW)).is_empty());
    assert_eq!(started(&state.step(Event::Ended(id("c1")), NOW)), ["c2"]);
    let why = Event::NotStarted(id("c2"), NotStarted::NoDscp);
    assert!(started(&state.step(why, NOW)).is_empty());
    assert!(state.waits_for_dscp());
    assert_eq!(started(&state.step(Event::DscpMayBeFree, NOW)), ["c2"]);

    let mut state = State::new(Limits { total: 1, ..LIMITS });
    assert_eq!(started(&state.step(queue("c1 d1 q1 d2 q2"), NOW)), ["q1"]);
    let mut order = Vec::new();
    let mut last = id("q1");
    while let Some(next) = started(&state.step(Event::Ended(last), NOW)).first() {
        order.push((*next).to_owned());
        last = id(next);
    }
    assert_eq!(order, ["q2", "c1", "d1", "d2"]);
}

#[test]
fn without_a_dscp_jobs_return_to_their_places_and_detailed_ones_go_on() {
    let mut state = State::new(LIMITS);
    assert_eq!(started(&state.step(queue("q1 q2 q3"), NOW)).len(), 3);
    for name in ["q2", "q3"] {
        let why = Event::NotStarted(id(name), NotStarted::NoDscp);
        assert!(started(&state.step(why, NOW)).is_empty());
    }
    assert!(state.waits_for_dscp());
    assert_eq!(started(&state.step(queue("q2 q3 d1"), NOW)), ["d1"]);
    let actions = state.step(Event::DscpMayBeFree, NOW);
    assert_eq!(started(&actions), ["q2", "q3"]);
}

#[test]
fn a_job_that_never_ends_is_terminated_then_killed_then_reconciled() {
    let mut state = State::new(LIMITS);
    state.step(queue("q1"), NOW);
    assert_eq!(state.deadline(), Some(secs(10)));
    assert_eq!(
        state.step(Event::Time, secs(10)),
        [Action::Terminate(id("q1"))]
    );
    assert_eq!(state.deadline(), Some(secs(15)));
    assert_eq!(state.step(Event::Time, secs(14)), []);
    assert_eq!(state.step(Event::Time, secs(15)), [Action::Kill(id("q1"))]);
    assert_eq!(state.deadline(), None);
    let close = Action::Close {
        run_id: id("q1"),
        cause: Some(EndCause::TimedOut),
        killed: true,
    };
    assert_eq!(state.step(Event::Ended(id("q1")), secs(16)), [close]);
}

#[test]
fn the_first_cause_of_an_end_is_the_one_reported() {
    let mut state = State::new(LIMITS);
    state.step(queue("q1"), NOW);
    let actions = state.step(Event::Cancel(id("q1")), secs(1));
    assert_eq!(actions, [Action::Terminate(id("q1"))]);
    assert_eq!(state.step(Event::Terminate, secs(2)), []);
    assert_eq!(state.step(Event::Terminate, secs(2)), []);
    let close = Action::Close {
        run_id: id("q1"),
        cause: Some(EndCause::Cancelled),
        killed: false,
    };
    let actions = state.step(Event::Ended(id("q1")), secs(3));
    assert_eq!(actions, [close, Action::Exit]);
}

#[test]
fn an_adopted_job_has_only_the_rest_of_its_time() {
    let mut state = State::new(LIMITS);
    let adopted = Event::Adopted {
        run_id: id("q1"),
        mode: Mode::Quick,
        age: secs(7),
    };
    state.step(adopted, secs(100));
    assert_eq!(state.deadline(), Some(secs(103)));
    assert!(started(&state.step(queue("q1"), secs(101))).is_empty());
}

#[test]
fn a_busy_system_is_asked_again_after_a_pause() {
    let mut state = State::new(LIMITS);
    state.step(queue("q1"), NOW);
    let actions = state.step(Event::NotStarted(id("q1"), NotStarted::Busy), NOW);
    assert_eq!(actions, []);
    assert_eq!(state.deadline(), Some(BUSY_PAUSE));
    assert_eq!(started(&state.step(Event::Time, BUSY_PAUSE)), ["q1"]);
}

#[test]
fn terminate_drains_and_twice_cancels() {
    let mut state = State::new(LIMITS);
    state.step(queue("q1 q2"), NOW);
    assert_eq!(state.step(Event::Terminate, NOW), []);
    assert_eq!(state.step(queue("q3"), NOW), []);
    assert_eq!(
        state.step(Event::Terminate, NOW),
        [Action::Terminate(id("q1")), Action::Terminate(id("q2"))]
    );
    state.step(Event::Ended(id("q1")), NOW);
    let actions = state.step(Event::Ended(id("q2")), NOW);
    assert_eq!(actions.last(), Some(&Action::Exit));
}

#[test]
fn an_idle_scheduler_exits_at_once() {
    let mut state = State::new(LIMITS);
    assert_eq!(state.step(Event::Terminate, NOW), [Action::Exit]);
    assert_eq!(state.deadline(), None);
}

/// What the world around the policy may do next.
#[derive(Debug, Clone, Copy)]
enum Move {
    Submit(bool),
    CancelQueued(usize),
    CancelRunning(usize),
    End(usize),
    ReleaseForeignDscp,
    HoldForeignDscp,
    Pass(u64),
    Terminate,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        8 => any::<bool>().prop_map(Move::Submit),
        1 => any::<usize>().prop_map(Move::CancelQueued),
        1 => any::<usize>().prop_map(Move::CancelRunning),
        6 => any::<usize>().prop_map(Move::End),
        1 => Just(Move::ReleaseForeignDscp),
        1 => Just(Move::HoldForeignDscp),
        3 => (0u64..20).prop_map(Move::Pass),
        1 => prop_oneof![9 => Just(Move::Pass(1)), 1 => Just(Move::Terminate)],
    ];
    prop::collection::vec(one, 1..120)
}

/// A world that believes only in what it saw: files, processes, DSCP values.
struct World {
    state: State,
    now: Duration,
    queue: Vec<(RunId, Mode)>,
    processes: BTreeMap<RunId, Mode>,
    terminated: BTreeMap<RunId, Duration>,
    ever_started: BTreeSet<RunId>,
    closed: BTreeSet<RunId>,
    foreign_dscp: usize,
    overtaken: BTreeMap<RunId, u32>,
    asked_to_stop: bool,
    exited: bool,
    submitted: usize,
}

const DSCPS: usize = 3;

impl World {
    fn new() -> Self {
        Self {
            state: State::new(LIMITS),
            now: NOW,
            queue: Vec::new(),
            processes: BTreeMap::new(),
            terminated: BTreeMap::new(),
            ever_started: BTreeSet::new(),
            closed: BTreeSet::new(),
            foreign_dscp: 0,
            overtaken: BTreeMap::new(),
            asked_to_stop: false,
            exited: false,
            submitted: 0,
        }
    }

    fn feed(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.state.step(event.clone(), self.now) {
                self.carry_out(action, &mut events);
            }
        }
        self.check();
    }

    fn carry_out(&mut self, action: Action, events: &mut Vec<Event>) {
        match action {
            Action::Start(run_id) => self.start(run_id, events),
            Action::Terminate(run_id) => {
                assert!(self.processes.contains_key(&run_id), "SIGTERM to nobody");
                assert!(self.terminated.insert(run_id, self.now).is_none());
            }
            Action::Kill(run_id) => {
                let since = self.terminated[&run_id];
                assert!(self.now >= since + LIMITS.grace, "killed without grace");
            }
            Action::Close { run_id, .. } => {
                assert!(!self.processes.contains_key(&run_id), "closed while alive");
                assert!(self.closed.insert(run_id), "closed twice");
            }
            Action::Exit => {
                assert!(self.asked_to_stop && self.processes.is_empty() && !self.exited);
                self.exited = true;
            }
        }
    }

    fn start(&mut self, run_id: RunId, events: &mut Vec<Event>) {
        assert!(!self.asked_to_stop, "started while draining");
        let Some(place) = self.queue.iter().position(|(id, _)| *id == run_id) else {
            events.push(Event::NotStarted(run_id, NotStarted::Gone));
            return;
        };
        let job_mode = self.queue[place].1;
        let quick = self.count(Mode::Quick);
        if job_mode == Mode::Quick && quick + self.foreign_dscp >= DSCPS {
            events.push(Event::NotStarted(run_id, NotStarted::NoDscp));
            return;
        }
        let first = self.queue.iter().position(|(_, mode)| *mode == job_mode);
        assert_eq!(first, Some(place), "not FIFO within its mode");
        assert!(self.ever_started.insert(run_id.clone()), "started twice");
        self.note_overtaking(place, job_mode);
        self.queue.remove(place);
        self.processes.insert(run_id, job_mode);
    }

    fn note_overtaking(&mut self, place: usize, job_mode: Mode) {
        let room = self.count(Mode::Detailed) < LIMITS.detailed;
        let waiting = self.queue[..place]
            .iter()
            .find(|(_, mode)| *mode == Mode::Detailed);
        if let (Mode::Quick, true, Some((overtaken, _))) = (job_mode, room, waiting) {
            let count = self.overtaken.entry(overtaken.clone()).or_default();
            *count += 1;
            assert!(*count <= LIMITS.overtakes, "{overtaken} starves");
        }
    }

    fn count(&self, mode: Mode) -> usize {
        self.processes.values().filter(|m| **m == mode).count()
    }

    fn check(&self) {
        let (quick, detailed) = (self.count(Mode::Quick), self.count(Mode::Detailed));
        assert!(quick <= LIMITS.quick && detailed <= LIMITS.detailed);
        assert!(quick + detailed <= LIMITS.total);
        let waits = |mode| self.queue.iter().any(|(_, m)| *m == mode);
        let room = quick + detailed < LIMITS.total && !self.asked_to_stop;
        assert!(
            !(room && waits(Mode::Detailed) && detailed < LIMITS.detailed),
            "a detailed job waits although there is room"
        );
        let dscp = quick + self.foreign_dscp < DSCPS;
        assert!(
            !(room && waits(Mode::Quick) && quick < LIMITS.quick && dscp),
            "a quick job waits although there is room"
        );
        for (run_id, since) in &self.terminated {
            let alive = self.processes.contains_key(run_id);
            let due = since.saturating_add(LIMITS.grace);
            assert!(!alive || self.state.deadline().is_some() || due <= self.now);
        }
    }

    fn pick(&self, index: usize) -> Option<RunId> {
        let count = self.processes.len().max(1);
        self.processes.keys().nth(index % count).cloned()
    }

    fn make(&mut self, a_move: Move) {
        match a_move {
            Move::Submit(quick) => {
                self.submitted += 1;
                let name = format!("{}{}", if quick { 'q' } else { 'd' }, self.submitted);
                self.queue.push((id(&name), mode(&name)));
                self.feed(Event::Queue(self.queue.clone()));
            }
            Move::CancelQueued(index) if !self.queue.is_empty() => {
                self.queue.remove(index % self.queue.len());
                self.feed(Event::Queue(self.queue.clone()));
            }
            Move::CancelQueued(_) => {}
            Move::CancelRunning(index) => {
                if let Some(run_id) = self.pick(index) {
                    self.feed(Event::Cancel(run_id));
                }
            }
            Move::End(index) => {
                if let Some(run_id) = self.pick(index) {
                    self.processes.remove(&run_id);
                    self.feed(Event::Ended(run_id));
                }
            }
            Move::ReleaseForeignDscp => {
                self.foreign_dscp = 0;
                self.feed(Event::DscpMayBeFree);
            }
            Move::HoldForeignDscp => {
                self.foreign_dscp = DSCPS.saturating_sub(self.count(Mode::Quick));
            }
            Move::Pass(seconds) => {
                self.now += secs(seconds);
                self.feed(Event::Time);
            }
            Move::Terminate => {
                self.asked_to_stop = true;
                self.feed(Event::Terminate);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { fork: false, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn no_history_of_events_breaks_a_promise(moves in moves()) {
        let mut world = World::new();
        for a_move in moves {
            world.make(a_move);
        }
        // Let everything end: nothing is lost, everything that started is closed once.
        world.make(Move::ReleaseForeignDscp);
        while let Some(run_id) = world.pick(0) {
            world.processes.remove(&run_id);
            world.feed(Event::Ended(run_id));
        }
        prop_assert_eq!(&world.ever_started, &world.closed);
        prop_assert!(world.asked_to_stop || world.queue.is_empty());
        prop_assert_eq!(world.asked_to_stop, world.exited);
    }
}
