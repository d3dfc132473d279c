//! `berth get`: a pod as Kubernetes would show it, its manifest with a status.

use berth_cri::berth::v1::{
    GetPodRequest, Pod, PodContainer,
    pod_container::{Kind, State, Terminated},
};
use serde_json::{Map, Value, json};

use crate::args::{Format, Get};
use crate::client::Client;
use crate::error::Error;
use crate::output::{age, container_state, name, phase, print, rfc3339, status, table};

pub(crate) async fn get(client: Client, args: Get) -> Result<u8, Error> {
    let request = GetPodRequest { pod: Some(args.pod.reference()) };
    let pod = client.pods().get(request).await.map_err(client.failed())?.into_inner();
    match args.output.output {
        Format::Table => print!("{}", page(&pod)),
        format => print(&document(&pod)?, format)?,
    }
    Ok(0)
}

/// For people; ephemeral containers apart from the others.
fn page(pod: &Pod) -> String {
    let (namespace, name) = name(pod);
    let mut page = format!("{namespace}/{name}  {}", status(pod));
    if !pod.message.is_empty() {
        page.push_str(&format!(": {}", pod.message));
    }
    page.push_str(&format!("\nage {}", age(pod.created_at)));
    if !pod.ips.is_empty() {
        page.push_str(&format!(", addresses {}", pod.ips.join(", ")));
    }
    if !pod.source.is_empty() {
        page.push_str(&format!(", from {}", pod.source));
    }
    let held: Vec<_> = pod.conditions.iter().filter(|one| one.holds).map(|one| one.r#type.as_str()).collect();
    page.push_str(&format!("\nconditions {}\n\n", held.join(", ")));
    let (ephemeral, own): (Vec<_>, Vec<_>) =
        pod.containers.iter().partition(|one| one.kind() == Kind::Ephemeral);
    let heads = ["CONTAINER", "KIND", "READY", "RESTARTS", "STATE", "IMAGE"];
    page.push_str(&table(&heads, &own.into_iter().map(row).collect::<Vec<_>>()));
    if !ephemeral.is_empty() {
        let rows: Vec<_> = ephemeral
            .into_iter()
            .map(|one| vec![one.name.clone(), one.target.clone(), container_state(one), one.image.clone()])
            .collect();
        page.push_str(&format!("\n{}", table(&["EPHEMERAL", "TARGET", "STATE", "IMAGE"], &rows)));
    }
    page
}

fn row(container: &PodContainer) -> Vec<String> {
    let kind = match container.kind() {
        Kind::Init => "init",
        Kind::Sidecar => "sidecar",
        Kind::Standard => "standard",
        Kind::Ephemeral => "ephemeral",
    };
    vec![
        container.name.clone(),
        kind.to_owned(),
        if container.ready { "yes" } else { "no" }.to_owned(),
        container.restarts.to_string(),
        container_state(container),
        container.image.clone(),
    ]
}

/// A v1 Pod.
pub(crate) fn document(pod: &Pod) -> Result<Value, Error> {
    let mut document: Value = serde_json::from_str(&pod.manifest)
        .map_err(|error| Error::Failed(format!("the daemon's manifest cannot be read: {error}")))?;
    if let Value::Object(fields) = &mut document {
        fields.insert("status".to_owned(), Value::Object(pod_status(pod)));
    }
    Ok(document)
}

fn pod_status(pod: &Pod) -> Map<String, Value> {
    let conditions = pod.conditions.iter().map(|one| {
        json!({
            "type": one.r#type,
            "status": if one.holds { "True" } else { "False" },
            "lastTransitionTime": rfc3339(one.since),
        })
    });
    // Sidecars stand among the init containers, unless the manifest has them among the plain ones.
    let manifest: Value = serde_json::from_str(&pod.manifest).unwrap_or_default();
    let is_init = |container: &PodContainer| {
        let listed = manifest["spec"]["initContainers"].as_array();
        listed.is_some_and(|all| all.iter().any(|one| one["name"] == container.name.as_str()))
    };
    let statuses = |wanted: &dyn Fn(&PodContainer) -> bool| -> Vec<Value> {
        pod.containers.iter().filter(|one| wanted(one)).map(container_status).collect()
    };
    let ips: Vec<_> = pod.ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let status = json!({
        "phase": phase(pod),
        "reason": pod.reason,
        "message": pod.message,
        "conditions": conditions.collect::<Vec<_>>(),
        "startTime": rfc3339(pod.created_at),
        "podIP": pod.ips.first(),
        "podIPs": ips,
        "initContainerStatuses": statuses(&is_init),
        "containerStatuses": statuses(&|one| one.kind() != Kind::Ephemeral && !is_init(one)),
        "ephemeralContainerStatuses": statuses(&|one| one.kind() == Kind::Ephemeral),
    });
    pruned(status)
}

fn container_status(container: &PodContainer) -> Value {
    let state = match &container.state {
        Some(State::Waiting(waiting)) => {
            json!({ "waiting": pruned(json!({ "reason": waiting.reason, "message": waiting.message })) })
        }
        Some(State::Running(running)) => json!({ "running": { "startedAt": rfc3339(running.since) } }),
        Some(State::Terminated(ended)) => json!({ "terminated": terminated(ended) }),
        None => json!({}),
    };
    let last = container.last.as_ref().map(|ended| json!({ "terminated": terminated(ended) }));
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": container.image_id,
        "containerID": id(&container.id),
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
        "state": state,
        "lastState": last.unwrap_or_else(|| json!({})),
    })
}

fn terminated(ended: &Terminated) -> Map<String, Value> {
    let mut fields = pruned(json!({
        "reason": ended.reason,
        "message": ended.message,
        "startedAt": rfc3339(ended.started_at),
        "finishedAt": rfc3339(ended.finished_at),
        "containerID": id(&ended.id),
    }));
    fields.insert("exitCode".to_owned(), ended.exit_code.into());
    fields
}

fn id(id: &str) -> String {
    if id.is_empty() { String::new() } else { format!("berth://{id}") }
}

/// Without the fields that say nothing, as the API server leaves them out.
fn pruned(value: Value) -> Map<String, Value> {
    let Value::Object(mut fields) = value else { return Map::new() };
    fields.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    });
    fields
}
