//! The order in which locks are taken, as types.
//!
//! Whoever takes a lock shows a [`Token`] of what it holds; the lock hands out the token of its
//! own level, which borrows the first. So while a lock is held, only locks of later levels can be
//! taken: a cycle, and with it a deadlock, does not compile. Tokens have no size.
//!
//! ```
//! use tsim::registry::order::{HostLeases, Hosts, Nothing, Token};
//! let mut nothing = Token::<Nothing>::new();
//! let mut hosts = nothing.then::<Hosts>();
//! let mut leases = hosts.then::<HostLeases>();
//! # let _ = &mut leases;
//! ```
//!
//! A level that is not after the one held does not compile; the unit test below goes through all
//! pairs. Neither does going back to an earlier token while a later one is in use:
//! ```compile_fail,E0499
//! use tsim::registry::order::{Hosts, Neighbours, Nothing, Token};
//! let mut nothing = Token::<Nothing>::new();
//! let neighbours = nothing.then::<Neighbours>();
//! let hosts = nothing.then::<Hosts>();
//! drop(neighbours);
//! ```
//!
//! A job that holds router locks has no way to touch hosts:
//! ```compile_fail,E0599
//! use tsim::registry::{HostKernel, HostSpec, Job, Locked, Wait};
//! fn late(job: &mut Job<Locked>, spec: &HostSpec, kernel: &mut impl HostKernel) {
//!     let _ = job.ensure_host_and_lease(spec, kernel, &Wait::not());
//! }
//! ```
//!
//! And a job without router locks cannot lease a neighbour:
//! ```compile_fail,E0599
//! use tsim::{netlink::object::Mac, registry::{Job, NeighbourKernel, NeighbourKey, Unlocked}};
//! fn early(job: &mut Job<Unlocked>, key: &NeighbourKey, kernel: &mut impl NeighbourKernel) {
//!     let _ = job.acquire_neighbor_lease(key, Mac([2, 0, 0, 0, 0, 1]), kernel);
//! }
//! ```

use std::marker::PhantomData;

/// A place in the order.
pub trait Level {}

/// `Self` comes before `L`.
#[diagnostic::on_unimplemented(
    message = "a lock of level `{L}` may not be taken while one of level `{Self}` is held"
)]
pub trait Before<L: Level>: Level {}

macro_rules! levels {
    ($($(#[$doc:meta])* $name:ident < [$($later:ident),*];)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub enum $name {}
            impl Level for $name {}
            $(impl Before<$later> for $name {})*
        )*
    };
}

levels! {
    /// No lock is held.
    Nothing < [HostQueue, Hosts, HostLeases, Routers, Neighbours, Dscp];
    /// The right to make or remove one host.
    HostQueue < [Hosts, HostLeases, Routers, Neighbours, Dscp];
    /// `hosts.json`.
    Hosts < [HostLeases, Routers, Neighbours, Dscp];
    /// `host_leases.json`.
    HostLeases < [Routers, Neighbours, Dscp];
    /// Router locks; several are taken at once, sorted by name.
    Routers < [Neighbours, Dscp];
    /// `neighbor_leases.json`.
    Neighbours < [Dscp];
    /// `dscp_registry.json`.
    Dscp < [];
}

/// Proof that nothing of a level later than `L` is held.
#[derive(Debug)]
pub struct Token<'a, L: Level>(PhantomData<&'a mut L>);

impl Token<'static, Nothing> {
    /// The token to start with. A thread or job that holds locks must not make another one.
    #[must_use]
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl Default for Token<'static, Nothing> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: Level> Token<'_, L> {
    /// Goes on to a later level; this token cannot be used while the new one is.
    pub fn then<M: Level>(&mut self) -> Token<'_, M>
    where
        L: Before<M>,
    {
        Token(PhantomData)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `$held` comes before `$taken`: the constant of the type itself, which it has only if it
    /// does, goes before the trait's.
    macro_rules! comes_before {
        ($held:ty, $taken:ty) => {{
            // Never asked where the level comes later.
            #[allow(dead_code)]
            trait Otherwise {
                const COMES_BEFORE: bool = false;
            }
            struct Held<L>(PhantomData<L>);
            impl<L> Otherwise for Held<L> {}
            #[allow(dead_code)]
            impl<L: Before<$taken>> Held<L> {
                const COMES_BEFORE: bool = true;
            }
            Held::<$held>::COMES_BEFORE
        }};
    }

    macro_rules! table {
        ($taken:tt; $($held:ident)*) => { [$(table!(row $held $taken)),*] };
        (row $held:ident [$($taken:ident)*]) => { [$(comes_before!($held, $taken)),*] };
    }

    #[test]
    fn a_level_can_be_followed_by_later_ones_alone() {
        let order = table!(
            [Nothing HostQueue Hosts HostLeases Routers Neighbours Dscp];
            Nothing HostQueue Hosts HostLeases Routers Neighbours Dscp
        );
        for (held, row) in order.iter().enumerate() {
            for (taken, &allowed) in row.iter().enumerate() {
                assert_eq!(allowed, held < taken, "level {held}, then level {taken}");
            }
        }
    }
}
