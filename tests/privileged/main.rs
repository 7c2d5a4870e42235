//! Tests that need root: they make namespaces of their own, under names of their own, and remove
//! them. They never touch the machine's own network. What cannot run fails; nothing is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod behind;
mod buffers;
mod capture;
mod cases;
mod chains;
mod coexistence;
mod collect;
mod copy;
mod detailed;
mod detailed_chain;
mod detailed_chance;
mod detailed_faults;
mod detailed_hand;
mod detailed_protocols;
mod detailed_router;
mod doors;
mod doubts;
mod explain;
mod faults;
mod faults_ways;
mod hosts;
mod inside;
mod iptables;
mod kept;
mod kernels;
mod lab;
mod leaks;
mod links;
mod lots;
mod minilab;
mod netlink;
mod netns;
mod owner;
mod packet_size;
mod quick;
mod quick_cli;
mod registry;
mod replace;
mod reports;
mod residue;
mod support;
mod trace;
mod vacate;
mod way;
