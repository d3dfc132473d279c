//! A stream of bytes becomes records.

use super::file::LogFile;
use super::stamp::Stamp;

/// The most content of one record, in bytes. A longer line is cut into pieces marked `P`, the last one `F`. The
/// number is the one log readers meet everywhere (containerd's `max_container_log_line_size`).
pub const MAX_CONTENT: usize = 16 * 1024;

/// Which of a container's streams. A terminal's output is all `Stdout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamName {
    Stdout,
    Stderr,
}

impl StreamName {
    fn text(self) -> &'static [u8; 6] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Time, stream, tag, their three spaces, newline.
const OVERHEAD: usize = Stamp::LEN + 1 + 6 + 1 + 1 + 1 + 1;

/// Records waiting for one write(2).
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    limit: usize,
}

impl Batch {
    /// A batch that is written when it would pass `limit` bytes. At least one record of the largest size fits.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit: limit.max(MAX_CONTENT + OVERHEAD) }
    }

    /// Writes what has been collected.
    pub fn flush(&mut self, log: &mut LogFile) {
        if !self.bytes.is_empty() {
            log.write(&self.bytes);
            self.bytes.clear();
        }
    }

    /// Gives the memory back; the batch must have been flushed.
    pub fn shrink(&mut self) {
        debug_assert!(self.bytes.is_empty());
        self.bytes = Vec::new();
    }

    fn record(&mut self, log: &mut LogFile, stamp: &Stamp, stream: StreamName, tag: u8, content: [&[u8]; 2]) {
        let len = OVERHEAD + content[0].len() + content[1].len();
        if self.bytes.len() + len > self.limit {
            self.flush(log);
        }
        self.bytes.extend_from_slice(stamp.as_bytes());
        self.bytes.push(b' ');
        self.bytes.extend_from_slice(stream.text());
        // The space after the tag is there for an empty line as well: without it a reader rejects the record.
        self.bytes.extend_from_slice(&[b' ', tag, b' ']);
        self.bytes.extend_from_slice(content[0]);
        self.bytes.extend_from_slice(content[1]);
        self.bytes.push(b'\n');
    }
}

/// One stream: cuts at newlines, and keeps the beginning of a line that has not ended yet (at most [`MAX_CONTENT`]).
#[derive(Debug)]
pub struct Lines {
    stream: StreamName,
    begun: Vec<u8>,
}

impl Lines {
    pub fn new(stream: StreamName) -> Self {
        Self { stream, begun: Vec::new() }
    }

    /// Takes what was read from the stream at `stamp`. Records go to `batch`, and from there to `log` when it fills.
    pub fn push(&mut self, mut data: &[u8], stamp: &Stamp, batch: &mut Batch, log: &mut LogFile) {
        while !data.is_empty() {
            // Only as far as a record can reach: a flood without newlines is then looked through once.
            let window = &data[..data.len().min(MAX_CONTENT - self.begun.len() + 1)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                batch.record(log, stamp, self.stream, b'F', [&self.begun, &data[..end]]);
                data = &data[end + 1..];
            } else if window.len() + self.begun.len() > MAX_CONTENT {
                let take = MAX_CONTENT - self.begun.len();
                batch.record(log, stamp, self.stream, b'P', [&self.begun, &data[..take]]);
                data = &data[take..];
            } else {
                self.begun.extend_from_slice(data);
                return;
            }
            // Not `clear`: a container that once wrote a long line without end keeps no memory for it.
            self.begun = Vec::new();
        }
    }

    /// The stream is over: what was begun and never ended is written as a partial record.
    pub fn end(&mut self, stamp: &Stamp, batch: &mut Batch, log: &mut LogFile) {
        if !self.begun.is_empty() {
            batch.record(log, stamp, self.stream, b'P', [&self.begun, b""]);
            self.begun = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a log holds after `pieces` were pushed one by one: stream, tag, content.
    fn written(stream: StreamName, pieces: &[&[u8]]) -> Vec<(String, String, Vec<u8>)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        let mut batch = Batch::new(0);
        let mut lines = Lines::new(stream);
        for piece in pieces {
            lines.push(piece, &Stamp::now(), &mut batch, &mut log);
        }
        lines.end(&Stamp::now(), &mut batch, &mut log);
        batch.flush(&mut log);
        let text = std::fs::read(&path).unwrap();
        assert!(text.is_empty() || text.ends_with(b"\n"));
        let records = text.split_inclusive(|byte| *byte == b'\n');
        records
            .map(|record| {
                let mut fields = record[..record.len() - 1].splitn(4, |byte| *byte == b' ');
                assert_eq!(fields.next().unwrap().len(), Stamp::LEN);
                let mut field = || fields.next().unwrap().to_vec();
                let (stream, tag) = (field(), field());
                (String::from_utf8(stream).unwrap(), String::from_utf8(tag).unwrap(), field())
            })
            .collect()
    }

    fn tagged(pieces: &[&[u8]]) -> Vec<(String, usize)> {
        written(StreamName::Stdout, pieces)
            .into_iter()
            .map(|(_, tag, content)| (tag, content.len()))
            .collect()
    }

    #[test]
    fn lines_are_full_records_and_keep_carriage_returns() {
        let records = written(StreamName::Stderr, &[b"one\ntw", b"o\r\n\nlast\n"]);
        let contents: Vec<_> = records.iter().map(|(_, _, content)| content.as_slice()).collect();
        assert_eq!(contents, [&b"one"[..], b"two\r", b"", b"last"]);
        assert!(records.iter().all(|(stream, tag, _)| stream == "stderr" && tag == "F"));
    }

    #[test]
    fn an_end_without_newline_is_partial() {
        assert_eq!(tagged(&[b"no newline"]), [("P".into(), 10)]);
        assert_eq!(tagged(&[]), []);
    }

    #[test]
    fn long_lines_are_cut_at_the_limit_however_they_arrive() {
        let mut line = vec![b'x'; 2 * MAX_CONTENT + 5];
        line.push(b'\n');
        let expected = [("P".into(), MAX_CONTENT), ("P".into(), MAX_CONTENT), ("F".into(), 5)];
        assert_eq!(tagged(&[&line]), expected);
        let pieces: Vec<&[u8]> = line.chunks(4096).collect();
        assert_eq!(tagged(&pieces), expected);
        let pieces: Vec<&[u8]> = line.chunks(1).collect();
        assert_eq!(tagged(&pieces), expected);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let mut line = vec![b'x'; MAX_CONTENT];
        line.push(b'\n');
        assert_eq!(tagged(&[&line]), [("F".into(), MAX_CONTENT)]);
        assert_eq!(tagged(&[&line[..MAX_CONTENT], b"\n"]), [("F".into(), MAX_CONTENT)]);
    }
}
