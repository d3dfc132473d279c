//! Host devices that a container asks for, resolved to type, numbers and permissions.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use berth_cri::runtime::v1::Device;
use berth_oci::{DeviceKind, ResolvedDevice};

/// A device of the config that the host does not have.
#[derive(Debug, thiserror::Error)]
#[error("device {}", path.display())]
pub(crate) struct DeviceError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The devices of a container's config; for a privileged one the host's own as well. A folder stands for all devices
/// below it, as device plugins expect.
pub(crate) fn resolve(devices: &[Device], privileged: bool) -> Result<Vec<ResolvedDevice>, DeviceError> {
    let mut resolved = Vec::new();
    for device in devices {
        let host = Path::new(&device.host_path);
        let inside = match device.container_path.as_str() {
            "" => host.to_owned(),
            path => PathBuf::from(path),
        };
        let permissions = match device.permissions.as_str() {
            "" => "rwm",
            given => given,
        };
        let found = resolved.len();
        collect(host, &inside, permissions, &mut resolved)
            .and_then(|()| match resolved.len() > found {
                true => Ok(()),
                false => Err(io::Error::other("neither a device nor a folder with devices")),
            })
            .map_err(|source| DeviceError { path: host.to_owned(), source })?;
    }
    if privileged {
        resolved.extend(all_of_host()?);
    }
    Ok(resolved)
}

/// All devices of the host. The nodes that every container gets of its own (terminals,
/// shared memory, message queues) are left out, as other runtimes do.
fn all_of_host() -> Result<Vec<ResolvedDevice>, DeviceError> {
    const OWN: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "tty"];
    let dev = Path::new("/dev");
    let error = |source| DeviceError { path: dev.to_owned(), source };
    let mut resolved = Vec::new();
    for entry in fs::read_dir(dev).map_err(error)? {
        let entry = entry.map_err(error)?;
        let is_link = entry.file_type().map_err(error)?.is_symlink();
        if !is_link && !OWN.iter().any(|own| entry.file_name() == *own) {
            let path = entry.path();
            match collect(&path, &path, "rwm", &mut resolved) {
                // Hot-unplugged between the listing and the look.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(error)?,
            }
        }
    }
    Ok(resolved)
}

/// `host` is followed when it is a link (kubelet hands out links to block volumes); links below a folder are not.
fn collect(
    host: &Path,
    inside: &Path,
    permissions: &str,
    resolved: &mut Vec<ResolvedDevice>,
) -> io::Result<()> {
    let meta = fs::metadata(host)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                collect(&entry.path(), &inside.join(entry.file_name()), permissions, resolved)?;
            }
        }
    } else if kind.is_char_device() || kind.is_block_device() {
        resolved.push(ResolvedDevice {
            path: inside.to_owned(),
            kind: match kind.is_block_device() {
                true => DeviceKind::Block,
                false => DeviceKind::Character,
            },
            major: rustix::fs::major(meta.rdev()).into(),
            minor: rustix::fs::minor(meta.rdev()).into(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            permissions: permissions.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_a_character_device_1_3() {
        let device = Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/x".into(),
            permissions: "r".into(),
        };
        let [null] = resolve(&[device], false).unwrap().try_into().unwrap();
        assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Character, 1, 3));
        assert_eq!((null.path, null.permissions), (PathBuf::from("/dev/x"), "r".to_owned()));
    }

    #[test]
    fn what_is_no_device_is_named_in_the_error() {
        for path in ["/etc/passwd", "/dev/no-such-thing"] {
            let device = Device { host_path: path.into(), ..Device::default() };
            assert!(resolve(&[device], false).unwrap_err().to_string().contains(path));
        }
    }

    #[test]
    fn the_hosts_devices_leave_out_terminals() {
        let all = all_of_host().unwrap();
        assert!(all.iter().any(|device| device.path == Path::new("/dev/null")));
        assert!(!all.iter().any(|device| device.path.starts_with("/dev/pts")));
    }
}
