//! A container from its manifest.

use std::path::PathBuf;

use berth_cri::runtime::v1::ContainerConfig;
use berth_manifest::{self as manifest, cri};
use berth_sandbox_manager::{Container, ContainerKind, ContainerState, PodView, REMAINS_OF};

use crate::node::{self, Node, blocking};
use crate::record::Plan;
use crate::work::{text, volumes};
use crate::{extras, logs};

/// Creates an attempt; its id.
pub(crate) async fn create(
    node: &Node,
    plan: &Plan,
    view: &PodView,
    container: &manifest::Container,
    attempt: u32,
) -> Result<String, String> {
    remove_old_attempts(node, plan, view, &container.name, attempt).await?;
    let kind = kind(plan, &container.name);
    let target = plan.pod.ephemeral.iter().find(|one| one.container.name == container.name);
    let named = target.and_then(|one| one.target.as_deref());
    let target = named.and_then(|target| node::attempt(view, target, None));
    let running = target.filter(|target| matches!(target.state, ContainerState::Running { .. }));
    let ended = target.filter(|target| matches!(target.state, ContainerState::Exited(_)));
    if let (Some(named), None, None) = (named, running, ended) {
        return Err(format!("container {named}, which it is to look into, has not started"));
    }
    let log_dir = node.log_dir(&plan.record.uid);
    let log_dir = log_dir.to_string_lossy();
    let node_facts = node.facts(plan).await;
    let facts = node_facts.of(&plan.record.uid, &view.sandbox.ips, &log_dir, plan.ids());
    let config = {
        let volumes = volumes(node, plan);
        let mut places = Vec::new();
        for (index, mount) in container.mounts.iter().enumerate() {
            let sub_path = cri::sub_path(&plan.pod, container, mount, &facts)?;
            let place = volumes.place(&plan.pod, mount, &sub_path, &container.name, index).await;
            places.push((mount.path.as_str(), place.map_err(text)?));
        }
        let place = |mount: &manifest::Mount| -> PathBuf {
            let found = places.iter().find(|(path, _)| *path == mount.path);
            found.map(|(_, place)| place.clone()).unwrap_or_default()
        };
        let target = running.map(|target| target.id.as_str());
        cri::container(&plan.pod, container, attempt, target, &facts, &place)?
    };
    let image = node.images.find(&container.image).map_err(text)?;
    let image = image.ok_or_else(|| format!("image {} was removed in the meantime", container.image))?;
    extras::check_user(&plan.pod, container, &image)?;
    let mut config = with_kind(config, kind);
    extras::add_user(&mut config, &image);
    if let Some(ended) = ended {
        // It has no processes to look at; what it left is what there is.
        config.annotations.insert(REMAINS_OF.to_owned(), ended.id.to_string());
    }
    let config = extras::add(&node.pod_dir(&plan.record.uid), plan, container, attempt, view, config).await?;
    let id = node.manager.create_container(view.sandbox.id.as_str(), config).await.map_err(text)?;
    Ok(id.to_string())
}

/// The sandbox manager stops containers in the order of their kinds.
fn with_kind(mut config: ContainerConfig, kind: ContainerKind) -> ContainerConfig {
    let name = match kind {
        ContainerKind::Init => "init",
        ContainerKind::Sidecar => "sidecar",
        ContainerKind::Standard => "standard",
        ContainerKind::Ephemeral => "ephemeral",
    };
    config.annotations.insert(ContainerKind::ANNOTATION.to_owned(), name.to_owned());
    config
}

pub(crate) fn kind(plan: &Plan, name: &str) -> ContainerKind {
    let named = |container: &manifest::Container| container.name == name;
    let startup = plan.pod.startup.iter().find(|step| named(step.container()));
    match startup {
        Some(manifest::Startup::Init(_)) => ContainerKind::Init,
        Some(manifest::Startup::Sidecar(_)) => ContainerKind::Sidecar,
        None if plan.pod.ephemeral.iter().any(|one| named(&one.container)) => ContainerKind::Ephemeral,
        None => ContainerKind::Standard,
    }
}

/// The attempt before the present one can be looked at; those before that go, unless somebody looks at them. Logs also those
/// of an earlier sandbox.
async fn remove_old_attempts(
    node: &Node,
    plan: &Plan,
    view: &PodView,
    name: &str,
    attempt: u32,
) -> Result<(), String> {
    let kept = attempt.saturating_sub(1);
    let looked_at = |container: &Container| {
        let mut living =
            view.containers.values().filter(|other| !matches!(other.state, ContainerState::Exited(_)));
        living.any(|other| other.remains_of() == Some(container.id.as_str()))
    };
    let old = view.containers.values().filter(|container| {
        let (its_name, its_attempt) = container.name_and_attempt();
        its_name == name && its_attempt < kept && !looked_at(container)
    });
    for container in old {
        node.manager.remove_container(container.id.as_str()).await.map_err(text)?;
    }
    let folder = node.log_dir(&plan.record.uid).join(name);
    if let Err(error) = blocking(move || logs::remove_before(&folder, kept)).await {
        tracing::warn!(pod = plan.label(), container = name, %error, "cannot remove the logs of old attempts");
    }
    Ok(())
}
