//! Tells when something happens to the files of a log.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::sys;

/// Without a watch a follower looks so often.
const BLIND: Duration = Duration::from_secs(1);

/// The files of a folder.
#[derive(Debug)]
pub(super) struct Changes {
    folder: PathBuf,
    /// None as long as there is no folder, or when the user's inotify instances are used up.
    watch: Option<AsyncFd<OwnedFd>>,
}

impl Changes {
    pub(super) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), watch: None }
    }

    pub(super) fn is_blind(&self) -> bool {
        self.watch.is_none()
    }

    /// What happened until now is known: only what happens from here on counts.
    pub(super) fn forget(&mut self) {
        match &self.watch {
            Some(watch) => while read(watch.get_ref()).is_ok_and(|count| count > 0) {},
            None => self.watch = watch(&self.folder).ok(),
        }
    }

    /// Waits until something happens. Cancel safe.
    pub(super) async fn happened(&self) {
        let Some(watch) = &self.watch else { return sleep(BLIND).await };
        while let Ok(mut ready) = watch.readable().await {
            // Else it was for what is forgotten.
            if ready.try_io(|watch| read(watch.get_ref())).is_ok() {
                return;
            }
        }
        sleep(BLIND).await;
    }
}

fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // A rotation is seen by the file that is made after it.
    inotify::add_watch(&fd, folder, WatchFlags::MODIFY | WatchFlags::CREATE)?;
    sys::await_readable(fd)
}

fn read(watch: &OwnedFd) -> io::Result<usize> {
    Ok(rustix::io::read(watch, &mut [0; 4096])?)
}
