//! What can go wrong between tsim and rtnetlink.

use std::fmt;

use netlink_packet_core::{NlasIterator, parse_string};
use nix::errno::Errno;
use thiserror::Error;

use crate::model::IfName;

/// `NLMSGERR_ATTR_MSG`, linux/netlink.h: the kernel's explanation as text.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A request to the kernel failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("the kernel refused {what}: {}{}", .errno.desc(), explain(.ext_ack.as_deref()))]
    Refused {
        /// What was asked for which object of whom, e.g.
        /// `to add route 10.2.0.0/16 via 10.1.1.1 dev eth0 table 100 of router corp10.hq-gw`.
        what: String,
        /// Why.
        errno: Errno,
        /// The kernel's extended acknowledgement, where it gave one.
        ext_ack: Option<String>,
    },
    /// A request names an interface that the namespace does not have.
    #[error("cannot ask {what}: namespace {netns} has no interface {name}")]
    NoInterface {
        /// As in [`NetlinkError::Refused`].
        what: String,
        /// The namespace.
        netns: String,
        /// The interface.
        name: IfName,
    },
    /// The value cannot be put into a request.
    #[error("cannot ask {what}: {reason}")]
    Unsendable {
        /// As in [`NetlinkError::Refused`].
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call on the socket failed.
    #[error("cannot {call} the netlink socket of namespace {netns}")]
    Socket {
        /// The namespace.
        netns: String,
        /// Which call.
        call: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A reply is not what the protocol says.
    #[error("the kernel's reply to {what} cannot be read: {reason}")]
    Malformed {
        /// As in [`NetlinkError::Refused`].
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the kernel does later by itself has not come about.
    #[error("the {what} of namespace {netns} are not ready after ten seconds")]
    NotSettled {
        /// The namespace.
        netns: String,
        /// Of what kind.
        what: &'static str,
    },
    /// Replies were lost, or there was none: whether the request was carried out is not known.
    #[error("no reply of the kernel to {what}")]
    NoReply {
        /// As in [`NetlinkError::Refused`].
        what: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Socket { errno, .. } => Some(*errno),
            Self::NoInterface { .. } => Some(Errno::ENODEV),
            _ => None,
        }
    }
}

fn explain(ext_ack: Option<&str>) -> String {
    ext_ack.map(|text| format!(" ({text})")).unwrap_or_default()
}

/// Everything that failed in one batch, in the order of the requests; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkErrors(pub Vec<NetlinkError>);

impl std::error::Error for NetlinkErrors {}

impl fmt::Display for NetlinkErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl From<NetlinkError> for NetlinkErrors {
    fn from(error: NetlinkError) -> Self {
        Self(vec![error])
    }
}

/// The text among the attributes behind the request's header in an `NLMSG_ERROR`, netlink(7).
pub(super) fn ext_ack(attributes: &[u8]) -> Option<String> {
    let text = NlasIterator::new(attributes)
        .flatten()
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    parse_string(text.value()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_explanation_is_found_among_other_attributes() {
        let mut bytes = vec![8, 0, 2, 0, 16, 0, 0, 0]; // NLMSGERR_ATTR_OFFS
        bytes.extend([11, 0, 1, 0]);
        bytes.extend(b"no way\0\0");
        assert_eq!(ext_ack(&bytes).as_deref(), Some("no way"));
        assert_eq!(ext_ack(&[]), None);
        assert_eq!(ext_ack(&[1, 2, 3]), None);
    }

    #[test]
    fn a_refusal_says_what_why_and_what_the_kernel_adds() {
        let error = NetlinkError::Refused {
            what: "to add route 10.0.0.0/8 via 1.2.3.4 of router a.b".to_owned(),
            errno: Errno::ENETUNREACH,
            ext_ack: Some("Nexthop has invalid gateway".to_owned()),
        };
        assert_eq!(
            error.to_string(),
            "the kernel refused to add route 10.0.0.0/8 via 1.2.3.4 of router a.b: Network is \
             unreachable (Nexthop has invalid gateway)"
        );
        assert_eq!(error.errno(), Some(Errno::ENETUNREACH));
    }
}
