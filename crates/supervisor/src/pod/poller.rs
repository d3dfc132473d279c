//! epoll, with names for what can become ready.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

pub(super) use rustix::event::epoll::EventFlags;

/// The number of a peer, container, exec or run in its table. Never used again, so that an event that was already
/// fetched when its source went cannot hit another one.
pub(super) type Key = u32;

/// A source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Children,
    PidOne,
    Peer(Key),
    /// A container's first process: its pidfd, the launcher's gate, its streams.
    Death(Key),
    Gate(Key),
    Stdout(Key),
    Stderr(Key),
    ExecDeath(Key),
    ExecGate(Key),
    /// A run of an external runtime's binary has ended.
    Run(Key),
    /// The pipe of someone who follows a container's output; told of errors only.
    Follower(Key),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, key) = match self {
            Self::Listener => (0, 0),
            Self::Children => (1, 0),
            Self::PidOne => (2, 0),
            Self::Peer(key) => (3, key),
            Self::Death(key) => (4, key),
            Self::Gate(key) => (5, key),
            Self::Stdout(key) => (6, key),
            Self::Stderr(key) => (7, key),
            Self::ExecDeath(key) => (8, key),
            Self::ExecGate(key) => (9, key),
            Self::Run(key) => (10, key),
            Self::Follower(key) => (11, key),
        };
        (kind << 32) | u64::from(key)
    }

    fn decode(data: u64) -> Option<Self> {
        let key = data as u32;
        Some(match data >> 32 {
            0 => Self::Listener,
            1 => Self::Children,
            2 => Self::PidOne,
            3 => Self::Peer(key),
            4 => Self::Death(key),
            5 => Self::Gate(key),
            6 => Self::Stdout(key),
            7 => Self::Stderr(key),
            8 => Self::ExecDeath(key),
            9 => Self::ExecGate(key),
            10 => Self::Run(key),
            11 => Self::Follower(key),
            _ => return None,
        })
    }
}

/// What one wait brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) writable: bool,
}

#[derive(Debug)]
pub(super) struct Poller(OwnedFd);

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `source` for input, level-triggered.
    pub(super) fn add(&self, source: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, epoll::EventData::new_u64(token.encode()), EventFlags::IN)?)
    }

    pub(super) fn change(&self, source: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.0, source, epoll::EventData::new_u64(token.encode()), flags)?)
    }

    /// Stops watching. To be called before a descriptor is closed: a child that has been forked but not executed yet
    /// still holds a copy, and epoll watches the open file, not the number.
    pub(super) fn remove(&self, source: impl AsFd) {
        // ENOENT: it was never added. Nothing else can happen to an open descriptor.
        let _ = epoll::delete(&self.0, source);
    }

    /// Waits until something is ready or `until` has come, and puts what is ready into `ready`.
    pub(super) fn wait(&self, ready: &mut Vec<Ready>, until: Option<Instant>) -> io::Result<()> {
        ready.clear();
        let timeout = until.map(|until| {
            // A millisecond more than needed rather than a turn too early.
            let left = until.saturating_duration_since(Instant::now());
            let left = if left.is_zero() { left } else { left + Duration::from_millis(1) };
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let empty = epoll::Event { flags: EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [empty; 16];
        let count = match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        ready.extend(events[..count].iter().filter_map(|event| {
            let (data, flags) = (event.data, event.flags);
            Token::decode(data.u64()).map(|token| Ready { token, writable: flags.contains(EventFlags::OUT) })
        }));
        Ok(())
    }
}
