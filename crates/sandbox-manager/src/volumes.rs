//! Image volumes: an image's files at a place in the container, read-only (CRI, `Mount.image`).
//!
//! The image is mounted by itself at a path in the container's folder, from where the container binds it like a volume of
//! the node's. A snapshot without anything in it holds the layers, so that removing the image does no harm.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use berth_cri::runtime::v1::{ContainerConfig, Mount, MountPropagation};
use berth_image::{MountOptions, Shown};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{
    ContainerId, Error, Sandbox,
    folders::place,
    host::{Host, blocking},
    user_namespace::PodUserNamespace,
};

/// The snapshot of a container's image volume; `number` is its place among the mounts.
fn snapshot_id(container: &ContainerId, number: usize) -> String {
    format!("{container}-volume-{number}")
}

/// Names of the snapshots that a container's image volumes have.
pub(crate) fn snapshot_ids(container: &ContainerId, config: &ContainerConfig) -> Vec<String> {
    let images = config.mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_some());
    images.map(|(number, _)| snapshot_id(container, number)).collect()
}

/// Notes in each image volume which image its name leads to now, for the container's status.
///
/// # Errors
/// [`Error::ImageVolume`] for an image that is not there, [`Error::Invalid`] for one that is to be written to.
pub(crate) fn resolve(host: &Host, config: &mut ContainerConfig) -> Result<(), Error> {
    for mount in &mut config.mounts {
        let path = &mount.container_path;
        let Some(spec) = &mut mount.image else {
            if mount.image_sub_path.is_empty() {
                continue;
            }
            let why = format!("{path}: image_sub_path without an image");
            return Err(Error::Invalid { field: "config.mounts", why });
        };
        if !mount.readonly {
            let why = format!("{path}: an image volume cannot be written to; set readonly");
            return Err(Error::Invalid { field: "config.mounts", why });
        }
        let found = host.images.find(&spec.image);
        let image = found.ok().flatten().ok_or_else(|| {
            Error::ImageVolume(format!("image {} for {path} is not present; pull it first", spec.image))
        })?;
        spec.image_ref = image.id.to_string();
    }
    Ok(())
}

/// The config with image volumes mounted below `folder` and turned into binds of the node's paths. In a user namespace they
/// show the owners that the image's files have there, as the root file system does.
pub(crate) async fn mounted(
    host: &Host,
    container: &ContainerId,
    config: &ContainerConfig,
    folder: &Path,
    user: Option<&PodUserNamespace>,
) -> Result<ContainerConfig, Error> {
    let mut config = config.clone();
    for (number, mount) in config.mounts.iter_mut().enumerate() {
        let Some(spec) = mount.image.take() else { continue };
        let failed = |why: String| Error::ImageVolume(format!("{}: {why}", mount.container_path));
        let found = host.images.find(&spec.image_ref);
        let image = found.ok().flatten().ok_or_else(|| failed(format!("image {} is gone", spec.image)))?;
        let name = snapshot_id(container, number);
        let ids = user.map(|user| user.ids.first());
        let snapshot =
            host.images.create_snapshot(&name, &image, ids).await.map_err(|err| failed(err.to_string()))?;
        let user = user.map(PodUserNamespace::open).transpose().map_err(|err| failed(err.to_string()))?;
        let (at, sub_path) = (folder.join(number.to_string()), std::mem::take(&mut mount.image_sub_path));
        let source = blocking(move || -> Result<PathBuf, String> {
            let read_only =
                MountOptions { shown: Shown::Image, user_namespace: user.as_ref().map(AsFd::as_fd) };
            let root = snapshot.mount(read_only).map_err(|err| err.to_string())?;
            place(&root, &at).map_err(|err| format!("cannot mount the image: {err}"))?;
            inside(&at, &sub_path).map_err(|err| format!("cannot find {sub_path:?} in the image: {err}"))
        })
        .await
        .map_err(failed)?;
        *mount = looked_at(&mount.container_path, &source);
    }
    Ok(config)
}

/// A path of the node's in the container, read-only and unmoved by what is mounted on the node.
pub(crate) fn looked_at(container_path: &str, source: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: source.to_string_lossy().into_owned(),
        readonly: true,
        propagation: MountPropagation::PropagationPrivate.into(),
        ..Mount::default()
    }
}

/// The path of something in a mounted image, whose links lead nowhere but into it. Nobody can change what is in it, so
/// the path stays what it is.
fn inside(root: &Path, sub_path: &str) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let sub_path = if sub_path.is_empty() { "." } else { sub_path };
    let found = rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), resolve)?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Removes the snapshots of a container's image volumes, whose mounts are gone.
///
/// # Errors
/// The first that could not be removed.
pub(crate) async fn discard(host: &Host, sandbox: &Sandbox, container: &ContainerId) -> Result<(), Error> {
    for name in host.images.snapshots_named(&format!("{container}-volume-")) {
        let removed = host.images.remove_snapshot(&name).await;
        removed.map_err(Error::step(sandbox.label(), "remove the snapshot of an image volume"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_an_image_lead_nowhere_but_into_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../..", root.path().join("up")).unwrap();
        let top = fs::canonicalize(root.path()).unwrap();
        assert_eq!(inside(&top, "").unwrap(), top);
        assert_eq!(inside(&top, "link").unwrap(), top.join("etc"));
        assert_eq!(inside(&top, "up/../..").unwrap(), top);
        assert_eq!(inside(&top, "missing").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
