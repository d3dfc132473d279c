//! redb's storage: a plain file whose flush either happens in the commit or soon after it.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};

use crate::Durability;

#[derive(Debug)]
pub(crate) struct FileBackend {
    file: Arc<File>,
    syncer: Option<Syncer>,
}

impl FileBackend {
    /// # Errors
    /// `WouldBlock` when another process has the file open.
    pub(crate) fn new(file: File, durability: Durability) -> io::Result<Self> {
        file.try_lock().map_err(|err| match err {
            TryLockError::Error(err) => err,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        let file = Arc::new(file);
        let syncer = match durability {
            Durability::Flushed => None,
            Durability::Background => Some(Syncer::start(Arc::clone(&file))?),
        };
        Ok(Self { file, syncer })
    }
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.file.metadata()?.len();
        if len > now {
            // Blocks are taken when the file grows, so that a later write into it (a removal on a full disk, say)
            // cannot fail for want of space.
            match fallocate(&self.file, FallocateFlags::empty(), now, len - now) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(err) => return Err(err.into()),
            }
        }
        self.file.set_len(len)?;
        // A removal may take the file to its next size as well: that much is kept beyond its end, as long as there is room.
        let _ = fallocate(&self.file, FallocateFlags::KEEP_SIZE, len, len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match &self.syncer {
            None => self.file.sync_data(),
            Some(syncer) => syncer.request(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn close(&self) -> io::Result<()> {
        if self.syncer.is_some() {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// A thread that flushes a file after commits; commits during a flush share the next one.
#[derive(Debug)]
struct Syncer {
    shared: Arc<(Mutex<Sync>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Sync {
    wanted: bool,
    stop: bool,
    /// Kind and text of a failed flush. The store refuses to go on: what the kernel could not write it may forget.
    failed: Option<(io::ErrorKind, String)>,
}

impl Syncer {
    fn start(file: Arc<File>) -> io::Result<Self> {
        let shared = Arc::new((Mutex::new(Sync::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("store-sync".into()).spawn(move || Self::run(&file, &theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn run(file: &File, (state, wake): &(Mutex<Sync>, Condvar)) {
        let mut sync = lock(state);
        loop {
            if sync.wanted {
                sync.wanted = false;
                drop(sync);
                let result = file.sync_data();
                sync = lock(state);
                if let Err(err) = result {
                    tracing::error!(error = %err, "cannot flush the store; it takes no more writes");
                    sync.failed = Some((err.kind(), err.to_string()));
                }
            } else if sync.stop {
                return;
            } else {
                sync = wake.wait(sync).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn request(&self) -> io::Result<()> {
        let (state, wake) = &*self.shared;
        let mut sync = lock(state);
        if let Some((kind, text)) = &sync.failed {
            return Err(io::Error::new(*kind, text.clone()));
        }
        sync.wanted = true;
        wake.notify_one();
        Ok(())
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        let (state, wake) = &*self.shared;
        lock(state).stop = true;
        wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread runs no code of ours that panics; its result carries nothing.
            drop(thread.join());
        }
    }
}

fn lock(state: &Mutex<Sync>) -> MutexGuard<'_, Sync> {
    // Plain values: a panic in another holder cannot leave them half-changed.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
