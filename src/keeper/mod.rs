//! The keeper: a process that holds an ordinary user's namespaces, in which their labs live.
//!
//! Everything that tsim does to the kernel, an ordinary user may do in a user namespace of their own.
//! Such a namespace, and the mount namespace with the names of routers and hosts, ends with the last
//! process in it. So the first command starts a process that stays behind and does nothing, and
//! later ones join it ([`join`]).
//!
//! ```text
//! <runtime directory of the user>/tsim/
//!   keeper.json     who the keeper is; removed when it ends by itself
//!   keeper.use      flock: shared by everybody inside, exclusive while a keeper is started or ends
//! /run/tsim-keeper.json    inside: the same, so that whoever is inside knows where it is
//! ```
//!
//! The keeper sleeps in inotify(7): whoever leaves, however that comes about, closes `keeper.use`.
//! When nobody is left who has that locked and no namespace has a name, the keeper ends. When it
//! is killed, everything that it holds is gone as soon as nobody is inside any more.

mod hold;
mod join;
mod obstacle;
mod world;

pub(crate) use self::{
    hold::{NAME, run},
    join::{Joined, KeeperError, Networks, find, join, stay},
    obstacle::{Obstacle, RefusedStep},
    world::{Keeper, inside},
};

/// Who the keeper is, in the runtime directory.
const STATE: &str = "keeper.json";
/// Who uses its namespaces.
const USE: &str = "keeper.use";
