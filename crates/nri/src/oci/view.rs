//! What a plugin sees of a container's spec.

use oci_spec::runtime::{Hook as OciHook, Linux, Spec};

use super::resources::seen;
use crate::{
    Container, Hook, Hooks, LinuxContainer, LinuxDevice, LinuxNamespace, Mount, OptionalFileMode,
    OptionalInt, OptionalUInt32, PosixRlimit, User,
};

/// Fills in what a spec says of a container.
pub fn describe(spec: &Spec, container: &mut Container) {
    let annotations = spec.annotations().iter().flatten();
    container.annotations.extend(annotations.map(|(key, value)| (key.clone(), value.clone())));
    container.mounts = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| Mount {
            destination: mount.destination().to_string_lossy().into_owned(),
            r#type: mount.typ().clone().unwrap_or_default(),
            source: mount
                .source()
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            options: mount.options().clone().unwrap_or_default(),
        })
        .collect();
    container.hooks = spec.hooks().as_ref().map(hooks);
    let linux = container.linux.get_or_insert_default();
    if let Some(found) = spec.linux() {
        describe_linux(found, linux);
    }
    let Some(process) = spec.process() else { return };
    container.args = process.args().clone().unwrap_or_default();
    container.env = process.env().clone().unwrap_or_default();
    container.rlimits = process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| PosixRlimit { r#type: limit.typ().to_string(), hard: limit.hard(), soft: limit.soft() })
        .collect();
    container.user = Some(User {
        uid: process.user().uid(),
        gid: process.user().gid(),
        additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
    });
    linux.oom_score_adj = process.oom_score_adj().map(|score| OptionalInt { value: score.into() });
}

fn describe_linux(found: &Linux, linux: &mut LinuxContainer) {
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    };
    linux.namespaces = found
        .namespaces()
        .iter()
        .flatten()
        .map(|namespace| LinuxNamespace { r#type: namespace.typ().to_string(), path: path(namespace.path()) })
        .collect();
    linux.devices = found
        .devices()
        .iter()
        .flatten()
        .map(|device| LinuxDevice {
            path: device.path().to_string_lossy().into_owned(),
            r#type: device.typ().as_str().to_owned(),
            major: device.major(),
            minor: device.minor(),
            file_mode: device.file_mode().map(|value| OptionalFileMode { value }),
            uid: device.uid().map(|value| OptionalUInt32 { value }),
            gid: device.gid().map(|value| OptionalUInt32 { value }),
        })
        .collect();
    linux.resources = found.resources().as_ref().map(seen);
    linux.cgroups_path = path(found.cgroups_path());
    linux.sysctl = found.sysctl().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
}

fn hooks(found: &oci_spec::runtime::Hooks) -> Hooks {
    fn all(hooks: &Option<Vec<OciHook>>) -> Vec<Hook> {
        let one = |hook: &OciHook| Hook {
            path: hook.path().to_string_lossy().into_owned(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout: hook.timeout().map(|value| OptionalInt { value }),
        };
        hooks.iter().flatten().map(one).collect()
    }
    let prestart = all(found.prestart());
    Hooks {
        prestart,
        create_runtime: all(found.create_runtime()),
        create_container: all(found.create_container()),
        start_container: all(found.start_container()),
        poststart: all(found.poststart()),
        poststop: all(found.poststop()),
    }
}
