//! Those who follow a container's output beside its log.
//!
//! The log comes first: a follower that does not keep up misses what its pipe has no room for, and nobody waits for it.

use std::os::fd::OwnedFd;

use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::{AttachContainer, Attached, Failure, failure::Kind};
use rustix::io::Errno;

use super::Pod;
use super::container::{Asked, Phase};
use super::failure::{Step, malformed, wrong_state};
use super::note::say;
use super::poller::{Key, Token};
use super::requests::Reply;
use super::set_nonblocking;
use crate::crilog::StreamName;

/// More than a handful of people have never looked at one container at once; each costs a pipe of up to a megabyte.
const MOST: usize = 64;

/// One pipe to one follower.
#[derive(Debug)]
pub(super) struct Follower {
    /// For the poller: an error on the pipe says that nobody reads it any more.
    pub(super) key: Key,
    pub(super) stream: StreamName,
    pub(super) pipe: OwnedFd,
}

impl Follower {
    /// Passes on what fits; false when nobody reads any more.
    pub(super) fn write(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match rustix::io::write(&self.pipe, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

impl Pod {
    pub(super) fn attach(
        &mut self,
        asked: Asked,
        request: &AttachContainer,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, Failure> {
        let internal = |fault: super::failure::Fault| fault.into_failure(Kind::Internal);
        let key = self.find(&request.container_id)?;
        let wanted = [(request.stdout, StreamName::Stdout), (request.stderr, StreamName::Stderr)];
        let streams: Vec<StreamName> =
            wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, stream)| stream).collect();
        if streams.len() != fds.len() {
            return Err(malformed("attach takes a pipe for each stream that is asked for"));
        }
        let keys: Vec<Key> = streams.iter().map(|_| self.new_key()).collect();
        let Some(container) = self.containers.get_mut(&key) else { return Ok(Reply::done()) };
        if !matches!(container.phase, Phase::Created | Phase::Starting(_) | Phase::Running(_)) {
            return Err(wrong_state(format!("container {} is not running", container.id)));
        }
        if container.output.followers().len() + fds.len() > MOST {
            return Err(wrong_state(format!("container {} has too many followers already", container.id)));
        }
        let input = container.input().step("share the container's input").map_err(internal)?;
        for ((key, stream), pipe) in keys.into_iter().zip(streams).zip(fds) {
            set_nonblocking(&pipe).step("take a follower's pipe").map_err(internal)?;
            // Without an event that is asked for; errors are always told.
            self.poller.add(&pipe, Token::Follower(key)).step("watch a follower's pipe").map_err(internal)?;
            container.output.follow(Follower { key, stream, pipe });
        }
        self.answer(asked, Ok(Answer::Attached(Attached {})), input);
        Ok(Reply::Later)
    }

    /// Nobody reads a follower's pipe any more.
    pub(super) fn follower_left(&mut self, key: Key) {
        for container in self.containers.values_mut() {
            if let Some(follower) = container.output.unfollow(key) {
                self.poller.remove(&follower.pipe);
                return;
            }
        }
    }

    pub(super) fn close_stdin(&mut self, container_id: &str) -> Result<Reply, Failure> {
        let key = self.find(container_id)?;
        if let Some(container) = self.containers.get_mut(&key)
            && container.stdin.take().is_none()
        {
            say!("the stdin of container {container_id} is closed already");
        }
        Ok(Reply::done())
    }
}
