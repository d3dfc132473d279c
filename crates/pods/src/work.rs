//! The steps of a pod's life: each is begun by the pod's task, runs beside it, and comes back with what became of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_manifest::cri;
use berth_sandbox_manager::sequence::{Ended, Event, Hook, ProbeAnswer, ProbeKind};
use berth_sandbox_manager::{
    ContainerKind, ContainerState, Error as ManagerError, Exit, PodView, SandboxPhase,
};
use tokio::time::sleep;

use crate::handlers::{self, Target, Unwell};
use crate::logs::{self, Limits};
use crate::node::{self, Node};
use crate::record::Plan;
use crate::task::probe_name;
use crate::timeline::{Kind, Span};
use crate::volumes::{Excess, Volumes};
use crate::{Error, clock, create, plan};
use crate::{extras, facts};

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
    let node_facts = node.facts(plan).await;
    let facts = node_facts.of(uid, &[], &log_dir, plan.ids());
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

pub(crate) fn volumes(node: &Node, plan: &Plan) -> Volumes {
    Volumes::new(node.pod_dir(&plan.record.uid))
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
    let id = match create::create(&node, &plan, &view, container, attempt).await {
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

/// Looks into a container's end.
pub(crate) async fn ended(
    node: Arc<Node>,
    plan: Arc<Plan>,
    name: String,
    attempt: u32,
    exit: Exit,
) -> Outcome {
    let ended = last_words(&node, &plan, &name, attempt, exit).await;
    Outcome::of(Event::Exited { name, attempt, ended })
}

/// An end with the container's last words.
pub(crate) async fn last_words(node: &Node, plan: &Plan, name: &str, attempt: u32, exit: Exit) -> Ended {
    let words = match plan::container(&plan.pod, name) {
        Some(container) => {
            let log = node.log_dir(&plan.record.uid).join(name).join(format!("{attempt}.log"));
            extras::last_words(&node.pod_dir(&plan.record.uid), container, attempt, exit.code, &log).await
        }
        None => String::new(),
    };
    // An init container whose child was killed for memory has not done its work, whatever it says itself.
    let killed = exit.reason == "OOMKilled" && exit.code == 0;
    let failed = killed && create::kind(plan, name) == ContainerKind::Init;
    let message = if words.is_empty() { exit.message } else { words };
    Ended { code: if failed { 137 } else { exit.code }, reason: exit.reason, message }
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
        // It has ended, which is said elsewhere.
        let answer = ProbeAnswer::Unknown;
        return Outcome::of(Event::Probed { name, attempt, probe: kind, answer });
    };
    let (answer, noted) = match handlers::probe(&node.manager, &target, probe).await {
        Ok(()) => (ProbeAnswer::Success, None),
        Err(Unwell::Failed(why)) => {
            let message = format!("{} probe failed: {why}", probe_name(kind));
            (ProbeAnswer::Failure, Some(Noted::warning(&name, "Unhealthy", message)))
        }
        Err(Unwell::NotAsked(why)) => {
            let message = format!("{} probe could not be run: {why}", probe_name(kind));
            (ProbeAnswer::Unknown, Some(Noted::warning(&name, "ProbeWarning", message)))
        }
    };
    let event = Event::Probed { name, attempt, probe: kind, answer };
    Outcome { noted: noted.into_iter().collect(), ..Outcome::of(event) }
}

fn target(node: &Node, plan: &Plan, name: &str, attempt: u32) -> Option<Target> {
    let view = node.sandbox(&plan.record.uid)?;
    let container = node::attempt(&view, name, Some(attempt))?;
    let ip = match plan.pod.host_network {
        true => facts::addresses().into_iter().next(),
        false => view.sandbox.ips.first().copied(),
    };
    Some(Target {
        container_id: container.id.to_string(),
        ip,
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
