//! Exceptions of routes: the MTU of the way to one address that ICMP told, as `ip route show cache` lists it.

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteFlags, RouteMessage},
};
use nix::errno::Errno;

use super::{
    Netlink, NetlinkError,
    object::Family,
    route::{destination, is_exception, mtu},
    sysctl,
};
use crate::netns::NetnsFd;

/// Written to, it has the kernel forget all exceptions of IPv4 routes in the namespace
/// (`ipv4_sysctl_rtcache_flush()`).
const FLUSH: (&str, &str) = ("net/ipv4/route/flush", "1");

impl Netlink {
    /// The addresses of which there are exceptions.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses the list.
    pub fn route_exceptions(&mut self, family: Family) -> Result<Vec<IpAddr>, NetlinkError> {
        let all = self.exceptions(family)?;
        Ok(all.iter().filter_map(address).collect())
    }

    fn exceptions(&mut self, family: Family) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.into();
        request.header.flags = RouteFlags::Cloned;
        let what = format!(
            "to list the {family} exceptions of routes of namespace {}",
            self.netns()
        );
        let list = self.dump(&what, &RouteNetlinkMessage::GetRoute(request))?;
        let read = |message| match message {
            // One of which the kernel forgot what it was about has no MTU, and is used again.
            RouteNetlinkMessage::NewRoute(message)
                if is_exception(&message) && mtu(&message.attributes).is_some() =>
            {
                Some(message)
            }
            _ => None,
        };
        Ok(list.into_iter().filter_map(read).collect())
    }
}

/// Has the kernel forget the exceptions of routes of `netns` for other addresses than `known`; false where
/// it does not, since it forgets those of IPv4 all or none.
///
/// # Errors
/// [`NetlinkError`] when the kernel refuses the list.
pub fn forget_exceptions(
    netns: &NetnsFd,
    family: Family,
    known: &[IpAddr],
) -> Result<bool, NetlinkError> {
    let mut netlink = Netlink::open(netns)?;
    let mut new = netlink.exceptions(family)?;
    new.retain(|message| address(message).is_some_and(|to| !known.contains(&to)));
    if new.is_empty() {
        return Ok(true);
    }
    if family == Family::V4 {
        let flush = || sysctl::write_here(netns.name().as_str(), &[FLUSH]).is_ok();
        return Ok(known.is_empty() && netns.enter(flush).unwrap_or(false));
    }
    let mut batch = netlink.batch("exceptions of routes");
    for message in new {
        batch.push("to delete an exception", 0, |_| {
            Ok(RouteNetlinkMessage::DelRoute(message))
        });
        // It timed out meanwhile.
        batch.tolerate(Errno::ESRCH);
    }
    Ok(batch.send().is_ok())
}

fn address(message: &RouteMessage) -> Option<IpAddr> {
    Some(destination(message)?.addr())
}
