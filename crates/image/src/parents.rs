//! Directories that a layer uses without describing them.
//!
//! An archive may bring `tmp/x` without `tmp/`. Unpacked over the layers below, as other engines do one after
//! another, `x` would land in the `tmp` that is there. Our layers are unpacked each for itself and in
//! parallel, and overlayfs takes a directory's attributes from the topmost layer that has it: `/tmp` would
//! lose its sticky bit. So each layer remembers such directories, and an image for which it matters gets one
//! more layer on top, made of nothing but those directories with the attributes they should have.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod, fchown,
    fsetxattr, fstat, futimens, getxattr, listxattr, mkdirat, openat,
};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::layers::{Building, LayerInfo, Layers};
use crate::layout::{DiskError, Layout, open_dir};
use crate::unpack::Footprint;
use crate::unpack::path::{LayerPath, open_beneath};

const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";
const OPAQUE: &str = "trusted.overlay.opaque";

/// Every folder an image with these layers may use: the layers', and that of their added one.
pub(crate) fn folder_names(diff_ids: &[Digest]) -> Vec<String> {
    let mut names: Vec<String> = diff_ids.iter().map(|diff_id| diff_id.hex().to_owned()).collect();
    names.push(added_name(diff_ids));
    names
}

fn added_name(diff_ids: &[Digest]) -> String {
    let chain: String = diff_ids.iter().map(Digest::hex).collect();
    format!("parents-{}", Digest::of(chain.as_bytes()).hex())
}

/// The folders to stack for an image, lowest first; makes the added one when it is needed and missing.
/// Blocks.
pub(crate) fn stack(layout: &Layout, layers: &Layers, diff_ids: &[Digest]) -> Result<Vec<String>, DiskError> {
    // overlayfs refuses a directory twice. Of equal layers the upper one shows all that the lower could.
    let mut names: Vec<String> = Vec::with_capacity(diff_ids.len() + 1);
    for (at, diff_id) in diff_ids.iter().enumerate() {
        if !diff_ids[at + 1..].contains(diff_id) {
            names.push(diff_id.hex().to_owned());
        }
    }
    let added = added_name(diff_ids);
    if layers.get(&added).is_some() {
        names.push(added);
        return Ok(names);
    }
    if layers.is_known_plain(&added) {
        return Ok(names);
    }
    let stack = Stack::open(layout, layers, &names)?;
    let wanted = stack.wanted();
    if wanted.is_empty() {
        layers.set_known_plain(added);
        return Ok(names);
    }
    let building = Building::begin(layout)?;
    let made = stack.build(&building.fs(), &wanted).map_err(|(path, errno)| {
        DiskError::new("make the directory", building.fs().join(OsStr::from_bytes(path.as_bytes())))(
            errno.into(),
        )
    })?;
    let footprint = Footprint { bytes: made * 4096, inodes: made, ..Footprint::default() };
    building.describe(&LayerInfo { footprint })?;
    // Not synced: after a power loss it is made again from the layers.
    layers.commit(layout, building, &added)?;
    names.push(added);
    Ok(names)
}

/// One layer of the stack.
struct Level {
    root: OwnedFd,
    implied: BTreeSet<LayerPath>,
}

/// The layers, topmost first.
struct Stack(Vec<Level>);

/// What a layer has under a name.
enum Found {
    Absent,
    /// Something that hides all below: a whiteout, or no directory.
    Other(FileType),
    Directory(OwnedFd),
}

impl Stack {
    fn open(layout: &Layout, layers: &Layers, names: &[String]) -> Result<Stack, DiskError> {
        let mut levels = Vec::with_capacity(names.len());
        for name in names.iter().rev() {
            let info = layers.get(name);
            let implied = info.iter().flat_map(|info| &info.footprint.implied);
            let implied = implied.filter_map(|path| LayerPath::new(path.as_bytes()).ok()).collect();
            levels.push(Level { root: open_dir(&layout.layer_fs(name))?, implied });
        }
        Ok(Stack(levels))
    }

    /// Implied directories whose attributes come from a lower layer, with the directory that has them.
    fn wanted(&self) -> BTreeMap<LayerPath, OwnedFd> {
        let paths: BTreeSet<&LayerPath> = self.0.iter().flat_map(|level| &level.implied).collect();
        let mut wanted = BTreeMap::new();
        for path in paths {
            let top = self.0.iter().find(|level| !matches!(level.look(path).0, Found::Absent));
            if !top.is_some_and(|level| level.implied.contains(path)) {
                continue; // a layer above describes it
            }
            if let Some(dir) = self.source(path)
                && !is_plain(&dir)
            {
                wanted.insert(path.clone(), dir);
            }
        }
        wanted
    }

    /// The topmost directory of that name that its layer describes, unless something above hides it.
    fn source(&self, path: &LayerPath) -> Option<OwnedFd> {
        for level in &self.0 {
            let (found, opaque) = level.look(path);
            match found {
                Found::Absent => {}
                Found::Directory(dir) if !level.implied.contains(path) => return Some(dir),
                Found::Directory(_) => {}
                Found::Other(file_type) => {
                    if file_type == FileType::Symlink {
                        // What lies in the directory belongs behind the symlink. overlayfs cannot say that.
                        tracing::warn!(
                            path = %String::from_utf8_lossy(path.as_bytes()),
                            "a layer writes through a symlink of a lower layer without describing it; \
                             the symlink is hidden by a directory"
                        );
                    }
                    return None;
                }
            }
            if opaque {
                return None;
            }
        }
        None
    }

    /// Makes the wanted directories, and those above them, with the attributes the image should show.
    fn build(
        &self,
        fs: &std::path::Path,
        wanted: &BTreeMap<LayerPath, OwnedFd>,
    ) -> Result<u64, (LayerPath, Errno)> {
        let fault = |path: &LayerPath| {
            let path = path.clone();
            move |errno| (path, errno)
        };
        let top = LayerPath::new(b"").expect("the root's name");
        let open = |path: &LayerPath| {
            rustix::fs::open(fs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|root| open_beneath(root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY))
        };
        let mut all: BTreeSet<LayerPath> = BTreeSet::new();
        for path in wanted.keys() {
            let mut at = top.clone();
            for component in path.components() {
                at = at.join(component);
                all.insert(at.clone());
            }
        }
        // In order of names a directory comes before what lies in it; times go the other way.
        for path in &all {
            let (parent, name) = path.split().expect("only the root has no parent");
            let dir = open(&parent).map_err(fault(path))?;
            mkdirat(&dir, OsStr::from_bytes(name), Mode::RWXU).map_err(fault(path))?;
        }
        for path in all.iter().rev() {
            let found = self.source(path);
            let shown = || {
                self.0.iter().find_map(|level| match level.look(path).0 {
                    Found::Directory(dir) => Some(dir),
                    _ => None,
                })
            };
            if let Some(from) = found.or_else(shown) {
                open(path).and_then(|dir| copy_attributes(&from, &dir)).map_err(fault(path))?;
            }
        }
        Ok(all.len() as u64)
    }
}

impl Level {
    /// What is under the name, and whether something on the way hides lower layers' directories.
    fn look(&self, path: &LayerPath) -> (Found, bool) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut opaque = false;
        let Ok(mut at) = openat(&self.root, ".", flags, Mode::empty()) else { return (Found::Absent, false) };
        for component in path.components() {
            let Ok(next) = openat(&at, OsStr::from_bytes(component), flags, Mode::empty()) else {
                return (Found::Absent, opaque);
            };
            let file_type =
                fstat(&next).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
            if file_type != FileType::Directory {
                return (Found::Other(file_type), true);
            }
            opaque |= xattr(&next, OPAQUE).is_some_and(|value| value == b"y");
            at = next;
        }
        (Found::Directory(at), opaque)
    }
}

/// Whether a directory is just as an implied one is made.
fn is_plain(dir: &OwnedFd) -> bool {
    let Ok(stat) = fstat(dir) else { return true };
    stat.st_mode & 0o7777 == 0o755 && stat.st_uid == 0 && stat.st_gid == 0 && xattr_names(dir).is_empty()
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for name in xattr_names(from) {
        if let Some(value) = xattr(from, OsStr::from_bytes(&name)) {
            fsetxattr(to, OsStr::from_bytes(&name), &value, XattrFlags::empty())?;
        }
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    futimens(
        to,
        &Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
        },
    )
}

/// The handle's own name in /proc: handles opened for their path alone give no attributes themselves.
fn proc_name(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

fn xattr(dir: &OwnedFd, name: impl rustix::path::Arg) -> Option<Vec<u8>> {
    let mut value = vec![0u8; 64 * 1024]; // the kernel's own limit on a value
    let length = getxattr(proc_name(dir), name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

/// Names of all extended attributes that are not overlayfs' own.
fn xattr_names(dir: &OwnedFd) -> Vec<Vec<u8>> {
    let mut list = vec![0u8; 64 * 1024];
    let Ok(length) = listxattr(proc_name(dir), list.as_mut_slice()) else { return Vec::new() };
    list[..length]
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(|name| name.to_bytes().to_vec())
        .filter(|name| !name.starts_with(OVERLAY_XATTRS))
        .collect()
}
