//! The steps of a pod's life: each is begun by the pod's task, runs beside it, and comes back with what became of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_cri::runtime::v1::ContainerConfig;
use berth_image::Progress;
use berth_manifest::{Container, PullPolicy, VolumeSource, cri};
use berth_sandbox_manager::sequence::{Ended, Event, Hook, ProbeKind};
use berth_sandbox_manager::{
    ContainerKind, ContainerState, Error as ManagerError, Exit, PodView, SandboxPhase,
};
use tokio::time::sleep;

use crate::extras;
use crate::handlers::{self, Target};
use crate::logs::{self, Limits};
use crate::node::{self, Node, blocking};
use crate::record::Plan;
use crate::task::probe_name;
use crate::telling::Telling;
use crate::timeline::{Kind, Span};
use crate::volumes::{Excess, Volumes};
use crate::{Error, clock, credentials, plan};

/// Something to be told of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    pub(crate) container: String,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Noted {
    pub(crate) fn fine(container: &str, reason: &'static str, message: String) -> Self {
        Self { container: container.to_owned(), warning: false, reason, message }
    }

    pub(crate) fn warning(container: &str, reason: &'static str, message: String) -> Self {
        Self { container: container.to_owned(), warning: true, reason, message }
    }
}

/// What became of a step.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) event: Option<Event>,
    pub(crate) noted: Vec<Noted>,
    pub(crate) spans: Vec<Span>,
}

impl Outcome {
    fn of(event: Event) -> Self {
        Self { event: Some(event), ..Self::default() }
    }

    fn noting(mut self, noted: Noted) -> Self {
        self.noted.push(noted);
        self
    }
}

/// Makes the volumes and the sandbox. `parent`: the span that its steps are a part of.
pub(crate) async fn run_sandbox(
    node: Arc<Node>,
    plan: Arc<Plan>,
    attempt: u32,
    parent: Option<usize>,
) -> Outcome {
    match try_run_sandbox(&node, &plan, attempt).await {
        Ok(view) => {
            let spans = steps(&view, "sandbox: ", "", parent);
            Outcome { spans, ..Outcome::of(Event::SandboxUp) }
        }
        Err(error) => Outcome::of(Event::SandboxFailed { error: error.clone() }).noting(Noted::warning(
            "",
            "FailedCreatePodSandBox",
            error,
        )),
    }
}

async fn try_run_sandbox(node: &Node, plan: &Plan, attempt: u32) -> Result<Arc<PodView>, String> {
    let uid = &plan.record.uid;
    // What an earlier sandbox left is of no use: containers start anew in this one.
    for old in node.sandboxes(uid) {
        let is_ours = old.sandbox.metadata().attempt == attempt && old.sandbox.phase == SandboxPhase::Ready;
        if !is_ours {
            node.manager.remove_sandbox(old.sandbox.id.as_str()).await.map_err(text)?;
        }
    }
    let log_dir = node.log_dir(uid);
    tokio::fs::create_dir_all(&log_dir).await.map_err(|error| format!("{}: {error}", log_dir.display()))?;
    let log_dir = log_dir.to_string_lossy();
    let facts = node.facts.of(uid, &[], &log_dir, plan.ids());
    volumes(node, plan).prepare(&plan.pod, &facts).await.map_err(text)?;
    let config = cri::sandbox(&plan.pod, &facts, attempt);
    let id = node.manager.run_sandbox(config, &plan.pod.runtime_class).await.map_err(text)?;
    node.manager.sandbox(id.as_str()).map_err(text)
}

pub(crate) async fn stop_sandbox(node: Arc<Node>, plan: Arc<Plan>) -> Outcome {
    let mut noted = Vec::new();
    for view in node.sandboxes(&plan.record.uid) {
        while let Err(error) = node.manager.stop_sandbox(view.sandbox.id.as_str()).await {
            // Something of it lives on, and its pod has not ended as long as it does.
            noted.push(Noted::warning("", "FailedKillPod", text(error)));
            sleep(AGAIN).await;
        }
    }
    Outcome { noted, ..Outcome::of(Event::SandboxStopped) }
}

/// Removes all that a pod has left.
pub(crate) async fn remove(node: &Node, plan: &Plan) -> Result<(), Error> {
    let uid = &plan.record.uid;
    for view in node.sandboxes(uid) {
        node.manager.remove_sandbox(view.sandbox.id.as_str()).await?;
    }
    let removed = volumes(node, plan).remove().await;
    removed.map_err(|source| Error::Volumes { pod: plan.label(), source: Box::new(source) })?;
    let path = node.pod_dir(uid);
    match tokio::fs::remove_dir_all(&path).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::Leftover { path, source });
        }
        Ok(()) | Err(_) => {}
    }
    Ok(node.forget(uid).await?)
}

/// How long to wait before what must work in the end is tried again.
const AGAIN: Duration = Duration::from_secs(5);

fn volumes(node: &Node, plan: &Plan) -> Volumes {
    Volumes::new(node.pod_dir(&plan.record.uid))
}

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
    let credentials = secrets.map_err(|error| ("ErrImagePull", error))?;
    let began = std::time::Instant::now();
    let progress = Progress::default();
    let pulled = tokio::select! {
        pulled = node.images.pull(image, credentials, &progress) => pulled,
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

/// Creates and starts a container.
pub(crate) async fn start(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    attempt: u32,
    parent: Option<usize>,
) -> Outcome {
    let Some(container) = plan::container(&plan.pod, &name) else { return Outcome::default() };
    let failed = |error: String| {
        Outcome::of(Event::CreateFailed { name: name.clone(), attempt, error: error.clone() })
            .noting(Noted::warning(&name, "Failed", error))
    };
    let Some(view) = node.sandbox(&plan.record.uid) else {
        return failed("the pod's sandbox is gone".to_owned());
    };
    let id = match create(&node, &plan, &view, container, attempt).await {
        Ok(id) => id,
        Err(error) => return failed(error),
    };
    let began = || steps(&view, &format!("container {name}: "), &name, parent);
    match node.manager.start_container(&id).await {
        Ok(()) => {
            let message = format!("started container {}", &id[..13.min(id.len())]);
            let event = Event::Started { name: name.clone(), attempt };
            Outcome { spans: began(), ..Outcome::of(event) }.noting(Noted::fine(&name, "Started", message))
        }
        // It has an end of its own, which is kept: the program was not there.
        Err(error @ ManagerError::CannotExecute { .. }) => {
            let error = text(error);
            let ended = Ended { code: 128, reason: "ContainerCannotRun".to_owned(), message: error.clone() };
            Outcome::of(Event::Exited { name: name.clone(), attempt, ended })
                .noting(Noted::warning(&name, "Failed", error))
        }
        Err(error) => {
            let error = text(error);
            if let Err(left) = node.manager.remove_container(&id).await {
                tracing::warn!(container = id, error = text(left), "a container that did not start is left");
            }
            failed(error)
        }
    }
}

async fn create(
    node: &Node,
    plan: &Plan,
    view: &PodView,
    container: &Container,
    attempt: u32,
) -> Result<String, String> {
    remove_old_attempts(node, view, &container.name, attempt).await?;
    let kind = kind(plan, &container.name);
    let target = plan.pod.ephemeral.iter().find(|one| one.container.name == container.name);
    let target = target.and_then(|one| one.target.as_deref()).and_then(|target| running(view, target));
    let log_dir = node.log_dir(&plan.record.uid);
    let log_dir = log_dir.to_string_lossy();
    let facts = node.facts.of(&plan.record.uid, &view.sandbox.ips, &log_dir, plan.ids());
    let config = {
        let volumes = volumes(node, plan);
        let mut places = Vec::new();
        for (index, mount) in container.mounts.iter().enumerate() {
            let sub_path = cri::sub_path(&plan.pod, container, mount, &facts)?;
            let place = volumes.place(&plan.pod, mount, &sub_path, &container.name, index).await;
            places.push((mount.path.as_str(), place.map_err(text)?));
        }
        let place = |mount: &berth_manifest::Mount| -> PathBuf {
            let found = places.iter().find(|(path, _)| *path == mount.path);
            found.map(|(_, place)| place.clone()).unwrap_or_default()
        };
        cri::container(&plan.pod, container, attempt, target.as_deref(), &facts, &place)?
    };
    let image = node.images.find(&container.image).map_err(text)?;
    let image = image.ok_or_else(|| format!("image {} was removed in the meantime", container.image))?;
    extras::check_user(&plan.pod, container, &image)?;
    let config = with_kind(config, kind);
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

fn kind(plan: &Plan, name: &str) -> ContainerKind {
    let named = |container: &Container| container.name == name;
    let startup = plan.pod.startup.iter().find(|step| named(step.container()));
    match startup {
        Some(berth_manifest::Startup::Init(_)) => ContainerKind::Init,
        Some(berth_manifest::Startup::Sidecar(_)) => ContainerKind::Sidecar,
        None if plan.pod.ephemeral.iter().any(|one| named(&one.container)) => ContainerKind::Ephemeral,
        None => ContainerKind::Standard,
    }
}

/// The id of a container that runs. One that does not has no processes to look at; the debugger starts without it.
fn running(view: &PodView, name: &str) -> Option<String> {
    let container = node::attempt(view, name, None)?;
    matches!(container.state, ContainerState::Running { .. }).then(|| container.id.to_string())
}

/// The attempt before the present one can be looked at; those before that go.
async fn remove_old_attempts(node: &Node, view: &PodView, name: &str, attempt: u32) -> Result<(), String> {
    let old = view.containers.values().filter(|container| {
        let (its_name, its_attempt) = container.name_and_attempt();
        its_name == name && its_attempt + 1 < attempt
    });
    for container in old {
        node.manager.remove_container(container.id.as_str()).await.map_err(text)?;
        let log = PathBuf::from(&container.log_path);
        if let Err(error) = blocking(move || logs::remove(&log)).await {
            tracing::warn!(log = container.log_path, %error, "cannot remove the log of an old attempt");
        }
    }
    Ok(())
}

/// Rotates the logs of what runs, and sees whether the volumes are within their limits.
pub(crate) async fn keep_house(node: Arc<Node>, plan: Arc<Plan>) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(view) = node.sandbox(&plan.record.uid) else { return outcome };
    let running = view.containers.values();
    for container in running.filter(|one| matches!(one.state, ContainerState::Running { .. })) {
        let log = Path::new(&container.log_path);
        if let Err(error) = logs::rotate(&node.manager, container.id.as_str(), log, Limits::default()).await {
            tracing::warn!(error = text(error), "a log grows on");
        }
    }
    match volumes(&node, &plan).over_limit(&plan.pod).await {
        Ok(None) => {}
        Ok(Some(Excess { volume, used, limit })) => {
            let why = format!("volume {volume} holds {used} bytes, and its sizeLimit is {limit}");
            outcome.noted.push(Noted::warning("", "Evicted", why.clone()));
            outcome.event = Some(Event::Evicted { why });
        }
        Err(error) => tracing::warn!(error = text(error), "cannot measure a pod's volumes"),
    }
    outcome
}

/// Ends a container; its exit is seen by itself.
pub(crate) async fn stop(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    attempt: u32,
    grace: Duration,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut grace = grace;
    loop {
        let view = node.sandbox(&plan.record.uid);
        let Some(container) = view.as_deref().and_then(|view| node::attempt(view, &name, Some(attempt)))
        else {
            return outcome;
        };
        match node.manager.stop_container(container.id.as_str(), grace).await {
            Ok(()) => return outcome,
            Err(error) => outcome.noted.push(Noted::warning(&name, "FailedKillContainer", text(error))),
        }
        sleep(AGAIN).await;
        grace = Duration::ZERO;
    }
}

/// Looks into a container's end: its last words.
pub(crate) async fn ended(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    attempt: u32,
    exit: Exit,
) -> Outcome {
    let words = match plan::container(&plan.pod, &name) {
        Some(container) => {
            let log = node.log_dir(&plan.record.uid).join(&name).join(format!("{attempt}.log"));
            extras::last_words(&node.pod_dir(&plan.record.uid), container, attempt, exit.code, &log).await
        }
        None => String::new(),
    };
    // An init container whose child was killed for memory has not done its work, whatever it says itself.
    let code = if exit.reason == "OOMKilled" && exit.code == 0 { 137 } else { exit.code };
    let message = if words.is_empty() { exit.message } else { words };
    Outcome::of(Event::Exited { name, attempt, ended: Ended { code, reason: exit.reason, message } })
}

/// Runs a hook to its end.
pub(crate) async fn hook(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    attempt: u32,
    hook: Hook,
) -> Outcome {
    let lifecycle = plan::container(&plan.pod, &name).map(|container| &container.lifecycle);
    let (action, reason) = match hook {
        Hook::PostStart => (lifecycle.and_then(|all| all.post_start.as_ref()), "FailedPostStartHook"),
        Hook::PreStop => (lifecycle.and_then(|all| all.pre_stop.as_ref()), "FailedPreStopHook"),
    };
    let failure = match (target(&node, &plan, &name, attempt), action) {
        (Some(target), Some(action)) => handlers::hook(&node.manager, &target, action).await.err(),
        // It has ended, which is said elsewhere.
        (None, _) | (_, None) => None,
    };
    let noted = failure.iter().map(|why| Noted::warning(&name, reason, why.clone())).collect();
    let event = Event::HookEnded { name, attempt, hook, failure };
    Outcome { noted, ..Outcome::of(event) }
}

/// Runs a probe once.
pub(crate) async fn probe(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    attempt: u32,
    kind: ProbeKind,
) -> Outcome {
    let probes = plan::container(&plan.pod, &name).map(|container| &container.probes);
    let probe = probes.and_then(|probes| match kind {
        ProbeKind::Startup => probes.startup.as_ref(),
        ProbeKind::Liveness => probes.liveness.as_ref(),
        ProbeKind::Readiness => probes.readiness.as_ref(),
    });
    let (Some(target), Some(probe)) = (target(&node, &plan, &name, attempt), probe) else {
        return Outcome::of(Event::Probed { name, attempt, probe: kind, success: false });
    };
    let failure = handlers::probe(&node.manager, &target, probe).await.err();
    let noted = failure.iter().map(|why| {
        let message = format!("{} probe failed: {why}", probe_name(kind));
        Noted::warning(&name, "Unhealthy", message)
    });
    let noted = noted.collect();
    let event = Event::Probed { name, attempt, probe: kind, success: failure.is_none() };
    Outcome { noted, ..Outcome::of(event) }
}

fn target(node: &Node, plan: &Plan, name: &str, attempt: u32) -> Option<Target> {
    let view = node.sandbox(&plan.record.uid)?;
    let container = node::attempt(&view, name, Some(attempt))?;
    Some(Target {
        container_id: container.id.to_string(),
        ip: view.sandbox.ips.first().copied().filter(|_| !plan.pod.host_network),
        ports: plan::container(&plan.pod, name)?.ports.clone(),
    })
}

/// The sandbox manager's own steps, as parts of a span.
fn steps(view: &PodView, beginning: &str, container: &str, parent: Option<usize>) -> Vec<Span> {
    let base = view.sandbox.created_at;
    let steps = view.timeline.steps();
    let parts = steps.iter().filter_map(|step| {
        let began = base + clock::nanos(step.began);
        Some(Span {
            name: step.name.strip_prefix(beginning)?.to_owned(),
            kind: if step.name == "sandbox: network" { Kind::Network } else { Kind::Other },
            container: container.to_owned(),
            began,
            ended: began + clock::nanos(step.took?),
            part_of: parent,
        })
    });
    parts.filter(|_| parent.is_some()).collect()
}

/// An error with its causes, in one line.
pub(crate) fn text<E: std::error::Error>(error: E) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors say their cause themselves.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
