//! The files that a container left when it ended, shown to one that is to find out why.

use std::{os::fd::AsFd, path::Path};

use berth_cri::runtime::v1::ContainerConfig;
use berth_image::{MountOptions, Shown};

use crate::{
    Container, ContainerState, Error, PodView,
    folders::place,
    host::{Host, blocking},
    user_namespace::PodUserNamespace,
    volumes,
};

/// Annotation of a container with the id of another in its pod, whose files it is to see at [`REMAINS_PATH`].
pub const REMAINS_OF: &str = "berth.dev/remains-of";

/// Where a container sees the files of another that has ended: its root file system, read-only.
pub const REMAINS_PATH: &str = "/target";

/// Mounts them below `folder`, and adds the mount to the config.
///
/// # Errors
/// [`Error::Invalid`] when the other one is not there or has not ended.
pub(crate) async fn add(
    host: &Host,
    pod: &PodView,
    config: &mut ContainerConfig,
    folder: &Path,
    user: Option<&PodUserNamespace>,
) -> Result<(), Error> {
    let Some(of) = config.annotations.get(REMAINS_OF) else { return Ok(()) };
    let invalid =
        |why: String| Error::Invalid { field: "config.annotations", why: format!("{REMAINS_OF}: {why}") };
    let ended = pod.containers.values().find(|other| other.id.as_str() == of);
    let ended = ended.ok_or_else(|| invalid(format!("the pod has no container {of}")))?;
    if !matches!(ended.state, ContainerState::Exited(_)) {
        return Err(invalid(format!("container {of} has not ended")));
    }
    let label = ended.id.label();
    let snapshot = host.images.snapshot(of).ok_or_else(|| invalid(format!("the files of {of} are gone")))?;
    let user = user.map(PodUserNamespace::open).transpose();
    let user = user.map_err(Error::step(&label, "open its pod's user namespace"))?;
    let at = folder.join("remains");
    let mount = volumes::looked_at(REMAINS_PATH, &at);
    blocking(move || {
        let shown = MountOptions { shown: Shown::Remains, user_namespace: user.as_ref().map(AsFd::as_fd) };
        let root = snapshot.mount(shown).map_err(Error::step(&label, "mount what it left"))?;
        place(&root, &at).map_err(Error::step(&label, "show what it left"))
    })
    .await?;
    config.mounts.push(mount);
    Ok(())
}

impl Container {
    /// The id of the one whose files it sees at [`REMAINS_PATH`].
    #[must_use]
    pub fn remains_of(&self) -> Option<&str> {
        self.config.annotations.get(REMAINS_OF).map(String::as_str)
    }
}
