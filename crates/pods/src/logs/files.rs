//! The files of a container's log.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// One of them. In the order they were written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogFile {
    pub(super) attempt: u32,
    pub(super) age: Age,
    pub(super) path: PathBuf,
    /// Its other name: it keeps this one when it is rotated.
    pub(super) inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    /// When it was rotated away; nanoseconds since the epoch.
    Rotated(u64),
    /// The one that is written to, or was last.
    Current,
}

/// More rotations do not follow one another so fast.
const TRIES: usize = 64;

/// All of a container's, the oldest first; none when it has no folder yet.
pub(super) fn list(folder: &Path) -> io::Result<Vec<LogFile>> {
    // A file that is renamed while the folder is read may be seen by neither name, and is by the next look.
    let mut files = look(folder)?;
    for _ in 0..TRIES {
        let again = look(folder)?;
        if again == files {
            break;
        }
        files = again;
    }
    Ok(files)
}

fn look(folder: &Path) -> io::Result<Vec<LogFile>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some((attempt, age)) = entry.file_name().to_str().and_then(parse) else { continue };
        let inode = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?.ino(),
        };
        files.push(LogFile { attempt, age, path: entry.path(), inode });
    }
    files.sort_unstable();
    Ok(files)
}

/// `<attempt>.log` or `<attempt>.log.<time>`.
fn parse(name: &str) -> Option<(u32, Age)> {
    let (attempt, rest) = name.split_once(".log")?;
    let age = match rest.strip_prefix('.') {
        None if rest.is_empty() => Age::Current,
        Some(time) => Age::Rotated(time.parse().ok()?),
        None => return None,
    };
    Some((attempt.parse().ok()?, age))
}

/// Where a file goes that is rotated away now.
pub(super) fn rotated(log: &Path, now: i64) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{now}"));
    name.into()
}

/// The files of one attempt, the oldest first. `log`: its present one.
pub(super) fn of(log: &Path) -> io::Result<Vec<LogFile>> {
    let attempt = log.file_name().and_then(|name| parse(name.to_str()?)).map(|(attempt, _)| attempt);
    let mut files = list(log.parent().unwrap_or(log))?;
    files.retain(|file| Some(file.attempt) == attempt);
    Ok(files)
}

/// Removes the logs of all attempts before one, and what was rotated away of them.
pub(crate) fn remove_before(folder: &Path, attempt: u32) -> io::Result<()> {
    let mut old = list(folder)?.into_iter().filter(|file| file.attempt < attempt);
    old.try_for_each(|file| remove_file(&file.path))
}

/// Absent is fine.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl LogFile {
    /// None when something else has its name by now, or nothing.
    pub(super) fn open(&self) -> io::Result<Option<File>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        Ok((file.metadata()?.ino() == self.inode).then_some(file))
    }
}
