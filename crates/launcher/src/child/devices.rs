//! Device nodes and the customary links of /dev (OCI runtime spec, config-linux.md, "Default Devices").

use std::os::fd::OwnedFd;

use berth_cri::berth::v1::DevicePlan;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;

use super::rootfs::Root;
use super::user::UserNamespace;
use crate::error::{AtStep, StepError};

/// Name below /dev, and where it leads.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The host's /dev/null, which covers masked files.
pub(super) fn host_null() -> Result<OwnedFd, StepError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::openat(CWD, c"/dev/null", flags, Mode::empty()).step("open /dev/null")?;
    let stat = rustix::fs::fstat(&null).step("open /dev/null")?;
    let is_null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if is_null { Ok(null) } else { Err(StepError::refused("open /dev/null", "the host's is no null device")) }
}

/// Makes the devices and the links.
pub(super) fn populate(
    root: &Root,
    devices: &[DevicePlan],
    user: Option<&UserNamespace>,
) -> Result<(), StepError> {
    for device in devices {
        make(root, device, user)?;
    }
    let dev = root.ensure_directory("/dev").step("open /dev")?;
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(StepError::new(format!("link /dev/{name}"), error)),
        }
    }
    Ok(())
}

fn make(root: &Root, device: &DevicePlan, user: Option<&UserNamespace>) -> Result<(), StepError> {
    let step = || format!("make device {}", device.path);
    let (parent, name) = root.ensure_parent(&device.path).step_with(step)?;
    let kind = FileType::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    match rustix::fs::mknodat(&parent, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = rustix::fs::openat(&parent, name, flags, Mode::empty()).step_with(step)?;
            let stat = rustix::fs::fstat(&found).step_with(step)?;
            if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
                return Err(StepError::refused(step(), "the image has something else there"));
            }
            return Ok(());
        }
        Err(error) => return Err(StepError::new(step(), error)),
    }
    let made_so = match user {
        None => (device.uid, device.gid) == (0, 0),
        Some(user) => user.is_root(device.uid, device.gid),
    };
    if !made_so {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .step_with(step)?;
    }
    Ok(())
}
