//! One attempt: a client connects, the listener answers, and every packet is followed.
//!
//! Nothing here waits for a fixed time. An attempt ends with what the client experiences; or when
//! the trace shows that a packet was dropped and that the router sent nothing back, which nobody
//! needs to wait for, or that what it sent went elsewhere; or when the patience given to it ends;
//! or when the job is interrupted.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    pin::pin,
    time::Duration,
};

use futures_util::future::select_all;
use tokio::time::{sleep, timeout};

use super::{
    connect::{Attempt, ClientSocket, Experience, PAYLOAD},
    listen::{Listener, Witness},
    message::is_stream,
};
use crate::{
    firewall::nft::{
        NftError,
        trace::{
            ProbeExit, StoppedBy, TraceDecision,
            flow::{FlowPacket, FlowTracer, Payload},
        },
    },
    model::Protocol,
    sys::readable::Readable,
};

/// How often sockets are looked at once more when the patience has ended. On a busy machine this
/// thread may not have run meanwhile, and what arrived is still to be taken in: a connection to be
/// accepted, its data to be read and given back, and what was given back to be read.
const LAST_LOOKS: u32 = 4;
/// Time between them, in which the runtime asks the kernel.
const LAST_LOOK: Duration = Duration::from_millis(1);

/// How long to wait for the reset of a closed connection to come through the router, so that
/// neither the counters of the next service nor its connection tracking see anything of this one.
/// It is there already, but for a busy machine.
const SETTLE: Duration = Duration::from_millis(50);

/// What one attempt showed.
#[derive(Debug)]
pub(super) struct Tried {
    /// What the client experienced; none when nothing came back.
    pub(super) experience: Option<Experience>,
    /// The packets, as each router's watch followed them.
    pub(super) packets: Vec<Vec<FlowPacket>>,
    /// Whether trace events were lost.
    pub(super) overrun: bool,
    /// The client's end before NAT.
    pub(super) client: Option<SocketAddr>,
    /// The client's end as the destination host saw it; none when the request did not arrive.
    pub(super) arrived: Option<SocketAddr>,
}

/// Watches a router's packets.
#[derive(Debug)]
pub(super) struct RouterWatch {
    tracer: FlowTracer,
    events: Readable,
    home: AnswerHome,
}

/// The RST bit of a TCP header's flags, RFC 9293 section 3.1.
const RST: u8 = 0x04;

/// Where answers have to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerHome {
    /// The source's address.
    pub(super) source: IpAddr,
    /// The number of the router's interface at which the source host is; 0 if it is not known, or
    /// if answers may come to other routers.
    pub(super) interface: u32,
}

impl AnswerHome {
    /// Whether a packet belongs to this attempt of `client`, and not to one before it.
    fn concerns(&self, packet: &FlowPacket, what: &Try, client: Option<u16>) -> bool {
        let Some((source, destination)) = packet.first.payload.ports() else {
            return true;
        };
        if packet.is_own() {
            return true;
        }
        if packet.first.source == self.source {
            return destination == what.to.port() && client.is_none_or(|port| port == source);
        }
        // Behind other routers either end may have another address.
        source == what.answers_from
            || [what.to.port(), what.answers_from].contains(&destination)
            || client.is_some_and(|port| port == source)
    }

    /// Whether a packet that is not from the source left by another interface.
    pub(super) fn is_missed_by(&self, packet: &FlowPacket) -> bool {
        self.interface != 0
            && packet.first.source != self.source
            && packet.stopped_by() == StoppedBy::Nothing(ProbeExit::Out)
            && packet.last.oif != self.interface
    }
}

/// What the trace says about the rest of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeadEnd {
    /// A packet was dropped, and the router sent nothing about it that is still under way.
    Dropped,
    /// Something was sent back by an interface at which the source host is not. It may yet get
    /// there if both are on one segment.
    Astray,
}

impl RouterWatch {
    /// Watches with `tracer`, on the calling thread's runtime.
    pub(super) fn new(tracer: FlowTracer, home: AnswerHome) -> io::Result<Self> {
        let events = Readable::new(tracer.as_fd().try_clone_to_owned()?)?;
        Ok(Self {
            tracer,
            events,
            home,
        })
    }

    pub(super) fn tracer(&mut self) -> &mut FlowTracer {
        &mut self.tracer
    }

    pub(super) fn into_tracer(self) -> FlowTracer {
        self.tracer
    }

    /// Sleeps until the trace shows the end of the way of the reset that `client` sent.
    async fn closed(&mut self, client: u16) -> Result<(), NftError> {
        let source = self.home.source;
        let reset = |p: &FlowPacket| match p.first.payload {
            Payload::Tcp { ports, flags } => ports.0 == client && flags & RST != 0,
            _ => false,
        };
        loop {
            self.tracer.read()?;
            let mut packets = self.tracer.packets();
            let reset = packets.find(|p| p.first.source == source && reset(p));
            if reset.is_some_and(|p| !matches!(p.stopped_by(), StoppedBy::After(_))) {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    async fn wait(&self) -> Result<(), NftError> {
        let waited = self.events.wait_anew().await;
        waited.map_err(|source| NftError::Receive {
            what: "waiting for trace events",
            source,
        })
    }
}

/// The watches of all routers that an attempt passes; none for a router that cannot be watched.
#[derive(Debug, Default)]
pub(super) struct RouterWatches<'w>(pub(super) Vec<Option<&'w mut RouterWatch>>);

impl RouterWatches<'_> {
    fn read(&mut self) -> Result<(), NftError> {
        let mut watches = self.0.iter_mut().flatten();
        watches.try_for_each(|watch| watch.tracer.read())
    }

    /// What was seen at each router, and whether events were lost.
    fn take(&mut self) -> (Vec<Vec<FlowPacket>>, bool) {
        let mut lost = false;
        let take = |watch: &mut Option<&mut RouterWatch>| {
            let (packets, overrun) = watch.as_mut()?.tracer.take();
            lost |= overrun;
            Some(packets)
        };
        let packets = self.0.iter_mut().map(take).map(Option::unwrap_or_default);
        let packets = packets.collect();
        (packets, lost)
    }

    /// Sleeps until one of the traces has more to tell.
    async fn wait(&self) -> Result<(), NftError> {
        let waits = self.0.iter().flatten();
        let waits: Vec<_> = waits.map(|watch| Box::pin(watch.wait())).collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        select_all(waits).await.0
    }

    /// Sleeps until the first router's trace shows the end of a closed connection there.
    async fn closed(&mut self, client: u16) -> Result<(), NftError> {
        match self.0.first_mut() {
            Some(Some(watch)) => watch.closed(client).await,
            _ => Ok(()),
        }
    }

    /// Sleeps until the traces show that nothing will come back.
    async fn dead_end(&mut self, what: &Try, client: Option<u16>) -> Result<DeadEnd, NftError> {
        loop {
            self.read()?;
            let mut own = Vec::new();
            for watch in self.0.iter().flatten() {
                let packets = watch.tracer.packets();
                let packets = packets.filter(|p| watch.home.concerns(p, what, client));
                own.extend(packets.map(|packet| (packet, watch.home)));
            }
            if let Some(end) = dead_end(&own) {
                return Ok(end);
            }
            self.wait().await?;
        }
    }
}

/// Whether the packets say that nothing will come back.
///
/// REJECT sends its answer before the rule's verdict is reported, so an answer that is not seen by
/// then will not come.
fn dead_end(packets: &[(&FlowPacket, AnswerHome)]) -> Option<DeadEnd> {
    let dropped = |p: &FlowPacket| match p.stopped_by() {
        StoppedBy::Rule(step) | StoppedBy::Policy(step) => step.decision == TraceDecision::Drop,
        _ => false,
    };
    let answered =
        |p: &FlowPacket| p.is_own() && p.stopped_by() == StoppedBy::Nothing(ProbeExit::Out);
    if packets.iter().any(|(p, home)| home.is_missed_by(p)) {
        return Some(DeadEnd::Astray);
    }
    let any = |is: &dyn Fn(&FlowPacket) -> bool| packets.iter().any(|(p, _)| is(p));
    let dead = any(&dropped) && !any(&answered);
    dead.then_some(DeadEnd::Dropped)
}

/// Where and how long to try.
#[derive(Debug, Clone, Copy)]
pub(super) struct Try {
    pub(super) to: SocketAddr,
    /// The port that answers have when they come to the router.
    pub(super) answers_from: u16,
    pub(super) payload: [u8; PAYLOAD],
    /// Length of the IP packets that are sent; none for short ones.
    pub(super) size: Option<u16>,
    pub(super) patience: Duration,
    /// Wait the whole patience even when the trace shows that it is in vain.
    pub(super) patient: bool,
}

/// What an attempt listens to beside its client.
#[derive(Debug, Default)]
pub(super) struct Ears<'w> {
    pub(super) listener: Option<&'w Listener>,
    pub(super) witness: Option<&'w Witness>,
    pub(super) watches: RouterWatches<'w>,
    /// Readable once the job is interrupted: whoever asks for the result then must not use it.
    pub(super) interrupt: Option<&'w Readable>,
}

/// Makes one attempt while nothing else happens on the router.
pub(super) async fn attempt(
    what: &Try,
    protocol: Protocol,
    client: ClientSocket,
    ears: Ears<'_>,
) -> Result<Tried, AttemptError> {
    let Ears {
        listener,
        witness,
        mut watches,
        interrupt,
    } = ears;
    if let Some(witness) = witness {
        witness.take().map_err(AttemptError::Witness)?;
    }
    let (experience, client) = match client.start(what.to, what.payload, what.size) {
        Ok(attempt) => {
            let local = attempt.local();
            let experience = follow(what, &attempt, listener, &mut watches, interrupt).await?;
            (experience, local)
        }
        Err(experience) => (Some(experience), None),
    };
    let arrived = arrival(protocol, listener, witness)?;
    let connected = matches!(
        experience,
        Some(Experience::Answered(_) | Experience::Mute(_))
    );
    if let Some(client) = client.filter(|_| connected && protocol == Protocol::Tcp) {
        // Without it the late packets are recognised as what they are, and said.
        let _ = timeout(SETTLE, watches.closed(client.port())).await;
    }
    watches.read()?;
    let (packets, overrun) = watches.take();
    Ok(Tried {
        experience,
        packets,
        overrun,
        client,
        arrived,
    })
}

async fn follow(
    what: &Try,
    attempt: &Attempt,
    listener: Option<&Listener>,
    watches: &mut RouterWatches<'_>,
    interrupt: Option<&Readable>,
) -> Result<Option<Experience>, AttemptError> {
    let client = attempt.local().map(|end| end.port());
    let experience = {
        let mut experience = pin!(attempt.experience());
        let mut answer = pin!(async {
            match listener {
                Some(listener) => listener.answer().await,
                None => std::future::pending().await,
            }
        });
        let mut dead_end = pin!(async {
            if what.patient {
                std::future::pending().await
            } else {
                watches.dead_end(what, client).await
            }
        });
        let mut interrupted = pin!(async {
            match interrupt {
                Some(interrupt) => interrupt.wait().await,
                None => std::future::pending().await,
            }
        });
        let (mut looks, mut astray) = (0, false);
        loop {
            let so_far = attempt.so_far();
            let time = if looks == 0 { what.patience } else { LAST_LOOK };
            tokio::select! {
                biased;
                experience = &mut experience => break Some(experience),
                never = &mut answer => match never {},
                ended = &mut dead_end, if !astray => match ended? {
                    DeadEnd::Dropped => break None,
                    DeadEnd::Astray => (looks, astray) = (1, true),
                },
                _ = &mut interrupted => break None,
                () = sleep(time) => looks += 1,
            }
            if attempt.so_far() != so_far && !astray {
                // Who got a step further gets the whole patience for the next one.
                looks = 0;
            } else if looks > LAST_LOOKS {
                break None;
            }
        }
    };
    Ok(experience.or_else(|| attempt.so_far()))
}

fn arrival(
    protocol: Protocol,
    listener: Option<&Listener>,
    witness: Option<&Witness>,
) -> Result<Option<SocketAddr>, AttemptError> {
    let Some(listener) = listener else {
        return Ok(None);
    };
    listener.look();
    let peer = listener.take_peer();
    match (protocol, witness) {
        (protocol, Some(witness)) if is_stream(protocol) && peer.is_none() => {
            let seen = witness.take().map_err(AttemptError::Witness)?;
            let mine = seen.iter().find(|syn| Some(syn.port) == listener.port());
            Ok(mine.map(|syn| syn.from))
        }
        _ => Ok(peer),
    }
}

/// An attempt could not be made or followed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The trace failed.
    #[error(transparent)]
    Trace(#[from] NftError),
    /// The destination host could not be watched.
    #[error("cannot watch what reaches the destination host")]
    Witness(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Service, run::detailed::listen::Bound};

    /// As on a machine that is so busy that the patience ends before this thread runs again.
    #[tokio::test]
    async fn what_arrived_is_taken_in_after_the_patience_has_ended() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let loopback = IpAddr::from([127, 0, 0, 1]);
            let bound = Bound::open_here((loopback, 0).into(), protocol).unwrap();
            let to = match &bound {
                Bound::Stream(socket) => socket.local_addr().unwrap(),
                Bound::Udp(socket) => socket.local_addr().unwrap(),
                Bound::Raw(_) | Bound::UdpProxy(..) => {
                    unreachable!("a protocol with ports was asked for")
                }
            };
            let what = Try {
                to,
                answers_from: to.port(),
                payload: [7; PAYLOAD],
                size: None,
                patience: Duration::ZERO,
                patient: false,
            };
            let listener = bound.serve().unwrap();
            let service = Service {
                port: to.port(),
                protocol,
            };
            let client = ClientSocket::open_here(loopback, None, service).unwrap();
            let ears = Ears {
                listener: Some(&listener),
                ..Ears::default()
            };
            let tried = attempt(&what, protocol, client, ears);
            let tried = tried.await.unwrap();
            let answered = matches!(tried.experience, Some(Experience::Answered(_)));
            assert!(answered, "{tried:?}");
            assert_eq!(tried.arrived, tried.client);
        }
    }

    #[tokio::test]
    async fn an_interrupted_job_waits_for_no_answer() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        // Nobody serves it, so nothing will come back.
        let Bound::Udp(mute) = Bound::open_here((loopback, 0).into(), Protocol::Udp).unwrap()
        else {
            panic!("a datagram socket was asked for");
        };
        let to = mute.local_addr().unwrap();
        let what = Try {
            to,
            answers_from: to.port(),
            payload: [7; PAYLOAD],
            size: None,
            patience: Duration::from_secs(86_400),
            patient: true,
        };
        let cancel = crate::registry::Cancel::new().unwrap();
        cancel.cancel();
        let interrupt = Readable::new(cancel.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let service = Service {
            port: to.port(),
            protocol: Protocol::Udp,
        };
        let client = ClientSocket::open_here(loopback, None, service).unwrap();
        let ears = Ears {
            interrupt: Some(&interrupt),
            ..Ears::default()
        };
        let tried = attempt(&what, Protocol::Udp, client, ears).await.unwrap();
        assert!(tried.experience.is_none(), "{tried:?}");
    }
}
