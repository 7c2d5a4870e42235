//! Changes to the objects of one namespace, sent together.

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::{Netlink, NetlinkError, NetlinkErrors, requests::Requests};
use crate::model::IfName;

/// Finds the index of an interface by its name.
pub(super) type Resolve<'a> = dyn FnMut(&IfName) -> Result<u32, String> + 'a;

/// Requests that are sent together by [`Batch::send`]. The kernel carries out each by itself, in
/// order: one that fails stops no other.
///
/// An interface is named; its index is looked up when the request is added. Where the batch itself
/// makes the interface, what was added before is sent first; giving a new link its index avoids
/// that.
#[derive(Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct Batch<'a> {
    pub(super) netlink: &'a mut Netlink,
    owner: String,
    requests: Requests,
    /// Requests added so far.
    count: usize,
    /// What failed, with the number of the request, counted from 0.
    errors: Vec<(usize, NetlinkError)>,
}

impl Netlink {
    /// Starts a batch of changes to objects of `owner`, e.g. `router corp10.hq-gw`; the owner is
    /// named in every error.
    pub fn batch(&mut self, owner: impl Into<String>) -> Batch<'_> {
        Batch::new(self, owner.into())
    }
}

impl<'a> Batch<'a> {
    fn new(netlink: &'a mut Netlink, owner: String) -> Self {
        Self {
            netlink,
            owner,
            requests: Requests::default(),
            count: 0,
            errors: Vec::new(),
        }
    }

    /// Adds the request that `make` builds; what cannot be built is reported by [`Batch::send`].
    pub(super) fn push(
        &mut self,
        what: impl std::fmt::Display,
        flags: u16,
        make: impl FnOnce(&mut Resolve<'_>) -> Result<RouteNetlinkMessage, String>,
    ) -> &mut Self {
        let what = format!("{what} of {}", self.owner);
        let mut unresolved = None;
        let mut resolve = |name: &IfName| {
            self.resolve(name, &what).map_err(|error| {
                let text = error.to_string();
                unresolved = Some(error);
                text
            })
        };
        let made = make(&mut resolve);
        let number = self.count;
        self.count += 1;
        match (made, unresolved) {
            (_, Some(error)) => self.errors.push((number, error)),
            (Err(reason), None) => {
                let error = NetlinkError::Unsendable { what, reason };
                self.errors.push((number, error));
            }
            (Ok(message), None) => self.requests.push_numbered(number, what, flags, message),
        }
        self
    }

    /// Takes `errno` for success of the request added last: what it wants is so already.
    pub fn tolerate(&mut self, errno: Errno) -> &mut Self {
        self.requests.tolerate(errno);
        self
    }

    /// Sends what was added.
    ///
    /// # Errors
    /// [`NetlinkErrors`] with every request that failed. The others were carried out.
    pub fn send(self) -> Result<(), NetlinkErrors> {
        match self.send_each() {
            errors if errors.is_empty() => Ok(()),
            errors => Err(NetlinkErrors(errors.into_iter().map(|(_, e)| e).collect())),
        }
    }

    /// Sends what was added, for a caller that can do without some of it: returns what failed
    /// with the number of the request, in the order in which they were added, from 0 on.
    #[must_use = "what failed is returned, not raised"]
    pub fn send_each(mut self) -> Vec<(usize, NetlinkError)> {
        self.flush();
        self.errors.sort_by_key(|(number, _)| *number);
        self.errors
    }

    fn flush(&mut self) {
        if !self.requests.is_empty() {
            let requests = std::mem::take(&mut self.requests);
            self.errors.extend(self.netlink.change(requests));
        }
    }

    fn resolve(&mut self, name: &IfName, what: &str) -> Result<u32, NetlinkError> {
        match self.netlink.find_index(name)? {
            Some(index) => return Ok(index),
            None if self.requests.is_empty() => {}
            None => {
                self.flush();
                if let Some(index) = self.netlink.find_index(name)? {
                    return Ok(index);
                }
            }
        }
        Err(NetlinkError::NoInterface {
            what: what.to_owned(),
            netns: self.netlink.netns().to_owned(),
            name: name.clone(),
        })
    }
}
