//! What the kernel must do for a quick job, and nothing else: the lower bound of what one can cost.
//!
//! A process of its own opens its sockets in the namespaces of router and host, puts the taps in with
//! one transaction, sends one burst, reads the taps, and takes them out with one transaction. It
//! resolves nothing, asks nobody, judges nothing and prints nothing. Several routers are worked off by
//! as many threads as there are processors.

use std::{
    env,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tsim::{
    firewall::{
        TagSpace, Taps,
        nft::{NftSocket, NftTaps},
    },
    model::{Dscp, NetnsName, Protocol, RunId, Service},
    netlink::object::Family,
    netns::{NetnsDir, visit},
    run::{
        packet::{Headers, Probe},
        probe::{Catalogue, ProbeSocket},
    },
    sys::leave,
};

/// Says that this process is to be the lower bound.
const CALL: &str = "--floor";

/// One router and the host that sends to it, by the names of their namespaces.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) router: String,
    pub(crate) host: String,
}

/// The lower bound as a command, for `services` TCP services from `source` to `destination`.
pub(crate) fn command(pairs: &[Pair], [source, destination]: [&str; 2], services: u32) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([CALL, source, destination, &services.to_string()]);
    for pair in pairs {
        command.args([&pair.router, &pair.host]);
    }
    command.stdout(Stdio::null());
    command
}

/// Is the lower bound and ends, if that is what this process was started for.
pub(crate) fn run_if_called() {
    let args: Vec<String> = env::args().collect();
    let [_, call, source, destination, services, places @ ..] = &args[..] else {
        return;
    };
    if call != CALL {
        return;
    }
    let probes = Probes::new(source, destination, services.parse().unwrap());
    let pairs: Vec<&[String]> = places.chunks(2).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some([router, host]) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
            probes.measure(router, host);
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        (1..workers.min(pairs.len())).for_each(|_| _ = scope.spawn(work));
        work();
    });
    leave::exit_leaving_descriptors(0)
}

struct Probes {
    taps: Taps,
    probes: Vec<Probe>,
}

impl Probes {
    fn new(source: &str, destination: &str, services: u16) -> Self {
        let all: Vec<Service> = (1..=services)
            .map(|port| Service {
                port,
                protocol: Protocol::Tcp,
            })
            .collect();
        let catalogue = Catalogue::new(&all);
        let taps = Taps::new(
            RunId::new(format!("floor{}", std::process::id())).unwrap(),
            Family::V4,
            TagSpace::new(Dscp::new(63).unwrap(), 0x5eed_f00d_5eed_f00d),
            (catalogue.len(), catalogue.runs().clone()),
        );
        let probe = |index| Probe {
            index,
            headers: Headers {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: Protocol::Tcp,
                source_port: 40_000,
                destination_port: catalogue.service(index).unwrap().port,
                tos: 0,
                ttl: 64,
                size: None,
                options_open: false,
                chosen: None,
            },
        };
        Self {
            probes: (0..catalogue.len()).map(probe).collect(),
            taps,
        }
    }

    fn measure(&self, router: &str, host: &str) {
        let dir = NetnsDir::default();
        let open = |name: &str| dir.open(&NetnsName::new(name).unwrap()).unwrap();
        let (router, host) = (open(router), open(host));
        let mut nft = visit(&[&router], |_| NftSocket::open_here()).unwrap();
        let mut raw = visit(&[&host], |_| ProbeSocket::open_here(Family::V4)).unwrap();
        let (nft, raw) = (nft.pop().unwrap().unwrap(), raw.pop().unwrap().unwrap());
        let mut taps = NftTaps::install(nft, self.taps.clone()).unwrap();
        let _ = raw.send(self.taps.tags, &self.probes);
        let reading = taps.read().unwrap();
        assert_eq!(reading.packets_in, self.probes.len() as u64, "all came in");
        let (nft, removed) = taps.remove();
        removed.unwrap();
        // Closed with the process, as the job does it.
        std::mem::forget(nft);
    }
}
