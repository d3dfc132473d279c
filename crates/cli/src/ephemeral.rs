//! `berth ephemeral`, `berth debug`.

use berth_cri::berth::v1::{
    AddEphemeralRequest, AttachToPodRequest, LogsRequest, Manifest, PodContainer, PodRef,
    pod_container::State, watch_pods_response::What,
};
use serde_json::json;

use crate::args::{Debug, Ephemeral, Format, reference};
use crate::client::Client;
use crate::error::Error;
use crate::output::{now, print};
use crate::{get, logs, run, stream};

pub(crate) async fn add(client: Client, args: Ephemeral) -> Result<u8, Error> {
    let pod = args.pod.as_deref().map(|pod| reference(pod, "default"));
    let manifest = run::read(&args.filename)?;
    let request = AddEphemeralRequest { pod, manifest: Some(manifest) };
    let pod = client.pods().add_ephemeral(request).await.map_err(client.failed())?.into_inner();
    if args.output.output != Format::Table {
        print(&get::document(&pod)?, args.output.output)?;
        return Ok(0);
    }
    let added = pod.pod.unwrap_or_default();
    println!("{}/{} has its ephemeral containers (berth get {})", added.namespace, added.name, added.name);
    Ok(0)
}

pub(crate) async fn debug(client: Client, args: Debug) -> Result<u8, Error> {
    if args.tty && !stream::terminal::is_terminal() {
        return Err(Error::Usage("--tty: standard input is no terminal".to_owned()));
    }
    let pod = args.pod.reference();
    // kubectl's names end in five letters as well, so that each debugger has one of its own.
    let name = args.name.clone().unwrap_or_else(|| format!("debugger-{:05x}", (now() / 1000) & 0xfffff));
    let mut container = json!({
        "name": name,
        "image": args.image,
        "stdin": args.stdin,
        "tty": args.tty,
        "terminationMessagePolicy": "File",
    });
    if let Some(target) = &args.target {
        container["targetContainerName"] = target.as_str().into();
    }
    if !args.command.is_empty() {
        container["command"] = args.command.clone().into();
    }
    let document = json!({
        "apiVersion": "v1",
        "kind": "EphemeralContainers",
        "metadata": { "name": pod.name, "namespace": pod.namespace },
        "ephemeralContainers": [container],
    });
    let manifest = Manifest { name: "berth debug".to_owned(), text: document.to_string() };
    let request = AddEphemeralRequest { pod: Some(pod.clone()), manifest: Some(manifest) };
    client.pods().add_ephemeral(request).await.map_err(client.failed())?;
    eprintln!("ephemeral container {name} is added to {}/{}", pod.namespace, pod.name);
    let interactive = args.stdin || args.tty;
    let ended = wait_started(&client, &pod, &name).await?;
    if interactive && ended.is_none() {
        let request = AttachToPodRequest { pod: Some(pod), container: name, stdin: args.stdin };
        return stream::attach_to(&client, request, &args.detach.detach_keys).await;
    }
    let request = LogsRequest {
        pod: Some(pod.clone()),
        container: name.clone(),
        follow: true,
        ..LogsRequest::default()
    };
    logs::print_all(&client, request, false).await?;
    let code = match ended {
        Some(code) => code,
        None => wait_ended(&client, &pod, &name).await?,
    };
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
}

/// Waits until the container runs, or has ended: then its exit code.
async fn wait_started(client: &Client, pod: &PodRef, name: &str) -> Result<Option<i32>, Error> {
    let mut said = String::new();
    wait(client, pod, name, |container| {
        let ended = match &container.state {
            Some(State::Running(_)) => None,
            Some(State::Terminated(ended)) => Some(ended.exit_code),
            Some(State::Waiting(waiting)) if !waiting.message.is_empty() && waiting.message != said => {
                eprintln!("{}: {}", waiting.reason, waiting.message);
                said.clone_from(&waiting.message);
                return None;
            }
            Some(State::Waiting(_)) | None => return None,
        };
        if !container.remains_at.is_empty() {
            eprintln!("{} does not run; the files it left are in {}", container.target, container.remains_at);
        }
        Some(ended)
    })
    .await
}

async fn wait_ended(client: &Client, pod: &PodRef, name: &str) -> Result<i32, Error> {
    wait(client, pod, name, |container| match &container.state {
        Some(State::Terminated(ended)) => Some(ended.exit_code),
        _ => None,
    })
    .await
}

async fn wait<T>(
    client: &Client,
    pod: &PodRef,
    name: &str,
    mut look: impl FnMut(&PodContainer) -> Option<T>,
) -> Result<T, Error> {
    let mut changes = client.watch(Some(pod.clone())).await?;
    loop {
        match changes.next().await?.what {
            Some(What::Pod(state)) => {
                let container = state.containers.iter().find(|one| one.name == name);
                if let Some(found) = container.and_then(&mut look) {
                    return Ok(found);
                }
                if state.finished_at != 0 {
                    return Err(Error::Failed(format!("pod {} has ended", pod.name)));
                }
            }
            Some(What::Removed(_)) => return Err(Error::Failed(format!("pod {} was removed", pod.name))),
            Some(What::Synced(_)) | None => {}
        }
    }
}
