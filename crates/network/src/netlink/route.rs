//! Links, addresses and routes as requests, with the messages of `netlink-packet-route`.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{ACK, Answer, CREATE, DUMP, EXCL, NetlinkError, REPLACE, Request, Socket};

const _: () = assert!(ACK == NLM_F_ACK, "one meaning of the flags on both sides");

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// The bridge it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) is_bridge: bool,
    pub(crate) is_up: bool,
    pub(crate) is_loopback: bool,
    alias: String,
}

impl Link {
    /// Whether berth made it: other daemons and people own links too, and a name proves nothing.
    pub(crate) fn is_ours(&self) -> bool {
        self.alias.starts_with(ALIAS)
    }
}

/// What the aliases of berth's links begin with; `ip link` shows them.
const ALIAS: &str = "berth";

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// The two ends of a pod's cable.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) bridge: u32,
    /// Goes into the alias: whose cable this is.
    pub(crate) sandbox: &'a str,
    pub(crate) pod_name: &'a str,
    pub(crate) pod_netns: BorrowedFd<'a>,
    pub(crate) pod_mac: Mac,
    pub(crate) mtu: u32,
}

fn request(step: impl Into<String>, flags: u16, message: RouteNetlinkMessage) -> Request {
    let mut payload = vec![0; NetlinkSerializable::buffer_len(&message)];
    NetlinkSerializable::serialize(&message, &mut payload);
    Request { step: step.into(), kind: message.message_type(), flags, payload }
}

fn link(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Makes a bridge, down. The alias is set in the same system call: no kill of the daemon comes in between.
pub(crate) fn create_bridge(name: &str, mac: Mac, mtu: u32) -> [Request; 2] {
    let message = link(vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        // Without an address of its own a bridge takes its lowest port's, and changes it under the pods' ARP caches.
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ]);
    let mark = link(vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(ALIAS.to_owned())]);
    [
        request(format!("create bridge {name}"), ACK | CREATE | EXCL, RouteNetlinkMessage::NewLink(message)),
        request(format!("mark bridge {name}"), ACK, RouteNetlinkMessage::NewLink(mark)),
    ]
}

/// Makes a veth pair whose far end is born in the pod's namespace, and connects the near end to the bridge. Moving the
/// far end there instead would cost an RCU grace period.
pub(crate) fn create_veth(veth: &Veth<'_>) -> [Request; 3] {
    let name = || LinkAttribute::IfName(veth.host_name.to_owned());
    let peer = link(vec![
        LinkAttribute::IfName(veth.pod_name.to_owned()),
        LinkAttribute::NetNsFd(veth.pod_netns.as_raw_fd()),
        LinkAttribute::Address(veth.pod_mac.to_vec()),
        LinkAttribute::Mtu(veth.mtu),
    ]);
    let create = link(vec![
        name(),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Controller(veth.bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    // Hairpin: a pod may reach itself through its own host port or service address. No IPv6 address: a bridge's port
    // needs none, and it would be one duplicate address detection for each pod.
    let configure = link(vec![
        name(),
        LinkAttribute::IfAlias(format!("{ALIAS} {}", veth.sandbox)),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ]);
    let raise = up(link(vec![name()]));
    let step = |what: &str| format!("{what} {}", veth.host_name);
    [
        request(step("create veth"), ACK | CREATE | EXCL, RouteNetlinkMessage::NewLink(create)),
        request(step("configure veth"), ACK, RouteNetlinkMessage::NewLink(configure)),
        request(step("raise veth"), ACK, RouteNetlinkMessage::NewLink(raise)),
    ]
}

/// Sets a link up.
pub(crate) fn raise_link(index: u32) -> Request {
    let mut message = up(LinkMessage::default());
    message.header.index = index;
    request(format!("set link {index} up"), ACK, RouteNetlinkMessage::SetLink(message))
}

/// Moves a link into another network namespace, and renames it there.
pub(crate) fn move_link(index: u32, netns: BorrowedFd<'_>, name: &str) -> Request {
    let mut message =
        link(vec![LinkAttribute::NetNsFd(netns.as_raw_fd()), LinkAttribute::IfName(name.to_owned())]);
    message.header.index = index;
    let step = format!("move link {index} to another network namespace as {name}");
    request(step, ACK, RouteNetlinkMessage::SetLink(message))
}

/// Makes a link a bridge's port again.
pub(crate) fn connect_to_bridge(name: &str, bridge: u32) -> Request {
    let message = link(vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Controller(bridge)]);
    request(format!("connect {name} to the bridge"), ACK, RouteNetlinkMessage::NewLink(message))
}

/// Deletes a link by name.
pub(crate) fn delete_link(name: &str) -> Request {
    let message = link(vec![LinkAttribute::IfName(name.to_owned())]);
    request(format!("delete link {name}"), ACK, RouteNetlinkMessage::DelLink(message))
}

/// Adds an address, usable at once: berth hands each address out once, so nothing is gained by waiting a second for
/// duplicate address detection. `exclusive` refuses an address that is there already.
pub(crate) fn add_address(index: u32, address: IpNet, exclusive: bool) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message.attributes.push(AddressAttribute::Local(address.addr()));
    match address {
        IpNet::V4(net) => message.attributes.push(AddressAttribute::Broadcast(net.broadcast())),
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    let flags = ACK | CREATE | if exclusive { EXCL } else { REPLACE };
    request(format!("add address {address}"), flags, RouteNetlinkMessage::NewAddress(message))
}

/// Adds a default route.
pub(crate) fn add_default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    message.attributes.push(RouteAttribute::Oif(index));
    let step = format!("add the default route through {gateway}");
    request(step, ACK | CREATE | EXCL, RouteNetlinkMessage::NewRoute(message))
}

impl Socket {
    /// The link of that name, if there is one.
    pub(crate) fn link_named(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let asked = link(vec![LinkAttribute::IfName(name.to_owned())]);
        match self.query(request(format!("look up link {name}"), ACK, RouteNetlinkMessage::GetLink(asked))) {
            Ok(answers) => Ok(answers.iter().find_map(read_link)),
            Err(err) if err.is_absent() => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// The addresses of a link that are seen from outside and do not run out.
    pub(crate) fn addresses_of(&mut self, link: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let asked = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.query(request(format!("list addresses of link {link}"), DUMP, asked))?;
        Ok(answers.iter().filter_map(|answer| read_address(answer, link)).collect())
    }

    /// All links that are ports of a bridge.
    pub(crate) fn ports_of(&mut self, bridge: u32) -> Result<Vec<Link>, NetlinkError> {
        let asked = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.query(request("list links", DUMP, asked))?;
        Ok(answers.iter().filter_map(read_link).filter(|link| link.master == Some(bridge)).collect())
    }

    /// The MTU of the interface that the default route leaves by: packets of pods go there in the end.
    pub(crate) fn default_route_mtu(&mut self) -> Result<Option<u32>, NetlinkError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut asked = RouteMessage::default();
            asked.header.address_family = family;
            let answers = self.query(request("list routes", DUMP, RouteNetlinkMessage::GetRoute(asked)))?;
            if let Some(index) = answers.iter().find_map(default_route_interface) {
                let mut asked = LinkMessage::default();
                asked.header.index = index;
                let asked = RouteNetlinkMessage::GetLink(asked);
                let answers = self.query(request(format!("look up link {index}"), ACK, asked))?;
                return Ok(answers.iter().find_map(read_link).map(|link| link.mtu));
            }
        }
        Ok(None)
    }
}

fn parse(answer: &Answer) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = answer.kind;
    RouteNetlinkMessage::deserialize(&header, &answer.payload).ok()
}

fn read_link(answer: &Answer) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = parse(answer)? else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        master: None,
        is_bridge: false,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        alias: String::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    Some(link)
}

fn read_address(answer: &Answer, link: u32) -> Option<IpNet> {
    let RouteNetlinkMessage::NewAddress(message) = parse(answer)? else { return None };
    let header = &message.header;
    let lasting = header.flags.contains(AddressHeaderFlags::Permanent);
    if header.index != link || header.scope != AddressScope::Universe || !lasting {
        return None;
    }
    // Of a cable with two ends IPv4's "address" is the other one.
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(own) => Some(*own),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(own.or(any)?, header.prefix_len).ok()
}

fn default_route_interface(answer: &Answer) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(message) = parse(answer)? else { return None };
    let header = &message.header;
    let is_default = header.destination_prefix_length == 0
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast;
    if !is_default {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
