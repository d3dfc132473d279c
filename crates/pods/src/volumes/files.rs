//! configMap, secret, downwardAPI, projected: files whose content the manifest gives.
//!
//! They lie as kubelet lays them (its AtomicWriter), since programs look for it: `key` is a link to `..data/key`, and
//! `..data` one to a folder with all files of one version. A new version is written beside the old one, and one rename of
//! `..data` changes all files at once.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use berth_manifest::Item;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, fstat};
use rustix::io::Errno;

use super::{mounts, tree};
use crate::clock;

/// Where the present version is.
const DATA: &str = "..data";
const NEXT: &str = "..data_next";

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// All files of a volume.
#[derive(Debug)]
pub(super) struct Files {
    files: BTreeMap<PathBuf, Content>,
    /// Has them, and may read them.
    group: Option<u32>,
}

#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    mode: Mode,
}

impl Files {
    /// # Errors
    /// A path that does not lead to a place of its own in the volume.
    pub(super) fn of(
        items: &[Item],
        content: impl Fn(&Item) -> Vec<u8>,
        group: Option<u32>,
    ) -> Result<Self, String> {
        let readable = if group.is_some() { Mode::RUSR | Mode::RGRP } else { Mode::empty() };
        let files = items.iter().map(|item| {
            let path = within(&item.path).ok_or_else(|| item.path.clone())?;
            let mode = Mode::from_raw_mode(item.mode & 0o777) | readable;
            Ok((path, Content { bytes: content(item), mode }))
        });
        Ok(Self { files: files.collect::<Result<_, String>>()?, group })
    }

    /// Makes the volume, or brings one that is there up to date.
    pub(super) fn make(&self, at: &Path, in_memory: bool) -> io::Result<()> {
        fs::create_dir_all(at)?;
        if in_memory && !mounts::is_mount_point(at)? {
            let mount = mounts::new("tmpfs", &[])?;
            mounts::attach(&mount, at)?;
        }
        let volume = rustix::fs::open(at, FOLDER, Mode::empty())?;
        self.give_folder(&volume)?;
        if !self.is_in(&volume)? {
            self.write_version(&volume)?;
        }
        self.link(&volume)?;
        self.sweep(&volume)
    }

    /// Whether the present version is this one.
    fn is_in(&self, volume: &OwnedFd) -> io::Result<bool> {
        let data = match beneath(volume, Path::new(DATA), OFlags::DIRECTORY) {
            Ok(data) => data,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        let depth = self.files.keys().map(|path| path.iter().count()).max().unwrap_or_default();
        if count(&data, depth)? != Some(self.files.len()) {
            return Ok(false);
        }
        for (path, wanted) in &self.files {
            let Ok(file) = beneath(&data, path, OFlags::empty()) else { return Ok(false) };
            let stat = fstat(&file)?;
            let mut bytes = Vec::new();
            let most = u64::try_from(wanted.bytes.len()).unwrap_or(u64::MAX).saturating_add(1);
            File::from(file).take(most).read_to_end(&mut bytes)?;
            let same_group = self.group.is_none_or(|group| group == stat.st_gid);
            if bytes != wanted.bytes || stat.st_mode & 0o7777 != wanted.mode.bits() || !same_group {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write_version(&self, volume: &OwnedFd) -> io::Result<()> {
        let name = format!("..{}", clock::unix());
        let version = self.folder_in(volume, Path::new(&name))?;
        for (path, content) in &self.files {
            let mut folder = version.try_clone()?;
            for parent in path.parent().into_iter().flat_map(Path::iter) {
                folder = self.folder_in(&folder, Path::new(parent))?;
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let name = path.file_name().unwrap_or_default();
            let file = rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            file.write_all(&content.bytes)?;
            self.give(&file, content.mode)?;
        }
        match rustix::fs::unlinkat(volume, NEXT, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        rustix::fs::symlinkat(name, volume, NEXT)?;
        Ok(rustix::fs::renameat(volume, NEXT, volume, DATA)?)
    }

    /// The names that containers read.
    fn link(&self, volume: &OwnedFd) -> io::Result<()> {
        for top in self.tops() {
            let (name, to) = (c_string(top)?, c_string(&Path::new(DATA).join(top))?);
            if rustix::fs::readlinkat(volume, &name, Vec::new()).is_ok_and(|there| there == to) {
                continue;
            }
            tree::remove(volume, &name)?;
            rustix::fs::symlinkat(&to, volume, &name)?;
        }
        Ok(())
    }

    /// Removes names and versions of before.
    fn sweep(&self, volume: &OwnedFd) -> io::Result<()> {
        let present = rustix::fs::readlinkat(volume, DATA, Vec::new())?;
        for name in tree::names(volume)? {
            let kept = name.to_bytes() == DATA.as_bytes()
                || name == present
                || self.tops().any(|top| top.as_os_str().as_bytes() == name.to_bytes());
            if !kept {
                tree::remove(volume, &name)?;
            }
        }
        Ok(())
    }

    /// The first part of each path; some more than once.
    fn tops(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().filter_map(|path| path.iter().next()).map(Path::new)
    }

    fn folder_in(&self, parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let folder = rustix::fs::openat(parent, name, FOLDER, Mode::empty())?;
        self.give_folder(&folder)?;
        Ok(folder)
    }

    fn give_folder(&self, folder: &OwnedFd) -> io::Result<()> {
        let set_group = if self.group.is_some() { Mode::SGID } else { Mode::empty() };
        self.give(folder, Mode::from_raw_mode(0o755) | set_group)
    }

    fn give(&self, file: impl AsFd, mode: Mode) -> io::Result<()> {
        if let Some(group) = self.group {
            rustix::fs::fchown(&file, None, Some(Gid::from_raw(group)))?;
        }
        Ok(rustix::fs::fchmod(file, mode)?)
    }
}

/// A path without detours; None for one that would lead elsewhere, or to what is ours.
fn within(path: &str) -> Option<PathBuf> {
    let parts = Path::new(path).components().filter(|part| *part != Component::CurDir);
    let names = parts.map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    let clean: PathBuf = names.collect::<Option<_>>()?;
    let first = clean.iter().next()?;
    (!first.as_bytes().starts_with(b"..") && !path.contains('\0')).then_some(clean)
}

fn beneath(folder: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve)
}

/// How many files there are in a folder and those below; None when those go deeper than they may.
fn count(folder: &OwnedFd, depth: usize) -> io::Result<Option<usize>> {
    let mut found = 0;
    for name in tree::names(folder)? {
        match tree::open_in(folder, &name) {
            Ok(_) if depth == 0 => return Ok(None),
            Ok(below) => match count(&below, depth - 1)? {
                Some(more) => found += more,
                None => return Ok(None),
            },
            Err(Errno::NOTDIR | Errno::LOOP) => found += 1,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Some(found))
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
