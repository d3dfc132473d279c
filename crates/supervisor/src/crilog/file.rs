//! The file behind a log, and what happens when it cannot be written.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::stamp::Stamp;

/// Records that no write took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    records: u64,
    bytes: u64,
    errno: i32,
}

/// A container's log file, appended to.
///
/// A write that fails (full disk, quota, I/O error) never stops the container: its records are counted and dropped,
/// and the first write that works again begins with a note that says how many, as a record of stderr.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: OwnedFd,
    lost: Lost,
    /// The file ends inside a record that could not be cut off again.
    torn: bool,
}

impl LogFile {
    /// Opens `path` for appending, mode 0640 when new.
    ///
    /// The folders on the way are root's (kubelet makes `/var/log/pods/...`), so only the last component could have
    /// been planted by someone else: a link there is not followed, and anything but a regular file is refused.
    ///
    /// # Errors
    /// Those of open(2): `NotFound` when the folder is missing, `ELOOP` for a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, lost: Lost::default(), torn: false })
    }

    /// Makes the file anew at its path (the old one has been renamed by whoever rotates) and writes there from now
    /// on. After an error nothing has changed.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.torn = false;
        // A note about losses belongs in front of what follows, in the file that people will look at.
        self.settle();
        Ok(())
    }

    /// Writes whole records: each ends with the only newline in it. Losses are counted, see [`LogFile`].
    pub(super) fn write(&mut self, records: &[u8]) {
        if self.settle() {
            self.append(records);
        } else {
            self.count(records, None);
        }
    }

    /// Nothing more will come: says what has been lost, if that can be written now.
    pub fn finish(&mut self) {
        self.settle();
    }

    /// Writes the note about what has been lost. True when nothing stands in the way of further records.
    fn settle(&mut self) -> bool {
        if self.lost == Lost::default() {
            return true;
        }
        let lost = std::mem::take(&mut self.lost);
        let note = format!(
            "{:?} stderr F berth: {} log records ({} bytes) were lost: {}\n",
            Stamp::now(),
            lost.records,
            lost.bytes,
            io::Error::from_raw_os_error(lost.errno),
        );
        self.append(note.as_bytes());
        // When the note itself failed, it has counted itself; only what was lost before it matters.
        let worked = self.lost == Lost::default();
        if !worked {
            self.lost = Lost { errno: self.lost.errno, ..lost };
        }
        worked
    }

    fn append(&mut self, records: &[u8]) {
        if self.torn {
            match rustix::io::write(&self.file, b"\n") {
                Ok(_) => self.torn = false,
                Err(errno) => return self.count(records, Some(errno)),
            }
        }
        let mut done = 0;
        while done < records.len() {
            match rustix::io::write(&self.file, &records[done..]) {
                // A short write has met the end of the space; the next one says what it was.
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let whole =
                        records[..done].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    self.torn = done > whole && !self.cut(done - whole);
                    return self.count(&records[whole..], Some(errno));
                }
            }
        }
    }

    /// Takes the last `bytes` off the file, so that it ends with a whole record. Nobody else appends to it.
    fn cut(&self, bytes: usize) -> bool {
        let Ok(stat) = rustix::fs::fstat(&self.file) else { return false };
        let Some(len) = u64::try_from(stat.st_size).ok().and_then(|size| size.checked_sub(bytes as u64))
        else {
            return false;
        };
        rustix::fs::ftruncate(&self.file, len).is_ok()
    }

    fn count(&mut self, records: &[u8], errno: Option<Errno>) {
        self.lost.records += records.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.lost.bytes += records.len() as u64;
        if let Some(errno) = errno {
            self.lost.errno = errno.raw_os_error();
        }
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    // O_NONBLOCK only matters for what is about to be refused: opening a FIFO would wait for its reader.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::crilog::{Batch, Lines, StreamName};

    fn say(log: &mut LogFile, text: &[u8]) {
        let mut batch = Batch::new(64 * 1024);
        Lines::new(StreamName::Stdout).push(text, &Stamp::now(), &mut batch, log);
        batch.flush(log);
    }

    #[test]
    fn links_and_other_things_than_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/etc/passwd", &link).unwrap();
        assert_eq!(LogFile::open(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(LogFile::open(&fifo).is_err());
        let missing = LogFile::open(&dir.path().join("missing/0.log")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_rotation_falls_between_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let old = dir.path().join("0.log.old");
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        say(&mut log, b"before\n");
        std::fs::rename(&path, &old).unwrap();
        say(&mut log, b"still before\n");
        log.reopen().unwrap();
        say(&mut log, b"after\n");
        assert_eq!(std::fs::read_to_string(&old).unwrap().lines().count(), 2);
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(new.ends_with("stdout F after\n") && new.lines().count() == 1, "{new}");
    }

    #[test]
    fn what_a_full_disk_loses_is_counted_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let _disk = crate::testing::TinyDisk::mount(dir.path(), 64 * 1024);
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..100 {
            say(&mut log, &line);
        }
        let full = std::fs::read(&path).unwrap();
        assert!(full.ends_with(b"x\n"), "the file ends with a whole record");
        let kept = full.iter().filter(|byte| **byte == b'\n').count();
        assert!(kept < 100);
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::remove_file(dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        say(&mut log, b"again\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let lost = 100 - kept;
        let bytes = lost * (line.len() + Stamp::LEN + " stdout F ".len());
        let note = format!("stderr F berth: {lost} log records ({bytes} bytes) were lost: No space left");
        assert!(lines[0].contains(&note), "{text}");
        assert!(lines[1].ends_with("stdout F again"), "{text}");
        assert_eq!(lines.len(), 2);
    }
}
