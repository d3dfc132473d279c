//! A compressed layer in, a directory out, in one pass.
//!
//! Two threads: one hashes and stores what arrives and inflates it, the other hashes the archive and writes
//! its entries. Inflating is the bottleneck, so it has a thread to itself; memory is a handful of buffers.

mod decode;
pub(crate) mod path;
mod tar;
mod writer;

use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
pub(crate) use decode::Input;
use tar::{TarError, TarReader};

/// Size of a buffer between the two threads.
const CHUNK: usize = 256 * 1024;
/// Buffers between the two threads: enough that one slow file does not stop the inflating.
const CHUNKS: usize = 6;

/// What a layer is and must turn out to be.
#[derive(Debug, Clone)]
pub(crate) struct LayerSpec {
    /// Digest of the blob as stored in the registry.
    pub(crate) blob: Digest,
    /// Length of the blob in bytes.
    pub(crate) size: u64,
    /// Digest of the archive once inflated.
    pub(crate) diff_id: Digest,
}

/// What an unpacked layer takes and left open.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Footprint {
    /// Bytes of content, in whole pages.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories that the archive used without describing them: their attributes are a lower layer's.
    pub(crate) implied: Vec<String>,
    /// Mode, uid and gid of the root directory, when the archive describes it.
    pub(crate) root: Option<(u32, u32, u32)>,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The layer asks for something no layer may have.
    #[error("layer entry {entry:?} refused: {why}")]
    Rejected { entry: String, why: String },
    #[error("cannot {step} for layer entry {entry:?}")]
    Entry { entry: String, step: &'static str, source: io::Error },
    #[error("the layer is no readable archive")]
    Archive(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the layer's bytes cannot be decompressed")]
    Inflate(#[source] io::Error),
    #[error("blob {digest} is not what was promised: {why}")]
    Damaged { digest: Digest, why: String },
    #[error("cannot store blob {digest}")]
    Blob { digest: Digest, source: io::Error },
    /// The bytes stopped coming; whoever sends them knows why.
    #[error("the blob ended early")]
    Cut,
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> UnpackError {
        match error {
            TarError::Entry { path, why } => UnpackError::Rejected {
                entry: String::from_utf8_lossy(&path).into_owned(),
                why: why.to_owned(),
            },
            other => UnpackError::Archive(other.into()),
        }
    }
}

/// Unpacks one layer into the empty directory `root`, storing its blob in `store` when there is one.
/// Blocks; checks both digests and the size. What is in `root` after an error is rubbish.
pub(crate) fn layer(
    spec: &LayerSpec,
    input: Input,
    store: Option<File>,
    root: OwnedFd,
) -> Result<Footprint, UnpackError> {
    let (filled, chunks) = sync_channel(CHUNKS);
    let (spent, buffers) = sync_channel(CHUNKS + 2);
    std::thread::scope(|scope| {
        let unpacker = std::thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, || write(Chunks::new(chunks, spent), &spec.diff_id, root))
            .map_err(UnpackError::Thread)?;
        let decoded = decode::run(spec, input, store, &filled, &buffers);
        drop(filled);
        let written = match unpacker.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (decoded, written) {
            (Ok(()), written) => written,
            // Each side sees the other's end as an early end of its own; the first cause is on the other side.
            (Err(decode::Stopped::Downstream), Err(error)) => Err(error),
            (Err(decode::Stopped::Downstream), Ok(_)) => Err(UnpackError::Cut),
            (Err(decode::Stopped::Here(error)), Err(written @ UnpackError::Rejected { .. })) => {
                tracing::debug!(%error, "the layer was refused before its bytes ended");
                Err(written)
            }
            (Err(decode::Stopped::Here(error)), _) => Err(error),
        }
    })
}

/// Unpacks an archive that is not compressed, without checking any digest: the parser and the writer alone.
/// For fuzzing and measuring; `root` may be any empty directory.
///
/// # Errors
///
/// The text of whatever was wrong with the archive.
pub fn unpack_tar(archive: impl BufRead, root: OwnedFd) -> Result<(), String> {
    let mut reader = TarReader::new(archive);
    entries(&mut reader, root).map(drop).map_err(|error| error.to_string())
}

fn entries<R: BufRead>(reader: &mut TarReader<R>, root: OwnedFd) -> Result<Footprint, UnpackError> {
    let mut writer = writer::Writer::new(root);
    while let Some(entry) = reader.next()? {
        writer.entry(&entry, reader)?;
    }
    writer.finish()
}

fn write(chunks: Chunks, diff_id: &Digest, root: OwnedFd) -> Result<Footprint, UnpackError> {
    let mut reader = TarReader::new(chunks);
    let footprint = entries(&mut reader, root)?;
    // Padding behind the end of the archive belongs to its digest.
    let mut chunks = reader.into_stream();
    while chunks.advance() {}
    let found = chunks.hasher.finish();
    if found != *diff_id {
        return Err(UnpackError::Damaged {
            digest: diff_id.clone(),
            why: format!("the inflated layer has digest {found}"),
        });
    }
    Ok(footprint)
}

/// The inflated archive as it comes from the other thread, hashed on the way.
struct Chunks {
    filled: Receiver<Vec<u8>>,
    spent: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
}

impl Chunks {
    fn new(filled: Receiver<Vec<u8>>, spent: SyncSender<Vec<u8>>) -> Chunks {
        Chunks { filled, spent, current: Vec::new(), at: 0, hasher: Hasher::default() }
    }

    /// Takes the next buffer; false at the end.
    fn advance(&mut self) -> bool {
        let Ok(next) = self.filled.recv() else {
            self.current.clear();
            self.at = 0;
            return false;
        };
        self.hasher.update(&next);
        let old = std::mem::replace(&mut self.current, next);
        self.at = 0;
        if old.capacity() > 0 {
            // A full or closed return channel only means that the buffer is freed instead of used again.
            self.spent.try_send(old).ok();
        }
        true
    }
}

impl io::Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() {
            if !self.advance() {
                break;
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}
