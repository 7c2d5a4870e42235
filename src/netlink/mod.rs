//! Links, addresses, routes, policy rules and neighbours of one namespace, over rtnetlink(7);
//! sysctls of one namespace.
//!
//! [`object`] holds what the kernel is asked to hold, as plain values. [`Netlink`] is a socket
//! opened inside one namespace: it reads lists, looks routes up, and makes a [`Batch`] of changes,
//! which goes out in as few system calls as possible and comes back with every refusal, each with
//! the object that it was about, the errno, and the kernel's own explanation.
//!
//! The client is synchronous. rtnetlink answers within the system call that asks, so there is
//! nothing to wait for.

mod address;
mod batch;
pub mod buffers;
mod error;
mod exception;
mod fib;
mod link;
mod link_message;
mod lookup;
mod neighbour;
pub mod object;
mod reply;
mod requests;
mod route;
mod rule;
mod settle;
mod socket;
pub mod sysctl;
mod text;
mod unaskable;

pub use self::{
    batch::Batch,
    error::{NetlinkError, NetlinkErrors},
    exception::forget_exceptions,
    fib::{Fib, FibDecision},
    link::LinkChange,
    link_message::{BridgeOptions, KernelLink, NewVeth, PortOptions, VethEnd},
    lookup::{Lookup, LookupKind, LookupQuery},
    socket::Netlink,
    sysctl::SysctlError,
};
