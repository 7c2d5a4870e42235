//! Following the probes of a job through the chains of one router.
//!
//! ```text
//! table ip tsimtrace_RUNID {       # flags owner
//!   chain prerouting_first  { hook prerouting  priority -2^31;  # probe? meta nftrace set 1 }
//!   chain prerouting_last   { hook prerouting  priority 2^31-1; # probe? accept }
//!   chain input_first, forward_first, postrouting_first  { …    # probe? accept }
//!   chain forward_last      { …                                 # probe? accept }
//!   chain input_last        { hook input       priority 2^31-1; # probe? drop }
//!   chain postrouting_last  { hook postrouting priority 2^31-1; # probe? drop }
//! }
//! table netdev tsimtrace_RUNID {   # where the incoming interface is known
//!   chain ingress_first, ingress_last { hook ingress device … }
//! }
//! ```
//!
//! The bit that `nftrace` sets makes every later rule that matches, and every policy, report to
//! multicast group `NFNLGRP_NFTRACE`, native rules and those of iptables-nft alike. The tracer's own
//! chains do not change what the router's see; their events say between which hooks a probe was
//! lost. Probes end at the tracer's last chains, which come before those of taps installed earlier,
//! so taps do not see traced probes go out; they do see them come in.

mod event;
pub mod flow;
mod head;
mod trail;
pub mod turn;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use netlink_sys::Socket;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use self::{
    event::TraceEvent,
    trail::{Own, Trails, chain_name},
};
pub use self::{
    event::{StepKind, TraceDecision},
    head::PacketHead,
    trail::{ProbeExit, Reached, StoppedBy, TraceStep, Trail},
};
use super::{NftError, NftSocket, make_tables, probe::ProbeMatch, table_family, wire::Messages};
use crate::{
    firewall::{TagSpace, netfilter_socket, place::HookPoint},
    model::{IfName, Protocol, RunId},
    netlink::{buffers, object},
    sys::nftnl::{EncodeError, Encoder, Expr, Family, Hook, Meta, VerdictCode},
};

/// `NFNLGRP_NFTRACE`, linux/netfilter/nfnetlink.h.
const TRACE_GROUP: u32 = 9;
/// Asked of the socket; the kernel doubles it.
const RECEIVE_BUFFER: usize = 16 << 20;
/// How the names of all traces' tables begin.
pub(super) const TRACE_TABLES: &str = "tsimtrace_";
/// What the kernel charges for an event: an allocation of 1 KiB and the `struct sk_buff`.
const EVENT_BYTES: usize = 1_536;
/// Events per probe that the first batch leaves room for.
const EVENTS_PER_PROBE: usize = 48;
/// Later batches leave room for so many times what a probe of those before caused.
const CAUTION: usize = 2;
/// One event is a few hundred bytes; each comes in a datagram of its own.
const EVENT_BUFFER: usize = 4 * 1024;

/// The most probes that are sent between two drains: a buffer of 32 MiB has room for their events
/// if none causes more than 48.
pub const PROBES_PER_DRAIN: usize = 2 * RECEIVE_BUFFER / (EVENT_BYTES * EVENTS_PER_PROBE);

/// What to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSpec {
    /// The job.
    pub run_id: RunId,
    /// Family of the probes.
    pub family: object::Family,
    /// Which packets are the job's probes.
    pub tags: TagSpace,
    /// Their protocols.
    pub protocols: Vec<Protocol>,
    /// The router itself sends them: they come in at OUTPUT.
    pub from_itself: bool,
    /// The interface by which they come in, to see what happens there before IP; without it, what
    /// is discarded there leaves no trace.
    pub ingress: Option<IfName>,
    /// Let probes go on behind the last chains instead of discarding them there, as
    /// [`Taps::pass_on`](crate::firewall::Taps::pass_on).
    pub pass_on: bool,
}

impl TraceSpec {
    /// The hook where probes are seen first.
    fn first(&self) -> (HookPoint, Hook) {
        if self.from_itself {
            (HookPoint::Output, Hook::Output)
        } else {
            (HookPoint::Prerouting, Hook::Prerouting)
        }
    }
}

/// The two sockets that a tracer needs, opened in the router's namespace.
#[derive(Debug)]
pub struct TraceSockets {
    control: NftSocket,
    events: Socket,
    /// Bytes of events that may wait, as the kernel counts them.
    room: usize,
}

impl TraceSockets {
    /// Opens both in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NftError::Open`].
    pub fn open_here() -> Result<Self, NftError> {
        Self::beside(NftSocket::open_here()?)
    }

    /// The same, where one for requests is open in that namespace.
    ///
    /// # Errors
    /// [`NftError::Open`].
    pub fn beside(control: NftSocket) -> Result<Self, NftError> {
        let open = || -> io::Result<(Socket, usize)> {
            let socket = netfilter_socket::open_here()?;
            let room = buffers::receive(&socket, RECEIVE_BUFFER)?;
            socket.add_membership(TRACE_GROUP)?;
            Ok((socket, room))
        };
        let (events, room) = open().map_err(NftError::Open)?;
        Ok(Self {
            control,
            events,
            room,
        })
    }

    /// The socket for requests, and the one for events, which is left to close.
    #[must_use]
    pub fn into_parts(self) -> (NftSocket, Socket) {
        (self.control, self.events)
    }

    /// The socket for requests.
    pub fn control(&mut self) -> &mut NftSocket {
        &mut self.control
    }

    /// Hears of no more events: the kernel copies each for every socket that does, until it is closed.
    fn leave(&self) {
        leave(&self.events);
    }
}

/// What was read of the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// The ways of probes by index of the service.
    pub trails: HashMap<u32, Trail>,
    /// Whether the kernel lost events because the buffer was full. Then the ways are not to be
    /// trusted; the probes are to be sent again, fewer at a time.
    pub overrun: bool,
    /// Whether other jobs caused some of those that were read: by packets of theirs, or by tables in which
    /// they trace, which every packet passes.
    pub crowded: bool,
}

/// Follows the probes of one job through one router.
#[derive(Debug)]
pub struct Tracer {
    control: NftSocket,
    events: Socket,
    room: usize,
    /// Events that a probe is taken to cause at most.
    events_per_probe: usize,
    trails: Trails,
    table: String,
    family: Family,
    /// Whether there is a table of family netdev, too.
    ingress: bool,
    buffer: Vec<u8>,
}

impl Tracer {
    /// Begins: from now on probes are followed, and taken away at their way's end.
    ///
    /// # Errors
    /// [`NftError`]; nothing was changed then.
    pub fn start(sockets: TraceSockets, spec: &TraceSpec) -> Result<Self, NftError> {
        let TraceSockets {
            mut control,
            events,
            room,
        } = sockets;
        let table = trace_table_name(&spec.run_id);
        install(&mut control, spec, &table)?;
        let own = Own {
            table: table.clone(),
            taps: super::table_name(&spec.run_id),
        };
        Ok(Self {
            control,
            events,
            room,
            events_per_probe: EVENTS_PER_PROBE,
            trails: Trails::new(own, spec.tags),
            table,
            family: table_family(spec.family),
            ingress: spec.ingress.is_some(),
            buffer: Vec::with_capacity(EVENT_BUFFER),
        })
    }

    /// How many probes may be sent before the next drain so that their events have room, going by
    /// what those before caused. More lose events, which [`Tracer::drain`] notices.
    #[must_use]
    pub fn probes_at_once(&self) -> usize {
        probes_at_once(self.room, self.events_per_probe)
    }

    /// Reads what happened to the probes that were sent since the last call.
    ///
    /// # Errors
    /// [`NftError::Receive`].
    pub fn drain(&mut self) -> Result<Drained, NftError> {
        let trails = &mut self.trails;
        let mut events = 0;
        let mut crowded = false;
        let overrun = read_events(&self.events, &mut self.buffer, |event| {
            events += 1;
            crowded |= !trails.add(event);
        })?;
        let trails = self.trails.take();
        if !overrun && !trails.is_empty() {
            self.events_per_probe = CAUTION * usize::div_ceil(events, trails.len());
        }
        Ok(Drained {
            trails,
            overrun,
            crowded,
        })
    }

    /// Waits until events are there, at most for `limit`; false when none came.
    ///
    /// # Errors
    /// [`NftError::Receive`].
    pub fn await_events(&self, limit: Duration) -> Result<bool, NftError> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(NftError::Receive {
                what: "waiting for trace events",
                source: errno.into(),
            }),
        }
    }

    /// Hears of no more events until [`Tracer::listen`]: while a socket does, it costs all others that trace
    /// on the router.
    pub fn pause(&self) {
        leave(&self.events);
    }

    /// Leaves the router to other jobs' traces until [`Tracer::resume`].
    ///
    /// # Errors
    /// [`NftError`].
    pub fn suspend(&mut self) -> Result<(), NftError> {
        self.pause();
        self.delete_tables()
    }

    /// Goes on with what it was started for, `spec`. What was not read before is forgotten.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn resume(&mut self, spec: &TraceSpec) -> Result<(), NftError> {
        self.drain()?;
        install(&mut self.control, spec, &self.table)?;
        self.listen()
    }

    /// Hears of events again.
    ///
    /// # Errors
    /// [`NftError::Open`].
    pub fn listen(&self) -> Result<(), NftError> {
        let joined = self.events.add_membership(TRACE_GROUP);
        joined.map_err(NftError::Open)
    }

    /// The control socket, to ask about the ruleset.
    pub fn control(&mut self) -> &mut NftSocket {
        &mut self.control
    }

    /// Ends the trace. The sockets are returned, to be closed when nobody waits any more.
    ///
    /// # Errors
    /// [`NftError`]; closing the sockets removes owned tables even then.
    pub fn stop(mut self) -> (TraceSockets, Result<(), NftError>) {
        self.pause();
        let result = self.delete_tables();
        let Self {
            control,
            events,
            room,
            ..
        } = self;
        let sockets = TraceSockets {
            control,
            events,
            room,
        };
        (sockets, result)
    }

    fn delete_tables(&mut self) -> Result<(), NftError> {
        let mut batch = self.control.encoder();
        batch.begin();
        batch.delete_table(self.family, &self.table)?;
        if self.ingress {
            batch.delete_table(Family::Netdev, &self.table)?;
        }
        batch.end();
        match self.control.transact(&batch, "removing a trace") {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// Makes the tables of a trace.
fn install(control: &mut NftSocket, spec: &TraceSpec, table: &str) -> Result<(), NftError> {
    let render = |batch, flags| render(batch, spec, table, flags);
    make_tables(control, render, "installing a trace").map(drop)
}

/// Takes a socket out of the group of those that hear of events.
fn leave(events: &Socket) {
    // One that stays in it is a cost and no fault.
    if let Err(error) = events.drop_membership(TRACE_GROUP) {
        tracing::debug!("still listening to traces: {error}");
    }
}

fn probes_at_once(room: usize, events_per_probe: usize) -> usize {
    (room / (EVENT_BYTES * events_per_probe)).clamp(1, PROBES_PER_DRAIN)
}

/// Gives every event that waits to `each`; says whether the kernel had to leave some out.
fn read_events(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&TraceEvent<'_>),
) -> Result<bool, NftError> {
    let what = "reading trace events";
    let mut overrun = false;
    loop {
        buffer.clear();
        match socket.recv(buffer, libc::MSG_DONTWAIT) {
            Ok(_) => Messages(buffer)
                .filter_map(|message| TraceEvent::parse(&message))
                .for_each(|event| each(&event)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(overrun),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What is in the buffer can still be read, and must be: only an empty one takes
            // events again (netlink_rcv_wake()).
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => overrun = true,
            Err(source) => return Err(NftError::Receive { what, source }),
        }
    }
}

impl AsFd for Tracer {
    /// Readable when events wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// The name of the tables that a trace makes. A run id cannot make it a tap's.
fn trace_table_name(run_id: &RunId) -> String {
    format!("{TRACE_TABLES}{run_id}")
}

/// The hooks of IP behind the first, with what the last chain there does.
const HOOKS: [(HookPoint, Hook, VerdictCode); 3] = [
    (HookPoint::Input, Hook::Input, VerdictCode::Drop),
    (HookPoint::Forward, Hook::Forward, VerdictCode::Accept),
    (HookPoint::Postrouting, Hook::Postrouting, VerdictCode::Drop),
];

/// The transaction that makes the tables.
fn render(
    batch: Encoder,
    spec: &TraceSpec,
    table: &str,
    flags: u32,
) -> Result<Encoder, EncodeError> {
    let mut render = Render { batch, spec, table };
    render.batch.begin();
    render
        .batch
        .table(table_family(spec.family), table, flags)?;
    let (point, hook) = spec.first();
    for (point, hook, last) in [(point, hook, VerdictCode::Accept)]
        .into_iter()
        .chain(HOOKS)
    {
        render.ip_chain(point, hook, false, VerdictCode::Accept)?;
        let last = if spec.pass_on {
            VerdictCode::Accept
        } else {
            last
        };
        render.ip_chain(point, hook, true, last)?;
    }
    if let Some(device) = &spec.ingress {
        render.batch.table(Family::Netdev, table, flags)?;
        render.ingress_chain(device, false)?;
        render.ingress_chain(device, true)?;
    }
    render.batch.end();
    Ok(render.batch)
}

struct Render<'a> {
    batch: Encoder,
    spec: &'a TraceSpec,
    table: &'a str,
}

impl Render<'_> {
    fn ip_chain(
        &mut self,
        point: HookPoint,
        hook: Hook,
        whole: bool,
        verdict: VerdictCode,
    ) -> Result<(), EncodeError> {
        let family = table_family(self.spec.family);
        let name = chain_name(Reached { hook: point, whole });
        let priority = if whole { i32::MAX } else { i32::MIN };
        self.batch
            .base_chain(family, self.table, &name, hook, priority)?;
        let begins = point == self.spec.first().0 && !whole;
        self.rules(family, &name, (!begins).then_some(verdict))
    }

    fn ingress_chain(&mut self, device: &IfName, whole: bool) -> Result<(), EncodeError> {
        let hook = HookPoint::Ingress;
        let name = chain_name(Reached { hook, whole });
        let priority = if whole { i32::MAX } else { i32::MIN };
        self.batch
            .ingress_chain(self.table, &name, device.as_str(), priority)?;
        self.rules(Family::Netdev, &name, whole.then_some(VerdictCode::Accept))
    }

    /// Rules that decide about probes, or without a verdict switch the trace on. These have none,
    /// because a rule that switches it on is reported itself only if it does not decide.
    fn rules(
        &mut self,
        family: Family,
        chain: &str,
        verdict: Option<VerdictCode>,
    ) -> Result<(), EncodeError> {
        for protocol in &self.spec.protocols {
            let probe = ProbeMatch::all(self.spec.family, self.spec.tags, *protocol);
            let mut exprs = probe.exprs();
            match verdict {
                Some(verdict) => exprs.push(Expr::Verdict(verdict)),
                None => exprs.extend([Expr::LoadData(&[1]), Expr::SetMeta(Meta::NfTrace)]),
            }
            self.batch.rule(family, self.table, chain, &exprs)?;
        }
        Ok(())
    }
}
