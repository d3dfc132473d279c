//! What containers wrote: read back, followed, rotated.
//!
//! The files are berth-pod's, in CRI's format: `<attempt>.log`, and beside it those that were rotated away. A reader goes
//! through them as if they were one, and from one attempt to the next.

mod changes;
mod files;
mod reader;
mod record;
mod rotate;
mod tail;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_cri::berth::v1::{LogLine, LogsRequest, pod_container::State};
use tokio::sync::watch;

use crate::directory::{Entry, Key};
use crate::node::blocking;
use crate::pods::named;
use crate::{Error, Pods};

use changes::Changes;
use reader::Reader;

pub(crate) use self::{
    files::remove_before,
    rotate::{Limits, rotate},
};
pub(crate) use tail::last_text;

impl Pods {
    /// Reads what a container wrote: of its newest attempt, or of the one before.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoContainer`]; [`Error::WrongState`] when there is nothing to read yet, and nothing
    /// is waited for.
    pub async fn logs(&self, pod: &Key, request: &LogsRequest) -> Result<Lines, Error> {
        let entry = self.0.directory.get(pod)?;
        let name = named(&entry, &request.container)?;
        let folder = self.0.log_dir(&entry.plan.record.uid).join(&name);
        let follow = request.follow && !request.previous;
        let wanted = Wanted {
            previous: request.previous && !is_waiting(&entry, &name),
            follow,
            since: request.since,
            tail: request.tail,
        };
        let until = follow.then(|| {
            let (node, key, uid, name) =
                (Arc::clone(&self.0), pod.clone(), entry.plan.record.uid.clone(), name.clone());
            let changes = node.directory.watch();
            let over = move || match node.directory.get(&key) {
                Ok(entry) => entry.plan.record.uid != uid || has_ended_for_good(&entry, &name),
                Err(_) => true,
            };
            Until { over: Box::new(over), changes }
        });
        let nothing = || Error::WrongState {
            what: format!("container {name} of pod {}", entry.plan.label()),
            state: match request.previous {
                true => "has no attempt before this one".to_owned(),
                false => "has not been started".to_owned(),
            },
            ask: "read the log of",
        };
        Lines::open(folder, wanted, until).await?.ok_or_else(nothing)
    }
}

/// Whether the newest attempt is over and the next one has not begun: then it is the one before.
fn is_waiting(entry: &Entry, name: &str) -> bool {
    let found = entry.state.containers.iter().find(|one| one.name == name);
    matches!(found.and_then(|one| one.state.as_ref()), Some(State::Waiting(_)))
}

/// Whether it will not run again.
fn has_ended_for_good(entry: &Entry, name: &str) -> bool {
    let found = entry.state.containers.iter().find(|one| one.name == name);
    entry.state.finished_at != 0
        || matches!(found.and_then(|one| one.state.as_ref()), Some(State::Terminated(_)))
}

/// Which lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Of the attempt before the newest.
    pub(crate) previous: bool,
    /// Also those to come.
    pub(crate) follow: bool,
    /// None from before; nanoseconds since the epoch.
    pub(crate) since: i64,
    /// The last so many, of those there are.
    pub(crate) tail: Option<u64>,
}

/// Until when a follower goes on.
pub(crate) struct Until {
    /// Whether nothing will be written any more.
    pub(crate) over: Box<dyn Fn() -> bool + Send + Sync>,
    /// Tells that it may be another answer now.
    pub(crate) changes: watch::Receiver<u64>,
}

impl fmt::Debug for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Until").finish_non_exhaustive()
    }
}

/// A container's log, line after line.
#[derive(Debug)]
pub struct Lines {
    folder: PathBuf,
    /// None once it has failed.
    reader: Option<Reader>,
    ready: VecDeque<LogLine>,
    since: i64,
    until: Option<(Until, Changes)>,
}

impl Lines {
    /// None when there is nothing to read, and nothing to wait for.
    ///
    /// # Arguments
    /// * `folder`: the container's own.
    /// * `until`: present for a follower.
    pub(crate) async fn open(
        folder: PathBuf,
        wanted: Wanted,
        until: Option<Until>,
    ) -> Result<Option<Self>, Error> {
        let failed = log_error(&folder);
        let place = folder.clone();
        let reader = blocking(move || Reader::open(&place, wanted)).await.map_err(failed)?;
        let until = until.map(|until| (until, Changes::of(&folder)));
        Ok(reader.map(|reader| Self {
            folder,
            reader: Some(reader),
            ready: VecDeque::new(),
            since: wanted.since,
            until,
        }))
    }

    /// The next line; waits for one when following. None at the end. Not cancel safe.
    pub async fn next(&mut self) -> Option<Result<LogLine, Error>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(Ok(line));
            }
            // Looked at before the files are: what was written until then is read.
            let over = self.until.as_mut().is_none_or(|(until, changes)| {
                until.changes.mark_unchanged();
                changes.forget();
                (until.over)()
            });
            let mut reader = self.reader.take()?;
            let (read, reader) = blocking(move || (reader.read(), reader)).await;
            match read {
                Ok(lines) if lines.is_empty() => {
                    if over {
                        return None;
                    }
                    if let Some((until, changes)) = &mut self.until {
                        wait(until, changes).await;
                    }
                }
                Ok(lines) => self.ready.extend(lines.into_iter().filter(|line| line.at >= self.since)),
                Err(source) => return Some(Err(log_error(&self.folder)(source))),
            }
            self.reader = Some(reader);
        }
    }
}

/// Waits until there may be more to read, or it is over.
async fn wait(until: &mut Until, files: &Changes) {
    loop {
        tokio::select! {
            () = files.happened() => return,
            changed = until.changes.changed() => match changed {
                // The folder may be there by now.
                Ok(()) if files.is_blind() || (until.over)() => return,
                // Something else changed.
                Ok(()) => {}
                // The daemon ends, and so do its streams.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

fn log_error(folder: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = folder.to_owned();
    move |source| Error::Log { path, source }
}

#[cfg(test)]
mod tests;
