//! How a container ended, on disk: `<pod dir>/<container>/exit`, one `ContainerExited`.
//!
//! The space for it is taken when the container is made, so that a full `--state` file system cannot make an exit
//! disappear: what is left at the end is an overwrite, a cut and a rename.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_cri::berth::v1::ContainerExited;
use prost::Message;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

const NAME: &str = "exit";
const RESERVED: &str = "exit.new";
/// More than the longest record (an id of 64 digits and seven numbers).
const RESERVE_BYTES: u64 = 256;

/// Takes the space for the record in the container's directory.
///
/// # Errors
/// Those of open(2) and fallocate(2), `ENOSPC` first among them.
pub(crate) fn reserve(dir: impl AsFd) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir.as_fd(), RESERVED, flags, Mode::RUSR | Mode::WUSR)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
        // A file system without fallocate: zeros do as well.
        Err(Errno::OPNOTSUPP) => write_all(&file, &[0; RESERVE_BYTES as usize]),
        done => Ok(done?),
    }
}

/// Writes the record where [`read`] finds it, whole or not at all.
///
/// # Errors
/// Those of open(2), write(2) and rename(2).
pub(crate) fn write(dir: impl AsFd, exited: &ContainerExited) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir.as_fd(), RESERVED, flags, Mode::RUSR | Mode::WUSR)?;
    let bytes = exited.encode_to_vec();
    write_all(&file, &bytes)?;
    rustix::fs::ftruncate(&file, bytes.len() as u64)?;
    rustix::fs::renameat(dir.as_fd(), RESERVED, dir.as_fd(), NAME)?;
    Ok(())
}

/// The record of container `container_id`; `None` when it has not ended (or has been deleted).
///
/// # Errors
/// Those of reading the file; `InvalidData` when it is not a record.
pub fn read(pod_dir: &Path, container_id: &str) -> io::Result<Option<ContainerExited>> {
    let bytes = match std::fs::read(pod_dir.join(container_id).join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    ContainerExited::decode(&*bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Removes whatever of the record is there.
pub(crate) fn remove(dir: impl AsFd) -> io::Result<()> {
    for name in [NAME, RESERVED] {
        match rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_record_is_read_back_and_removed() {
        let pod = tempfile::tempdir().unwrap();
        std::fs::create_dir(pod.path().join("c1")).unwrap();
        let dir = open(&pod.path().join("c1"));
        reserve(&dir).unwrap();
        assert_eq!(read(pod.path(), "c1").unwrap(), None, "reserved is not written");
        let exited = ContainerExited {
            container_id: "f".repeat(64),
            exit_code: 137,
            signal: 9,
            finished_at: i64::MAX,
            oom_killed: true,
            started_at: i64::MIN,
        };
        assert!(exited.encoded_len() as u64 <= RESERVE_BYTES);
        write(&dir, &exited).unwrap();
        assert_eq!(read(pod.path(), "c1").unwrap(), Some(exited));
        remove(&dir).unwrap();
        assert_eq!(std::fs::read_dir(pod.path().join("c1")).unwrap().count(), 0);
    }
}
