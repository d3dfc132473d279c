//! Containers: life, status, what they run with, and how they end.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, Options,
    cri::{Container, code_of, container, image_spec, script, security, sleeper},
    image::{Config, busybox},
    on_node, on_node_with,
};
use k8s_cri::v1::{
    ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStateValue,
    ContainerStatusRequest, KeyValue, ListContainersRequest, RemoveContainerRequest, StopContainerRequest,
};

const UNKNOWN: &str = "7f2a9e1c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e0d3c3b1e5f3c4f2bb9be";

async fn ids(node: &Node, filter: ContainerFilter) -> Result<Vec<String>> {
    let request = ListContainersRequest { filter: Some(filter) };
    let listed = node.runtime().list_containers(request).await?.into_inner().containers;
    Ok(listed.into_iter().map(|container| container.id).collect())
}

#[test]
fn a_container_goes_from_created_over_running_to_exited() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = script("main", "echo out; exit 7");
        config.labels = HashMap::from([("role".to_owned(), "job".to_owned())]);
        config.annotations =
            HashMap::from([("io.kubernetes.container.hash".to_owned(), "abc123".to_owned())]);
        let container = pod.create(config.clone()).await?;
        let created = container.status().await?;
        ensure!(created.state() == ContainerState::ContainerCreated, "{created:?}");
        ensure!(created.started_at == 0 && created.finished_at == 0, "{created:?}");
        ensure!(created.metadata == config.metadata, "{created:?}");
        ensure!(created.labels == config.labels && created.annotations == config.annotations, "{created:?}");
        ensure!(created.log_path == container.log_path.display().to_string(), "{created:?}");
        let Some(image) = node.image("busybox").await? else { bail!("no image") };
        ensure!(created.image_ref == image.id || image.repo_digests.contains(&created.image_ref));
        container.start().await?;
        ensure!(container.log_path.exists(), "kubelet links the log right after StartContainer");
        let exited = container.wait_exited().await?;
        ensure!(exited.exit_code == 7 && exited.reason == "Error", "{exited:?}");
        ensure!(exited.created_at <= exited.started_at && exited.started_at <= exited.finished_at);
        ensure!(exited.created_at == created.created_at);
        container.remove().await?;
        ensure!(ids(node, ContainerFilter::default()).await?.is_empty());
        ensure!(container.log_path.exists(), "logs are kubelet's to remove");
        Ok(())
    });
}

#[test]
fn success_is_reported_as_completed() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let exited = pod.run(container("main", &["true"])).await?.wait_exited().await?;
        ensure!(exited.exit_code == 0 && exited.reason == "Completed", "{exited:?}");
        Ok(())
    });
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        // As its pid namespace's first process it can't kill itself with an ordinary signal: its child does.
        let exited = pod.run(script("main", "sh -c 'kill -SEGV $$'; exit $?")).await?.wait_exited().await?;
        ensure!(exited.exit_code == 139, "{exited:?}");
        let killed = pod.run(sleeper("killed")).await?;
        killed.stop(0).await?;
        ensure!(killed.status().await?.exit_code == 137);
        Ok(())
    });
}

#[test]
fn a_missing_program_is_starts_error_and_the_container_is_not_running() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        for (name, command) in [
            ("missing", "/no/such/program"),
            ("not-in-path", "no-such-program"),
            ("not-executable", "/etc/passwd"),
            ("folder", "/etc"),
        ] {
            let container = pod.create(container(name, &[command])).await?;
            let Err(error) = container.start().await else { bail!("{command} was started") };
            ensure!(format!("{error:#}").contains(command), "{command} is not named in {error:#}");
            let status = container.status().await?;
            ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
            ensure!(status.exit_code != 0 && status.finished_at > 0, "{status:?}");
            ensure!(status.reason == "StartError", "{status:?}");
            container.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn the_images_command_arguments_environment_and_folder_apply_unless_overridden() {
    on_node_with(Options::without_images(), async |node| {
        let mut image = busybox()?;
        image.config = Config {
            entrypoint: vec!["echo".to_owned(), "entry".to_owned()],
            cmd: vec!["default".to_owned()],
            env: vec!["PATH=/bin".to_owned(), "COLOUR=blue".to_owned(), "SIZE=big".to_owned()],
            working_dir: "/var/www".to_owned(),
            ..Config::default()
        };
        node.registry().push("library/configured", "latest", &image.build()?);
        node.pull("configured").await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let with = |name: &str, command: &[&str], args: &[&str]| ContainerConfig {
            args: args.iter().map(|word| (*word).to_owned()).collect(),
            image: Some(image_spec("configured")),
            ..container(name, command)
        };
        ensure!(pod.output_of(with("plain", &[], &[])).await? == "entry default\n");
        ensure!(pod.output_of(with("args", &[], &["given"])).await? == "entry given\n");
        // A command of its own drops the image's arguments too.
        ensure!(pod.output_of(with("command", &["echo", "own"], &[])).await? == "own\n");
        ensure!(pod.output_of(with("both", &["echo"], &["own", "given"])).await? == "own given\n");

        let mut config = with("env", &["sh", "-c", "echo $COLOUR $SIZE $PWD $HOME"], &[]);
        config.envs = vec![KeyValue { key: "SIZE".to_owned(), value: "small".to_owned() }];
        ensure!(pod.output_of(config).await? == "blue small /var/www /root\n");
        let mut config = with("folder", &["pwd"], &[]);
        config.working_dir = "/made/on/the/way".to_owned();
        ensure!(pod.output_of(config).await? == "/made/on/the/way\n");
        Ok(())
    });
}

#[test]
fn stop_sends_term_and_kills_the_whole_container_after_the_grace() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let polite = pod
            .run(script("polite", "trap 'echo bye; exit 3' TERM; touch /ready; while :; do sleep 0.1; done"))
            .await?;
        polite.wait_file("/ready").await?;
        polite.stop(20).await?;
        let status = polite.status().await?;
        ensure!(status.state() == ContainerState::ContainerExited && status.exit_code == 3, "{status:?}");
        ensure!(polite.log_text()? == "bye\n", "output before the end is missing");

        // As first process of its pid namespace, a shell without a trap does not even see SIGTERM.
        let deaf =
            pod.run(script("deaf", "trap '' TERM; sleep 1000 & sleep 1000 & touch /ready; wait")).await?;
        deaf.wait_file("/ready").await?;
        let begun = Instant::now();
        deaf.stop(1).await?;
        let took = begun.elapsed();
        ensure!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{took:?}");
        ensure!(deaf.status().await?.exit_code == 137);
        ensure!(deaf.pids()?.is_empty(), "children are left: {:?}", deaf.pids()?);
        Ok(())
    });
}

#[test]
fn the_images_stop_signal_is_used() {
    on_node_with(Options::without_images(), async |node| {
        let mut image = busybox()?;
        image.config.stop_signal = "SIGUSR1".to_owned();
        node.registry().push("library/stopped", "latest", &image.build()?);
        node.pull("stopped").await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = script("main", "trap 'exit 5' USR1; touch /ready; while :; do sleep 0.1; done");
        config.image = Some(image_spec("stopped"));
        let container = pod.run(config).await?;
        container.wait_file("/ready").await?;
        container.stop(20).await?;
        ensure!(container.status().await?.exit_code == 5, "{:?}", container.status().await?);
        Ok(())
    });
}

#[test]
fn stop_reaches_a_program_that_has_not_yet_set_its_handler() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("young")).await?;
        let slow = "sleep 0.5; trap 'exit 7' TERM; while :; do sleep 0.05; done";
        let container = pod.run(script("slow", slow)).await?;
        let begin = Instant::now();
        container.stop(20).await?;
        ensure!(begin.elapsed() < Duration::from_secs(10), "it was killed after {:?}", begin.elapsed());
        let status = container.status().await?;
        ensure!(status.exit_code == 7, "exit code {}", status.exit_code);
        Ok(())
    });
}

#[test]
fn a_later_stop_with_less_grace_wins() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container =
            pod.run(script("main", "trap '' TERM; touch /ready; while :; do sleep 0.1; done")).await?;
        container.wait_file("/ready").await?;
        let begun = Instant::now();
        let (patient, hasty) = futures::join!(container.stop(300), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            container.stop(0).await
        });
        patient?;
        hasty?;
        ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        Ok(())
    });
}

#[test]
fn stop_and_remove_are_idempotent_in_every_state_and_for_unknown_ids() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let created = pod.create(sleeper("created")).await?;
        created.stop(0).await?;
        ensure!(created.start().await.is_err(), "a container stopped before its start was started");
        created.remove().await?;
        created.remove().await?;
        let running = pod.run(sleeper("running")).await?;
        running.remove().await?;
        ensure!(running.pids()?.is_empty());
        let exited = pod.run(container("exited", &["true"])).await?;
        exited.wait_exited().await?;
        exited.stop(0).await?;
        exited.remove().await?;
        let unknown = || UNKNOWN.to_owned();
        let mut runtime = node.runtime();
        runtime.stop_container(StopContainerRequest { container_id: unknown(), timeout: 0 }).await?;
        runtime.remove_container(RemoveContainerRequest { container_id: unknown() }).await?;
        let request = ContainerStatusRequest { container_id: unknown(), verbose: false };
        let Err(status) = runtime.container_status(request).await else { bail!("it has one") };
        ensure!(status.code() == tonic::Code::NotFound, "{status}");
        Ok(())
    });
}

#[test]
fn a_container_is_started_once() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let Err(error) = container.start().await else { bail!("it was started twice") };
        ensure!(code_of(&error) == Some(tonic::Code::FailedPrecondition), "{error:#}");
        Ok(())
    });
}

#[test]
fn creating_the_same_container_again_gives_the_same_one() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let twice = futures::future::join_all((0..4).map(|_| pod.create(sleeper("main")))).await;
        let mut found: Vec<String> = twice
            .into_iter()
            .map(|container| container.map(|container| container.id))
            .collect::<Result<_>>()?;
        found.dedup();
        ensure!(found.len() == 1, "{found:?}");
        let mut next = sleeper("main");
        next.metadata = Some(ContainerMetadata { name: "main".to_owned(), attempt: 1 });
        ensure!(pod.create(next).await?.id != found[0]);
        Ok(())
    });
}

#[test]
fn list_filters_by_id_prefix_pod_state_and_labels_together() {
    on_node(async |node| {
        let (first, second) =
            (node.run_pod(node.pod("first")).await?, node.run_pod(node.pod("second")).await?);
        let labelled = |name: &str, role: &str| {
            let mut config = sleeper(name);
            config.labels = HashMap::from([("role".to_owned(), role.to_owned())]);
            config
        };
        let a = first.run(labelled("a", "web")).await?;
        let b = first.create(labelled("b", "db")).await?;
        let c = second.run(labelled("c", "db")).await?;
        let sorted = async |filter: ContainerFilter| {
            let mut found = ids(node, filter).await?;
            found.sort();
            anyhow::Ok(found)
        };
        let expect = |containers: &[&Container<'_>]| {
            let mut expected: Vec<String> = containers.iter().map(|container| container.id.clone()).collect();
            expected.sort();
            expected
        };
        let none = ContainerFilter::default();
        ensure!(sorted(none.clone()).await? == expect(&[&a, &b, &c]));
        let by_id = ContainerFilter { id: a.id[..13].to_owned(), ..none.clone() };
        ensure!(sorted(by_id).await? == expect(&[&a]));
        let in_pod = ContainerFilter { pod_sandbox_id: first.id[..13].to_owned(), ..none.clone() };
        ensure!(sorted(in_pod.clone()).await? == expect(&[&a, &b]));
        let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
        ensure!(sorted(ContainerFilter { state, ..none.clone() }).await? == expect(&[&a, &c]));
        let label_selector = HashMap::from([("role".to_owned(), "db".to_owned())]);
        let labels = ContainerFilter { label_selector, ..none };
        ensure!(sorted(labels.clone()).await? == expect(&[&b, &c]));
        let both = ContainerFilter { pod_sandbox_id: in_pod.pod_sandbox_id, ..labels };
        ensure!(sorted(both).await? == expect(&[&b]));
        Ok(())
    });
}

#[test]
fn an_image_that_is_not_here_is_named_in_the_error() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        config.image = Some(image_spec("docker.io/library/absent:1"));
        let Err(error) = pod.create(config).await else { bail!("it was created") };
        ensure!(format!("{error:#}").contains("docker.io/library/absent:1"), "{error:#}");
        ensure!(code_of(&error) == Some(tonic::Code::NotFound), "{error:#}");
        Ok(())
    });
}

#[test]
fn a_container_outlives_its_images_record_and_its_status_stays_whole() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let before = container.status().await?;
        node.remove_image("busybox").await?;
        ensure!(container.sh("ls /bin/busybox").await? == "/bin/busybox\n");
        let after = container.status().await?;
        ensure!(after.image == before.image && after.image_ref == before.image_ref, "{after:?}");
        Ok(())
    });
}

#[test]
fn status_echoes_the_mounts_it_was_given_and_no_others() {
    on_node(async |node| {
        let folder = node.dir().join("volume");
        std::fs::create_dir(&folder)?;
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        config.mounts.push(k8s_cri::v1::Mount {
            container_path: "/volume".to_owned(),
            host_path: folder.display().to_string(),
            ..k8s_cri::v1::Mount::default()
        });
        let container = pod.run(config.clone()).await?;
        ensure!(container.status().await?.mounts == config.mounts);
        Ok(())
    });
}

#[test]
fn verbose_status_tells_the_first_process() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
        let info = node.runtime().container_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        ensure!(info["pid"] == container.pid()?, "{info:#}");
        Ok(())
    });
}

#[test]
fn ready_made_zombies_are_reaped() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        // Orphans go to the pid namespace's first process; with the pod's shared namespace that is berth's.
        let mut config = script("main", "(sleep 0.1 &) ; touch /ready; sleep 1000");
        security(&mut config).namespace_options.get_or_insert_default().pid =
            berth_tests::cri::NamespaceMode::Pod.into();
        let mut shared = node.pod("shared");
        berth_tests::cri::pod_namespaces(&mut shared).pid = berth_tests::cri::NamespaceMode::Pod.into();
        drop(pod);
        let pod = node.run_pod(shared).await?;
        let container = pod.run(config).await?;
        container.wait_file("/ready").await?;
        berth_tests::wait_until("the orphan to be reaped", berth_tests::PATIENCE, async || {
            let states = container.sh("cat /proc/[0-9]*/stat 2>/dev/null | cut -d' ' -f3").await?;
            ensure!(!states.contains('Z'), "{states}");
            ensure!(container.sh("pidof sleep | wc -w").await? == "1\n");
            Ok(())
        })
        .await
    });
}
