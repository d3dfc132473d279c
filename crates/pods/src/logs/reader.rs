//! Reads the files of a log as if they were one, also while they are written to and rotated.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use berth_cri::berth::v1::LogLine;

use super::files::{self, LogFile};
use super::{Wanted, record, tail};

/// Read at once. A record is half of it at most (berth-pod's `MAX_CONTENT`).
const PIECE: usize = 64 * 1024;

/// What has no newline for so long is no record.
const LONGEST: usize = 4 * PIECE;

#[derive(Debug)]
pub(super) struct Reader {
    folder: PathBuf,
    open: Option<Open>,
    /// The first attempt to be read.
    first: u32,
    /// The last one; None: all that are to come.
    last: Option<u32>,
    /// A record whose end is not there yet.
    begun: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    attempt: u32,
    inode: u64,
    file: File,
}

impl Reader {
    /// At the place where the wanted lines begin. None when there is no file, and none is waited for.
    pub(super) fn open(folder: &Path, wanted: Wanted) -> io::Result<Option<Self>> {
        let files = files::list(folder)?;
        let newest = files.last().map(|file| file.attempt);
        let attempt = match (newest, wanted.previous) {
            (Some(newest), true) => {
                files.iter().rev().map(|file| file.attempt).find(|attempt| *attempt < newest)
            }
            (newest, _) => newest,
        };
        let first = match attempt {
            Some(attempt) => attempt,
            None if wanted.follow => 0,
            None => return Ok(None),
        };
        let mut reader = Self {
            folder: folder.to_owned(),
            open: None,
            first,
            last: (!wanted.follow).then_some(first),
            begun: Vec::new(),
        };
        if let Some(lines) = wanted.tail {
            // Until no file gets another name meanwhile.
            while !reader.seek(lines)? {}
        }
        Ok(Some(reader))
    }

    /// Goes to where the last lines of the first attempt begin. False when a file was not found where it had been.
    fn seek(&mut self, mut lines: u64) -> io::Result<bool> {
        self.open = None;
        let files = files::list(&self.folder)?;
        for found in files.iter().rev().filter(|file| file.attempt == self.first) {
            let Some(mut file) = found.open()? else { return Ok(false) };
            let begins = tail::find(&file, lines)?;
            file.seek(SeekFrom::Start(begins.unwrap_or(0)))?;
            self.open = Some(Open { attempt: found.attempt, inode: found.inode, file });
            match begins {
                Ok(_) => break,
                Err(fewer) => lines -= fewer,
            }
        }
        Ok(true)
    }

    /// Some of the next lines; none when all that is there was read.
    pub(super) fn read(&mut self) -> io::Result<Vec<LogLine>> {
        loop {
            let lines = self.read_open()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            let Some(next) = self.next_file()? else { return Ok(Vec::new()) };
            // Nothing is written to this file since the next one is there; but before it was, something may have been.
            let lines = self.read_open()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            // Else it has another name at this moment.
            if let Some(file) = next.open()? {
                self.open = Some(Open { attempt: next.attempt, inode: next.inode, file });
                self.begun.clear();
            }
        }
    }

    /// The file after the open one.
    fn next_file(&self) -> io::Result<Option<LogFile>> {
        let (first, last) = (self.open.as_ref().map_or(self.first, |open| open.attempt), self.last);
        let mut files = files::list(&self.folder)?;
        files.retain(|file| file.attempt >= first && last.is_none_or(|last| file.attempt <= last));
        // One that is not there any more was removed for its age, and all others of its attempt are newer.
        let open = self.open.as_ref().and_then(|open| files.iter().position(|file| file.inode == open.inode));
        Ok(files.into_iter().nth(open.map_or(0, |open| open + 1)))
    }

    /// Lines of the open file, up to its end at most.
    fn read_open(&mut self) -> io::Result<Vec<LogLine>> {
        let Some(Open { file, .. }) = &mut self.open else { return Ok(Vec::new()) };
        let mut piece = vec![0; PIECE];
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(Vec::new());
            }
            self.begun.extend_from_slice(&piece[..count]);
            let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') else {
                if self.begun.len() > LONGEST {
                    self.begun.clear();
                }
                continue;
            };
            let lines: Vec<_> =
                self.begun[..end].split(|byte| *byte == b'\n').filter_map(record::parse).collect();
            self.begun.drain(..=end);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }
}
