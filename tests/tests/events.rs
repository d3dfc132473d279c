//! GetContainerEvents, as kubelet's evented PLEG listens to it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node,
    cri::{script, sleeper},
    on_node,
};
use k8s_cri::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
};
use tonic::Streaming;

async fn listen(node: &Node) -> Result<Streaming<ContainerEventResponse>> {
    Ok(node.runtime().get_container_events(GetEventsRequest {}).await?.into_inner())
}

async fn next(events: &mut Streaming<ContainerEventResponse>) -> Result<ContainerEventResponse> {
    let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await;
    event.context("no event came")??.context("the stream ended")
}

#[test]
fn a_pods_life_is_told_to_everybody_with_the_whole_pod() {
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    on_node(async |node| {
        let mut listeners = [listen(node).await?, listen(node).await?];
        let pod = node.run_pod(node.pod("web")).await?;
        let main = pod.run(sleeper("main")).await?;
        let short = pod.run(script("short", "exit 3")).await?;
        short.wait_exited().await?;
        short.remove().await?;
        main.stop(0).await?;
        pod.stop().await?;
        pod.remove().await?;

        let expected = [
            (Created, &pod.id),
            (Started, &pod.id),
            (Created, &main.id),
            (Started, &main.id),
            (Created, &short.id),
            (Started, &short.id),
            (Stopped, &short.id),
            (Deleted, &short.id),
            (Stopped, &main.id),
            (Stopped, &pod.id),
            (Deleted, &pod.id),
        ];
        for events in &mut listeners {
            let mut last = 0;
            for (kind, id) in expected {
                let event = next(events).await?;
                ensure!(event.container_event_type() == kind && event.container_id == *id, "{event:?}");
                ensure!(event.created_at > last, "times do not grow: {event:?}");
                last = event.created_at;
                let status = event.pod_sandbox_status.as_ref().context("no sandbox status")?;
                ensure!(status.id == pod.id && status.metadata == pod.config.metadata, "{event:?}");
                let states: Vec<(&str, ContainerState)> = event
                    .containers_statuses
                    .iter()
                    .map(|status| (status.id.as_str(), status.state()))
                    .collect();
                match (kind, id) {
                    (Stopped, id) if *id == short.id => {
                        ensure!(states.contains(&(&main.id, ContainerState::ContainerRunning)), "{event:?}");
                        ensure!(states.contains(&(&short.id, ContainerState::ContainerExited)), "{event:?}");
                    }
                    (Deleted, id) if *id == short.id => ensure!(states.len() == 1, "{event:?}"),
                    (Stopped, id) if *id == pod.id => {
                        ensure!(status.state() == PodSandboxState::SandboxNotready, "{event:?}");
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_program_that_cannot_be_executed_is_a_stop() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let broken = pod.create(berth_tests::cri::container("broken", &["/no/such/program"])).await?;
        let mut events = listen(node).await?;
        ensure!(broken.start().await.is_err());
        let event = next(&mut events).await?;
        ensure!(event.container_event_type() == ContainerEventType::ContainerStoppedEvent, "{event:?}");
        ensure!(event.containers_statuses[0].reason == "StartError", "{event:?}");
        Ok(())
    });
}

#[test]
fn the_stream_ends_with_the_daemon_and_a_new_one_tells_nothing_old() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut events = listen(node).await?;
        node.restart().await?;
        ensure!(!matches!(events.message().await, Ok(Some(_))), "an event of nothing");
        let mut events = listen(node).await?;
        let main = pod.run(sleeper("main")).await?;
        ensure!(next(&mut events).await?.container_id == main.id);
        Ok(())
    });
}
