//! Device nodes, and the cgroup's rules about them.

use crate::{ContainerInput, DeviceKind, ResolvedDevice, SpecError};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType};
use std::collections::BTreeSet;
use std::path::Path;

/// Nodes and folders every container has by itself (OCI runtime spec, "Default Devices"): the host's are not for it.
const OWN: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];
const OWN_FOLDERS: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];

/// Character devices open to every container: null, zero, full, random, urandom, tty, ptmx and all pseudo-terminals.
const OPEN: [(i64, Option<i64>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// The nodes to make: the resolved ones that the container does not have by itself, each path once.
pub(crate) fn nodes(input: &ContainerInput<'_>) -> Result<Vec<LinuxDevice>, SpecError> {
    let mut seen = BTreeSet::new();
    let mut nodes = Vec::new();
    for device in input.devices {
        check(device)?;
        let own = OWN.iter().any(|path| device.path == Path::new(path))
            || OWN_FOLDERS.iter().any(|folder| device.path.starts_with(folder));
        if own || !seen.insert(&device.path) {
            continue;
        }
        let node = LinuxDeviceBuilder::default()
            .path(&device.path)
            .typ(kind(device))
            .major(device.major)
            .minor(device.minor)
            .file_mode(device.mode & 0o7777)
            .uid(device.uid)
            .gid(device.gid)
            .build();
        nodes.push(node.expect("every field of this builder has a default"));
    }
    Ok(nodes)
}

/// What the cgroup allows. A privileged container may use every device there is; others may make any node, but use
/// only the harmless ones and those they are given.
pub(crate) fn rules(input: &ContainerInput<'_>, privileged: bool) -> Vec<LinuxDeviceCgroup> {
    if privileged {
        return vec![rule(true, LinuxDeviceType::A, None, None, "rwm")];
    }
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, LinuxDeviceType::C, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
    ];
    rules.extend(
        OPEN.iter().map(|(major, minor)| rule(true, LinuxDeviceType::C, Some(*major), *minor, "rwm")),
    );
    rules.extend(
        input.devices.iter().map(|device| {
            rule(true, kind(device), Some(device.major), Some(device.minor), &device.permissions)
        }),
    );
    rules
}

fn kind(device: &ResolvedDevice) -> LinuxDeviceType {
    match device.kind {
        DeviceKind::Character => LinuxDeviceType::C,
        DeviceKind::Block => LinuxDeviceType::B,
    }
}

fn check(device: &ResolvedDevice) -> Result<(), SpecError> {
    let fault = |name: &str, reason: &str| {
        Err(SpecError::invalid(
            format!("config.devices.{name}"),
            format!("{}: {reason}", device.path.display()),
        ))
    };
    if !device.path.is_absolute() {
        return fault("container_path", "not an absolute path");
    }
    let letters = device.permissions.as_str();
    if letters.is_empty() || letters.chars().any(|letter| !"rwm".contains(letter)) {
        return fault("permissions", &format!("{letters:?} is not made of r, w and m"));
    }
    Ok(())
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(kind));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}
