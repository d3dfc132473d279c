//! Writes one layer's entries below a directory handle, as overlayfs wants them.
//!
//! Every name is resolved by the kernel beneath that handle, so a hostile archive can at worst spoil its
//! own layer, and that is refused with the entry's name. Attributes are set in the order in which the
//! kernel would otherwise undo them: owner, then capabilities and other xattrs, then mode, then times;
//! directory times last of all, when nothing is made in them any more.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, ftruncate, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat,
    openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

use super::path::{LayerPath, open_beneath};
use super::tar::{Entry, Kind, TarReader};
use super::{Footprint, UnpackError};
use crate::tree;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What overlayfs reads on its lower directories. A layer may not say these things itself: a redirect
/// would show another layer's files under a name of its choice.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
const PAGE: u64 = 4096;
/// Bytes of names of directories and whiteouts in one layer, above what two million of the usual length take.
const REMEMBERED: usize = 256 << 20;
/// What a name takes in a collection besides its own bytes, roughly.
const NAME_OVERHEAD: usize = 48;

type Times = (i64, u32);

/// The layer being written.
pub(super) struct Writer {
    root: OwnedFd,
    /// The directory the last entry was made in; archives go through a tree directory by directory.
    parent: Option<(LayerPath, OwnedFd)>,
    /// Directories that exist only because something below them does.
    implied: BTreeSet<LayerPath>,
    whiteouts: HashSet<LayerPath>,
    directory_times: BTreeMap<LayerPath, Times>,
    /// Bytes of all names that were put into the three above.
    remembered: usize,
    footprint: Footprint,
}

/// A failure at one entry, before its name is known to the error.
enum Fault {
    Rejected(String),
    Kernel(&'static str, Errno),
}

impl From<&'static str> for Fault {
    fn from(why: &'static str) -> Fault {
        Fault::Rejected(why.to_owned())
    }
}

fn at(step: &'static str) -> impl FnOnce(Errno) -> Fault {
    move |errno| Fault::Kernel(step, errno)
}

impl Fault {
    fn named(self, entry: &[u8]) -> UnpackError {
        let entry = String::from_utf8_lossy(entry).into_owned();
        match self {
            Fault::Rejected(why) => UnpackError::Rejected { entry, why },
            Fault::Kernel(step, Errno::XDEV) => UnpackError::Rejected {
                entry,
                why: format!("a symlink on the way leads outside the layer ({step})"),
            },
            Fault::Kernel(step, Errno::LOOP) => {
                UnpackError::Rejected { entry, why: format!("too many symlinks on the way ({step})") }
            }
            Fault::Kernel(step, Errno::NOTDIR) => {
                UnpackError::Rejected { entry, why: format!("a parent is not a directory ({step})") }
            }
            Fault::Kernel(step, errno) => UnpackError::Entry { entry, step, source: errno.into() },
        }
    }
}

impl Writer {
    /// `root` is an open, empty directory.
    pub(super) fn new(root: OwnedFd) -> Writer {
        Writer {
            root,
            parent: None,
            implied: BTreeSet::new(),
            whiteouts: HashSet::new(),
            directory_times: BTreeMap::new(),
            remembered: 0,
            footprint: Footprint { bytes: 0, inodes: 1, implied: Vec::new(), root: None },
        }
    }

    /// Makes one entry, taking its content from `archive`.
    pub(super) fn entry<R: io::BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let path = self.admit(entry).map_err(|fault| fault.named(&entry.path))?;
        let Some((parent, name)) = path.split() else {
            return match entry.kind {
                Kind::Directory => self.root_entry(entry),
                _ => Err(Fault::from("the layer's root is no directory")),
            }
            .map_err(|fault| fault.named(&entry.path));
        };
        if path.components().any(|component| component.starts_with(WHITEOUT)) {
            return self.whiteout(&parent, name).map_err(|fault| fault.named(&entry.path));
        }
        let name = OsStr::from_bytes(name);
        let made = self.enter(&parent).and_then(|()| match &entry.kind {
            Kind::File { size, pieces } => {
                let file = self.create(&path, name)?;
                Ok(Some((file, *size, pieces)))
            }
            _ => self.node(&path, name, entry).map(|()| None),
        });
        let Some((file, size, pieces)) = made.map_err(|fault| fault.named(&entry.path))? else {
            return Ok(());
        };
        self.content(entry, &file, size, pieces, archive)?;
        attributes(&file, entry).map_err(|fault| fault.named(&entry.path))
    }

    /// Applies directory times, a directory's before those of the one it is in.
    pub(super) fn finish(mut self) -> Result<Footprint, UnpackError> {
        self.parent = None;
        for (path, times) in self.directory_times.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let applied = match open_beneath(self.root.as_fd(), path, flags) {
                Ok(dir) => futimens(&dir, &timestamps(*times)),
                // A later entry of the same name replaced the directory.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(errno),
            };
            applied.map_err(|errno| Fault::Kernel("set a directory's time", errno).named(path.as_bytes()))?;
        }
        self.footprint.implied =
            self.implied.iter().filter_map(|path| String::from_utf8(path.as_bytes().to_vec()).ok()).collect();
        Ok(self.footprint)
    }

    /// Checks names and numbers before anything is made.
    fn admit(&self, entry: &Entry) -> Result<LayerPath, Fault> {
        for id in [entry.uid, entry.gid] {
            // The last number means "unchanged" to chown(2).
            if id >= u64::from(u32::MAX) {
                return Err(Fault::Rejected(format!("owner {id} is no user or group id")));
            }
        }
        Ok(LayerPath::new(&entry.path)?)
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        let dir =
            openat(&self.root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(at("open the root"))?;
        attributes(&dir, entry)?;
        self.footprint.root = Some((entry.mode, entry.uid as u32, entry.gid as u32));
        self.directory_times.insert(LayerPath::new(b"")?, entry.mtime);
        Ok(())
    }

    fn whiteout(&mut self, parent: &LayerPath, name: &[u8]) -> Result<(), Fault> {
        let below_meta = parent.components().any(|component| component.starts_with(WHITEOUT_META));
        if name == OPAQUE && !below_meta {
            self.enter(parent)?;
            return self.set_opaque(parent);
        }
        if name.starts_with(WHITEOUT_META) || below_meta {
            return Ok(()); // aufs' own bookkeeping, which old images carry
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Err("an entry below a whiteout".into());
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("a whiteout of no name".into());
        }
        if parent.components().any(|component| component.starts_with(WHITEOUT)) {
            return Err("a whiteout below a whiteout".into());
        }
        self.enter(parent)?;
        let path = parent.join(hidden);
        let dir = self.parent_dir();
        match mknodat(dir, OsStr::from_bytes(hidden), FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
        {
            Ok(()) => {
                self.footprint.inodes += 1;
                self.remember(&path)?;
                self.whiteouts.insert(path);
                Ok(())
            }
            // A whiteout hides what lies below this layer, never what the layer itself brings.
            Err(Errno::EXIST) if self.whiteouts.contains(&path) => Ok(()),
            Err(Errno::EXIST) => {
                let stat = statat(dir, OsStr::from_bytes(hidden), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(at("look at the name a whiteout hides"))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => self.set_opaque(&path),
                    _ => Ok(()),
                }
            }
            Err(errno) => Err(Fault::Kernel("make a whiteout", errno)),
        }
    }

    /// Hides everything that lower layers have in this directory.
    fn set_opaque(&self, path: &LayerPath) -> Result<(), Fault> {
        let dir =
            open_beneath(self.root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
                .map_err(at("open an opaque directory"))?;
        fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(at("make a directory opaque"))
    }

    /// Makes `path` the parent of what is made next, creating it when the archive never mentioned it.
    fn enter(&mut self, path: &LayerPath) -> Result<(), Fault> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        self.parent = None;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = match open_beneath(self.root.as_fd(), path, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            other => other.map_err(at("open the parent"))?,
        };
        self.parent = Some((path.clone(), dir));
        Ok(())
    }

    fn make_parents(&mut self, path: &LayerPath) -> Result<OwnedFd, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut made = LayerPath::new(b"")?;
        let mut dir = open_beneath(self.root.as_fd(), &made, flags).map_err(at("open the root"))?;
        for component in path.components() {
            let next = made.join(component);
            let name = OsStr::from_bytes(component);
            let hides = self.whiteouts.remove(&next);
            if hides {
                unlinkat(&dir, name, AtFlags::empty()).map_err(at("replace a whiteout"))?;
            }
            match mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    // The mode above is subject to the process's umask.
                    chmodat(&dir, name, Mode::from_raw_mode(0o755), AtFlags::empty())
                        .map_err(at("set a parent's mode"))?;
                    self.footprint.inodes += 1;
                    self.footprint.bytes += PAGE;
                    self.remember(&next)?;
                    self.implied.insert(next.clone());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Fault::Kernel("make a parent", errno)),
            }
            if hides {
                self.set_opaque(&next)?;
            }
            dir = open_beneath(self.root.as_fd(), &next, flags).map_err(at("open a parent"))?;
            made = next;
        }
        Ok(dir)
    }

    fn parent_dir(&self) -> &OwnedFd {
        self.parent.as_ref().map_or(&self.root, |(_, dir)| dir)
    }

    /// Opens a new file, replacing what an earlier entry of the same name made.
    fn create(&mut self, path: &LayerPath, name: &OsStr) -> Result<OwnedFd, Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(self.parent_dir(), name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => {
                self.clear(path, name)?;
                openat(self.parent_dir(), name, flags, Mode::RUSR | Mode::WUSR)
            }
            other => other,
        };
        self.footprint.inodes += 1;
        file.map_err(at("create"))
    }

    /// Removes what an earlier entry of this archive, or a whiteout in it, left under the name. True for a whiteout.
    fn clear(&mut self, path: &LayerPath, name: &OsStr) -> Result<bool, Fault> {
        let was_whiteout = self.whiteouts.remove(path);
        let name = CString::new(name.as_bytes()).map_err(|_| "a NUL in the name")?;
        tree::remove(self.parent_dir().as_fd(), &name).map_err(at("replace an earlier entry"))?;
        self.footprint.inodes = self.footprint.inodes.saturating_sub(1);
        let below = [path.as_bytes(), b"/"].concat();
        self.implied.retain(|implied| implied != path && !implied.as_bytes().starts_with(&below));
        self.whiteouts.retain(|whiteout| !whiteout.as_bytes().starts_with(&below));
        Ok(was_whiteout)
    }

    /// Counts a name that is kept until the layer's end. Names compress by thousands, and memory does not.
    fn remember(&mut self, path: &LayerPath) -> Result<(), Fault> {
        self.remembered += path.as_bytes().len() + NAME_OVERHEAD;
        if self.remembered > REMEMBERED {
            return Err("more directories and whiteouts than can be kept in mind".into());
        }
        Ok(())
    }

    /// Makes what has no content.
    fn node(&mut self, path: &LayerPath, name: &OsStr, entry: &Entry) -> Result<(), Fault> {
        match &entry.kind {
            Kind::Directory => return self.directory(path, name, entry),
            Kind::HardLink(target) => return self.hard_link(path, name, target),
            _ => {}
        }
        let made = match self.make_node(name, entry) {
            Err(Errno::EXIST) => {
                self.clear(path, name)?;
                self.make_node(name, entry)
            }
            other => other,
        };
        made.map_err(at("create"))?;
        self.footprint.inodes += 1;
        self.node_attributes(name, entry)
    }

    fn make_node(&self, name: &OsStr, entry: &Entry) -> Result<(), Errno> {
        let dir = self.parent_dir();
        let mode = Mode::from_raw_mode(0o600);
        match &entry.kind {
            Kind::Symlink(target) => symlinkat(OsStr::from_bytes(target), dir, name),
            Kind::CharDevice(major, minor) => {
                mknodat(dir, name, FileType::CharacterDevice, mode, makedev(*major, *minor))
            }
            Kind::BlockDevice(major, minor) => {
                mknodat(dir, name, FileType::BlockDevice, mode, makedev(*major, *minor))
            }
            Kind::Fifo => mknodat(dir, name, FileType::Fifo, mode, 0),
            Kind::File { .. } | Kind::Directory | Kind::HardLink(_) => Err(Errno::INVAL),
        }
    }

    fn directory(&mut self, path: &LayerPath, name: &OsStr, entry: &Entry) -> Result<(), Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut opaque = false;
        let dir = loop {
            match mkdirat(self.parent_dir(), name, Mode::RWXU) {
                Ok(()) => {
                    self.footprint.inodes += 1;
                    self.footprint.bytes += PAGE;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Fault::Kernel("make a directory", errno)),
            }
            match openat(self.parent_dir(), name, flags, Mode::empty()) {
                Ok(dir) => break dir,
                Err(Errno::NOTDIR | Errno::LOOP) => opaque |= self.clear(path, name)?,
                Err(errno) => return Err(Fault::Kernel("open a directory", errno)),
            }
        };
        self.implied.remove(path);
        attributes(&dir, entry)?;
        if opaque {
            fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(at("make a directory opaque"))?;
        }
        if self.directory_times.insert(path.clone(), entry.mtime).is_none() {
            self.remember(path)?;
        }
        // What follows a directory in an archive mostly lies in it.
        self.parent = Some((path.clone(), dir));
        Ok(())
    }

    fn hard_link(&mut self, path: &LayerPath, name: &OsStr, target: &[u8]) -> Result<(), Fault> {
        let shown = String::from_utf8_lossy(target);
        let refuse = |why: &str| Fault::Rejected(format!("hard link to {shown:?}: {why}"));
        let target_path = LayerPath::new(target).map_err(refuse)?;
        let (target_parent, target_name) = target_path.split().ok_or_else(|| refuse("the layer's root"))?;
        if self.whiteouts.contains(&target_path) {
            return Err(refuse("it is not in the layer"));
        }
        if target_path == *path {
            return Err(refuse("it is the link itself"));
        }
        let from = match open_beneath(self.root.as_fd(), &target_parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Err(refuse("it is not in the layer")),
            other => other.map_err(at("open a link's target"))?,
        };
        let target_name = OsStr::from_bytes(target_name);
        let link = |dir: &OwnedFd| linkat(&from, target_name, dir, name, AtFlags::empty());
        let linked = match link(self.parent_dir()) {
            Err(Errno::EXIST) => {
                self.clear(path, name)?;
                link(self.parent_dir())
            }
            other => other,
        };
        match linked {
            Err(Errno::NOENT) => Err(refuse("it is not in the layer")),
            Err(Errno::PERM) => Err(refuse("it is a directory")),
            other => other.map_err(at("make a hard link")),
        }
    }

    /// Owner, xattrs, mode and times of a node that has no handle: a symlink, a device, a fifo.
    fn node_attributes(&self, name: &OsStr, entry: &Entry) -> Result<(), Fault> {
        let dir = self.parent_dir();
        let is_symlink = matches!(entry.kind, Kind::Symlink(_));
        if (entry.uid, entry.gid) != (0, 0) {
            let (uid, gid) = owner(entry);
            chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the owner"))?;
        }
        if !entry.xattrs.is_empty() {
            // There is no lsetxattrat(2) before Linux 6.13; the handle's own /proc name is exact.
            let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            path.extend_from_slice(name.as_bytes());
            set_xattrs(entry, |attribute, value| {
                lsetxattr(OsStr::from_bytes(&path), attribute, value, XattrFlags::empty())
            })?;
        }
        if !is_symlink {
            chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(at("set the mode"))?;
        }
        utimensat(dir, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time"))
    }

    fn content<R: io::BufRead>(
        &mut self,
        entry: &Entry,
        file: &OwnedFd,
        size: u64,
        pieces: &[(u64, u64)],
        archive: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let mut left = pieces.iter().copied();
        let (mut offset, mut room) = (0, 0);
        archive.content(|mut bytes| {
            while !bytes.is_empty() {
                while room == 0 {
                    (offset, room) = left
                        .next()
                        .ok_or_else(|| Fault::from("more content than runs").named(&entry.path))?;
                }
                let count = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
                let written = match pwrite(file, &bytes[..count], offset) {
                    Err(Errno::INTR) => 0,
                    other => other.map_err(|errno| Fault::Kernel("write", errno).named(&entry.path))?,
                };
                offset += written as u64;
                room -= written as u64;
                bytes = &bytes[written..];
            }
            Ok::<(), UnpackError>(())
        })?;
        let stored: u64 = pieces.iter().map(|(_, length)| length).sum();
        self.footprint.bytes += stored.next_multiple_of(PAGE);
        if stored < size {
            // A hole at the end.
            ftruncate(file, size).map_err(|errno| Fault::Kernel("set the size", errno).named(&entry.path))?;
        }
        Ok(())
    }
}

/// Owner, xattrs, mode and times of an open file or directory, in the order that keeps them all.
fn attributes(file: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
    if (entry.uid, entry.gid) != (0, 0) || matches!(entry.kind, Kind::Directory) {
        let (uid, gid) = owner(entry);
        fchown(file, uid, gid).map_err(at("set the owner"))?;
    }
    set_xattrs(entry, |name, value| fsetxattr(file, name, value, XattrFlags::empty()))?;
    fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(at("set the mode"))?;
    if matches!(entry.kind, Kind::Directory) {
        return Ok(()); // its time comes last of all
    }
    futimens(file, &timestamps(entry.mtime)).map_err(at("set the time"))
}

fn set_xattrs(entry: &Entry, set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>) -> Result<(), Fault> {
    for (name, value) in &entry.xattrs {
        if OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        match set(OsStr::from_bytes(name), value) {
            Ok(()) => {}
            // The file system has no such attributes, or this kind of node none of the user's.
            Err(errno @ (Errno::OPNOTSUPP | Errno::PERM))
                if errno == Errno::OPNOTSUPP || name.starts_with(b"user.") =>
            {
                tracing::debug!(
                    entry = %String::from_utf8_lossy(&entry.path),
                    xattr = %String::from_utf8_lossy(name),
                    "extended attribute left out: the file system does not take it"
                );
            }
            Err(errno) => return Err(Fault::Kernel("set an extended attribute", errno)),
        }
    }
    Ok(())
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    // `admit` has refused what does not fit.
    (Some(Uid::from_raw(entry.uid as u32)), Some(Gid::from_raw(entry.gid as u32)))
}

/// The access time is left as it is: the archive has none.
fn timestamps((seconds, nanos): Times) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}
