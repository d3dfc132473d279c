//! The daemon's own copy of the `berth-pod` program.
//!
//! A process in a container can reach the program of whatever forked it as `/proc/PID/exe`, and a runtime whose
//! binary can be written that way is lost (CVE-2019-5736). So every `berth-pod` runs from a copy, through a mount of
//! its folder that is read-only and attached nowhere. All pods of a version run the one file, whose pages they share.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use berth_launcher::sys::{MountAttributes, mount_setattr};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use sha2::{Digest, Sha256};

const PREFIX: &str = "berth-pod-";

/// Why the program could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount {} read-only", path.display())]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A new supervisor's descriptors are below this number.
pub(super) const FIRST_FREE: i32 = 16;

/// `berth-pod`, ready to be executed.
#[derive(Debug)]
pub struct SupervisorBinary {
    folder: OwnedFd,
    name: String,
}

impl SupervisorBinary {
    /// Copies `source` to `bin_dir/berth-pod-<hash>` when it is not there (or damaged), removes copies of other
    /// versions (a running supervisor keeps its file), and makes the read-only mount. Blocks; once per daemon.
    ///
    /// # Arguments
    /// * `bin_dir`: made when missing; nobody else puts files named `berth-pod-...` there.
    ///
    /// # Errors
    /// [`InstallError`].
    pub fn install(source: &Path, bin_dir: &Path) -> Result<Self, InstallError> {
        let program =
            fs::read(source).map_err(|error| InstallError::Read { path: source.into(), source: error })?;
        let hash: [u8; 32] = Sha256::digest(&program).into();
        let name = format!("{PREFIX}{}", hex::encode(&hash[..8]));
        let path = bin_dir.join(&name);
        let write_error = |source| InstallError::Write { path: path.clone(), source };
        fs::create_dir_all(bin_dir).map_err(write_error)?;
        if !holds(&path, &program) {
            copy(&program, bin_dir, &name).map_err(write_error)?;
        }
        remove_others(bin_dir, &name)
            .map_err(|source| InstallError::Write { path: bin_dir.into(), source })?;
        let mount_error = |source| InstallError::Mount { path: bin_dir.into(), source };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let folder =
            rustix::mount::open_tree(CWD, bin_dir, flags).map_err(|errno| mount_error(errno.into()))?;
        let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        mount_setattr(folder.as_fd(), MountAttributes { set, ..MountAttributes::default() })
            .map_err(mount_error)?;
        // Above the descriptors that a new supervisor is given: its exec goes through this number after they are set.
        let folder = rustix::io::fcntl_dupfd_cloexec(&folder, FIRST_FREE)
            .map_err(|errno| mount_error(errno.into()))?;
        Ok(Self { folder, name })
    }

    /// A path that executes it, valid in this process and in a child of it up to its exec.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{}", self.folder.as_raw_fd(), self.name).into()
    }
}

/// Whether the file is there and whole: a power failure may have left an empty one under its name.
fn holds(path: &Path, program: &[u8]) -> bool {
    let mut content = Vec::with_capacity(program.len());
    let read =
        File::open(path).and_then(|file| file.take(program.len() as u64 + 1).read_to_end(&mut content));
    read.is_ok() && content == program
}

fn copy(program: &[u8], bin_dir: &Path, name: &str) -> io::Result<()> {
    let new = bin_dir.join(format!("{name}.new"));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o700).open(&new)?;
    file.write_all(program)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    // A file that is open for writing cannot be executed.
    drop(file);
    fs::rename(&new, bin_dir.join(name))?;
    File::open(bin_dir)?.sync_all()
}

fn remove_others(bin_dir: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(bin_dir)? {
        let entry = entry?;
        let other = entry.file_name();
        if other.to_string_lossy().starts_with(PREFIX) && other != name {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_replaced_and_an_old_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        let source = dir.path().join("program");
        fs::write(&source, b"first").unwrap();
        let first = SupervisorBinary::install(&source, &bin).unwrap();
        fs::write(bin.join(&first.name), b"").unwrap();
        let again = SupervisorBinary::install(&source, &bin).unwrap();
        assert_eq!(first.name, again.name);
        assert_eq!(fs::read(bin.join(&again.name)).unwrap(), b"first");
        fs::write(&source, b"second").unwrap();
        let second = SupervisorBinary::install(&source, &bin).unwrap();
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
        assert_eq!(fs::read(second.path()).unwrap(), b"second");
        let refused = File::options().write(true).open(second.path()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
}
