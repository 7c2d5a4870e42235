//! Waiting for what the kernel does later by itself.
//!
//! A request is carried out when its system call returns, with exceptions:
//! - A link whose far end came up second gets its queue, and a bridge port starts to forward, in
//!   a work item (`linkwatch_do_dev()`). Until then what is sent there is dropped.
//! - An IPv6 address gets its local route in a work item too (`addrconf_dad_work()`), also without
//!   duplicate address detection. Until then packets to it are not taken for the node's own.
//!
//! The kernel tells when it has done either; nothing here polls.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressHeaderFlags, AddressMessage},
};
use netlink_sys::SocketAddr;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    KernelLink, Netlink, NetlinkError,
    object::{Family, Route},
};
use crate::model::IfName;

/// The kernel needs milliseconds; one that needs longer than this never will.
const PATIENCE: Duration = Duration::from_secs(10);
/// `RTNLGRP_LINK`, linux/rtnetlink.h.
const LINKS: u32 = 1;
/// `RTNLGRP_IPV6_ROUTE`.
const IPV6_ROUTES: u32 = 11;

/// Whether the kernel has still to act on the news that the link has a carrier.
fn is_pending(link: &KernelLink) -> bool {
    link.up && link.carrier && (!link.running || link.forwarding == Some(false))
}

impl Netlink {
    /// Waits until every link that has a carrier can send, every bridge port among them forwards,
    /// and every IPv6 address on them is the node's own.
    ///
    /// # Errors
    /// [`NetlinkError::NotSettled`] when that takes ten seconds, others when the kernel cannot be
    /// asked.
    pub fn await_settled(&mut self) -> Result<(), NetlinkError> {
        let links = self.links()?;
        let names: Vec<&IfName> = links.iter().map(|link| &link.name).collect();
        self.await_forwarding(&names)?;
        self.await_until("IPv6 addresses", Self::addresses_are_local)
    }

    /// Waits until the bridge ports `ports` forward, those without a carrier left out.
    ///
    /// Asking for single links makes the kernel catch up at once since Linux 6.8
    /// (`rtnl_getlink()`); its own worker may let a second pass.
    ///
    /// # Errors
    /// As [`Netlink::await_settled`].
    pub fn await_forwarding(&mut self, ports: &[&IfName]) -> Result<(), NetlinkError> {
        self.await_until("links", |netlink| {
            let links = netlink.links_named(ports)?;
            Ok(!links.iter().flatten().any(is_pending))
        })
    }

    /// Whether every IPv6 address that is in force is in table local.
    fn addresses_are_local(&mut self) -> Result<bool, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.family = Family::V6.into();
        let what = format!("to list the IPv6 addresses of namespace {}", self.netns());
        let list = self.dump(&what, &RouteNetlinkMessage::GetAddress(request))?;
        let mut wanted: Vec<(u32, IpAddr)> = Vec::new();
        for message in list {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && !message.header.flags.contains(AddressHeaderFlags::Tentative)
                && let Some(address) = super::address::local(&message)
            {
                wanted.push((message.header.index, address));
            }
        }
        if wanted.is_empty() {
            return Ok(true);
        }
        let ready: Vec<u32> = self
            .links()?
            .iter()
            .filter(|link| link.up && link.carrier)
            .map(|link| link.index)
            .collect();
        let local = self.routes(Family::V6, Some(Route::LOCAL))?;
        let known: HashSet<IpAddr> = local.iter().map(|route| route.destination.addr()).collect();
        Ok(wanted
            .iter()
            .all(|(index, address)| !ready.contains(index) || known.contains(address)))
    }

    /// Waits until `ready`; the kernel's news make it ask again.
    fn await_until(
        &mut self,
        what: &'static str,
        mut ready: impl FnMut(&mut Self) -> Result<bool, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        if ready(self)? {
            return Ok(());
        }
        self.listen(true)?;
        let result = self.await_news(what, &mut ready);
        self.listen(false)?;
        // What else has come is of no interest any more.
        while self.receive()? {}
        result
    }

    fn await_news(
        &mut self,
        what: &'static str,
        ready: &mut impl FnMut(&mut Self) -> Result<bool, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.news = false;
            if ready(self)? {
                return Ok(());
            }
            // News that came in between the replies may be newer than these.
            if self.news {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    return Err(NetlinkError::NotSettled {
                        netns: self.netns().to_owned(),
                        what,
                    });
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.socket_error("wait for", errno)),
            }
        }
    }

    fn listen(&mut self, on: bool) -> Result<(), NetlinkError> {
        if self.port.is_none() {
            self.port = Some(self.own_port()?);
        }
        for group in [LINKS, IPV6_ROUTES] {
            let done = if on {
                self.socket.add_membership(group)
            } else {
                self.socket.drop_membership(group)
            };
            done.map_err(|e| {
                let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
                self.socket_error("listen on", errno)
            })?;
        }
        Ok(())
    }

    /// The socket's address, by which replies are told from news.
    fn own_port(&self) -> Result<u32, NetlinkError> {
        let mut address = SocketAddr::new(0, 0);
        let asked = self.socket.get_address(&mut address);
        asked.map_err(|e| {
            let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
            self.socket_error("ask for the address of", errno)
        })?;
        Ok(address.port_number())
    }
}
