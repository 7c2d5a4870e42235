//! Owner tables go with the socket that made them, and with no other.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tsim::{
    firewall::{
        TagSpace,
        nft::{
            NftSocket,
            inventory::Inventory,
            trace::{TraceSockets, TraceSpec, Tracer},
        },
    },
    model::{Dscp, Protocol, RunId},
    netlink::object::Family,
    netns::NetnsFd,
};

use crate::support::Bed;

/// Enough for the race to be lost several times where port ids are used again.
const ROUNDS: u64 = 200;

fn open(netns: &NetnsFd) -> TraceSockets {
    netns.enter(TraceSockets::open_here).unwrap().unwrap()
}

fn spec(run_id: &str) -> TraceSpec {
    TraceSpec {
        run_id: RunId::new(run_id).unwrap(),
        family: Family::V4,
        tags: TagSpace::new(Dscp::new(32).unwrap(), 1),
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        from_itself: false,
        ingress: None,
        pass_on: false,
    }
}

/// Makes the namespace's nf_tables busy, so that a socket that closes has to wait for its turn.
fn keep_busy(netns: &NetnsFd, stop: &AtomicBool) {
    let mut sockets = open(netns);
    while !stop.load(Ordering::Relaxed) {
        let (again, stopped) = Tracer::start(sockets, &spec("other")).unwrap().stop();
        stopped.unwrap();
        sockets = again;
    }
}

/// The kernel gives the port id of a closing socket away before it removes the tables of that id.
#[test]
fn a_socket_that_closes_takes_no_table_of_the_next_one() {
    let bed = Bed::new();
    let netns = bed.netns("r");
    // Opened first, so that it has the id that the kernel likes best: the process's.
    let mut before = open(&netns);
    let mut watcher = netns.enter(NftSocket::open_here).unwrap().unwrap();
    let stop = AtomicBool::new(false);
    let lost = thread::scope(|scope| {
        scope.spawn(|| keep_busy(&netns, &stop));
        let mut lost = 0;
        for round in 0..ROUNDS {
            let closing = thread::spawn(move || drop(before));
            // Each round meets the other thread at another point of its way.
            thread::sleep(Duration::from_micros(50 + round % 40 * 10));
            let tracer = Tracer::start(open(&netns), &spec("owner")).unwrap();
            closing.join().unwrap();
            let tables = Inventory::read(&mut watcher, 0).unwrap();
            lost += u32::from(!tables.has("tsimtrace_owner", None));
            let (sockets, stopped) = tracer.stop();
            stopped.unwrap();
            before = sockets;
        }
        stop.store(true, Ordering::Relaxed);
        lost
    });
    assert_eq!(lost, 0, "of {ROUNDS} tables");
}
