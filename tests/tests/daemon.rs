//! The daemon as a program: configuration, socket, start and end.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use anyhow::{Context, ensure};
use berth_tests::{
    Options,
    cri::{code_of, sleeper},
    host, on_node, on_node_with,
};
use k8s_cri::v1::{ContainerState, PodSandboxState, RuntimeConfigRequest, StatusRequest, VersionRequest};

#[test]
fn a_second_daemon_on_the_same_root_refuses_and_says_who_holds_it() {
    on_node_with(Options::without_images(), async |node| {
        let socket = format!("unix://{}/second.sock", node.dir().display());
        let (status, text) = node.berthd(&node.config_file(), &["--listen", &socket]).await?;
        ensure!(!status.success(), "it ran: {text}");
        ensure!(text.contains(&node.pid()?.to_string()), "the holder's pid is not in {text}");
        ensure!(text.contains(&node.root().display().to_string()), "the root is not in {text}");
        // The first one is unharmed.
        node.runtime().version(VersionRequest::default()).await?;
        Ok(())
    });
}

#[test]
fn every_fault_of_a_config_file_is_reported_at_once_with_line_and_key() {
    on_node_with(Options::without_images(), async |node| {
        let faulty = "root = \"relative/path\"\nrooot = \"/x\"\n\n[network]\nipv4_subnet = \"10.0.0.0/99\"\nmtu = \"big\"\n";
        let file = node.dir().join("faulty.toml");
        fs::write(&file, faulty)?;
        let (status, text) = node.berthd(&file, &["config"]).await?;
        ensure!(!status.success(), "it was accepted: {text}");
        for part in ["rooot", "ipv4_subnet", "mtu"] {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        for line in ["line 1", "line 2", "line 5", "line 6"] {
            ensure!(text.contains(line), "{line} is not in {text}");
        }
        Ok(())
    });
}

#[test]
fn config_prints_what_is_in_force_and_flags_win() {
    on_node_with(Options::without_images(), async |node| {
        let (status, text) = node.berthd(&node.config_file(), &["--log-level", "warn", "config"]).await?;
        ensure!(status.success(), "{text}");
        ensure!(text.contains(&format!("root = \"{}\"", node.root().display())), "{text}");
        ensure!(text.contains("log_level = \"warn\""), "{text}");
        ensure!(text.contains(&format!("bridge = \"{}\"", node.bridge())), "{text}");
        Ok(())
    });
}

#[test]
fn only_root_and_its_group_may_use_the_socket() {
    on_node_with(Options::without_images(), async |node| {
        let metadata = fs::metadata(node.socket())?;
        ensure!(metadata.permissions().mode() & 0o777 == 0o660, "{:o}", metadata.permissions().mode());
        ensure!(metadata.uid() == 0 && metadata.gid() == 0);
        Ok(())
    });
}

#[test]
fn sigterm_leaves_pods_running_and_the_next_daemon_knows_them() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let pids = container.wait_asleep().await?;
        node.stop().await?;
        ensure!(container.pids()? == pids, "the container's processes changed");
        ensure!(!node.socket().exists(), "the socket is still there");
        node.start().await?;
        ensure!(container.status().await?.state() == ContainerState::ContainerRunning);
        ensure!(pod.status().await?.state() == PodSandboxState::SandboxReady);
        ensure!(container.sh("echo still here").await? == "still here\n");
        Ok(())
    });
}

#[test]
fn the_runtime_says_who_it_is_and_that_it_is_ready() {
    on_node_with(Options::without_images(), async |node| {
        let mut runtime = node.runtime();
        let version = runtime.version(VersionRequest { version: "0.1.0".to_owned() }).await?.into_inner();
        // kubelet refuses anything else here.
        ensure!(version.version == "0.1.0", "{version:?}");
        ensure!(version.runtime_name == "berth" && version.runtime_api_version == "v1", "{version:?}");
        ensure!(!version.runtime_version.is_empty());

        let answer = runtime.status(StatusRequest { verbose: false }).await?.into_inner();
        ensure!(answer.info.is_empty(), "info without verbose");
        let status = answer.status.context("no status")?;
        for kind in ["RuntimeReady", "NetworkReady"] {
            ensure!(
                status.conditions.iter().any(|condition| condition.r#type == kind && condition.status),
                "{status:?}"
            );
        }
        let mut handlers: Vec<&str> =
            answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        handlers.sort_unstable();
        ensure!(handlers.contains(&"") && handlers.contains(&"runc") && handlers.contains(&"crun"));

        let verbose = runtime.status(StatusRequest { verbose: true }).await?.into_inner();
        ensure!(!verbose.info.is_empty());
        for text in verbose.info.values() {
            serde_json::from_str::<serde_json::Value>(text).context("info values are JSON")?;
        }
        let config = runtime.runtime_config(RuntimeConfigRequest {}).await?.into_inner();
        ensure!(
            config.linux.is_some_and(|linux| linux.cgroup_driver() == k8s_cri::v1::CgroupDriver::Cgroupfs)
        );
        Ok(())
    });
}

#[test]
fn an_unknown_handler_is_refused_by_name() {
    on_node_with(Options::without_images(), async |node| {
        let Err(error) = node.run_pod_with(node.pod("web"), "no-such-handler").await else {
            anyhow::bail!("it ran");
        };
        ensure!(code_of(&error) == Some(tonic::Code::InvalidArgument), "{error:#}");
        ensure!(format!("{error:#}").contains("no-such-handler"), "{error:#}");
        Ok(())
    });
}

#[test]
fn the_supervisor_is_one_small_process_per_pod() {
    on_node(async |node| {
        let first = node.run_pod(node.pod("first")).await?;
        let second = node.run_pod(node.pod("second")).await?;
        for pod in [&first, &second] {
            pod.run(sleeper("main")).await?;
        }
        let supervisors = host::processes()?
            .into_iter()
            .filter(|pid| host::command_line(*pid).contains("berth-pod"))
            .filter(|pid| [&first.id, &second.id].iter().any(|id| host::command_line(*pid).contains(*id)))
            .count();
        ensure!(supervisors == 2, "{supervisors} supervisors for two pods");
        Ok(())
    });
}
