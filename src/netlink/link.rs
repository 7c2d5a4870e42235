//! Network interfaces: ip-link(8).

use std::collections::HashMap;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use nix::errno::Errno;

use super::{
    Batch, Netlink, NetlinkError,
    link_message::{
        BridgeOptions, KernelLink, NewVeth, PortOptions, bridge_message, from_message,
        link_or_none, named, port_message, set_up, veth_message, without_statistics,
    },
    object::Mac,
    requests::Requests,
};
use crate::model::IfName;

/// What to change about a link; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// A new name. Kernels before 6.3 want the link down for that, by an earlier request.
    pub name: Option<IfName>,
    /// Administrative state.
    pub up: Option<bool>,
    /// Its group (`IFLA_GROUP`).
    pub group: Option<u32>,
    /// Whether neighbours are asked for; an interface that does not sends to its own address.
    pub arp: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Bridge that it is a port of; `Some(None)` takes it out of its bridge.
    pub master: Option<Option<IfName>>,
    /// Free text to keep with it, at most 255 bytes (`IFALIASZ`).
    pub alias: Option<String>,
}

impl LinkChange {
    /// Up, nothing else.
    #[must_use]
    pub fn up() -> Self {
        Self {
            up: Some(true),
            ..Self::default()
        }
    }
}

impl<'a> Batch<'a> {
    /// Makes a veth, each end in its own namespace, in one request.
    pub fn add_veth(&mut self, veth: &NewVeth<'a>) -> &mut Self {
        let (near, far) = (&veth.near, &veth.far);
        let what = match far.netns {
            Some(netns) => format!(
                "to add veth {} to {} in {}",
                near.name,
                far.name,
                netns.name()
            ),
            None => format!("to add veth {} to {}", near.name, far.name),
        };
        self.push(what, NLM_F_CREATE | NLM_F_EXCL, |index| {
            let master = veth.master.as_ref().map(index).transpose()?;
            Ok(RouteNetlinkMessage::NewLink(veth_message(veth, master)))
        });
        for end in [near, far].into_iter().filter(|end| end.netns.is_none()) {
            self.learn(&end.name, end.index);
        }
        self
    }

    /// Makes a bridge.
    pub fn add_bridge(&mut self, name: &IfName, options: &BridgeOptions) -> &mut Self {
        let message = bridge_message(name, options);
        self.push(
            format_args!("to add bridge {name}"),
            NLM_F_CREATE | NLM_F_EXCL,
            |_| Ok(RouteNetlinkMessage::NewLink(message)),
        );
        self.learn(name, options.index);
        self
    }

    fn learn(&mut self, name: &IfName, index: Option<u32>) {
        match index {
            Some(index) => self.netlink.learn(name.clone(), index),
            None => drop(self.netlink.indexes.remove(name)),
        }
    }

    /// Changes the link `name`.
    pub fn set_link(&mut self, name: &IfName, change: &LinkChange) -> &mut Self {
        let what = format!("to set link {name}{}", describe(change));
        self.push(what, 0, |index| {
            let mut message = match &change.name {
                Some(new) => {
                    let mut message = named(new);
                    message.header.index = index(name)?;
                    message
                }
                None => named(name),
            };
            if let Some(up) = change.up {
                set_up(&mut message, up);
            }
            if let Some(arp) = change.arp {
                message.header.change_mask |= LinkFlags::Noarp;
                message.header.flags.set(LinkFlags::Noarp, !arp);
            }
            let attributes = &mut message.attributes;
            attributes.extend(change.group.map(LinkAttribute::Group));
            attributes.extend(change.mtu.map(LinkAttribute::Mtu));
            attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
            attributes.extend(change.alias.clone().map(LinkAttribute::IfAlias));
            if let Some(master) = &change.master {
                let master = master.as_ref().map_or(Ok(0), index)?;
                attributes.push(LinkAttribute::Controller(master));
            }
            Ok(RouteNetlinkMessage::SetLink(message))
        });
        if let Some(new) = &change.name
            && let Some(index) = self.netlink.indexes.remove(name)
        {
            self.netlink.learn(new.clone(), index);
        }
        self
    }

    /// Changes the options of the bridge port `name`.
    pub fn set_port(&mut self, name: &IfName, options: PortOptions) -> &mut Self {
        self.push(format_args!("to set bridge port {name}"), 0, |_| {
            Ok(RouteNetlinkMessage::NewLink(port_message(name, options)))
        })
    }

    /// Deletes the link `name`, with a veth its far end. One that is gone already is success.
    ///
    /// The kernel waits for everybody who might still look at the link (`rcu_barrier()`): 25 ms
    /// for each, as measured on 6.18. With a namespace its links go without anybody waiting.
    #[cfg(feature = "internals")]
    pub fn delete_link(&mut self, name: &IfName) -> &mut Self {
        self.push(format_args!("to delete link {name}"), 0, |_| {
            Ok(RouteNetlinkMessage::DelLink(named(name)))
        });
        self.netlink.indexes.remove(name);
        self.tolerate(Errno::ENODEV)
    }
}

fn describe(change: &LinkChange) -> String {
    let mut text = String::new();
    let mut add = |part: String| {
        text.push(' ');
        text.push_str(&part);
    };
    if let Some(name) = &change.name {
        add(format!("name {name}"));
    }
    if let Some(up) = change.up {
        add(if up { "up" } else { "down" }.to_owned());
    }
    if let Some(arp) = change.arp {
        add(if arp { "arp on" } else { "arp off" }.to_owned());
    }
    if let Some(mtu) = change.mtu {
        add(format!("mtu {mtu}"));
    }
    if let Some(mac) = change.mac {
        add(format!("address {mac}"));
    }
    if change.alias.is_some() {
        add("alias".to_owned());
    }
    match &change.master {
        Some(Some(master)) => add(format!("master {master}")),
        Some(None) => add("nomaster".to_owned()),
        None => {}
    }
    text
}

impl Netlink {
    /// Every link of the namespace, by index. A link whose name tsim does not allow is left out:
    /// tsim makes none such.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses the list.
    pub fn links(&mut self) -> Result<Vec<KernelLink>, NetlinkError> {
        let request = without_statistics(LinkMessage::default());
        let list = self.dump(
            &format!("to list the links of namespace {}", self.netns()),
            &RouteNetlinkMessage::GetLink(request),
        )?;
        let links: Vec<KernelLink> = list
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => from_message(link),
                _ => None,
            })
            .collect();
        self.indexes = links.iter().map(|l| (l.name.clone(), l.index)).collect();
        Ok(links)
    }

    /// The link `name`; none when there is none.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses to say.
    pub fn link(&mut self, name: &IfName) -> Result<Option<KernelLink>, NetlinkError> {
        self.get_link(named(name), name.as_str())
    }

    /// The link with `index`; none when there is none.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses to say.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<KernelLink>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message, &format!("with index {index}"))
    }

    fn get_link(
        &mut self,
        message: LinkMessage,
        which: &str,
    ) -> Result<Option<KernelLink>, NetlinkError> {
        let what = format!("to show link {which} of namespace {}", self.netns());
        let message = RouteNetlinkMessage::GetLink(without_statistics(message));
        let link = link_or_none(self.query_one(what, message))?;
        if let Some(link) = &link {
            self.learn(link.name.clone(), link.index);
        }
        Ok(link)
    }

    /// The links `names`, in one go; none for one that does not exist.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses to say.
    pub fn links_named(
        &mut self,
        names: &[&IfName],
    ) -> Result<Vec<Option<KernelLink>>, NetlinkError> {
        let mut requests = Requests::default();
        for name in names {
            let what = format!("to show link {name} of namespace {}", self.netns());
            let message = without_statistics(named(name));
            requests.push(what, 0, RouteNetlinkMessage::GetLink(message));
        }
        let replies = self.query(requests)?.into_iter().map(link_or_none);
        let links: Vec<Option<KernelLink>> = replies.collect::<Result<_, _>>()?;
        for link in links.iter().flatten() {
            self.learn(link.name.clone(), link.index);
        }
        Ok(links)
    }

    /// Takes `index` for the index of link `name` from now on. For whoever knows that it is, for
    /// example because another socket made the link with this index.
    pub fn learn(&mut self, name: IfName, index: u32) {
        self.indexes.insert(name, index);
    }

    /// The index of link `name`, remembered or asked for.
    pub(super) fn find_index(&mut self, name: &IfName) -> Result<Option<u32>, NetlinkError> {
        match self.indexes.get(name) {
            Some(index) => Ok(Some(*index)),
            None => Ok(self.link(name)?.map(|link| link.index)),
        }
    }

    /// Names of all links by index.
    pub(super) fn names(&mut self) -> Result<HashMap<u32, IfName>, NetlinkError> {
        Ok(self
            .links()?
            .into_iter()
            .map(|link| (link.index, link.name))
            .collect())
    }
}
