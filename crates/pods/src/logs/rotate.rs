//! Rotation: a log that has grown large goes aside, and the oldest of those go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_sandbox_manager::{Error as ManagerError, SandboxManager};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::files::{self, Age};
use crate::clock;
use crate::node::blocking;

/// How much of a log is kept. The defaults are kubelet's (`containerLogMaxSize`, `containerLogMaxFiles`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A file that has reached this many bytes is rotated.
    pub(crate) size: u64,
    /// Of an attempt, with the one that is written to.
    pub(crate) files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size: 10 << 20, files: 5 }
    }
}

/// Why a log was not rotated. The next time it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    #[error("cannot rotate {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot rotate {}", path.display())]
    Reopen {
        path: PathBuf,
        #[source]
        source: ManagerError,
    },
}

/// Rotates the log of a running container when it has grown enough; true when it was.
pub(crate) async fn rotate(
    manager: &SandboxManager,
    container_id: &str,
    log: &Path,
    limits: Limits,
) -> Result<bool, RotateError> {
    rotate_with(log, limits, async || manager.reopen_log(container_id).await).await
}

pub(super) async fn rotate_with(
    log: &Path,
    limits: Limits,
    reopen: impl AsyncFnOnce() -> Result<(), ManagerError>,
) -> Result<bool, RotateError> {
    let failed = |source| RotateError::File { path: log.to_owned(), source };
    let path = log.to_owned();
    let aside = match blocking(move || put_aside(&path, limits)).await.map_err(failed)? {
        Aside::NotYet => return Ok(false),
        Aside::Already => None,
        Aside::Now(aside) => Some(aside),
    };
    if let Err(source) = reopen().await {
        if let Some(aside) = aside {
            let path = log.to_owned();
            blocking(move || put_back(&aside, &path)).await.map_err(failed)?;
        }
        return Err(RotateError::Reopen { path: log.to_owned(), source });
    }
    let path = log.to_owned();
    blocking(move || remove_old(&path, limits)).await.map_err(failed)?;
    Ok(true)
}

enum Aside {
    /// It is small.
    NotYet,
    /// By a daemon that was killed before it was written anew.
    Already,
    Now(PathBuf),
}

fn put_aside(log: &Path, limits: Limits) -> io::Result<Aside> {
    match fs::symlink_metadata(log) {
        Ok(file) if file.len() < limits.size => return Ok(Aside::NotYet),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Aside::Already),
        Err(error) => return Err(error),
    }
    let aside = files::rotated(log, clock::unix());
    fs::rename(log, &aside)?;
    Ok(Aside::Now(aside))
}

/// Unless it was made anew all the same, and only the answer was lost.
fn put_back(aside: &Path, log: &Path) -> io::Result<()> {
    match renameat_with(CWD, aside, CWD, log, RenameFlags::NOREPLACE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn remove_old(log: &Path, limits: Limits) -> io::Result<()> {
    let mut rotated = files::of(log)?;
    rotated.retain(|file| file.age != Age::Current);
    let old = (rotated.len() + 1).saturating_sub(limits.files.max(2));
    rotated[..old].iter().try_for_each(|file| files::remove_file(&file.path))
}
