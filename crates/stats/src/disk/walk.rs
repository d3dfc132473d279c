//! How much a folder takes up, with all below it.
//!
//! What lies there was written by a container, perhaps while we look: links are never followed, no path is resolved
//! from a string, other file systems are not entered, and neither the depth of the tree nor a folder that is moved away
//! under us can lead outside or use up descriptors.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Stat, fstat, statat},
};

use super::{DiskUsage, open_folder};

/// How many folders are held open on the way down. Above them, `..` is taken on the way back, and checked.
const MOST_OPEN: usize = 32;

/// A folder on the way from the top to where the walk is.
struct Step {
    /// Closed when the walk is deep below.
    folder: Option<OwnedFd>,
    identity: (u64, u64),
    /// Folders in it that are still to be entered.
    left: Vec<CString>,
}

/// Allocated blocks and inodes of the folder and all below; several names of one file count once. What disappears
/// meanwhile, or cannot be entered, is passed over.
///
/// # Errors
/// When `folder` itself cannot be opened and listed, or `stop` was set (`Interrupted`).
pub fn measure(folder: &Path, stop: &AtomicBool) -> io::Result<DiskUsage> {
    let top = open_folder(CWD, folder)?;
    let stat = fstat(&top)?;
    let mut walk = Walk { usage: DiskUsage::default(), device: stat.st_dev, linked: HashSet::new(), stop };
    walk.usage.add(&stat);
    let mut steps = vec![walk.list(top, &stat)?];
    while let Some(step) = steps.last_mut() {
        let Some(name) = step.left.pop() else {
            let below = steps.pop();
            if let (Some(above), Some(below)) = (steps.last_mut(), below) {
                reopen(above, below);
            }
            continue;
        };
        let Some(entered) = step.folder.as_ref().and_then(|folder| open_folder(folder, name).ok()) else {
            continue;
        };
        let Ok(stat) = fstat(&entered) else { continue };
        if stat.st_dev != walk.device {
            continue;
        }
        match walk.list(entered, &stat) {
            Ok(below) => {
                steps.push(below);
                if let Some(far) = steps.len().checked_sub(MOST_OPEN + 1) {
                    steps[far].folder = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(_) => {}
        }
    }
    Ok(walk.usage)
}

/// Opens a folder again that was closed on the way down. If the folder below now hangs elsewhere, its `..` is not the
/// one we came from; what was left there is given up, and so may be what is above it: less is counted this time.
fn reopen(above: &mut Step, below: Step) {
    if above.folder.is_some() {
        return;
    }
    let parent = below.folder.and_then(|folder| open_folder(&folder, "..").ok());
    let same = |folder: &OwnedFd| fstat(folder).is_ok_and(|stat| identity(&stat) == above.identity);
    match parent.filter(same) {
        Some(folder) => above.folder = Some(folder),
        None => above.left.clear(),
    }
}

struct Walk<'a> {
    usage: DiskUsage,
    device: u64,
    /// Files with several names that were counted. Only these, so that it stays small.
    linked: HashSet<u64>,
    stop: &'a AtomicBool,
}

impl Walk<'_> {
    /// Counts what is in a folder, and keeps the names of the folders.
    fn list(&mut self, folder: OwnedFd, stat: &Stat) -> io::Result<Step> {
        let mut left = Vec::new();
        for entry in Dir::read_from(&folder)? {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != self.device {
                continue;
            }
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_folder && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
                continue;
            }
            self.usage.add(&stat);
            if is_folder {
                left.push(name.to_owned());
            }
        }
        Ok(Step { folder: Some(folder), identity: identity(stat), left })
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    fn measured(folder: &Path) -> DiskUsage {
        measure(folder, &AtomicBool::new(false)).unwrap()
    }

    fn blocks(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().blocks() * 512
    }

    #[test]
    fn blocks_and_inodes_hard_links_once_and_nothing_behind_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/file"), vec![7; 100_000]).unwrap();
        fs::hard_link(at("below/file"), at("again")).unwrap();
        std::os::unix::fs::symlink("/usr", at("link")).unwrap();
        let sparse = fs::File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let usage = measured(folder.path());
        assert_eq!(usage.inodes, 5, "the folder, below, file, link, sparse");
        let expected =
            ["", "below", "below/file", "link", "sparse"].map(|name| blocks(&at(name))).iter().sum::<u64>();
        assert_eq!(usage.bytes, expected);
        assert!(usage.bytes < 1 << 20, "a sparse file takes what it takes: {usage:?}");
    }

    #[test]
    fn a_tree_deeper_than_descriptors_go_is_counted_on_the_way_down_and_back() {
        let top = tempfile::tempdir().unwrap();
        let mut folder = open_folder(CWD, top.path()).unwrap();
        for _ in 0..400 {
            // "z" is listed beside the deep one and has to be found on the way back.
            rustix::fs::mkdirat(&folder, "z", 0o700.into()).unwrap();
            rustix::fs::mkdirat(&folder, "d", 0o700.into()).unwrap();
            let below = open_folder(&folder, "z").unwrap();
            rustix::fs::mkdirat(&below, "leaf", 0o700.into()).unwrap();
            folder = open_folder(&folder, "d").unwrap();
        }
        assert_eq!(measured(top.path()).inodes, 1 + 3 * 400);
    }

    #[test]
    fn other_file_systems_are_left_alone() {
        // /proc is mounted somewhere below the root of any test machine; its thousands of files are not the root's.
        let folder = open_folder(CWD, "/proc").unwrap();
        let root = fs::symlink_metadata("/").unwrap().dev();
        assert_ne!(fstat(&folder).unwrap().st_dev, root, "what the test stands on");
        let stop = AtomicBool::new(false);
        let mut walk =
            Walk { usage: DiskUsage::default(), device: root, linked: HashSet::new(), stop: &stop };
        let stat = fstat(&folder).unwrap();
        walk.list(folder, &stat).unwrap();
        assert_eq!(walk.usage, DiskUsage::default());
    }

    #[test]
    fn a_link_to_a_folder_is_not_a_layer_and_a_stop_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).unwrap();
        assert!(measure(&link, &AtomicBool::new(false)).is_err());
        let stopped = measure(folder.path(), &AtomicBool::new(true)).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }
}
