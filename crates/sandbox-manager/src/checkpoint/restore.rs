//! A container from an archive.

use std::{path::Path, sync::Arc, time::Duration};

use berth_cri::berth::v1::RestoredProcess;
use berth_image::Image;
use berth_launcher::{cgroup::Cgroup, compile};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Folder, Outside, archive, can_use_criu, criu, mounts};
use crate::{
    ContainerId, Error, Sandbox,
    host::{Host, blocking},
};

/// Memory comes from a disk; more than the dump can have taken.
const LIMIT: Duration = Duration::from_secs(300);

/// An archive, unpacked for a new container. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Restored {
    folder: Folder,
    outside: Outside,
}

/// The archive that an image's name means: an absolute path, where images have no leading slash. An image out of a
/// registry is never taken for a checkpoint, whatever it says of itself: its author would choose its rights on this node.
pub(crate) fn archive_named(image: &str) -> Option<&Path> {
    Some(Path::new(image)).filter(|path| path.is_absolute())
}

impl Restored {
    /// Unpacks an archive, and finds the image that its container was made from.
    pub(crate) async fn open(
        host: &Arc<Host>,
        sandbox: &Sandbox,
        id: &ContainerId,
        archive: &Path,
        tty: bool,
    ) -> Result<(Arc<Image>, Arc<Self>), Error> {
        can_use_criu(host, sandbox, tty)?;
        let invalid = |why: String| Error::Invalid {
            field: "config.image.image",
            why: format!("{}: {why}", archive.display()),
        };
        let (on, id, path) = (Arc::clone(host), id.clone(), archive.to_owned());
        let opened = blocking(move || {
            let folder = Folder::new(&on, &id).map_err(|err| err.to_string())?;
            archive::unpack(&path, &folder.0).map_err(|err| with_cause(&err))?;
            let config = archive::config(&folder.0).map_err(|err| with_cause(&err))?;
            // Others leave namespaces to CRIU that are the pod's here.
            let outside = archive::outside(&folder.0)
                .map_err(|err| format!("not a checkpoint made by berth ({})", with_cause(&err)))?;
            Ok((config, Self { folder, outside }))
        })
        .await;
        let (config, restored) = opened.map_err(invalid)?;
        let image = config.images().find_map(|name| host.images.find(name).ok().flatten());
        let image = image.ok_or_else(|| {
            Error::ImageNotPresent(format!(
                "{} of checkpoint {}",
                config.images().last().unwrap_or("?"),
                archive.display()
            ))
        })?;
        Ok((image, Arc::new(restored)))
    }

    /// Gives the new container's layer what the old one had written. Blocks.
    pub(crate) fn load_files(
        &self,
        upper: &Path,
    ) -> Result<(), impl std::error::Error + Send + Sync + 'static> {
        archive::load_files(&self.folder.0, upper)
    }

    /// How CRIU is to make the processes.
    pub(crate) fn process(
        &self,
        host: &Host,
        spec: &Spec,
        cgroup: &Cgroup,
        rootfs: &Path,
    ) -> Result<RestoredProcess, Error> {
        // Of the old pod's connections nothing is left; those who hold their ends still talk to the old container.
        let mut args: Vec<String> =
            ["restore", "--restore-detached", "--leave-stopped", "--tcp-close", "--root"]
                .map(str::to_owned)
                .into();
        args.push(rootfs.display().to_string());
        for external in &self.outside.mounts {
            let point = &external.point;
            let source = mounts::source(external, spec, cgroup).ok_or_else(|| Error::Invalid {
                field: "config.mounts",
                why: format!("the checkpoint has a mount at {point}, and the new container has none"),
            })?;
            args.extend(["--external".to_owned(), format!("mnt[{point}]:{}", source.display())]);
        }
        for (fd, name) in self.outside.streams.iter().enumerate() {
            if let Some(name) = name {
                args.extend(["--inherit-fd".to_owned(), format!("fd[{fd}]:{name}")]);
            }
        }
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let own_cgroup = |kind: LinuxNamespaceType| kind == LinuxNamespaceType::Cgroup;
        Ok(RestoredProcess {
            criu: Some(criu(host, &self.folder, "restore.log", args, LIMIT)),
            cgroup_tasks: compile::cgroup_tasks(cgroup),
            unified_cgroup: compile::unified_cgroup(cgroup),
            new_cgroup_namespace: namespaces.is_some_and(|all| all.iter().any(|one| own_cgroup(one.typ()))),
        })
    }
}

fn with_cause(err: &dyn std::error::Error) -> String {
    err.source().map_or_else(|| err.to_string(), |cause| format!("{err}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_are_archives() {
        assert_eq!(archive_named("/var/lib/x.tar"), Some(Path::new("/var/lib/x.tar")));
        assert_eq!(archive_named("docker.io/library/busybox"), None);
        assert_eq!(archive_named(""), None);
    }
}
