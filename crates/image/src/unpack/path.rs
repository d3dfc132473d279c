//! Names from archives: taken apart, checked, and walked beneath a directory handle.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// One `openat2` call takes less than `PATH_MAX`; longer names are walked in pieces of this length.
const PIECE: usize = 3800;

/// A name from an archive, relative to the layer's root: components joined by `/`, no `.`, no `..`.
/// Empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LayerPath(Vec<u8>);

impl LayerPath {
    /// # Errors
    ///
    /// Why the name may not stand in a layer: it is absolute, climbs, or has a NUL.
    pub(crate) fn new(name: &[u8]) -> Result<LayerPath, &'static str> {
        if name.starts_with(b"/") {
            return Err("an absolute name");
        }
        if name.contains(&0) {
            return Err("a NUL in the name");
        }
        let mut path = Vec::with_capacity(name.len());
        for component in name.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err("the name climbs out with '..'"),
                component => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(component);
                }
            }
        }
        Ok(LayerPath(path))
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|component| !component.is_empty())
    }

    /// The directory and the last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(LayerPath, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (LayerPath(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (LayerPath(Vec::new()), &self.0[..]),
        })
    }

    pub(crate) fn join(&self, component: &[u8]) -> LayerPath {
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        LayerPath(path)
    }
}

/// Opens `path` beneath `root`: neither `..`, nor an absolute symlink, nor a magic link leads out.
///
/// # Errors
///
/// `EXDEV` when a symlink on the way leads out, `ELOOP` on a magic link or too many symlinks.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &LayerPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = |dir: BorrowedFd<'_>, name: &[u8], flags: OFlags| loop {
        match openat2(dir, OsStr::from_bytes(name), flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename elsewhere raced with a `..` in a symlink; the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    };
    let mut rest = path.as_bytes();
    let mut at: Option<OwnedFd> = None;
    while rest.len() > PIECE {
        let cut = rest[..PIECE].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let dir = at.as_ref().map_or(root, |fd| fd.as_fd());
        let next = open(dir, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?;
        at = Some(next);
        rest = &rest[cut + 1..];
    }
    let dir = at.as_ref().map_or(root, |fd| fd.as_fd());
    open(dir, if rest.is_empty() { b"." } else { rest }, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_or_refused() {
        for (name, want) in
            [("./a//b/./c/", "a/b/c"), (".", ""), ("", ""), ("a", "a"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(LayerPath::new(name.as_bytes()).unwrap().as_bytes(), want.as_bytes(), "{name}");
        }
        for name in ["/", "/a", "..", "a/../b", "../a", "a/..", "a\0b"] {
            assert!(LayerPath::new(name.as_bytes()).is_err(), "{name:?}");
        }
    }
}
