//! The daemon dies, the supervisor dies, the machine reboots, the caller goes away.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, PATIENCE,
    cri::{Container, Pod, script, sleeper},
    host, on_node, wait_until,
};
use k8s_cri::v1::{
    ContainerState, ContainerStatus, CreateContainerRequest, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxState, PodSandboxStatus, RunPodSandboxRequest,
};
use nix::sys::signal::Signal;

async fn statuses(
    pods: &[&Pod<'_>],
    containers: &[&Container<'_>],
) -> Result<(Vec<PodSandboxStatus>, Vec<ContainerStatus>)> {
    let mut found = (Vec::new(), Vec::new());
    for pod in pods {
        found.0.push(pod.status().await?);
    }
    for container in containers {
        found.1.push(container.status().await?);
    }
    Ok(found)
}

#[test]
fn a_killed_daemon_finds_everything_as_it_left_it() {
    on_node(async |node| {
        let (ready, stopped) =
            (node.run_pod(node.pod("ready")).await?, node.run_pod(node.pod("stopped")).await?);
        let running = ready.run(sleeper("running")).await?;
        let exited = ready.run(script("exited", "echo last words; exit 3")).await?;
        exited.wait_exited().await?;
        let created = ready.create(sleeper("created")).await?;
        let inside = stopped.run(sleeper("inside")).await?;
        stopped.stop().await?;
        let pods = [&ready, &stopped];
        let containers = [&running, &exited, &created, &inside];
        let before = statuses(&pods, &containers).await?;
        let pids = running.wait_asleep().await?;
        for _ in 0..3 {
            node.kill9().await?;
            node.start().await?;
            let after = statuses(&pods, &containers).await?;
            assert_eq!(before, after);
        }
        ensure!(running.pids()? == pids);
        ensure!(running.sh("echo works").await? == "works\n");
        created.start().await?;
        ensure!(created.status().await?.state() == ContainerState::ContainerRunning);
        Ok(())
    });
}

#[test]
fn an_exit_while_the_daemon_is_away_is_known_afterwards_with_code_time_and_log() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container =
            pod.run(script("main", "while ! test -e /go; do sleep 0.05; done; seq 1 5000; exit 7")).await?;
        container.wait_file("/bin/sh").await?;
        let first = container.pid()?;
        node.kill9().await?;
        std::fs::write(format!("/proc/{first}/root/go"), "")?;
        wait_until("the container to end without a daemon", PATIENCE, async || {
            ensure!(container.pids()?.is_empty(), "it runs");
            Ok(())
        })
        .await?;
        let ended = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.start().await?;
        let status = container.status().await?;
        ensure!(status.state() == ContainerState::ContainerExited && status.exit_code == 7, "{status:?}");
        let late = u128::try_from(status.finished_at)?.abs_diff(ended);
        ensure!(late < 250_000_000, "the exit is {late} ns off: it is the time of the restart");
        ensure!(container.log()?.len() == 5000);
        Ok(())
    });
}

#[test]
fn logs_go_on_while_the_daemon_is_away() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(script("main", "while :; do echo tick; sleep 0.02; done")).await?;
        container.wait_log(2).await?;
        node.kill9().await?;
        let count = container.log()?.len();
        container.wait_log(count + 10).await?;
        node.start().await?;
        let count = container.log()?.len();
        container.wait_log(count + 10).await?;
        Ok(())
    });
}

#[test]
fn the_pods_address_stays_reserved() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let ips = pod.ips().await?;
        node.kill9().await?;
        node.start().await?;
        ensure!(pod.ips().await? == ips);
        for number in 0..5 {
            let other = node.run_pod(node.pod(&format!("other-{number}"))).await?;
            ensure!(other.ips().await?.iter().all(|ip| !ips.contains(ip)), "given out twice");
        }
        Ok(())
    });
}

/// Kills the daemon while it makes pods, over and over; whatever was answered must hold, whatever was not must either
/// be whole or leave nothing. The leak check at the end sees the rest.
#[test]
fn a_daemon_killed_in_the_middle_keeps_what_it_answered_and_sweeps_the_rest() {
    on_node(async |node| {
        let mut answered: Vec<Pod<'_>> = Vec::new();
        for round in 0..6_u64 {
            let making = async {
                for number in 0..20 {
                    let pod = node.run_pod(node.pod(&format!("pod-{round}-{number}"))).await?;
                    answered.push(pod);
                    let Some(pod) = answered.last() else { bail!("just pushed") };
                    pod.run(sleeper("main")).await?;
                }
                Ok(())
            };
            // Kills at other moments each round.
            let kill = async {
                tokio::time::sleep(Duration::from_millis(40 + 35 * round)).await;
                node.kill9().await
            };
            let (_, killed) = futures::join!(making, kill);
            killed?;
            node.start().await?;
            for pod in &answered {
                let status = pod.status().await.with_context(|| format!("pod {} was answered", pod.id))?;
                ensure!(status.state() == PodSandboxState::SandboxReady, "{status:?}");
            }
            // A retry of whatever was in flight finds or makes it.
            for number in 0..20 {
                let config = node.pod(&format!("pod-{round}-{number}"));
                let again = node.run_pod(config).await?;
                let main = again.create(sleeper("main")).await?;
                if main.status().await?.state() != ContainerState::ContainerRunning {
                    main.start().await?;
                }
                again.remove().await?;
                answered.retain(|pod| pod.id != again.id);
            }
        }
        Ok(())
    });
}

#[test]
fn a_cancelled_run_leaves_a_whole_pod_or_nothing_and_a_retry_joins_it() {
    on_node(async |node| {
        for wait in [1_u64, 3, 6, 10, 20] {
            let config = node.pod(&format!("cancelled-{wait}"));
            std::fs::create_dir_all(&config.log_directory)?;
            let request =
                RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            let mut runtime = node.runtime();
            let given_up =
                tokio::time::timeout(Duration::from_millis(wait), runtime.run_pod_sandbox(request)).await;
            let pod = node.run_pod(config).await?;
            if let Ok(Ok(answer)) = given_up {
                ensure!(answer.into_inner().pod_sandbox_id == pod.id);
            }
            ensure!(pod.status().await?.state() == PodSandboxState::SandboxReady);
            let listed = node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await?;
            let listed = listed.into_inner().items;
            ensure!(listed.len() == 1, "{listed:?}");

            let config = sleeper("main");
            let request = CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(config.clone()),
                sandbox_config: Some(pod.config.clone()),
            };
            let _ =
                tokio::time::timeout(Duration::from_millis(wait), runtime.create_container(request)).await;
            let container = pod.run(config).await?;
            let listed = node.runtime().list_containers(ListContainersRequest::default()).await?;
            let listed = listed.into_inner().containers;
            ensure!(listed.len() == 1 && listed[0].id == container.id, "{listed:?}");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn after_a_reboot_all_is_dead_and_known_and_the_images_are_there() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let before = (pod.status().await?, container.status().await?);
        let images = node.image_list().await?;
        node.reboot().await?;
        let sandbox = pod.status().await?;
        ensure!(sandbox.state() == PodSandboxState::SandboxNotready, "{sandbox:?}");
        ensure!(sandbox.metadata == before.0.metadata && sandbox.created_at == before.0.created_at);
        let status = container.status().await?;
        ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
        ensure!(status.exit_code == 255 && status.finished_at > 0, "{status:?}");
        ensure!(status.started_at == before.1.started_at && status.log_path == before.1.log_path);
        ensure!(node.image_list().await? == images);
        // kubelet makes the next attempt beside the dead one, and removes that later.
        let mut next = node.pod("web");
        next.metadata.get_or_insert_default().attempt = 1;
        let next = node.run_pod(next).await?;
        next.run(sleeper("main")).await?;
        container.remove().await?;
        pod.stop().await?;
        pod.remove().await?;
        next.remove().await
    });
}

#[test]
fn a_killed_supervisor_is_an_honest_loss() {
    on_node(async |node| {
        let (pod, other) = (node.run_pod(node.pod("web")).await?, node.run_pod(node.pod("other")).await?);
        let container = pod.run(sleeper("main")).await?;
        let unharmed = other.run(sleeper("main")).await?;
        host::send(host::supervisor(&pod.id)?, Signal::SIGKILL)?;
        expect_lost(&pod, &container).await?;
        ensure!(unharmed.sh("echo fine").await? == "fine\n");
        pod.stop().await?;
        pod.remove().await
    });
}

#[test]
fn a_supervisor_killed_in_the_middle_of_a_stop_keeps_nobody_from_stopping() {
    on_node(async |node: &Node| {
        if host::cgroup_version() == 2 {
            // There SIGKILL ends what is frozen, and a stop cannot be held in its middle.
            return Ok(());
        }
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let freezer = host::cgroup_folder(container.pid()?, "freezer")?.join("freezer.state");
        std::fs::write(&freezer, "FROZEN")?;
        let supervisor = host::supervisor(&pod.id)?;
        let kill = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            host::send(supervisor, Signal::SIGKILL)
        };
        let (stopped, killed) = tokio::join!(pod.stop(), kill);
        killed?;
        ensure!(stopped.is_err(), "a frozen container ended");
        // The daemon may have been faster to end it, and its cgroup.
        match std::fs::write(&freezer, "THAWED") {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            thawed => thawed?,
        }
        expect_lost(&pod, &container).await?;
        pod.stop().await?;
        pod.remove().await
    });
}

#[test]
fn a_supervisor_killed_while_the_daemon_was_away_is_found_out() {
    on_node(async |node: &Node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let supervisor = host::supervisor(&pod.id)?;
        node.kill9().await?;
        host::send(supervisor, Signal::SIGKILL)?;
        node.start().await?;
        expect_lost(&pod, &container).await
    });
}

/// Its processes are ended, its container is Exited with 255 and a message, the sandbox is NotReady.
async fn expect_lost(pod: &Pod<'_>, container: &Container<'_>) -> Result<()> {
    let status = container.wait_exited().await?;
    ensure!(status.exit_code == 255 && status.message.contains("supervisor"), "{status:?}");
    ensure!(container.pids()?.is_empty(), "processes nobody owns: {:?}", container.pids()?);
    ensure!(pod.status().await?.state() == PodSandboxState::SandboxNotready);
    Ok(())
}
