//! The first of the two threads: bytes as they come, checked, stored and inflated.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::{Buf, Bytes};

use super::{CHUNK, LayerSpec, UnpackError};
use crate::digest::Hasher;
use crate::pieces::Waiting;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Largest window a zstd stream may ask for: 2^27 bytes is the decoder's own default limit.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Where a blob's bytes come from.
pub(crate) enum Input {
    /// A download; its end before the promised size means that it was given up.
    Stream(Waiting),
    /// A blob stored earlier.
    File(File),
}

/// Why the inflating ended early.
pub(super) enum Stopped {
    /// The thread that writes gave up first.
    Downstream,
    Here(UnpackError),
}

/// Inflates the whole input into buffers for the other thread, then checks digest and size.
///
/// The compression is told from the first bytes: media types lie, and the bytes cannot.
pub(super) fn run(
    spec: &LayerSpec,
    input: Input,
    store: Option<File>,
    filled: &SyncSender<Vec<u8>>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<(), Stopped> {
    let mut blob =
        Blob { spec, input, store, current: Bytes::new(), hasher: Hasher::default(), seen: 0, fault: None };
    let inflated = inflate(&mut blob, filled, buffers);
    // The blob's own fault is the cause of whatever the decoder made of it.
    if let Some(fault) = blob.fault.take() {
        return Err(Stopped::Here(fault));
    }
    inflated?;
    blob.check().map_err(Stopped::Here)
}

fn inflate(
    blob: &mut Blob<'_>,
    filled: &SyncSender<Vec<u8>>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<(), Stopped> {
    let fault = |error| Stopped::Here(UnpackError::Inflate(error));
    let mut start = [0u8; 4];
    let mut had = 0;
    while had < start.len() {
        match blob.read(&mut start[had..]).map_err(fault)? {
            0 => break,
            count => had += count,
        }
    }
    let start = &start[..had];
    let mut whole = Read::chain(io::Cursor::new(start.to_vec()), &mut *blob);
    if start.starts_with(GZIP) {
        pump(flate2::bufread::MultiGzDecoder::new(&mut whole), filled, buffers)?;
    } else if is_zstd(start) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut whole).map_err(fault)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(fault)?;
        pump(decoder, filled, buffers)?;
    } else {
        pump(&mut whole, filled, buffers)?;
    }
    // Whatever a decoder leaves unread still belongs to the blob's digest.
    io::copy(&mut whole, &mut io::sink()).map_err(fault)?;
    Ok(())
}

/// A zstd frame, or one of the skippable frames that some writers begin with.
fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(ZSTD) || matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

fn pump(
    mut from: impl Read,
    filled: &SyncSender<Vec<u8>>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<(), Stopped> {
    loop {
        let mut buffer = buffers.try_recv().unwrap_or_default();
        buffer.resize(CHUNK, 0);
        let mut length = 0;
        let mut ended = false;
        while length < CHUNK && !ended {
            match from.read(&mut buffer[length..]) {
                Ok(0) => ended = true,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stopped::Here(UnpackError::Inflate(error))),
            }
        }
        buffer.truncate(length);
        if length > 0 && filled.send(buffer).is_err() {
            return Err(Stopped::Downstream);
        }
        if ended {
            return Ok(());
        }
    }
}

/// The compressed bytes: hashed, counted and stored as they pass.
struct Blob<'a> {
    spec: &'a LayerSpec,
    input: Input,
    store: Option<File>,
    current: Bytes,
    hasher: Hasher,
    seen: u64,
    fault: Option<UnpackError>,
}

impl Blob<'_> {
    fn next(&mut self) -> Result<Option<Bytes>, UnpackError> {
        let piece = match &mut self.input {
            Input::Stream(pieces) => pieces.next().unwrap_or_default(),
            Input::File(file) => {
                let mut buffer = vec![0; CHUNK];
                let count = file
                    .read(&mut buffer)
                    .map_err(|source| UnpackError::Blob { digest: self.spec.blob.clone(), source })?;
                buffer.truncate(count);
                buffer.into()
            }
        };
        if piece.is_empty() {
            return match self.seen.cmp(&self.spec.size) {
                std::cmp::Ordering::Less => Err(UnpackError::Cut),
                _ => Ok(None),
            };
        }
        self.seen += piece.len() as u64;
        if self.seen > self.spec.size {
            return Err(self.damaged(format!("it is longer than {} bytes", self.spec.size)));
        }
        self.hasher.update(&piece);
        if let Some(store) = &mut self.store {
            store
                .write_all(&piece)
                .map_err(|source| UnpackError::Blob { digest: self.spec.blob.clone(), source })?;
        }
        Ok(Some(piece))
    }

    fn damaged(&self, why: String) -> UnpackError {
        UnpackError::Damaged { digest: self.spec.blob.clone(), why }
    }

    fn check(self) -> Result<(), UnpackError> {
        let digest = self.hasher.finish();
        if digest != self.spec.blob {
            let why = format!("it has digest {digest}");
            return Err(UnpackError::Damaged { digest: self.spec.blob.clone(), why });
        }
        Ok(())
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && self.fault.is_none() {
            match self.next() {
                Ok(piece) => self.current = piece.unwrap_or_default(),
                Err(fault) => self.fault = Some(fault),
            }
        }
        if self.fault.is_some() {
            return Err(io::Error::other("the blob failed"));
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
    }
}
