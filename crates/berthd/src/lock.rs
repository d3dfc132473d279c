//! One daemon for one folder: a flock(2) on a file in it, with the holder's pid inside.
//!
//! The kernel gives the lock back when the daemon dies, however it dies. The descriptor is close-on-exec, so the
//! supervisors, which outlive the daemon, do not keep it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file's name in ROOT and STATE.
const NAME: &str = "berthd.lock";

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Why the folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon works in it.
    #[error("{} is in use by {holder}; end it first, or choose another folder", folder.display())]
    Held {
        folder: PathBuf,
        /// Pid and command line, as far as they can be told.
        holder: String,
    },
    /// The folder or the lock file.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl FolderLock {
    /// Makes the folder when it is missing, with `mode`, and takes it. Does not wait.
    ///
    /// # Errors
    /// [`LockError::Held`] names the daemon that has it.
    pub fn take(folder: &Path, mode: u32) -> Result<Self, LockError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Io { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(io("create", folder))?;
        let path = folder.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // by the holder only
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { folder: folder.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Who holds the lock, for people. The pid may have been written a moment later than we look.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok()) {
        Some(pid) => describe(pid),
        None => "another daemon that is just starting".to_owned(),
    }
}

/// "process 12 (berthd --root /x)".
pub(crate) fn describe(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    match words.join(" ").trim_end() {
        "" => format!("process {pid}"),
        line => format!("process {pid} ({line})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_folder_is_refused_with_the_holder_and_free_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/by/lock");
        let lock = FolderLock::take(&folder, 0o700).unwrap();
        let refused = FolderLock::take(&folder, 0o700).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(lock);
        FolderLock::take(&folder, 0o700).unwrap();
    }

    #[test]
    fn a_process_that_has_gone_is_named_by_its_pid_alone() {
        assert_eq!(describe(u32::MAX), format!("process {}", u32::MAX));
    }
}
