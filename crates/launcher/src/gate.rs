//! The gate between a new process and its supervisor: a socket pair whose one end closes on exec.
//!
//! ```text
//!   create:  Setup ──Ready──► Waiting ──open()──► Opened ──end of file──► Executed
//!              └──Held──► Held ──open()──► Setup                 (only with hooks)
//!   exec:    Setup ──Ready────────────────────────► Opened ──end of file──► Executed
//!            any   ──Failed, or end of file before Opened──► Failed
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::{GateFailure, GateHeld, GateMessage, GateReady, gate_message};
use prost::Message;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::StepError;

/// The longest message: a failure with two paths, or a warning for each capability and limit, is far below this.
const MESSAGE_LIMIT: usize = 16 * 1024;

/// How far the new process has come.
#[derive(Debug)]
pub enum Progress {
    /// The process waits for [`Gate::open`] before it runs its hooks. Then comes `Ready`.
    Held,
    /// Everything is set up. After `create` the process now waits for [`Gate::open`].
    Ready {
        /// The pseudoterminal's master, when the plan asks for a terminal.
        console: Option<OwnedFd>,
        /// What this host cannot do and was left out.
        warnings: Vec<String>,
    },
    /// The container's program runs.
    Executed,
    /// The process has ended or is about to; nothing of it is left once it has been waited for.
    Failed(StepError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Setup {
        waits: bool,
    },
    Held,
    Waiting,
    Opened,
    /// It has said why it failed; the end of file that follows says no more.
    Failed,
}

/// The supervisor's end. Poll it for reading, then call [`Gate::read`].
#[derive(Debug)]
pub struct Gate {
    socket: OwnedFd,
    state: State,
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Gate {
    /// What the process has said since, or `None` when it has not said anything yet. Never blocks.
    ///
    /// # Errors
    /// recvmsg(2)'s; `InvalidData` for something that is no message of ours.
    pub fn read(&mut self) -> io::Result<Option<Progress>> {
        if self.state == State::Failed {
            return Ok(None);
        }
        let mut buffer = vec![0_u8; MESSAGE_LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = loop {
            let received = rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut ancillary,
                flags,
            );
            match received {
                Ok(message) => break message.bytes,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if length == 0 {
            return Ok(Some(self.closed()));
        }
        let console = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let message = GateMessage::decode(&buffer[..length])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.body {
            Some(gate_message::Body::Ready(GateReady { warnings })) => {
                self.state =
                    if self.state == (State::Setup { waits: true }) { State::Waiting } else { State::Opened };
                Ok(Some(Progress::Ready { console, warnings }))
            }
            Some(gate_message::Body::Failure(GateFailure { step, errno, message, exec })) => {
                self.state = State::Failed;
                Ok(Some(Progress::Failed(StepError { step, errno, message, exec })))
            }
            Some(gate_message::Body::Held(GateHeld {})) => {
                self.state = State::Held;
                Ok(Some(Progress::Held))
            }
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "an empty message on the gate")),
        }
    }

    /// Lets a held process go on to its hooks, a created one to its program. Once each.
    ///
    /// # Errors
    /// `NotConnected` when the process is not waiting (not ready yet, opened before, or failed); `BrokenPipe` when it
    /// has died meanwhile.
    pub fn open(&mut self) -> io::Result<()> {
        let next = match self.state {
            State::Held => State::Setup { waits: true },
            State::Waiting => State::Opened,
            State::Setup { .. } | State::Opened | State::Failed => {
                let message = "the process does not wait at its gate";
                return Err(io::Error::new(io::ErrorKind::NotConnected, message));
            }
        };
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &[1], SendFlags::NOSIGNAL))?;
        self.state = next;
        Ok(())
    }

    /// The other end is closed: by a successful exec, or because the process is dead.
    fn closed(&self) -> Progress {
        let step = match self.state {
            State::Opened | State::Failed => return Progress::Executed,
            State::Setup { .. } | State::Held => "setting the container up",
            State::Waiting => "waiting to be started",
        };
        Progress::Failed(StepError::refused(step, "the process was killed"))
    }
}

/// The new process's end.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) socket: OwnedFd,
}

impl Reporter {
    pub(crate) fn ready(&self, console: Option<BorrowedFd<'_>>, warnings: Vec<String>) -> io::Result<()> {
        let mut body = gate_message::Body::Ready(GateReady { warnings });
        let mut bytes = GateMessage { body: Some(body) }.encode_to_vec();
        if bytes.len() > MESSAGE_LIMIT {
            let warnings = vec!["there were more warnings than a message holds".to_owned()];
            body = gate_message::Body::Ready(GateReady { warnings });
            bytes = GateMessage { body: Some(body) }.encode_to_vec();
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = console.into_iter().collect();
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("no room for the console's descriptor"));
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)
        })?;
        Ok(())
    }

    pub(crate) fn held(&self) -> io::Result<()> {
        let bytes = GateMessage { body: Some(gate_message::Body::Held(GateHeld {})) }.encode_to_vec();
        rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &bytes))?;
        Ok(())
    }

    /// Blocks until the supervisor opens the gate; `false` when it closed it instead, or died.
    pub(crate) fn wait(&self) -> io::Result<bool> {
        let mut byte = [0_u8; 1];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut byte[..]))?;
        Ok(length == 1)
    }

    /// write(2), because the container's seccomp profile may be in force and that call is in every profile.
    pub(crate) fn failed(&self, error: StepError) -> io::Result<()> {
        let StepError { mut step, errno, mut message, exec } = error;
        step.truncate(step.floor_char_boundary(MESSAGE_LIMIT / 4));
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT / 4));
        let body = gate_message::Body::Failure(GateFailure { step, errno, message, exec });
        let bytes = GateMessage { body: Some(body) }.encode_to_vec();
        rustix::io::retry_on_intr(|| rustix::io::write(&self.socket, &bytes))?;
        Ok(())
    }
}

/// A gate and the end for the process behind it, which waits for [`Gate::open`] or not.
pub(crate) fn pair(waits: bool) -> io::Result<(Gate, Reporter)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Gate { socket: ours, state: State::Setup { waits } }, Reporter { socket: theirs }))
}
