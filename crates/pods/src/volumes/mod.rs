//! A pod's volumes on the node.
//!
//! Below the pod's folder: `volumes/<volume>` for those that berth makes, and `sub-paths/<volume>/<container>/<number>`
//! for mounts of a part of one. What containers wrote into a volume is a stranger's: it is walked by handle, and nothing
//! in it leads out of it. The rules are kubelet's (its packages volume and subpath).

mod empty_dir;
mod files;
mod host_path;
mod look;
mod mounts;
mod sub_path;
mod tree;

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_manifest::cri::{self, Facts};
use berth_manifest::{Item, Mount, MountPropagation, Pod, Volume, VolumeSource};
use rustix::fs::{Mode, OFlags};

use crate::node::blocking;

/// What cannot be done to a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("cannot make volume {volume} in {}", at.display())]
    Make {
        volume: String,
        at: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("volume {volume}: {path} is to be {wanted}, and is {found}")]
    HostPath { volume: String, path: String, wanted: &'static str, found: &'static str },
    #[error("volume {volume}: cannot {step} {path}")]
    Host {
        volume: String,
        step: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("volume {volume}: {path:?} is no place for a file in it")]
    Item { volume: String, path: String },
    #[error("volume {volume}: subPath {sub_path:?} leads out of it")]
    Escapes { volume: String, sub_path: String },
    #[error("volume {volume}: cannot mount subPath {sub_path:?}")]
    SubPath {
        volume: String,
        sub_path: String,
        #[source]
        source: io::Error,
    },
    #[error("a file system of the node does not answer: one of {volumes}")]
    Hangs { volumes: String },
    #[error("{} is still mounted, so nothing was removed", path.display())]
    StillMounted { path: PathBuf },
    #[error("cannot remove {}", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot see how much is in {}", path.display())]
    Measure {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A volume that holds more than its `sizeLimit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) volume: String,
    /// Bytes.
    pub(crate) used: u64,
    /// Bytes.
    pub(crate) limit: u64,
}

/// The volumes of one pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    folder: PathBuf,
}

const VOLUMES: &str = "volumes";
const SUB_PATHS: &str = "sub-paths";

impl Volumes {
    /// `pod`: the pod's folder, which is the caller's to make and remove.
    pub(crate) fn new(pod: PathBuf) -> Self {
        Self { folder: pod }
    }

    /// Makes what is not there yet: a volume with containers in it stays as it is, but for files whose content has become
    /// another.
    pub(crate) async fn prepare(&self, pod: &Pod, facts: &Facts<'_>) -> Result<(), VolumeError> {
        let wanted = pod.volumes.iter().map(|volume| Wanted::of(volume, pod, facts));
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        let folder = self.folder.join(VOLUMES);
        let make = move || wanted.iter().try_for_each(|wanted| wanted.make(&folder));
        let of_host = pod.volumes.iter().filter_map(|volume| match &volume.source {
            VolumeSource::HostPath { path, .. } => Some(format!("{} ({path})", volume.name)),
            VolumeSource::EmptyDir(_) | VolumeSource::Files { .. } | VolumeSource::Image { .. } => None,
        });
        let of_host = of_host.collect::<Vec<_>>().join(", ");
        look::look(&self.folder, of_host, look::PATIENCE, make).await
    }

    /// Where a mount's source is on the node. `sub_path`: the mount's, with its variables put in; what it names is made
    /// when it is not there. `number`: the mount's among those of the container.
    pub(crate) async fn place(
        &self,
        pod: &Pod,
        mount: &Mount,
        sub_path: &str,
        container: &str,
        number: usize,
    ) -> Result<PathBuf, VolumeError> {
        let volume = pod.volumes.iter().find(|volume| volume.name == mount.volume);
        let whole = match volume.map(|volume| &volume.source) {
            Some(VolumeSource::HostPath { path, .. }) => PathBuf::from(path),
            Some(VolumeSource::EmptyDir(_) | VolumeSource::Files { .. }) => self.volume(&mount.volume),
            // The sandbox manager mounts images.
            Some(VolumeSource::Image { .. }) | None => return Ok(PathBuf::new()),
        };
        if sub_path.is_empty() {
            return Ok(whole);
        }
        let at = self.folder.join(SUB_PATHS).join(&mount.volume).join(container).join(number.to_string());
        let (place, looked_at) = (at.clone(), format!("{} ({})", mount.volume, whole.display()));
        let (volume, sub_path) = (mount.volume.clone(), sub_path.to_owned());
        let returns = mount.propagation == MountPropagation::Bidirectional;
        let look_for = move || {
            let mounted = sub_path::mount(&whole, &sub_path, &at, returns);
            match mounted {
                Ok(()) => Ok(at),
                // openat2(2): what `RESOLVE_BENEATH` keeps in.
                Err(source) if source.kind() == io::ErrorKind::CrossesDevices => {
                    Err(VolumeError::Escapes { volume, sub_path })
                }
                Err(source) => Err(VolumeError::SubPath { volume, sub_path, source }),
            }
        };
        look::look(&place, looked_at, look::PATIENCE, look_for).await
    }

    /// Unmounts and removes all of it; fine when nothing is there. No container may be left. What lies in a folder of the
    /// host stays: as long as anything is mounted nothing is removed, and no mount is ever entered.
    pub(crate) async fn remove(&self) -> Result<(), VolumeError> {
        let folder = self.folder.clone();
        blocking(move || remove(&folder)).await
    }

    /// The first volume on the disk that holds more than its `sizeLimit`; those in memory cannot. Takes as long as a look
    /// at every file does.
    pub(crate) async fn over_limit(&self, pod: &Pod) -> Result<Option<Excess>, VolumeError> {
        let limited = pod.volumes.iter().filter_map(|volume| {
            let limit = empty_dir::limit_on_disk(&volume.source)?;
            Some((volume.name.clone(), self.volume(&volume.name), limit))
        });
        let limited: Vec<_> = limited.collect();
        blocking(move || {
            for (volume, path, limit) in limited {
                let used = tree::measure(&path);
                let used = used.map_err(|source| VolumeError::Measure { path, source })?;
                if used > limit {
                    return Ok(Some(Excess { volume, used, limit }));
                }
            }
            Ok(None)
        })
        .await
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.folder.join(VOLUMES).join(name)
    }
}

/// A volume to be made, with all that the manifest and the node say of it.
struct Wanted {
    volume: String,
    source: Source,
}

enum Source {
    EmptyDir {
        kind: empty_dir::Kind,
        group: Option<u32>,
    },
    HostPath(host_path::HostPath),
    Files {
        files: files::Files,
        in_memory: bool,
    },
    /// The sandbox manager's.
    Image,
}

impl Wanted {
    fn of(volume: &Volume, pod: &Pod, facts: &Facts<'_>) -> Result<Self, VolumeError> {
        let group = pod.security.fs_group.and_then(|group| u32::try_from(group).ok());
        let source = match &volume.source {
            VolumeSource::EmptyDir(wanted) => {
                Source::EmptyDir { kind: empty_dir::Kind::of(wanted, pod, facts), group }
            }
            VolumeSource::HostPath { path, kind } => {
                Source::HostPath(host_path::HostPath { path: path.clone(), kind: *kind })
            }
            VolumeSource::Files { items, in_memory } => {
                let content = |item: &Item| cri::file(pod, item, facts);
                let files = files::Files::of(items, content, group);
                let files = files.map_err(|path| VolumeError::Item { volume: volume.name.clone(), path })?;
                Source::Files { files, in_memory: *in_memory }
            }
            VolumeSource::Image { .. } => Source::Image,
        };
        Ok(Self { volume: volume.name.clone(), source })
    }

    fn make(&self, folder: &Path) -> Result<(), VolumeError> {
        let at = folder.join(&self.volume);
        let failed = |source| VolumeError::Make { volume: self.volume.clone(), at: at.clone(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        match &self.source {
            Source::EmptyDir { kind, group } => empty_dir::make(&at, kind, *group).map_err(failed),
            Source::Files { files, in_memory } => files.make(&at, *in_memory).map_err(failed),
            Source::HostPath(wanted) => wanted.make(&self.volume),
            Source::Image => Ok(()),
        }
    }
}

fn remove(folder: &Path) -> Result<(), VolumeError> {
    // The kernel's list of mounts names no links.
    let folder = match fs::canonicalize(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|source| VolumeError::Remove { path: folder.to_owned(), source })?,
    };
    for part in [SUB_PATHS, VOLUMES] {
        let path = folder.join(part);
        let removed = mounts::detach_below(&path).and_then(|left| match left {
            Some(path) => Ok(Some(path)),
            None => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let parent = rustix::fs::open(&folder, flags, Mode::empty())?;
                tree::remove(&parent, &CString::new(part)?)?;
                Ok(None)
            }
        });
        match removed {
            Ok(None) => {}
            Ok(Some(path)) => return Err(VolumeError::StillMounted { path }),
            Err(source) => return Err(VolumeError::Remove { path, source }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
