//! The mounts of a container, in the order they must be made.

use crate::path::clean;
use crate::{ContainerInput, SpecError, ids};
use berth_cri::runtime::v1::{ContainerConfig, Mount as CriMount, MountPropagation};
use oci_spec::runtime::{Mount, MountBuilder};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Options of `Mount.mount_options` that a bind mount can have beside those with fields of their own.
const BIND_OPTIONS: [&str; 10] =
    ["exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime", "nodiratime", "relatime", "strictatime"];

pub(crate) struct Mounts {
    pub(crate) mounts: Vec<Mount>,
    /// `linux.rootfsPropagation`: what the mounts need the root to be; `None` leaves it to the runtime.
    pub(crate) rootfs_propagation: Option<String>,
}

/// The paths of an image's volumes that no mount of the request lies on: the caller gives each a fresh folder
/// ([`crate::ImageVolume`]). Relative paths are taken from `/`.
pub fn image_volumes(volumes: &[String], container: &ContainerConfig) -> Vec<String> {
    let requested: BTreeSet<PathBuf> =
        container.mounts.iter().filter_map(|mount| clean(&mount.container_path)).collect();
    let wanted: BTreeSet<PathBuf> =
        volumes.iter().filter_map(|volume| clean(&format!("/{volume}"))).collect();
    wanted
        .into_iter()
        .filter(|path| path != Path::new("/") && !requested.contains(path))
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// All mounts. What the request mounts replaces what would be there by default; of the rest, those nearer to the root
/// come first, so that none is hidden by a later one; equals keep the request's order.
pub(crate) fn mounts(input: &ContainerInput<'_>, privileged: bool) -> Result<Mounts, SpecError> {
    let mut requested = Vec::new();
    let mut rootfs_propagation = None;
    for (index, mount) in input.container.mounts.iter().enumerate() {
        let field = format!("config.mounts[{index}]");
        let inside = input.namespaces.user.is_some();
        let (mount, propagation) = requested_mount(&field, mount, inside)?;
        requested.push(mount);
        rootfs_propagation = wider(rootfs_propagation, propagation);
    }

    let mut taken: BTreeSet<PathBuf> = requested.iter().map(|mount| mount.destination().clone()).collect();
    let mut extra = pod_files(input);
    extra.extend(input.volumes.iter().map(|volume| {
        let destination = PathBuf::from(&volume.container_path);
        bind(destination, &volume.host_path, &["rbind", "rprivate", "rw"])
    }));
    extra.retain(|mount| taken.insert(mount.destination().clone()));
    requested.append(&mut extra);
    requested.sort_by_key(|mount| mount.destination().components().count());

    // Nor is anything of ours made below a /dev or /sys of the request's own: that would be hidden, or would hide.
    let replaced: Vec<PathBuf> = requested.iter().map(|mount| mount.destination().clone()).collect();
    let mut mounts = kernel_filesystems(input, privileged);
    mounts.retain(|mount| !replaced.iter().any(|path| mount.destination().starts_with(path)));
    mounts.append(&mut requested);
    Ok(Mounts { mounts, rootfs_propagation: rootfs_propagation.map(str::to_owned) })
}

fn kernel_filesystems(input: &ContainerInput<'_>, privileged: bool) -> Vec<Mount> {
    let write = if privileged { "rw" } else { "ro" };
    let pod = input.namespaces;
    let sys = match (&pod.user, &pod.network) {
        // A runtime that mounts from inside is let mount only the sysfs of its own network namespace.
        (Some(_), None) => {
            let write = if privileged { "rw" } else { "rro" };
            bind("/sys".into(), Path::new("/sys"), &["rbind", "rprivate", "nosuid", "noexec", "nodev", write])
        }
        _ => special("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", write]),
    };
    vec![
        special("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        special("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", write]),
    ]
}

/// What the pod's containers share, at the places programs look for it.
fn pod_files(input: &ContainerInput<'_>) -> Vec<Mount> {
    let files = input.files;
    let read_only = input
        .container
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .is_some_and(|s| s.readonly_rootfs);
    let write = if read_only { "ro" } else { "rw" };
    let file =
        |destination: &str, source: &Path| bind(destination.into(), source, &["rbind", "rprivate", write]);
    let mut mounts =
        vec![file("/etc/hostname", &files.hostname), file("/etc/resolv.conf", &files.resolv_conf)];
    mounts.extend(files.hosts.as_ref().map(|hosts| file("/etc/hosts", hosts)));
    mounts.push(bind("/dev/shm".into(), &files.shm, &["rbind", "rprivate", "rw"]));
    mounts
}

/// A mount of the request, and the propagation it needs of the root. `inside`: the container is in a user namespace.
fn requested_mount(
    field: &str,
    mount: &CriMount,
    inside: bool,
) -> Result<(Mount, Option<&'static str>), SpecError> {
    let invalid = |name: &str, reason: String| SpecError::invalid(format!("{field}.{name}"), reason);
    let unsupported = |name: &str, reason: &str| SpecError::unsupported(format!("{field}.{name}"), reason);
    if mount.image.is_some() {
        return Err(invalid("image", "an image volume has to be mounted before it gets here".to_owned()));
    }
    if !mount.container_path.starts_with('/') {
        return Err(invalid("container_path", format!("{:?} is not an absolute path", mount.container_path)));
    }
    let destination =
        clean(&mount.container_path).filter(|path| path != Path::new("/")).ok_or_else(|| {
            invalid("container_path", format!("{:?} is no place for a mount", mount.container_path))
        })?;
    if !mount.host_path.starts_with('/') || mount.host_path.contains('\0') {
        return Err(invalid("host_path", format!("{:?} is not an absolute path", mount.host_path)));
    }
    let propagation = MountPropagation::try_from(mount.propagation)
        .map_err(|_| invalid("propagation", format!("{} is unknown", mount.propagation)))?;
    if mount.recursive_read_only && !(mount.readonly && propagation == MountPropagation::PropagationPrivate) {
        return Err(invalid("recursive_read_only", "needs readonly and private propagation".to_owned()));
    }

    // mount_namespaces(7): what is mounted in a less privileged mount namespace never reaches one that is more so.
    if inside && propagation == MountPropagation::PropagationBidirectional {
        return Err(invalid("propagation", "cannot be bidirectional in a user namespace".to_owned()));
    }

    let (flag, root) = match propagation {
        MountPropagation::PropagationPrivate => ("rprivate", None),
        MountPropagation::PropagationHostToContainer => ("rslave", Some("rslave")),
        MountPropagation::PropagationBidirectional => ("rshared", Some("rshared")),
    };
    let write = match (mount.readonly, mount.recursive_read_only) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    };
    let mut options = vec!["rbind", flag, write];
    for option in &mount.mount_options {
        match BIND_OPTIONS.iter().find(|known| *known == option) {
            Some(known) => options.push(known),
            None => {
                return Err(unsupported(
                    "mount_options",
                    &format!("{option:?} is not one of {}", BIND_OPTIONS.join(", ")),
                ));
            }
        }
    }
    let mapped = ids::of_mount(field, &mount.uid_mappings, &mount.gid_mappings)?;
    if mapped.is_some() {
        options.push("ridmap");
    }
    let mut bound = bind(destination, Path::new(&mount.host_path), &options);
    if let Some(ids::MountIds { uids, gids }) = mapped {
        bound.set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
    }
    Ok((bound, root))
}

/// A shared root passes mounts both ways, so it serves those that only receive as well.
fn wider(one: Option<&'static str>, other: Option<&'static str>) -> Option<&'static str> {
    match (one, other) {
        (Some("rshared"), _) | (_, Some("rshared")) => Some("rshared"),
        (one, other) => one.or(other),
    }
}

fn bind(destination: PathBuf, source: &Path, options: &[&str]) -> Mount {
    mount(destination, "bind", source.to_owned(), options)
}

fn special(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    mount(destination.into(), kind, source.into(), options)
}

fn mount(destination: PathBuf, kind: &str, source: PathBuf, options: &[&str]) -> Mount {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .expect("every field of this builder has a default")
}
