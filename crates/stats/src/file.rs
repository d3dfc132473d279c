//! Small kernel files, read whole.

use std::path::Path;

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, Mode, OFlags, openat},
    io::{read, retry_on_intr},
};

/// What one file may hold at most. The largest here are `cgroup.procs` of a container with very many processes and
/// `/proc/PID/net/dev` of one that makes interfaces for sport.
const LIMIT: usize = 4 << 20;

/// A folder that is open while one call reads several files of it: a name in an open folder is found faster than a
/// path from the root, and all files are of the same cgroup even if another takes its place meanwhile.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// `None` when it is not there: a container that ended in this moment is no fault.
    pub(crate) fn open(path: &Path) -> Option<Folder> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).ok().map(Folder)
    }

    /// The file's text; `None` when it is not there or cannot be read, as with pressure files while the kernel was
    /// told not to account pressure (EOPNOTSUPP) or in a cgroup that has just been removed (ENODEV).
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        text_at(&self.0, Path::new(name))
    }

    /// The file's only number; `None` also for "max".
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        number_at(&self.0, Path::new(name))
    }
}

/// The only number of the file at `path`, as [`Folder::number`].
pub(crate) fn number(path: &Path) -> Option<u64> {
    number_at(CWD, path)
}

/// One read is enough: the kernel makes such a file in one piece, and 20 digits are the most.
fn number_at(folder: impl AsFd, name: &Path) -> Option<u64> {
    let file = open_at(folder, name)?;
    let mut space = [0_u8; 64];
    let length = retry_on_intr(|| read(&file, &mut space)).ok()?;
    str::from_utf8(&space[..length]).ok()?.trim_ascii().parse().ok()
}

fn open_at(folder: impl AsFd, name: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    openat(folder, name, flags, Mode::empty()).ok()
}

/// The text of the file at `path`, as [`Folder::text`].
pub(crate) fn text(path: &Path) -> Option<String> {
    text_at(CWD, path)
}

fn text_at(folder: impl AsFd, name: &Path) -> Option<String> {
    let file = open_at(folder, name)?;
    let mut bytes = vec![0_u8; 4096];
    let mut filled = 0;
    loop {
        match retry_on_intr(|| read(&file, &mut bytes[filled..])).ok()? {
            0 => break,
            count => filled += count,
        }
        if filled == bytes.len() {
            if filled >= LIMIT {
                return None;
            }
            bytes.resize(filled * 4, 0);
        }
    }
    bytes.truncate(filled);
    // A pod may give its interfaces names that are no UTF-8; all else is ASCII.
    Some(
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}
