//! The daemon's connections. There is one as a rule, and two while a daemon is being replaced.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use crate::wire;

/// Messages that wait for a peer that does not read. Every container and exec of a pod may end at once and report to
/// a daemon that is busy; one that lags further behind is dropped, and learns the rest when it connects again.
const QUEUE: usize = 256;

#[derive(Debug)]
struct Waiting {
    message: Rc<[u8]>,
    fd: Option<OwnedFd>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Done,
    /// In the queue: [`Peer::resume`] when the socket is writable.
    Queued,
    /// The peer has gone, or does not read.
    Hopeless,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) socket: OwnedFd,
    queue: VecDeque<Waiting>,
}

impl Peer {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, queue: VecDeque::new() }
    }

    /// Sends a message, after those that wait already. Never blocks.
    pub(super) fn send(&mut self, message: Rc<[u8]>, fd: Option<OwnedFd>) -> Delivery {
        if self.queue.len() >= QUEUE {
            return Delivery::Hopeless;
        }
        self.queue.push_back(Waiting { message, fd });
        self.resume()
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn resume(&mut self) -> Delivery {
        while let Some(next) = self.queue.front() {
            let fds = next.fd.as_ref().map(AsFd::as_fd);
            match wire::send(&self.socket, &next.message, fds.as_slice()) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Delivery::Queued,
                Err(_) => return Delivery::Hopeless,
            }
        }
        Delivery::Done
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_peer_that_does_not_read_is_given_up_and_never_waited_for() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut peer = Peer::new(ours);
        let message: Rc<[u8]> = vec![7; 8 * 1024].into();
        let mut queued = 0;
        loop {
            match peer.send(message.clone(), None) {
                Delivery::Done => assert_eq!(queued, 0, "messages stay in order"),
                Delivery::Queued => queued += 1,
                Delivery::Hopeless => break,
            }
        }
        assert_eq!(queued, QUEUE);
        let mut buffer = vec![0; 8 * 1024];
        while wire::receive(&theirs, &mut buffer).is_ok() {}
        assert_ne!(peer.resume(), Delivery::Hopeless, "reading helps");
    }
}
