//! What really happens: a plain host of a chain of plain routers sends, and packet sockets show where
//! its packets come out.
//!
//! The chain is made by plain commands. Of the code under test nothing takes part but what opens a
//! namespace, and what waits until the kernel has brought links up.

use std::{
    collections::BTreeSet,
    env,
    io::Write as _,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::symlink,
    },
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
    unistd::Pid,
};
use tsim::{netlink::Netlink, netns::NetnsFd};

use super::{
    packets::{Requests, Sending, raw},
    plan::{Loader, Plan, Protocol, Service},
    script::{self, WIRES},
    world::{Node, World},
};
use crate::{
    capture::Capture,
    support::{Bed, ifname},
};

/// More times than a packet is queued on its way through a chain.
const TURNS: usize = 80;
/// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`, linux/netfilter/nfnetlink_conntrack.h.
const DELETE_CONNECTIONS: u16 = 1 << 8 | 2;

/// Where a packet came out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// At the destination's interface.
    Arrived,
    /// It was given to a program of this router.
    Router(String),
    Lost,
}

/// A chain that was made.
pub(super) struct Chain {
    /// Removes its namespaces in the end.
    pub(super) bed: Bed,
    pub(super) source: NetnsFd,
    destination: Capture,
    /// Raw sockets of the routers, which get what the routers' own programs would get.
    routers: Vec<(String, Vec<(Protocol, OwnedFd)>)>,
}

impl Chain {
    /// Makes the chain of a plan; how the shell refused it, if it did.
    pub(super) fn make(plan: &Plan, world: &World) -> Result<Self, String> {
        let bed = Bed::new();
        let text = script::of(world, plan.loader, bed.lab.as_str());
        shell(&text).map_err(|errors| format!("{errors}\n{text}"))?;
        let open = |name: &str| bed.dir.open(&bed.name(name)).unwrap();
        let ports: Vec<_> = script::ports(world).iter().map(|p| ifname(p)).collect();
        let mut wires = Netlink::open(&open(WIRES)).unwrap();
        wires
            .await_forwarding(&ports.iter().collect::<Vec<_>>())
            .unwrap();
        let names = world.routers.iter().map(|node| node.name.as_str());
        for name in names.chain(["source", "destination"]) {
            let mut netlink = Netlink::open(&open(name)).unwrap();
            netlink.await_settled().unwrap();
        }
        let server = world.server();
        let inside = ifname(&format!("s{}", server.interfaces[0].0));
        let destination = Capture::start(&open(&server.name), &inside);
        let mut protocols: Vec<Protocol> = plan.services.iter().map(|s| s.protocol).collect();
        protocols.sort_unstable();
        protocols.dedup();
        let sockets = |node: &Node| {
            let open_all = || {
                let sockets = protocols.iter().map(|one| (*one, raw(plan.v6, *one)));
                sockets.collect()
            };
            (node.name.clone(), open(&node.name).enter(open_all).unwrap())
        };
        Ok(Self {
            source: open(&world.sender),
            destination,
            routers: world.routers.iter().map(sockets).collect(),
            bed,
        })
    }

    /// What the script for collecting facts prints on a router.
    pub(super) fn facts(&self, plan: &Plan, router: &str) -> Vec<u8> {
        let netns = format!("{}.{router}", self.bed.lab);
        // Where iptables is its legacy variant, the plain names are that.
        let names = tempfile::tempdir().unwrap();
        if plan.loader == Loader::IptablesLegacy {
            for six in ["", "6"] {
                let real = format!("/usr/sbin/ip{six}tables-legacy-save");
                symlink(real, names.path().join(format!("ip{six}tables-save"))).unwrap();
            }
        }
        let path = format!("{}:{}", names.path().display(), env::var("PATH").unwrap());
        let output = Command::new("ip")
            .args(["netns", "exec", &netns, "sh", "src/lab/facts/collect.sh"])
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// Sends a packet of each service from the sender, with that mark there, and says what became of
    /// each.
    pub(super) fn send(&self, plan: &Plan, world: &World, mark: u32) -> Vec<Fate> {
        let all = self.send_some(plan, world, mark, 1).into_iter();
        all.map(|fates| fates.into_iter().next().unwrap()).collect()
    }

    /// Sends so many packets of each service, of another client each, and says what became of them.
    pub(super) fn send_some(
        &self,
        plan: &Plan,
        world: &World,
        mark: u32,
        count: u16,
    ) -> Vec<BTreeSet<Fate>> {
        let (from, to) = &world.asked;
        let is_router = world.routers.iter().any(|node| node.name == world.sender);
        let sending = Sending {
            to: to.parse().unwrap(),
            from: is_router.then(|| from.parse().unwrap()),
            tos: plan.dscp << 2,
            mark,
            size: plan.size(),
        };
        let sent = self.source.enter(|| {
            stay_here();
            let fence = Fence::new();
            let one = |service: &Service| {
                let send = |number| sending.send(*service, number);
                let _sockets: Vec<OwnedFd> = (0..count).map(send).collect();
                fence.pass();
                self.fates(*service, plan.v6, count.into())
            };
            plan.services.iter().map(one).collect()
        });
        sent.unwrap()
    }

    /// What became of packets that were sent since this was asked last.
    fn fates(&self, service: Service, v6: bool, sent: usize) -> BTreeSet<Fate> {
        let mut fates = BTreeSet::new();
        let mut arrived = Requests::default();
        for frame in self.destination.frames() {
            arrived.add(&frame[14..], service);
        }
        let mut found = arrived.count;
        fates.extend((found > 0).then_some(Fate::Arrived));
        for (name, sockets) in &self.routers {
            let socket = sockets.iter().find(|(of, _)| *of == service.protocol);
            let taken = socket.map_or(0, |(_, socket)| taken(socket, service, v6));
            found += taken;
            fates.extend((taken > 0).then(|| Fate::Router(name.clone())));
        }
        fates.extend((found < sent).then_some(Fate::Lost));
        fates
    }

    /// Does something with each choice of one next hop where routes have several: they are replaced,
    /// and routers forget the connections of before.
    pub(super) fn by_each<T>(
        &self,
        plan: &Plan,
        world: &World,
        mut one: impl FnMut() -> T,
    ) -> Vec<T> {
        fn spread(node: &Node) -> Vec<(&Node, &String, &Vec<String>)> {
            let routes = node.spread.iter();
            routes.map(|(to, by)| (node, to, by)).collect()
        }
        // All routes of one router go the same way: they have the same next hops.
        let routers: Vec<Vec<_>> = world.routers.iter().map(spread).collect();
        let routers: Vec<_> = routers.iter().filter(|routes| !routes.is_empty()).collect();
        let counts = routers.iter().map(|routes| routes[0].2.len());
        let each = (0..counts.product::<usize>()).map(|mut choices| {
            for routes in &routers {
                let count = routes[0].2.len();
                for (router, to, by) in *routes {
                    self.replace(plan, router, to, &by[choices % count]);
                }
                choices /= count;
            }
            if !routers.is_empty() {
                world.routers.iter().for_each(|node| self.forget(node));
            }
            one()
        });
        each.collect()
    }

    fn replace(&self, plan: &Plan, node: &Node, to: &str, gateway: &str) {
        let router = &node.name;
        let (family, netns) = (if plan.v6 { "-6" } else { "-4" }, self.bed.name(router));
        let any = if plan.v6 { "::/0" } else { "0.0.0.0/0" };
        let to = if to == "default" { any } else { to };
        for what in [
            match node.next_hops.is_empty() {
                true => format!("route flush exact {to} table main"),
                // What ip(8) flushes of a route that refers to an object, the kernel does not take.
                false => format!("route del {to} table main"),
            },
            format!("route add {to} via {gateway}"),
        ] {
            let mut command = Command::new("ip");
            command.args([family, "-n", netns.as_str()]);
            let done = command.args(what.split(' ')).status().unwrap();
            assert!(done.success(), "{what} at {router}");
        }
    }

    /// Has a router forget all connections.
    fn forget(&self, node: &Node) {
        let netns = self.bed.dir.open(&self.bed.name(&node.name)).unwrap();
        let forget = || {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            );
            let socket = socket.unwrap();
            // struct nlmsghdr with NLM_F_REQUEST and NLM_F_ACK, and struct nfgenmsg of any family.
            let mut message = 20_u32.to_ne_bytes().to_vec();
            message.extend(DELETE_CONNECTIONS.to_ne_bytes());
            message.extend(5_u16.to_ne_bytes());
            message.extend([0; 12]);
            let kernel = NetlinkAddr::new(0, 0);
            sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty()).unwrap();
            let mut reply = [0; 64];
            let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty()).unwrap();
            // An acknowledgement is an error of 0.
            assert_eq!((length >= 20, &reply[16..20]), (true, &[0; 4][..]));
        };
        netns.enter(forget).unwrap();
    }
}

/// Keeps this thread on its processor.
pub(crate) fn stay_here() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

/// A socket that sends to itself over loopback. What a processor has queued before is through when
/// its own datagram is, so that after some of these no packet of before is under way.
pub(crate) struct Fence(UdpSocket);

impl Fence {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn pass(&self) {
        for _ in 0..TURNS {
            self.0.send(&[0]).unwrap();
            self.0.recv(&mut [0]).unwrap();
        }
    }
}

/// How many requests of the service a raw socket got since it was asked last.
fn taken(socket: &OwnedFd, service: Service, v6: bool) -> usize {
    let mut buffer = [0; 2048];
    let mut requests = Requests::default();
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // IPv6 raw sockets leave the IP header out.
            Ok(length) if v6 => requests.add_payload(&buffer[..length], service, v6),
            Ok(length) => requests.add(&buffer[..length], service),
            Err(Errno::EINTR) => {}
            Err(_) => return requests.count,
        }
    }
}

/// Runs a script; what it printed as errors, if it failed.
fn shell(text: &str) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
