//! Connections that the kernel remembers.
//!
//! A UDP sender that keeps sending keeps its entry, and with it the translation of the time when it began: to the host
//! itself before the pod was there, to a pod that is gone after. So the entries of a UDP host port are forgotten
//! whenever the port changes hands. TCP needs none of it: a new connection is a new entry.

use crate::{
    hostport::{Forward, Protocol},
    netlink::{ACK, NetlinkError, Request, Socket},
    nft::{Attributes, Family},
};

const SUBSYSTEM: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const FILTER: u16 = 25;
/// `CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT` (since Linux 5.8).
const FILTER_BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// Forgets the connections to these host ports, where they are UDP.
pub(crate) fn forget(socket: &mut Socket, forwards: &[Forward]) -> Result<(), NetlinkError> {
    let requests: Vec<Request> =
        forwards.iter().filter(|forward| forward.protocol == Protocol::Udp).map(forget_port).collect();
    if requests.is_empty() { Ok(()) } else { socket.transact(&requests) }
}

fn forget_port(forward: &Forward) -> Request {
    let family = match Family::of(forward.pod_address) {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let protocol =
        Attributes::new().bytes(1, &[forward.protocol.number()]).bytes(3, &forward.host_port.to_be_bytes());
    let attributes = Attributes::new()
        .nested(TUPLE_ORIGINAL, Attributes::new().nested(2, protocol))
        // Unlike everything else here, the filter's flags are in the host's byte order.
        .nested(FILTER, Attributes::new().bytes(1, &FILTER_BY_PROTOCOL_AND_PORT.to_ne_bytes()));
    let family = u8::try_from(family).expect("address families are small");
    // Version 1 makes the family count.
    let header = [family, 1, 0, 0];
    Request {
        step: format!("forget UDP connections to port {}", forward.host_port),
        kind: SUBSYSTEM << 8 | DELETE,
        flags: ACK,
        payload: [header.to_vec(), attributes.into_bytes()].concat(),
    }
}
