//! What the making of a lab is at, for whoever shows it.

/// What `up` is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpStep {
    /// Reading facts; nothing is changed yet.
    Facts,
    /// Removing what an interrupted `up` left.
    Sweep,
    /// Making this many namespaces.
    Namespaces(usize),
    /// Making this many segments.
    Segments(usize),
    /// Filling this many routers; [`UpStep::Filled`] comes once for each.
    Routers(usize),
    /// One router is filled.
    Filled,
    /// Rules of a router were refused and left out, and its ruleset is loaded again.
    Refused,
}

/// Told what `up` is at, from any of its threads.
pub trait UpProgress: Sync {
    /// `step` begins, or for [`UpStep::Filled`], is done.
    fn step(&self, step: UpStep);
}

/// Nobody wants to know.
impl UpProgress for () {
    fn step(&self, _step: UpStep) {}
}
