//! Device nodes: the spec's, after those that every container has.

use berth_cri::berth::v1::DevicePlan;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::CompileError;
use super::ids::{Ids, host_gid, host_uid};

/// OCI runtime spec, config-linux.md, "Default Devices"; console and ptmx are made otherwise.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
const DEFAULT_MODE: u32 = 0o666;

pub(super) fn compile(devices: &[LinuxDevice], ids: Option<&Ids>) -> Result<Vec<DevicePlan>, CompileError> {
    let root = (
        host_uid(ids, "linux.devices: the default ones", 0)?,
        host_gid(ids, "linux.devices: the default ones", 0)?,
    );
    let mut plans: Vec<DevicePlan> = DEFAULTS
        .iter()
        .map(|(path, major, minor)| DevicePlan {
            path: (*path).to_owned(),
            mode: libc::S_IFCHR | DEFAULT_MODE,
            major: *major,
            minor: *minor,
            uid: root.0,
            gid: root.1,
        })
        .collect();
    for device in devices {
        let path = device.path().to_string_lossy().into_owned();
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(CompileError::invalid(
                "linux.devices.path",
                path,
                "is not the absolute path of a file",
            ));
        }
        let number = |number: i64| {
            u32::try_from(number).map_err(|_| {
                CompileError::invalid("linux.devices", number.to_string(), "is no device number")
            })
        };
        let (kind, major, minor) = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => {
                (libc::S_IFCHR, number(device.major())?, number(device.minor())?)
            }
            LinuxDeviceType::B => (libc::S_IFBLK, number(device.major())?, number(device.minor())?),
            LinuxDeviceType::P => (libc::S_IFIFO, 0, 0),
            LinuxDeviceType::A => {
                return Err(CompileError::invalid(
                    "linux.devices.type",
                    "a",
                    "is not the type of one device",
                ));
            }
        };
        // Some generators give the whole st_mode.
        let mode = kind | device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777;
        // In a user namespace as well: the owners are those of the host's nodes, which other runtimes bind there. A disk
        // that is root's on the host must not become that of root in a pod.
        let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        let plan = DevicePlan { path, mode, major, minor, uid, gid };
        match plans.iter_mut().find(|known| known.path == plan.path) {
            Some(known) => *known = plan,
            None => plans.push(plan),
        }
    }
    Ok(plans)
}
