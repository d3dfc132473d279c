//! A container's output on its way into the log.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::attach::Follower;
use super::note::say;
use super::poller::Key;
use crate::crilog::{Batch, Lines, LogFile, Stamp, StreamName};

/// Bytes read from a stream in one go: a pipe's whole default capacity.
const READ: usize = 64 * 1024;

/// What is read at most after a container's death, for each stream: the largest pipe an unprivileged process can
/// make. A process that outlived the container (host or shared pid namespace) and keeps writing is cut off there.
const DRAIN: usize = 1024 * 1024;

/// A burst that touched no more than this leaves the buffers in place.
const KEEP: usize = 4096;

/// The buffers that all streams of the pod share; there is one thread.
#[derive(Debug)]
pub(super) struct Scratch {
    read: Vec<u8>,
    batch: Batch,
    most: usize,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { read: Vec::new(), batch: Batch::new(READ), most: 0 }
    }

    /// True when [`Scratch::release`] would free memory.
    pub(super) fn swollen(&self) -> bool {
        self.most > KEEP
    }

    /// Gives the buffers' memory back to the kernel (they are large enough for the allocator to map them one by one).
    pub(super) fn release(&mut self) {
        self.read = Vec::new();
        self.batch.shrink();
        self.most = 0;
    }
}

#[derive(Debug)]
struct Stream {
    source: OwnedFd,
    lines: Lines,
}

/// What one read of a stream found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Bytes(usize),
    Nothing,
    End,
}

/// The streams that are still open, and where they go.
#[derive(Debug)]
pub(super) struct Output {
    /// Without one the output is read and dropped.
    log: Option<LogFile>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    /// The other side of the terminal whose master stdout is. Held open: a program that closes its own for a while must not
    /// find that it has no terminal any more.
    terminal: Option<OwnedFd>,
    followers: Vec<Follower>,
}

impl Output {
    pub(super) fn new(log: Option<LogFile>) -> Self {
        Self { log, stdout: None, stderr: None, terminal: None, followers: Vec::new() }
    }

    /// Adds a terminal's master, which does not block.
    pub(super) fn attach_terminal(&mut self, master: OwnedFd) -> std::io::Result<()> {
        self.terminal = Some(berth_launcher::sys::pty_peer(&master)?);
        self.attach(StreamName::Stdout, master);
        Ok(())
    }

    /// The terminal's master while it is open.
    pub(super) fn terminal(&self) -> Option<&OwnedFd> {
        self.source(StreamName::Stdout).filter(|_| self.terminal.is_some())
    }

    pub(super) fn followers(&self) -> &[Follower] {
        &self.followers
    }

    pub(super) fn follow(&mut self, follower: Follower) {
        self.followers.push(follower);
    }

    pub(super) fn unfollow(&mut self, key: Key) -> Option<Follower> {
        let at = self.followers.iter().position(|follower| follower.key == key)?;
        Some(self.followers.swap_remove(at))
    }

    /// Adds a stream; `source` does not block.
    pub(super) fn attach(&mut self, name: StreamName, source: OwnedFd) {
        *self.slot(name) = Some(Stream { source, lines: Lines::new(name) });
    }

    pub(super) fn source(&self, name: StreamName) -> Option<&OwnedFd> {
        match name {
            StreamName::Stdout => self.stdout.as_ref(),
            StreamName::Stderr => self.stderr.as_ref(),
        }
        .map(|stream| &stream.source)
    }

    /// Takes a stream away without writing what it still holds.
    pub(super) fn detach(&mut self, name: StreamName) -> Option<OwnedFd> {
        self.slot(name).take().map(|stream| stream.source)
    }

    fn slot(&mut self, name: StreamName) -> &mut Option<Stream> {
        match name {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
        }
    }

    /// Reads once from a stream and writes the records to the log.
    pub(super) fn pump(&mut self, name: StreamName, scratch: &mut Scratch) -> Pumped {
        let Self { log, stdout, stderr, followers, .. } = self;
        let stream = match name {
            StreamName::Stdout => stdout,
            StreamName::Stderr => stderr,
        };
        let Some(stream) = stream else { return Pumped::End };
        if scratch.read.is_empty() {
            scratch.read = vec![0; READ];
        }
        let read = loop {
            match rustix::io::read(&stream.source, &mut scratch.read[..]) {
                Ok(0) => return Pumped::End,
                Ok(read) => break read,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Pumped::Nothing,
                // A terminal whose other side nobody has open any more.
                Err(Errno::IO) => return Pumped::End,
                Err(errno) => {
                    say!("cannot read a container's {name:?}: {errno}");
                    return Pumped::End;
                }
            }
        };
        scratch.most = scratch.most.max(read);
        if let Some(log) = log {
            stream.lines.push(&scratch.read[..read], &Stamp::now(), &mut scratch.batch, log);
            scratch.batch.flush(log);
        }
        for follower in followers.iter().filter(|follower| follower.stream == name) {
            // One that nobody reads any more goes when the poller says so.
            follower.write(&scratch.read[..read]);
        }
        Pumped::Bytes(read)
    }

    /// A stream has ended: writes what was begun, lets its followers read the end, and gives its descriptor back, to be
    /// closed.
    pub(super) fn end(&mut self, name: StreamName, scratch: &mut Scratch) -> Option<OwnedFd> {
        let mut stream = self.slot(name).take()?;
        self.followers.retain(|follower| follower.stream != name);
        if let Some(log) = &mut self.log {
            stream.lines.end(&Stamp::now(), &mut scratch.batch, log);
            scratch.batch.flush(log);
        }
        Some(stream.source)
    }

    /// The container is dead: reads everything that it wrote before, so that the log is complete when the exit is
    /// told. All of it is already in the pipes: a pid namespace's first process is dead only when all others are.
    pub(super) fn drain(&mut self, name: StreamName, scratch: &mut Scratch) -> Option<OwnedFd> {
        let mut left = DRAIN;
        while let Pumped::Bytes(bytes) = self.pump(name, scratch) {
            left = left.saturating_sub(bytes);
            if left == 0 {
                break;
            }
        }
        self.end(name, scratch)
    }

    /// Nothing more will be written.
    pub(super) fn close_log(&mut self) {
        if let Some(mut log) = self.log.take() {
            log.finish();
        }
    }

    /// Makes the log file anew; see [`LogFile::reopen`].
    pub(super) fn reopen(&mut self) -> std::io::Result<()> {
        self.log.as_mut().map_or(Ok(()), LogFile::reopen)
    }
}

/// What a stream still holds, up to `limit` bytes, as text: after a failed start of an external runtime it is that
/// runtime's complaint.
pub(super) fn remaining(source: impl AsFd, limit: usize) -> String {
    let mut bytes = vec![0; limit];
    let read = rustix::io::read(source, &mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
}
