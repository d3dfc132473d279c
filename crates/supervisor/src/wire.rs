//! One message of `supervisor.proto` to a datagram, descriptors beside it. Both ends use this.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors that one message carries (`ExecProcess`: plan, stdin, stdout, stderr).
pub(crate) const MAX_FDS: usize = 4;

/// The largest message either side sends: `PodState` of a pod with hundreds of containers, or many sysctls. Below the
/// default socket buffer, so that a message always fits into an empty queue.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// A received message: how many bytes of the caller's buffer, and the descriptors, close-on-exec.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) len: usize,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Sends one message, never waiting.
///
/// # Errors
/// `WouldBlock` when the peer's queue is full; `BrokenPipe` or `ConnectionReset` when it is gone.
pub(crate) fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than a message carries"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(message)], &mut control, flags) {
            // SOCK_SEQPACKET sends a message whole or not at all.
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message, never waiting. `None`: the peer has closed.
///
/// # Errors
/// `WouldBlock` when there is nothing; `InvalidData` when the message did not fit `buffer` or carried too many
/// descriptors: the stream of requests can then no longer be trusted.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(got) => break got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message or its descriptors were cut off"));
    }
    // An empty datagram cannot be told from the end; no message of the protocol is empty.
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some(Received { len: got.bytes, fds }))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn messages_keep_their_boundaries_and_descriptors() {
        let (here, there) = pair();
        send(&here, b"first", &[here.as_fd(), there.as_fd()]).unwrap();
        send(&here, b"second", &[]).unwrap();
        let mut buffer = [0; 64];
        let first = receive(&there, &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..first.len], first.fds.len()), (&b"first"[..], 2));
        let second = receive(&there, &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..second.len], second.fds.len()), (&b"second"[..], 0));
        assert_eq!(receive(&there, &mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop((here, first));
        assert!(receive(&there, &mut buffer).unwrap().is_none(), "a closed peer is the end");
    }

    #[test]
    fn a_message_too_large_for_the_buffer_is_refused() {
        let (here, there) = pair();
        send(&here, &[1; 100], &[]).unwrap();
        assert_eq!(receive(&there, &mut [0; 10]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
