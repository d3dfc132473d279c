//! Reads tar entries from a stream of bytes. The only module that knows the tar parser.
//!
//! Follows what the ecosystem's writers and readers agree on, so that nobody can show one tree to a
//! scanner and another to us: links, devices and directories carry no content whatever their size field
//! says, and global PAX records are ignored.

use std::io::{self, BufRead};

use tar_core::parse::{Limits, ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, PaxExtensions};

const BLOCK: usize = 512;
/// Longest name or link target. Far above `PATH_MAX`: deep trees are packed by walking, not by path.
const MAX_PATH: u32 = 64 * 1024;
/// All PAX and GNU records before one entry: a few large extended attributes.
const MAX_METADATA: u32 = 4 * 1024 * 1024;
/// One entry's headers with everything before it: the records above, and a sparse map.
const MAX_HEAD: usize = MAX_METADATA as usize + 1024 * 1024;

/// One entry of the archive, with its PAX and GNU extensions applied.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As written in the archive: not normalised, not trusted.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since the epoch; seconds may be negative.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// `pieces`: (offset, length) of the content's runs, in archive order; `size` is the whole file's length.
    File {
        size: u64,
        pieces: Vec<(u64, u64)>,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Why the archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("the stream of bytes failed")]
    Stream(#[source] io::Error),
    #[error("malformed tar header")]
    Malformed(#[from] ParseError),
    #[error("the archive ends inside an entry")]
    Truncated,
    #[error("an entry's headers are larger than {MAX_HEAD} bytes")]
    HeadTooLarge,
    /// An entry that was read, but means nothing that can be made.
    #[error("entry {:?}: {why}", String::from_utf8_lossy(.path))]
    Entry { path: Vec<u8>, why: &'static str },
}

/// Entries of an archive, one after another.
pub(crate) struct TarReader<R> {
    stream: R,
    parser: Parser,
    /// Header bytes being gathered; after an entry, those that already belong to its content.
    head: Vec<u8>,
    /// Content and padding of the current entry not read yet.
    content: u64,
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(stream: R) -> TarReader<R> {
        let mut parser = Parser::new(Limits {
            max_metadata_size: MAX_METADATA,
            max_path_len: Some(MAX_PATH),
            ..Limits::default()
        });
        // Negative and fractional times are legal PAX and unknown to the parser; `entry` reads them itself
        // and refuses the numbers that matter (size, uid, gid) when they are malformed.
        parser.set_ignore_pax_errors(true);
        TarReader { stream, parser, head: Vec::with_capacity(4 * BLOCK), content: 0, padding: 0 }
    }

    /// The next entry, after skipping what is left of the one before.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.content(|_| Ok::<(), TarError>(()))?;
        let mut padding = std::mem::take(&mut self.padding);
        while padding > 0 {
            padding -= self.piece(padding, |_| Ok::<(), TarError>(()))? as u64;
        }
        let mut wanted = BLOCK;
        loop {
            if !self.gather(wanted)? {
                // Some writers leave out one or both of the zero blocks that end an archive.
                let all_zero = self.head.iter().all(|b| *b == 0);
                return if all_zero { Ok(None) } else { Err(TarError::Truncated) };
            }
            match self.parser.parse(&self.head)? {
                ParseEvent::NeedData { min_bytes } => wanted = min_bytes.max(self.head.len() + BLOCK),
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.head.drain(..consumed);
                    wanted = BLOCK;
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::Entry { consumed, entry } => {
                    let (entry, content) = owned(&entry, None)?;
                    return Ok(Some(self.start(consumed, entry, content)));
                }
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                    let pieces = sparse_map.iter().map(|piece| (piece.offset, piece.length)).collect();
                    let (entry, content) = owned(&entry, Some((pieces, real_size)))?;
                    return Ok(Some(self.start(consumed, entry, content)));
                }
            }
        }
    }

    fn start(&mut self, consumed: usize, entry: Entry, content: u64) -> Entry {
        self.head.drain(..consumed);
        self.content = content;
        self.padding = content.wrapping_neg() % BLOCK as u64;
        entry
    }

    /// Hands the rest of the current entry's content to `take`, in pieces.
    pub(crate) fn content<E: From<TarError>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.content > 0 {
            self.content -= self.piece(self.content, &mut take)? as u64;
        }
        Ok(())
    }

    /// One piece of at most `most` bytes, from what was gathered too much or from the stream.
    fn piece<E: From<TarError>>(
        &mut self,
        most: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let fits = |available: usize| usize::try_from(most).unwrap_or(usize::MAX).min(available);
        if !self.head.is_empty() {
            let count = fits(self.head.len());
            take(&self.head[..count])?;
            self.head.drain(..count);
            return Ok(count);
        }
        let available = self.stream.fill_buf().map_err(TarError::Stream)?;
        if available.is_empty() {
            return Err(TarError::Truncated.into());
        }
        let count = fits(available.len());
        take(&available[..count])?;
        self.stream.consume(count);
        Ok(count)
    }

    /// Fills `head` up to `wanted` bytes; false when the stream ended before.
    fn gather(&mut self, wanted: usize) -> Result<bool, TarError> {
        if wanted > MAX_HEAD {
            return Err(TarError::HeadTooLarge);
        }
        while self.head.len() < wanted {
            let available = self.stream.fill_buf().map_err(TarError::Stream)?;
            if available.is_empty() {
                return Ok(false);
            }
            let count = available.len().min(wanted - self.head.len());
            self.head.extend_from_slice(&available[..count]);
            self.stream.consume(count);
        }
        Ok(true)
    }

    /// The stream behind the archive, for reading what follows its end.
    pub(crate) fn into_stream(self) -> R {
        self.stream
    }
}

/// Copies a parsed entry out of the header buffer; also the length of the content that follows it.
fn owned(entry: &ParsedEntry<'_>, sparse: Option<(Vec<(u64, u64)>, u64)>) -> Result<(Entry, u64), TarError> {
    let path = entry.path.to_vec();
    let fault = |why| TarError::Entry { path: path.clone(), why };
    let link = || {
        entry
            .link_target
            .as_ref()
            .map(|target| target.to_vec())
            .ok_or_else(|| fault("a link without a target"))
    };
    let device = || (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    let mut mtime = (entry.mtime.cast_signed(), 0);
    if let Some(pax) = entry.pax {
        for record in PaxExtensions::new(pax) {
            let record = record.map_err(ParseError::from)?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"mtime" => mtime = pax_time(value).ok_or_else(|| fault("malformed PAX mtime"))?,
                b"size" | b"uid" | b"gid" if !is_number(value) => {
                    return Err(fault("malformed number in a PAX record"));
                }
                _ => {}
            }
        }
    }
    let kind = match (entry.entry_type, sparse) {
        (EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse, Some((pieces, size))) => {
            check_pieces(&pieces, size, entry.size).map_err(fault)?;
            Kind::File { size, pieces }
        }
        // Archives older than POSIX mark directories by their name only.
        (EntryType::Regular, None) if path.ends_with(b"/") && entry.size == 0 => Kind::Directory,
        (EntryType::Regular | EntryType::Continuous, None) => {
            Kind::File { size: entry.size, pieces: vec![(0, entry.size)] }
        }
        (EntryType::Directory, _) => Kind::Directory,
        (EntryType::Symlink, _) => Kind::Symlink(link()?),
        (EntryType::Link, _) => Kind::HardLink(link()?),
        (EntryType::Char, _) => Kind::CharDevice(device().0, device().1),
        (EntryType::Block, _) => Kind::BlockDevice(device().0, device().1),
        (EntryType::Fifo, _) => Kind::Fifo,
        _ => return Err(fault("an entry type that no image layer has")),
    };
    let content = if matches!(kind, Kind::File { .. }) { entry.size } else { 0 };
    let xattrs = entry.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let owned =
        Entry { path, kind, mode: entry.mode & 0o7777, uid: entry.uid, gid: entry.gid, mtime, xattrs };
    Ok((owned, content))
}

/// A sparse file's runs must lie in order within the file and be exactly the content that follows.
fn check_pieces(pieces: &[(u64, u64)], size: u64, content: u64) -> Result<(), &'static str> {
    let mut at = 0u64;
    let mut total = 0u64;
    for (offset, length) in pieces {
        if *offset < at {
            return Err("the runs of a sparse file overlap");
        }
        at = offset.checked_add(*length).ok_or("a run of a sparse file ends nowhere")?;
        total += length; // at most `at`, which did not overflow
    }
    if at > size {
        return Err("a run of a sparse file lies behind its end");
    }
    if total != content {
        return Err("the runs of a sparse file are not as long as its content");
    }
    Ok(())
}

fn is_number(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| text.parse::<u64>().is_ok())
}

/// A PAX time: decimal seconds, perhaps negative, perhaps with a fraction.
fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        // -1.25 is three quarters of a second after -2.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_keep_sign_and_fraction() {
        assert_eq!(pax_time(b"12"), Some((12, 0)));
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"12.123456789123"), Some((12, 123_456_789)));
        assert_eq!(pax_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time(b"x"), None);
        assert_eq!(pax_time(b"1.x"), None);
    }

    #[test]
    fn runs_of_a_sparse_file_are_checked() {
        assert!(check_pieces(&[(0, 10), (20, 5)], 100, 15).is_ok());
        assert!(check_pieces(&[(0, 10), (5, 5)], 100, 15).is_err());
        assert!(check_pieces(&[(0, 10)], 5, 10).is_err());
        assert!(check_pieces(&[(u64::MAX, 10)], u64::MAX, 10).is_err());
        assert!(check_pieces(&[(0, 10)], 100, 11).is_err());
    }
}
