//! A place to unpack in: a thread whose root folder is a file system of its own, with things around the layer's folder
//! that a layer must never reach. What climbs out is seen, and does the machine no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where the layer goes.
const LAYER: &str = "/box/layer";
/// File systems of the jail are small: a layer of holes and zeros is refused by them and not by the machine's memory.
const SIZE: &str = "size=64m,mode=755";

/// The thread, and the way to it.
#[derive(Debug)]
pub struct Jail {
    archives: SyncSender<Vec<u8>>,
    outcomes: Receiver<Result<(), String>>,
}

impl Jail {
    /// # Errors
    /// The kernel's, above all for want of root's rights.
    pub fn new() -> io::Result<Jail> {
        let (archives, inbox) = sync_channel::<Vec<u8>>(0);
        let (outbox, outcomes) = sync_channel(0);
        let (entered, enters) = sync_channel(1);
        std::thread::Builder::new().name("jail".to_owned()).spawn(move || {
            let inside = enter();
            let stays = inside.is_ok();
            if entered.send(inside).is_err() || !stays {
                return;
            }
            for archive in inbox {
                if outbox.send(unpack(&archive)).is_err() {
                    return;
                }
            }
        })?;
        enters.recv().map_err(io::Error::other)??;
        Ok(Jail { archives, outcomes })
    }

    /// Unpacks a layer into an empty folder and answers what the unpacker did.
    ///
    /// # Panics
    /// When anything outside that folder was changed, or the unpacker panicked.
    pub fn unpack(&self, archive: &[u8]) -> Result<(), String> {
        self.archives.send(archive.to_vec()).expect("the jail's thread takes an archive");
        self.outcomes.recv().expect("the unpacker does not panic")
    }
}

/// Gives this thread, and no other, a root folder of its own.
fn enter() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let root = std::env::temp_dir();
    // Device nodes of a layer are made and, should something open them, closed.
    mount(Some("jail"), &root, Some("tmpfs"), MsFlags::MS_NODEV, Some(SIZE))?;
    for folder in ["box", "etc", "proc"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::write(root.join("etc/secret"), "untouched")?;
    // The unpacker sets some attributes through /proc/self/fd.
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::MS_RDONLY, None::<&str>)?;
    nix::unistd::chroot(&root)?;
    std::env::set_current_dir("/")
}

fn unpack(archive: &[u8]) -> Result<(), String> {
    let layer = furnish().expect("the jail can be furnished");
    let before = surroundings().expect("the jail can be looked at");
    let outcome = berth_image::unpack_tar(archive, layer);
    let after = surroundings().expect("the jail can be looked at");
    let changed: BTreeSet<_> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "a layer changed {changed:?}, outside its folder");
    // However deep the tree in it, the file system goes as a whole.
    umount2("/box", MntFlags::MNT_DETACH).expect("nothing keeps the box");
    outcome
}

/// A new file system with the layer's folder and its neighbours.
fn furnish() -> io::Result<OwnedFd> {
    mount(Some("box"), "/box", Some("tmpfs"), MsFlags::MS_NODEV, Some(SIZE))?;
    fs::create_dir(LAYER)?;
    fs::create_dir("/box/outside")?;
    fs::write("/box/outside/secret", "untouched")?;
    fs::create_dir("/box/outside/empty")?;
    Ok(File::open(LAYER)?.into())
}

/// All there is but the layer and the kernel's own, with everything about it that a change would show in.
fn surroundings() -> io::Result<BTreeMap<PathBuf, [i64; 10]>> {
    let mut seen = BTreeMap::new();
    let mut open = vec![PathBuf::from("/")];
    while let Some(path) = open.pop() {
        if [LAYER, "/proc"].map(Path::new).contains(&path.as_path()) {
            continue;
        }
        let about = fs::symlink_metadata(&path)?;
        if about.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        let changed = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
        let kept = [about.ino(), about.nlink(), about.size()].map(u64::cast_signed);
        let owned = [about.mode(), about.uid(), about.gid()].map(i64::from);
        seen.insert(path, [&changed[..], &kept, &owned].concat().try_into().expect("ten numbers"));
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::SEEDS;

    #[test]
    fn every_archive_to_begin_with_is_unpacked_or_refused_and_nothing_around_it_changes() {
        let jail = Jail::new().unwrap();
        let outcomes: Vec<_> = SEEDS.iter().map(|seed| jail.unpack(seed)).collect();
        let unpacked = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert!(unpacked >= 10, "{outcomes:#?}");
        assert!(outcomes.len() - unpacked >= 6, "{outcomes:#?}");
    }
}
