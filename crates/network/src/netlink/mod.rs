//! One transport for both netlink families that this crate speaks: several requests in one system call, an answer for
//! each, no task and no reactor. A pod's link, addresses and routes are three such calls.

pub(crate) mod route;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};

use crate::sys;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
/// Adds to the end (nf_tables rules).
pub(crate) const APPEND: u16 = 0x800;
/// All objects of a kind (`NLM_F_ROOT | NLM_F_MATCH`).
pub(crate) const DUMP: u16 = 0x300;

const HEADER: usize = 16;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
const FLAG_ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words on an error.
const ERROR_ATTR_TEXT: u16 = 1;
/// The kernel fills a dump's messages up to 32 KiB when the reader offers that much.
const BUFFER: usize = 64 * 1024;
/// The kernel answers within the send call, before the receive starts; this bounds what should never happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A dump that other changes keep interrupting is begun anew this often.
const DUMP_ATTEMPTS: usize = 8;

/// A netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket of this family: no memory, or a kernel built without it.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("no answer from the kernel to: {step}")]
    Transport {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {step}{}", detail.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        step: String,
        /// The kernel's own words, where it gave any.
        detail: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// The answer is not what the protocol says.
    #[error("the kernel's answer to this cannot be read: {step}")]
    Malformed {
        /// What was asked for.
        step: String,
    },
}

impl NetlinkError {
    /// The error number, when the kernel refused.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_) | Self::Transport { .. } | Self::Malformed { .. } => None,
        }
    }

    /// Whether the thing that was asked about does not exist.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV))
    }
}

/// For what is to be gone: it may be already.
pub(crate) fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(err) if err.is_absent() => Ok(()),
        other => other,
    }
}

/// One request, in words as well.
#[derive(Debug)]
pub(crate) struct Request {
    /// Completes "cannot …".
    pub(crate) step: String,
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: Vec<u8>,
}

/// One message of a dump or of a query's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Links, addresses, routes.
    pub(crate) fn route() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// nf_tables and connection tracking.
    pub(crate) fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let open = |errno: nix::Error| NetlinkError::Open(errno.into());
        let fd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(open)?;
        let timeout = nix::sys::time::TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).map_err(open)?;
        for option in [sys::NETLINK_EXT_ACK, sys::NETLINK_CAP_ACK] {
            sys::enable_netlink_option(fd.as_fd(), option).map_err(NetlinkError::Open)?;
        }
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends all requests in one call and waits until each that asked for it ([`ACK`]) is answered. The kernel goes on
    /// after a refused one (route) or undoes all (an nf_tables batch); the first refusal is returned either way.
    pub(crate) fn transact(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        self.send(requests)?;
        let mut waiting = requests.iter().filter(|request| request.flags & ACK != 0).count();
        let mut refusal = None;
        while waiting > 0 {
            for message in self.receive(&requests[0].step)? {
                let index = usize::try_from(message.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let Some(request) = requests.get(index).filter(|_| message.kind == TYPE_ERROR) else {
                    continue;
                };
                let refused = refusal_in(&message, &request.step)?;
                if request.flags & ACK != 0 {
                    waiting -= 1;
                } else if refused.is_some() {
                    // The frame of a batch was refused, so nothing in it is answered.
                    waiting = 0;
                }
                if refusal.is_none() {
                    refusal = refused;
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Asks for one object or dumps many.
    pub(crate) fn query(&mut self, request: Request) -> Result<Vec<Answer>, NetlinkError> {
        let requests = [request];
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(answers) = self.query_once(&requests)? {
                return Ok(answers);
            }
        }
        let [request] = requests;
        Err(NetlinkError::Malformed { step: request.step })
    }

    /// `None` when the dump was interrupted by a change and is not consistent.
    fn query_once(&mut self, requests: &[Request; 1]) -> Result<Option<Vec<Answer>>, NetlinkError> {
        let [request] = requests;
        self.send(requests)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.receive(&request.step)? {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & FLAG_DUMP_INTERRUPTED != 0;
                match message.kind {
                    TYPE_DONE => return Ok((!interrupted).then_some(answers)),
                    TYPE_ERROR => match refusal_in(&message, &request.step)? {
                        Some(refusal) => return Err(refusal),
                        None => return Ok(Some(answers)),
                    },
                    kind => answers.push(Answer { kind, payload: message.payload }),
                }
            }
        }
    }

    fn send(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        let mut bytes = Vec::with_capacity(requests.iter().map(|r| HEADER + r.payload.len() + 3).sum());
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let length =
                u32::try_from(HEADER + request.payload.len()).expect("requests are built in kilobytes");
            bytes.extend(length.to_ne_bytes());
            bytes.extend(request.kind.to_ne_bytes());
            bytes.extend((request.flags | REQUEST).to_ne_bytes());
            bytes.extend(self.sequence.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(&request.payload);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let step = || requests.first().map(|r| r.step.clone()).unwrap_or_default();
        loop {
            match send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Transport { step: step(), source: errno.into() }),
            }
        }
    }

    fn receive(&mut self, step: &str) -> Result<Vec<Message>, NetlinkError> {
        let mut buffer = vec![0; BUFFER];
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => break length,
                Err(nix::Error::EINTR) => {}
                Err(errno) => {
                    return Err(NetlinkError::Transport { step: step.to_owned(), source: errno.into() });
                }
            }
        };
        split(&buffer[..length]).ok_or_else(|| NetlinkError::Malformed { step: step.to_owned() })
    }
}

#[derive(Debug)]
struct Message {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: Vec<u8>,
}

fn split(mut bytes: &[u8]) -> Option<Vec<Message>> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        messages.push(Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload: bytes.get(HEADER..length)?.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(messages)
}

/// Reads an acknowledgement: `None` when the request was granted.
fn refusal_in(message: &Message, step: &str) -> Result<Option<NetlinkError>, NetlinkError> {
    let code = u32_at(&message.payload, 0)
        .ok_or_else(|| NetlinkError::Malformed { step: step.to_owned() })?
        .cast_signed();
    if code == 0 {
        return Ok(None);
    }
    // The error code is followed by the request's header and then, flagged so, by attributes.
    let detail = (message.flags & FLAG_ACK_TLVS != 0)
        .then(|| {
            attributes(message.payload.get(4 + HEADER..)?)
                .find(|(kind, _)| *kind == ERROR_ATTR_TEXT)
                .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        })
        .flatten();
    let source = io::Error::from_raw_os_error(code.saturating_neg());
    Ok(Some(NetlinkError::Refused { step: step.to_owned(), detail, source }))
}

/// Walks netlink attributes; stops at the first that is cut off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The two upper bits say "nested" and "network byte order".
    const KIND_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_message_is_malformed_and_never_a_panic() {
        let mut bytes = Vec::new();
        bytes.extend(20u32.to_ne_bytes());
        bytes.extend([0; 16]);
        assert_eq!(split(&bytes).unwrap().len(), 1);
        for cut in 1..bytes.len() {
            assert!(split(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        let zero_length = [0; 16];
        assert!(split(&zero_length).is_none(), "a length below the header would loop for ever");
    }

    #[test]
    fn a_refusal_carries_errno_and_the_kernels_words() {
        let mut payload = (-libc::EPERM).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        payload.extend([7u8, 0, 1, 0, b'n', b'o', 0, 0]);
        let message = Message { kind: TYPE_ERROR, flags: FLAG_ACK_TLVS, sequence: 1, payload };
        let refusal = refusal_in(&message, "do it").unwrap().unwrap();
        assert_eq!(refusal.errno(), Some(libc::EPERM));
        assert_eq!(refusal.to_string(), "cannot do it (no)");
    }
}
