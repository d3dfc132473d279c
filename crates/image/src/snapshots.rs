//! Containers' own layers, and the root file systems they make together with an image's.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layout::{DiskError, Layout, Temp, discard, names, open_dir};
use crate::overlay::{Overlay, OverlayError};
use crate::tree::{self, Size};

const DESCRIPTION: &str = "snapshot.json";
/// overlayfs leaves this in the work directory of a volatile mount, and refuses the next one while it is there.
const VOLATILE_MARK: &str = "work/work/incompat/volatile";
const NAME_MAX: usize = 200;

/// What a snapshot is made of; kept beside it. Not flushed: it means nothing after a power loss, which ends
/// the container as well.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Description {
    /// Folder names of the layers, lowest first.
    layers: Vec<String>,
    /// The boot during which it was made.
    boot: String,
}

/// A container's root file system, mounted or not.
#[derive(Debug, Clone)]
pub struct Snapshot {
    id: String,
    description: Arc<Description>,
    layout: Arc<Layout>,
}

/// Where the ids of a user namespace begin on the host: user and group 0 are these there, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstIds {
    /// Of users.
    pub uid: u32,
    /// Of groups.
    pub gid: u32,
}

/// What of a snapshot a mount shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shown {
    /// The container's root file system. One with a read-only root still wants its mount points made: mount it so, and
    /// make it read-only afterwards.
    #[default]
    Container,
    /// The image alone, without the container's own layer: nothing can be written, by nobody. For image volumes.
    Image,
    /// What a container that has ended left, to be looked at: nothing can be written.
    Remains,
}

/// How to mount a snapshot.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountOptions<'a> {
    /// What it shows.
    pub shown: Shown,
    /// The image's files have the owners that this user namespace maps theirs to, although the layers on disk are the same
    /// for all. What the container writes is on disk as the host's ids, so that no file of root's can come from it.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

/// Why a snapshot was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A crash of the machine may have torn what the container had written. Make a new container.
    #[error("snapshot {id} was in use when the machine went down; its files cannot be trusted")]
    LostAtReboot {
        /// Which snapshot.
        id: String,
    },
    /// A file of ours.
    #[error("cannot mount snapshot {id}")]
    Disk {
        /// Which snapshot.
        id: String,
        /// What failed.
        source: DiskError,
    },
    /// The kernel refused.
    #[error("cannot mount snapshot {id}: cannot {step}")]
    Kernel {
        /// Which snapshot.
        id: String,
        /// The call, and what the kernel said to it.
        step: String,
        /// The errno.
        source: io::Error,
    },
}

impl Snapshot {
    /// The name given to [`crate::Images::create_snapshot`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder of what the container wrote, for measuring it. The container changes it at any time.
    pub fn upper(&self) -> PathBuf {
        self.dir().join("upper")
    }

    fn dir(&self) -> PathBuf {
        self.layout.snapshots().join(&self.id)
    }

    /// Folder names of the layers it needs.
    pub(crate) fn layers(&self) -> &[String] {
        &self.description.layers
    }

    /// Mounts the root file system, detached: it is in no mount table until the caller moves it into one, and
    /// gone when the descriptor and all its users are. Blocks for less than a millisecond.
    ///
    /// The mount is volatile: nothing the container writes is flushed for its own sake. That is safe since a
    /// container's own layer is never used again after the machine went down: kubelet makes a new container.
    /// The kernel leaves a mark that forbids mounting the same layer again; within one boot nothing was lost,
    /// so the mark is removed; after a reboot it stands, and the error says so.
    ///
    /// # Errors
    ///
    /// [`MountError::LostAtReboot`], or what the kernel refused.
    pub fn mount(&self, options: MountOptions<'_>) -> Result<OwnedFd, MountError> {
        let dir = self.dir();
        let (upper, work) = (self.upper(), dir.join("work"));
        let writable = options.shown == Shown::Container;
        if writable {
            self.clear_volatile_mark(&dir.join(VOLATILE_MARK))?;
        }
        let mut lower: Vec<PathBuf> =
            self.description.layers.iter().rev().map(|name| self.layout.layer_fs(name)).collect();
        // overlayfs wants one lower directory, and two when there is no upper one.
        while lower.len() < if options.shown == Shown::Image { 2 } else { 1 } {
            lower.push(self.empty(lower.len())?);
        }
        let overlay = Overlay {
            over: (options.shown == Shown::Remains).then_some(&upper),
            lower: &lower,
            upper: writable.then_some((&upper, &work)),
            volatile: writable,
            user_namespace: options.user_namespace,
        };
        overlay.mount().map_err(|error| refused(&self.id, error))
    }

    /// An empty directory of this snapshot's, to fill up a stack of layers.
    fn empty(&self, number: usize) -> Result<PathBuf, MountError> {
        let path = self.dir().join(format!("empty{number}"));
        match DirBuilder::new().mode(0o755).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.disk("make", &path)(error))
            }
            _ => Ok(path),
        }
    }

    fn clear_volatile_mark(&self, mark: &Path) -> Result<(), MountError> {
        match fs::symlink_metadata(mark) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.disk("look at", mark)(error)),
            Ok(_) => {}
        }
        let boot = boot_id().map_err(|source| MountError::Disk { id: self.id.clone(), source })?;
        if boot != self.description.boot {
            return Err(MountError::LostAtReboot { id: self.id.clone() });
        }
        discard(mark).map_err(|source| MountError::Disk { id: self.id.clone(), source })
    }

    fn disk(&self, step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
        let (id, path) = (self.id.clone(), path.to_owned());
        move |source| MountError::Disk { id, source: DiskError { step, path, source } }
    }

    /// Reads a file of a mounted root file system as its owner would find it: absolute symlinks stay inside,
    /// magic links lead nowhere. `None` when there is no such file, or it is no regular file. At most `max`
    /// bytes are read, with an error when there are more. Blocks.
    ///
    /// # Errors
    ///
    /// `FileTooLarge`, or what the file system answers.
    pub fn read_file(rootfs: BorrowedFd<'_>, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // NONBLOCK: what the image put there may be a fifo that nobody writes to.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = loop {
            match openat2(rootfs, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
                other => break fs::File::from(other?),
            }
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some(bytes))
    }

    /// What the container has written. Walks its layer: blocks.
    pub(crate) fn measure(&self) -> Result<Size, DiskError> {
        let upper = self.upper();
        let dir = open_dir(&upper)?;
        tree::measure(&dir).map_err(|errno| DiskError::new("measure", upper)(errno.into()))
    }
}

fn refused(id: &str, error: OverlayError) -> MountError {
    let step = error.to_string();
    let OverlayError { source, .. } = error;
    let step = step.strip_prefix("cannot ").unwrap_or(&step).to_owned();
    MountError::Kernel { id: id.to_owned(), step, source }
}

/// Mounts an overlay of empty folders as a container in `user_namespace` would get it, and lets it go again.
pub(crate) fn try_mapping_ids(layout: &Layout, user_namespace: BorrowedFd<'_>) -> Result<(), MountError> {
    const ID: &str = "of the probe for user namespaces";
    let temp = layout.temp();
    let make = |path: &Path| {
        let made = DirBuilder::new().mode(0o700).create(path);
        made.map_err(|error| MountError::Disk {
            id: ID.to_owned(),
            source: DiskError::new("make", path)(error),
        })
    };
    make(temp.path())?;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| temp.path().join(name));
    for path in [&lower, &upper, &work] {
        make(path)?;
    }
    let overlay = Overlay {
        over: None,
        lower: &[lower],
        upper: Some((&upper, &work)),
        volatile: false,
        user_namespace: Some(user_namespace),
    };
    overlay.mount().map(drop).map_err(|error| refused(ID, error))
}

/// Why a snapshot was not made or not removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The id cannot be a folder's name.
    #[error("{0:?} cannot name a snapshot")]
    Name(String),
    /// There is one of that id.
    #[error("snapshot {0} exists")]
    Exists(String),
    /// The image was removed meanwhile, or a layer of it is damaged and cannot be made again from its blob.
    #[error("cannot make snapshot {id}: layer {layer} of the image is gone; pull the image again")]
    LayerGone {
        /// Which snapshot.
        id: String,
        /// Which layer.
        layer: String,
        /// Why it could not be made again, when that was tried.
        source: Option<Arc<crate::errors::Cause>>,
    },
    /// A file of ours.
    #[error("snapshot {id}")]
    Disk {
        /// Which snapshot.
        id: String,
        /// What failed.
        source: DiskError,
    },
}

/// All snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    known: Mutex<HashMap<String, Snapshot>>,
}

impl Snapshots {
    pub(crate) fn open(layout: &Arc<Layout>) -> Result<Snapshots, DiskError> {
        let mut known = HashMap::new();
        for id in names(&layout.snapshots())? {
            let path = layout.snapshots().join(&id).join(DESCRIPTION);
            let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Description>(&text)?));
            match read {
                Ok(description) => {
                    let description = Arc::new(description);
                    known.insert(id.clone(), Snapshot { id, description, layout: Arc::clone(layout) });
                }
                Err(error) => {
                    // A power loss ends its container too, so there is nothing to save.
                    tracing::warn!(snapshot = %id, %error, "unreadable snapshot removed");
                    drop(layout.take_out(&layout.snapshots().join(&id))?);
                }
            }
        }
        Ok(Snapshots { known: Mutex::new(known) })
    }

    pub(crate) fn get(&self, id: &str) -> Option<Snapshot> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Snapshot> {
        self.lock().values().cloned().collect()
    }

    /// Makes the folders. `root` is the mode and owner of the image's root directory, which the upper
    /// directory decides. Blocks.
    pub(crate) fn create(
        &self,
        layout: &Arc<Layout>,
        id: &str,
        layers: Vec<String>,
        root: (u32, u32, u32),
    ) -> Result<Snapshot, SnapshotError> {
        if id.is_empty() || id.len() > NAME_MAX || id.contains(['/', '\0']) || id == "." || id == ".." {
            return Err(SnapshotError::Name(id.to_owned()));
        }
        let disk = |source| SnapshotError::Disk { id: id.to_owned(), source };
        let description = Arc::new(Description { layers, boot: boot_id().map_err(disk)? });
        let temp = layout.temp();
        fill(temp.path(), &description, root).map_err(disk)?;
        let snapshot = Snapshot { id: id.to_owned(), description, layout: Arc::clone(layout) };
        // Under the lock, so that of two with one id the later finds the first.
        let mut known = self.lock();
        if known.contains_key(id) {
            return Err(SnapshotError::Exists(id.to_owned()));
        }
        temp.commit(&layout.snapshots().join(id)).map_err(disk)?;
        known.insert(id.to_owned(), snapshot.clone());
        Ok(snapshot)
    }

    /// Takes a snapshot out of its place. Absent is fine.
    pub(crate) fn remove(&self, layout: &Layout, id: &str) -> Result<Option<Temp>, DiskError> {
        // Known for as long as it is there: who fails here is asked again.
        let mut known = self.lock();
        let Some(snapshot) = known.get(id) else { return Ok(None) };
        let taken = layout.take_out(&snapshot.dir())?;
        known.remove(id);
        Ok(taken)
    }

    pub(crate) fn others_than(&self, keep: &HashSet<String>) -> Vec<String> {
        self.lock().keys().filter(|id| !keep.contains(*id)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Snapshot>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn fill(dir: &Path, description: &Description, (mode, uid, gid): (u32, u32, u32)) -> Result<(), DiskError> {
    let make = |path: &Path| DirBuilder::new().mode(0o700).create(path).map_err(DiskError::new("make", path));
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    make(dir)?;
    make(&work)?;
    make(&upper)?;
    if (uid, gid) != (0, 0) {
        chown(&upper, Some(uid), Some(gid)).map_err(DiskError::new("set the owner of", &upper))?;
    }
    fs::set_permissions(&upper, Permissions::from_mode(mode))
        .map_err(DiskError::new("set the mode of", &upper))?;
    let path = dir.join(DESCRIPTION);
    let text =
        serde_json::to_vec(description).map_err(|error| DiskError::new("describe", &path)(error.into()))?;
    fs::write(&path, text).map_err(DiskError::new("write", &path))
}

/// The kernel's name for this boot.
fn boot_id() -> Result<String, DiskError> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).map(|id| id.trim().to_owned()).map_err(DiskError::new("read", path))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn read_file_stays_inside_and_reads_regular_files_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "root").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/shadow", dir.path().join("outside")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = open_dir(dir.path()).unwrap();
        let read = |path, max| Snapshot::read_file(root.as_fd(), path, max);
        assert_eq!(read("/etc/passwd", 10).unwrap().unwrap(), b"root");
        assert_eq!(read("absolute", 10).unwrap().unwrap(), b"root");
        for none in ["outside", "fifo", "etc", "missing", "etc/passwd/x"] {
            assert!(read(none, 10).unwrap().is_none(), "{none}");
        }
        assert_eq!(read("etc/passwd", 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
