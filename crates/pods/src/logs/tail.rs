//! The end of a log, found from behind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::record;

/// Read at once.
const PIECE: usize = 32 * 1024;

/// Where the last `lines` lines of a file begin; Err: it has only so many.
pub(super) fn find(file: &File, lines: u64) -> io::Result<Result<u64, u64>> {
    let mut end = file.metadata()?.len();
    let mut piece = vec![0; PIECE];
    let mut found = 0;
    while end > 0 {
        let start = end.saturating_sub(PIECE as u64);
        let piece = &mut piece[..usize::try_from(end - start).unwrap_or(PIECE)];
        file.read_exact_at(piece, start)?;
        for (at, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if found == lines {
                return Ok(Ok(start + at as u64 + 1));
            }
            found += 1;
        }
        end = start;
    }
    Ok(if found == lines { Ok(0) } else { Err(found) })
}

/// The last of what a file's records say, as text: at most so many lines, and bytes. Empty when there is no file.
pub(crate) fn last_text(log: &Path, lines: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let file = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut at = find(&file, lines)?.unwrap_or(0);
    let mut text = Vec::new();
    let mut begun = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read_at(&mut piece, at)?;
        if count == 0 {
            return Ok(text);
        }
        at += count as u64;
        begun.extend_from_slice(&piece[..count]);
        let whole = begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in begun[..whole].split(|byte| *byte == b'\n').filter_map(record::parse) {
            text.extend_from_slice(&line.text);
            if !line.partial {
                text.push(b'\n');
            }
        }
        begun.drain(..whole);
        text.drain(..text.len().saturating_sub(bytes));
    }
}
