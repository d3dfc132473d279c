//! Network namespaces pinned to a path: CNI plugins are told a file name. The built-in network needs none of this; a
//! pod's supervisor holds the namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A pin could not be set or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct PinError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> PinError {
    move |err| PinError { action, path: path.to_owned(), source: err.into() }
}

/// Where sandbox `id`'s pin is. Ids are one plain path component: the sandbox manager makes them.
pub(crate) fn path(directory: &Path, id: &str) -> PathBuf {
    directory.join(id)
}

/// Mounts the namespace over a file.
pub(crate) fn set(path: &Path, netns: &OwnedFd) -> Result<(), PinError> {
    create(path)?;
    let source = PathBuf::from(format!("/proc/thread-self/fd/{}", netns.as_raw_fd()));
    mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(at("pin the network namespace at", path))
}

/// The file to mount over. Its directory may go with another sandbox's last pin in this very moment.
fn create(path: &Path) -> Result<(), PinError> {
    loop {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(at("create directory", directory))?;
        }
        match File::create(path) {
            Ok(_) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(at("create", path)(err)),
        }
    }
}

/// Takes a pin away; an absent one is fine.
pub(crate) fn remove(path: &Path) -> Result<(), PinError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: a file, but nothing is mounted there.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(at("unmount", path)(errno)),
    }
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(at("remove", path)(err)),
        _ => {}
    }
    if let Some(directory) = path.parent() {
        // The last pin takes the directory along; while there are others the kernel refuses.
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

/// The sandboxes that have a pin.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(at("read", directory)(err)),
    };
    entries
        .map(|entry| Ok(entry.map_err(at("read", directory))?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Whether a namespace is mounted there (after a reboot it is an empty file, or nothing).
pub(crate) fn is_netns(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}
