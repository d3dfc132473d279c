//! Blobs as registries serve them, by digest.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Mutex;

use crate::digest::{Digest, Hasher};
use crate::layout::{DiskError, Layout, Temp, names, sync_dir};
use crate::tree::Size;

const PAGE: u64 = 4096;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// The blobs present. Knows each one's size, so that nothing has to be walked to tell the use of space.
#[derive(Debug)]
pub(crate) struct Content {
    sizes: Mutex<HashMap<Digest, u64>>,
}

impl Content {
    /// Lists what is there. What is no blob is removed.
    pub(crate) fn open(layout: &Layout) -> Result<Content, DiskError> {
        let mut sizes = HashMap::new();
        for name in names(&layout.content())? {
            let path = layout.content().join(&name);
            match format!("sha256:{name}").parse::<Digest>() {
                Ok(digest) => {
                    let metadata = fs::symlink_metadata(&path).map_err(DiskError::new("look at", &path))?;
                    sizes.insert(digest, metadata.len());
                }
                Err(_) => drop(layout.take_out(&path)?),
            }
        }
        Ok(Content { sizes: Mutex::new(sizes) })
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// Puts a checked blob in its place. The caller has synced its content.
    pub(crate) fn commit(
        &self,
        layout: &Layout,
        temp: Temp,
        digest: &Digest,
        size: u64,
    ) -> Result<(), DiskError> {
        temp.commit(&layout.blob(digest))?;
        self.lock().insert(digest.clone(), size);
        Ok(())
    }

    /// Stores a small blob durably. The caller has checked its digest.
    pub(crate) fn put(&self, layout: &Layout, digest: &Digest, bytes: &[u8]) -> Result<(), DiskError> {
        if self.has(digest) {
            return Ok(());
        }
        let temp = layout.temp();
        let write = |path: &Path| -> std::io::Result<()> {
            let mut file = File::create_new(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write(temp.path()).map_err(DiskError::new("write", temp.path()))?;
        self.commit(layout, temp, digest, bytes.len() as u64)?;
        sync_dir(&layout.content())
    }

    /// Opens a blob for reading.
    pub(crate) fn read(&self, layout: &Layout, digest: &Digest) -> Result<File, DiskError> {
        let path = layout.blob(digest);
        File::open(&path).map_err(DiskError::new("open", path))
    }

    /// Whether a blob that is here is what its name says. Reads all of it.
    pub(crate) fn is_whole(&self, layout: &Layout, digest: &Digest) -> Result<bool, DiskError> {
        let mut file = self.read(layout, digest)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; PIECE];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish() == *digest),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(DiskError::new("read", layout.blob(digest))(error)),
            }
        }
    }

    /// Takes a blob out of its place. Absent is fine.
    pub(crate) fn remove(&self, layout: &Layout, digest: &Digest) -> Result<Option<Temp>, DiskError> {
        // Known for as long as it is there: who fails here is asked again.
        let mut sizes = self.lock();
        let taken = layout.take_out(&layout.blob(digest))?;
        sizes.remove(digest);
        Ok(taken)
    }

    pub(crate) fn all(&self) -> Vec<Digest> {
        self.lock().keys().cloned().collect()
    }

    pub(crate) fn size(&self) -> Size {
        let sizes = self.lock();
        Size {
            bytes: sizes.values().map(|size| size.next_multiple_of(PAGE)).sum(),
            inodes: sizes.len() as u64,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, u64>> {
        self.sizes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
