//! What berth's table holds.
//!
//! ```text
//! table inet berth-BRIDGE {
//!   map ports4     { proto . port          -> pod address . pod port }      any address of the host
//!   map ports4-at  { address . proto . port -> pod address . pod port }     one address
//!   set flows4     { proto . host port . pod address . pod port }           the same, for "own-ports"
//!   chain guard    prerouting, raw     a pod must not reach the host's 127.0.0.0/8 (route_localnet is on)
//!   chain arriving prerouting, dstnat  host ports, from outside and from pods
//!   chain sending  output, dstnat      host ports, from the host itself
//!   chain leaving  postrouting, srcnat masquerade
//! }
//! ```
//! and the same maps for IPv6. A pod with host ports adds elements, never rules. `::1` is not translated: the answer
//! would come back to `::1` from another interface, which the kernel's IPv6 drops; there is no `route_localnet` for it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    expr::{Compare, Header, Meta, Register, Rule},
    wire::Attributes,
};
use crate::hostport::Forward;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// nft's own type numbers; only `nft list` reads them.
mod kind {
    pub(super) const IPV4_ADDRESS: u32 = 7;
    pub(super) const IPV6_ADDRESS: u32 = 8;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const PORT: u32 = 13;

    /// The number of a concatenation: six bits for each part.
    pub(super) fn concatenation(parts: &[u32]) -> u32 {
        parts.iter().fold(0, |number, part| number << 6 | part)
    }
}

/// IPv4 or IPv6, with what differs between them in the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => NFPROTO_IPV4,
            Self::V6 => NFPROTO_IPV6,
        }
    }

    fn address_kind(self) -> u32 {
        match self {
            Self::V4 => kind::IPV4_ADDRESS,
            Self::V6 => kind::IPV6_ADDRESS,
        }
    }

    /// Length of an address, in bytes.
    fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Offset of the source and the destination address in the packet's header.
    fn offsets(self) -> (u32, u32) {
        match self {
            Self::V4 => (12, 16),
            Self::V6 => (8, 24),
        }
    }

    /// Registers that an address takes.
    fn registers(self) -> u32 {
        self.length() / 4
    }

    fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

/// A set or map of the table.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) key_kind: u32,
    pub(crate) key_length: u32,
    /// Kind and length of the values of a map.
    pub(crate) value: Option<(u32, u32)>,
}

/// The sets of one family.
pub(crate) fn sets(family: Family) -> [Set; 3] {
    let (address, length) = (family.address_kind(), family.length());
    let target = Some((kind::concatenation(&[address, kind::PORT]), length + 4));
    [
        Set {
            name: ports(family),
            key_kind: kind::concatenation(&[kind::PROTOCOL, kind::PORT]),
            key_length: 8,
            value: target,
        },
        Set {
            name: ports_at(family),
            key_kind: kind::concatenation(&[address, kind::PROTOCOL, kind::PORT]),
            key_length: length + 8,
            value: target,
        },
        Set {
            name: flows(family),
            key_kind: kind::concatenation(&[kind::PROTOCOL, kind::PORT, address, kind::PORT]),
            key_length: length + 12,
            value: None,
        },
    ]
}

fn ports(family: Family) -> String {
    format!("ports{}", family.digit())
}

fn ports_at(family: Family) -> String {
    format!("ports{}-at", family.digit())
}

fn flows(family: Family) -> String {
    format!("flows{}", family.digit())
}

/// An element of a set.
#[derive(Debug)]
pub(crate) struct Element {
    pub(crate) set: String,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// The two elements of a host port: where it leads, and how its connections are recognised afterwards.
pub(crate) fn elements(forward: &Forward) -> [Element; 2] {
    let family = Family::of(forward.pod_address);
    let protocol = [forward.protocol.number(), 0, 0, 0];
    let port = |number: u16| [number.to_be_bytes(), [0; 2]].concat();
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (host, pod) = (port(forward.host_port), port(forward.pod_port));
    let target = [octets(forward.pod_address), pod.clone()].concat();
    let (set, key) = match forward.host_address {
        None => (ports(family), [protocol.as_slice(), &host].concat()),
        Some(address) => (ports_at(family), [&octets(address), protocol.as_slice(), &host].concat()),
    };
    let flow = [protocol.as_slice(), &host, &target].concat();
    [Element { set, key, value: Some(target) }, Element { set: flows(family), key: flow, value: None }]
}

/// A chain with a hook.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<Attributes>,
}

/// All chains, for pods of `subnets` behind `bridge`.
pub(crate) fn chains(bridge: &str, subnets: &[IpNet]) -> [Chain; 4] {
    const PREROUTING: u32 = 0;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    const RAW: i32 = -300;
    const DESTINATION_NAT: i32 = -100;
    const SOURCE_NAT: i32 = 100;
    let chain = |name, kind, hook, priority, rules: Vec<Rule>| Chain {
        name,
        kind,
        hook,
        priority,
        rules: rules.into_iter().map(Rule::into_attributes).collect(),
    };
    let arriving: Vec<Rule> = Family::BOTH.into_iter().flat_map(host_ports).collect();
    let mut sending = vec![not_to_loopback_v6()];
    sending.extend(Family::BOTH.into_iter().flat_map(host_ports));
    [
        chain("guard", "filter", PREROUTING, RAW, vec![no_loopback_from_pods(bridge)]),
        chain("arriving", "nat", PREROUTING, DESTINATION_NAT, arriving),
        chain("sending", "nat", OUTPUT, DESTINATION_NAT, sending),
        chain("leaving", "nat", POSTROUTING, SOURCE_NAT, masquerade(bridge, subnets)),
    ]
}

fn no_loopback_from_pods(bridge: &str) -> Rule {
    let destination = Register(0);
    Rule::new()
        .family(NFPROTO_IPV4)
        .interface(Meta::InputName, Compare::Equal, bridge)
        .load_payload(Header::Network, Family::V4.offsets().1, 4, destination)
        .compare_masked(destination, Compare::Equal, &[255, 0, 0, 0], &[127, 0, 0, 0])
        .drop()
}

fn not_to_loopback_v6() -> Rule {
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    Rule::new()
        .family(NFPROTO_IPV6)
        .load_payload(Header::Network, Family::V6.offsets().1, 16, Register(0))
        .compare(Register(0), Compare::Equal, &loopback)
        .accept()
}

/// Destination translation by the two maps; the exact address first.
fn host_ports(family: Family) -> [Rule; 2] {
    let number = family.number();
    let (_, destination) = family.offsets();
    let width = family.registers();
    // Values go behind the longest key (address, protocol, port), on a 16-byte boundary.
    let (value, value_port) = (Register(8), Register(8 + width));
    let exact = Rule::new()
        .family(number)
        .load_payload(Header::Network, destination, family.length(), Register(0))
        .load_meta(Meta::TransportProtocol, Register(width))
        .load_payload(Header::Transport, 2, 2, Register(width + 1))
        .look_up(&ports_at(family), Register(0), Some(value))
        .translate_destination(number, value, value_port);
    let any = Rule::new()
        .family(number)
        .destination_is_local()
        .load_meta(Meta::TransportProtocol, Register(0))
        .load_payload(Header::Transport, 2, 2, Register(1))
        .look_up(&ports(family), Register(0), Some(value))
        .translate_destination(number, value, value_port);
    [exact, any]
}

fn masquerade(bridge: &str, subnets: &[IpNet]) -> Vec<Rule> {
    // The host talks to a host port at 127.0.0.1: the pod needs an address it can answer to.
    let mut rules = vec![
        Rule::new()
            .family(NFPROTO_IPV4)
            .interface(Meta::OutputName, Compare::Equal, bridge)
            .load_payload(Header::Network, Family::V4.offsets().0, 4, Register(0))
            .compare_masked(Register(0), Compare::Equal, &[255, 0, 0, 0], &[127, 0, 0, 0])
            .masquerade(),
    ];
    for subnet in subnets {
        let family = Family::of(subnet.addr());
        let (_, destination) = family.offsets();
        let width = family.registers();
        // Traffic that leaves for somewhere else.
        rules.push(
            from_subnet(Rule::new().family(family.number()), family, subnet)
                .interface(Meta::OutputName, Compare::NotEqual, bridge)
                .masquerade(),
        );
        // Pod to pod, or to itself, through a host port: the answer must come back through the host. Only these: a
        // service proxy translates too, and there the target should see the true source.
        rules.push(
            from_subnet(Rule::new().family(family.number()), family, subnet)
                .interface(Meta::OutputName, Compare::Equal, bridge)
                .destination_was_translated()
                .load_meta(Meta::TransportProtocol, Register(0))
                .load_original_port(Register(1))
                .load_payload(Header::Network, destination, family.length(), Register(2))
                .load_payload(Header::Transport, 2, 2, Register(2 + width))
                .look_up(&flows(family), Register(0), None)
                .masquerade(),
        );
    }
    rules
}

fn from_subnet(rule: Rule, family: Family, subnet: &IpNet) -> Rule {
    let (source, _) = family.offsets();
    let (mask, network) = match subnet {
        IpNet::V4(net) => (net.netmask().octets().to_vec(), net.network().octets().to_vec()),
        IpNet::V6(net) => (net.netmask().octets().to_vec(), net.network().octets().to_vec()),
    };
    rule.load_payload(Header::Network, source, family.length(), Register(0)).compare_masked(
        Register(0),
        Compare::Equal,
        &mask,
        &network,
    )
}
