//! How a rule recognises the probes of a job, or of some of its services.

use crate::{
    firewall::{TagSpace, layout},
    model::Protocol,
    netlink::object,
    sys::nftnl::{Expr, Header, Meta},
};

/// The TCP flags that count (FIN, SYN, RST, ACK), RFC 9293, and how a probe has them.
const FLAGS: [u8; 1] = [0x17];
const SYN: [u8; 1] = [0x02];

/// Matches a probe's protocol, its mark, and the masked tag.
pub(super) struct ProbeMatch {
    protocol: Protocol,
    number: [u8; 1],
    /// None: a probe whose mark the router rewrote.
    mark: Option<Mark>,
    prefix: [u8; 4],
    mask: [u8; 4],
}

impl ProbeMatch {
    /// `tag` is a value and the mask under which tags must have it.
    pub(super) fn new(
        family: object::Family,
        tags: TagSpace,
        protocol: Protocol,
        tag: (u32, u32),
    ) -> Self {
        Self {
            protocol,
            number: [protocol.number()],
            mark: Some(Mark::of(family, tags)),
            prefix: tag.0.to_be_bytes(),
            mask: tag.1.to_be_bytes(),
        }
    }

    /// Every probe of the job that has this protocol.
    pub(super) fn all(family: object::Family, tags: TagSpace, protocol: Protocol) -> Self {
        Self::new(family, tags, protocol, tags.prefix())
    }

    /// The same without the mark. That a TCP probe is a SYN is asked instead: a reset that answers
    /// what a SYN-ACK acknowledged carries the sequence number behind the probe's.
    pub(super) fn without_mark(self) -> Self {
        Self { mark: None, ..self }
    }

    /// The protocol of the probes.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The expressions that go on only with a matching packet.
    pub(super) fn exprs(&self) -> Vec<Expr<'_>> {
        let mut exprs = vec![Expr::LoadMeta(Meta::L4Proto), Expr::Equal(&self.number)];
        match &self.mark {
            Some(mark) => exprs.extend(mark.matches()),
            None if self.protocol == Protocol::Tcp => exprs.extend([
                Expr::LoadPayload {
                    header: Header::Transport,
                    offset: 13,
                    len: 1,
                },
                Expr::Mask(&FLAGS),
                Expr::Equal(&SYN),
            ]),
            None => {}
        }
        exprs.extend([
            self.load_tag(),
            Expr::Mask(&self.mask),
            Expr::Equal(&self.prefix),
        ]);
        exprs
    }

    /// Loads the tag.
    pub(super) fn load_tag(&self) -> Expr<'static> {
        Expr::LoadPayload {
            header: Header::Transport,
            offset: layout::tag_offset(self.protocol),
            len: 4,
        }
    }
}

/// The part of the IP header that marks a probe.
enum Mark {
    /// Identification, RFC 791.
    V4([u8; 2]),
    /// Flow label, RFC 8200.
    V6([u8; 4]),
}

impl Mark {
    fn of(family: object::Family, tags: TagSpace) -> Self {
        match family {
            object::Family::V4 => Self::V4(tags.ipv4_id().to_be_bytes()),
            object::Family::V6 => Self::V6(tags.flow_label().to_be_bytes()),
        }
    }

    fn matches(&self) -> Vec<Expr<'_>> {
        let load = |offset, len| Expr::LoadPayload {
            header: Header::Network,
            offset,
            len,
        };
        match self {
            Self::V4(id) => vec![load(4, 2), Expr::Equal(id)],
            Self::V6(label) => {
                vec![
                    load(0, 4),
                    Expr::Mask(&[0, 0x0f, 0xff, 0xff]),
                    Expr::Equal(label),
                ]
            }
        }
    }
}
