//! What the making of a lab is at, for whoever shows it.

/// What `up` is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading facts; nothing is changed yet.
    Facts,
    /// Removing what an interrupted `up` left.
    Sweep,
    /// Making this many namespaces.
    Namespaces(usize),
    /// Making this many segments.
    Segments(usize),
    /// Filling this many routers; [`Step::Filled`] comes once for each.
    Routers(usize),
    /// One router is filled.
    Filled,
    /// Rules of a router were refused and left out, and its ruleset is loaded again.
    Refused,
}

/// Told what `up` is at, from any of its threads.
pub trait Progress: Sync {
    /// `step` begins, or for [`Step::Filled`], is done.
    fn step(&self, step: Step);
}

/// Nobody wants to know.
impl Progress for () {
    fn step(&self, _step: Step) {}
}
