//! Pods with user and group ids of their own: what may be asked for, and with which handlers this node can do it.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use berth_cri::{
    berth::v1::{IdMaps, IdRange},
    runtime::v1::{IdMapping, NamespaceMode, PodSandboxConfig},
};
use berth_image::{FirstIds, Images};
use tokio::process::Command;

use crate::{
    Error,
    error::cause,
    host::{Handler, blocking},
};

const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";

/// For an OCI runtime to say what it can do.
const PATIENCE: Duration = Duration::from_secs(5);

/// The ids of a pod in a user namespace of its own: one range each, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodIds {
    pub(crate) uids: IdMapping,
    pub(crate) gids: IdMapping,
}

impl PodIds {
    /// Those that a config asks for; `None` for the host's.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything but what kubelet sends.
    pub(crate) fn of(config: &PodSandboxConfig) -> Result<Option<Self>, Error> {
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.namespace_options.as_ref());
        let Some(options) = options.and_then(|options| options.userns_options.as_ref()) else {
            return Ok(None);
        };
        let invalid = |why: String| Error::Invalid { field: FIELD, why };
        match options.mode() {
            NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
            NamespaceMode::Node => {
                Err(invalid("ids cannot be mapped in the node's user namespace".to_owned()))
            }
            NamespaceMode::Pod => {
                let ids = Self { uids: only("uids", &options.uids)?, gids: only("gids", &options.gids)? };
                match ids.uids.length == ids.gids.length {
                    true => Ok(Some(ids)),
                    false => Err(invalid("uids and gids must be equally many".to_owned())),
                }
            }
            NamespaceMode::Container | NamespaceMode::Target => {
                Err(invalid("mode must be POD or NODE".to_owned()))
            }
        }
    }

    /// The host's ids of root.
    pub(crate) fn first(&self) -> FirstIds {
        FirstIds { uid: self.uids.host_id, gid: self.gids.host_id }
    }

    /// For the kernel.
    pub(crate) fn maps(&self) -> IdMaps {
        let range =
            |ids: &IdMapping| IdRange { inside: ids.container_id, outside: ids.host_id, length: ids.length };
        IdMaps { uids: vec![range(&self.uids)], gids: vec![range(&self.gids)] }
    }
}

/// The one range, which must begin with root and end before the highest id: that one means "none" to the kernel.
fn only(name: &str, mappings: &[IdMapping]) -> Result<IdMapping, Error> {
    let invalid = |why: &str| Err(Error::Invalid { field: FIELD, why: format!("{name}: {why}") });
    match mappings {
        [range] if range.container_id != 0 => invalid("the range must begin with container id 0"),
        [range] if range.length == 0 => invalid("the range is empty"),
        [range] if range.host_id.checked_add(range.length).is_none() => {
            invalid("the range goes beyond the host's last id")
        }
        [range] => Ok(*range),
        [] => invalid("a pod with ids of its own needs a range"),
        _ => invalid("more than one range is not supported"),
    }
}

/// The user namespace of a pod that is up.
#[derive(Clone, Debug)]
pub(crate) struct PodUserNamespace {
    pub(crate) ids: PodIds,
    /// Valid as long as the pod's supervisor lives, which holds it.
    pub(crate) path: PathBuf,
}

impl PodUserNamespace {
    pub(crate) fn for_spec(&self) -> berth_oci::UserNamespace {
        let PodIds { uids, gids } = self.ids;
        berth_oci::UserNamespace { path: self.path.clone(), uids: vec![uids], gids: vec![gids] }
    }

    /// # Errors
    /// open(2)'s.
    pub(crate) fn open(&self) -> std::io::Result<OwnedFd> {
        File::open(&self.path).map(OwnedFd::from)
    }
}

/// Why pods of a handler cannot have a user namespace, in words; `Ok` when they can.
pub(crate) type Support = Result<(), String>;

/// Finds out for each handler, by doing it once on this kernel and on the file system of the images, and by asking OCI
/// runtimes.
pub(crate) async fn probe(
    images: &Images,
    handlers: &BTreeMap<String, Handler>,
) -> BTreeMap<String, Support> {
    let node = on_this_node(images).await;
    if let Err(why) = &node {
        tracing::info!(why, "pods cannot have user namespaces on this node");
    }
    let mut asked: BTreeMap<&Path, Support> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (name, handler) in handlers {
        let support = match (&node, handler) {
            (Err(_), _) | (Ok(()), Handler::Native) => node.clone(),
            (Ok(()), Handler::External { path }) => match asked.get(path.as_path()) {
                Some(known) => known.clone(),
                None => {
                    let support = of_runtime(path).await;
                    asked.insert(path, support.clone());
                    support
                }
            },
        };
        found.insert(name.clone(), support);
    }
    found
}

async fn on_this_node(images: &Images) -> Support {
    let images = images.clone();
    let tried = blocking(move || {
        let range = || vec![IdRange { inside: 0, outside: 100_000, length: 65_536 }];
        let ids = IdMaps { uids: range(), gids: range() };
        let user = berth_launcher::user_namespace::create(&ids)
            .map_err(|err| format!("the kernel makes no user namespace: {err}"))?;
        images.can_map_ids(user.as_fd()).map_err(|err| match std::error::Error::source(&err) {
            Some(source) => format!("{err}: {source}"),
            None => err.to_string(),
        })
    });
    tried.await
}

/// What an OCI runtime's `features` say (features.md of the OCI runtime spec): volumes have to be idmapped.
async fn of_runtime(path: &Path) -> Support {
    let mut command = Command::new(path);
    command.arg("features").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let shown = path.display();
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => output.stdout,
        Ok(Ok(_)) => return Err(format!("{shown} is too old to say what it can do")),
        Ok(Err(err)) => return Err(format!("{shown} cannot be run: {}", cause(&err))),
        Err(_) => return Err(format!("{shown} does not say what it can do within {PATIENCE:?}")),
    };
    let features: serde_json::Value = serde_json::from_slice(&output).unwrap_or_default();
    match features.pointer("/linux/mountExtensions/idmap/enabled").and_then(serde_json::Value::as_bool) {
        Some(true) => Ok(()),
        _ => Err(format!("{shown} cannot make idmapped mounts")),
    }
}

#[cfg(test)]
mod tests {
    use berth_cri::runtime::v1::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, UserNamespace,
    };

    use super::*;

    fn asked(
        mode: NamespaceMode,
        uids: &[(u32, u32, u32)],
        gids: &[(u32, u32, u32)],
    ) -> Result<Option<PodIds>, Error> {
        let ranges = |list: &[(u32, u32, u32)]| {
            let range = |&(container_id, host_id, length)| IdMapping { container_id, host_id, length };
            list.iter().map(range).collect()
        };
        let options = UserNamespace { mode: mode.into(), uids: ranges(uids), gids: ranges(gids) };
        let namespaces = NamespaceOption { userns_options: Some(options), ..Default::default() };
        let security =
            LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let linux = LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        PodIds::of(&PodSandboxConfig { linux: Some(linux), ..Default::default() })
    }

    #[test]
    fn what_kubelet_sends_is_taken_and_nothing_else() {
        use NamespaceMode as Mode;
        let range = (0, 65_536, 65_536);
        let ids = asked(Mode::Pod, &[range], &[range]).unwrap().unwrap();
        assert_eq!((ids.first().uid, ids.first().gid), (65_536, 65_536));
        assert_eq!(asked(Mode::Node, &[], &[]).unwrap(), None);
        assert_eq!(PodIds::of(&PodSandboxConfig::default()).unwrap(), None);
        for (mode, uids, gids) in [
            (Mode::Node, &[range][..], &[range][..]),
            (Mode::Pod, &[], &[]),
            (Mode::Pod, &[range], &[]),
            (Mode::Pod, &[range, (65_536, 200_000, 1)], &[range]),
            (Mode::Pod, &[(1, 65_536, 65_536)], &[range]),
            (Mode::Pod, &[(0, 65_536, 0)], &[range]),
            (Mode::Pod, &[(0, 65_536, 10)], &[range]),
            (Mode::Pod, &[(0, u32::MAX, 1)], &[range]),
            (Mode::Container, &[range], &[range]),
            (Mode::Target, &[range], &[range]),
        ] {
            let refused = asked(mode, uids, gids);
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{mode:?} {uids:?} {gids:?}: {refused:?}");
        }
    }
}
