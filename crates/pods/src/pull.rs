//! Images of a container: there, or on their way.

use std::sync::Arc;

use berth_image::Progress;
use berth_manifest::{PullPolicy, VolumeSource};
use berth_sandbox_manager::sequence::Event;

use crate::node::Node;
use crate::record::Plan;
use crate::telling::Telling;
use crate::timeline::{Kind, Span};
use crate::work::{Noted, Outcome, text};
use crate::{credentials, plan};

/// Has a container's image, and those that it mounts. `again`: the last pull failed as well.
pub(crate) async fn pull(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    again: bool,
    (telling, parent): (Telling, Option<usize>),
) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(container) = plan::container(&plan.pod, &name) else { return outcome };
    let mounted = container.mounts.iter().filter_map(|mount| {
        let volume = plan.pod.volumes.iter().find(|volume| volume.name == mount.volume)?;
        match &volume.source {
            VolumeSource::Image { reference, pull_policy } => Some((reference.as_str(), *pull_policy)),
            VolumeSource::EmptyDir(_) | VolumeSource::HostPath { .. } | VolumeSource::Files { .. } => None,
        }
    });
    for (image, policy) in std::iter::once((container.image.as_str(), container.pull_policy)).chain(mounted) {
        match have(&node, &plan, &name, image, policy, (&telling, parent), &mut outcome).await {
            Ok(()) => {}
            Err((reason, error)) => {
                outcome.noted.push(Noted::warning(
                    &name,
                    "Failed",
                    format!("cannot have image {image}: {error}"),
                ));
                let reason = if again && reason == "ErrImagePull" { "ImagePullBackOff" } else { reason };
                let reason = reason.to_owned();
                outcome.event = Some(Event::PullFailed { name: name.clone(), reason, error });
                return outcome;
            }
        }
    }
    outcome.event = Some(Event::Pulled { name: name.clone() });
    outcome
}

async fn have(
    node: &Node,
    plan: &Plan,
    name: &str,
    image: &str,
    policy: PullPolicy,
    (telling, parent): (&Telling, Option<usize>),
    outcome: &mut Outcome,
) -> Result<(), (&'static str, String)> {
    let present = node.images.find(image).map_err(|error| ("InvalidImageName", text(error)))?;
    match (policy, present) {
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(_)) => {
            let message = format!("image {image} is on this machine");
            outcome.noted.push(Noted::fine(name, "Pulled", message));
            return Ok(());
        }
        (PullPolicy::Never, None) => {
            let error = format!("image {image} is not on this machine, and imagePullPolicy is Never");
            return Err(("ErrImageNeverPull", error));
        }
        (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {}
    }
    let pod = &plan.pod;
    let secrets =
        credentials::for_image(image, &pod.metadata.namespace, &pod.image_pull_secrets, &plan.configs);
    let mut credentials = secrets.map_err(|error| ("ErrImagePull", error))?.into_iter();
    let began = std::time::Instant::now();
    let progress = Progress::default();
    let pull = async {
        let mut pulled = node.images.pull(image, credentials.next(), &progress).await;
        for others in credentials {
            if pulled.is_ok() {
                break;
            }
            // The secret may have been an old one.
            pulled = node.images.pull(image, Some(others), &progress).await;
        }
        pulled
    };
    let pulled = tokio::select! {
        pulled = pull => pulled,
        never = telling.follow(name, image, &progress) => match never {},
    };
    outcome.spans.extend(layers(&progress, name, parent));
    pulled.map_err(|error| ("ErrImagePull", text(error)))?;
    outcome.noted.push(Noted::fine(name, "Pulled", format!("pulled {image} in {:.1?}", began.elapsed())));
    Ok(())
}

/// The layers that came over the network, as parts of a pull.
fn layers(progress: &Progress, container: &str, parent: Option<usize>) -> Vec<Span> {
    let layers = progress.layers().into_iter().filter(|layer| layer.began > 0 && parent.is_some());
    let spans = layers.map(|layer| Span {
        name: format!("layer {}", layer.digest.trim_start_matches("sha256:").get(..12).unwrap_or_default()),
        kind: Kind::Layer,
        container: container.to_owned(),
        began: layer.began,
        ended: layer.ended,
        part_of: parent,
    });
    spans.collect()
}
