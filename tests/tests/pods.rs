//! Sandboxes: their life, what is told of them, and how often one may ask.

use std::{collections::HashMap, ffi::OsStr, os::unix::ffi::OsStrExt};

use anyhow::{Result, bail, ensure};
use berth_tests::{
    Node,
    cri::{Pod, code_of, pod_linux, sleeper},
    host, on_node,
};
use k8s_cri::v1::{
    ContainerState, DnsConfig, ListPodSandboxRequest, PodSandbox, PodSandboxConfig, PodSandboxFilter,
    PodSandboxMetadata, PodSandboxState, PodSandboxStateValue, PodSandboxStatusRequest,
    RemovePodSandboxRequest, StopPodSandboxRequest,
};

/// Looks like an id and is none.
const UNKNOWN: &str = "0d3c3b1e5f3c4f2bb9be7f2a9e1c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e";

async fn list(node: &Node, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>> {
    Ok(node.runtime().list_pod_sandbox(ListPodSandboxRequest { filter }).await?.into_inner().items)
}

async fn ids(node: &Node, filter: PodSandboxFilter) -> Result<Vec<String>> {
    Ok(list(node, Some(filter)).await?.into_iter().map(|pod| pod.id).collect())
}

#[test]
fn a_foreign_mount_whose_path_is_no_text_disturbs_nothing() {
    on_node(async |node| {
        let odd = node.dir().join(OsStr::from_bytes(b"no text \xff"));
        host::with_tmpfs(&odd, "size=64k", async || {
            node.kill9().await?;
            node.start().await?;
            let pod = node.run_pod(node.pod("web")).await?;
            pod.run(sleeper("main")).await?;
            pod.stop().await?;
            pod.remove().await
        })
        .await
    });
}

#[test]
fn a_sandbox_is_ready_at_once_and_not_ready_once_stopped() {
    on_node(async |node| {
        let mut config = node.pod("web");
        config.labels.insert("app".to_owned(), "web".to_owned());
        config.annotations.insert("note".to_owned(), "kept as it is".to_owned());
        let pod = node.run_pod(config.clone()).await?;
        let status = pod.status().await?;
        ensure!(status.state() == PodSandboxState::SandboxReady, "{status:?}");
        ensure!(status.metadata == config.metadata && status.id == pod.id, "{status:?}");
        ensure!(status.labels == config.labels && status.annotations == config.annotations, "{status:?}");
        ensure!(status.created_at > 1_700_000_000_000_000_000, "{status:?}");
        pod.stop().await?;
        let stopped = pod.status().await?;
        ensure!(stopped.state() == PodSandboxState::SandboxNotready);
        ensure!(stopped.created_at == status.created_at);
        pod.remove().await?;
        ensure!(list(node, None).await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_minimal_config_is_enough() {
    on_node(async |node| {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "bare".to_owned(),
                uid: "u".to_owned(),
                namespace: "n".to_owned(),
                attempt: 2,
            }),
            log_directory: node.dir().join("logs").display().to_string(),
            ..PodSandboxConfig::default()
        };
        let pod = node.run_pod(config).await?;
        pod.run(sleeper("main")).await?;
        Ok(())
    });
}

#[test]
fn stop_and_remove_are_idempotent_also_for_unknown_ids() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        pod.stop().await?;
        pod.stop().await?;
        pod.remove().await?;
        pod.remove().await?;
        let unknown = || UNKNOWN.to_owned();
        node.runtime().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: unknown() }).await?;
        node.runtime().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: unknown() }).await?;
        Ok(())
    });
}

#[test]
fn status_of_an_unknown_sandbox_is_not_found() {
    on_node(async |node| {
        let request = PodSandboxStatusRequest { pod_sandbox_id: UNKNOWN.to_owned(), verbose: false };
        let Err(status) = node.runtime().pod_sandbox_status(request).await else { bail!("it has one") };
        ensure!(status.code() == tonic::Code::NotFound, "{status}");
        ensure!(status.message().contains(UNKNOWN), "{status}");
        Ok(())
    });
}

#[test]
fn removing_a_running_pod_kills_everything_in_it() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        ensure!(!container.pids()?.is_empty());
        pod.remove().await?;
        ensure!(container.pids()?.is_empty(), "{:?}", container.pids()?);
        ensure!(list(node, None).await?.is_empty());
        Ok(())
    });
}

#[test]
fn stopping_a_pod_stops_its_containers_and_they_stay_listed() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let containers = [pod.run(sleeper("a")).await?, pod.run(sleeper("b")).await?];
        pod.stop().await?;
        for container in &containers {
            ensure!(container.status().await?.state() == ContainerState::ContainerExited);
            ensure!(container.pids()?.is_empty());
        }
        Ok(())
    });
}

#[test]
fn nothing_can_be_created_in_a_stopped_pod() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        pod.stop().await?;
        let Err(error) = pod.create(sleeper("late")).await else { bail!("it was created") };
        ensure!(code_of(&error) == Some(tonic::Code::FailedPrecondition), "{error:#}");
        ensure!(format!("{error:#}").contains(&pod.id[..12]), "{error:#}");
        Ok(())
    });
}

#[test]
fn running_the_same_pod_again_gives_the_same_sandbox() {
    on_node(async |node| {
        let config = node.pod("web");
        let twice = futures::future::join_all((0..4).map(|_| node.run_pod(config.clone()))).await;
        let mut found: Vec<String> =
            twice.into_iter().map(|pod| pod.map(|pod| pod.id)).collect::<Result<_>>()?;
        found.push(node.run_pod(config.clone()).await?.id);
        found.dedup();
        ensure!(found.len() == 1, "several sandboxes of one name and attempt: {found:?}");
        // Another attempt is another sandbox.
        let mut next = config;
        next.metadata.get_or_insert_default().attempt = 1;
        ensure!(node.run_pod(next).await?.id != found[0]);
        Ok(())
    });
}

#[test]
fn list_filters_by_id_prefix_state_and_labels_together() {
    on_node(async |node| {
        let labelled = |name: &str, app: &str| {
            let mut config = node.pod(name);
            config.labels =
                HashMap::from([("app".to_owned(), app.to_owned()), ("all".to_owned(), String::new())]);
            config
        };
        let a = node.run_pod(labelled("a", "web")).await?;
        let b = node.run_pod(labelled("b", "db")).await?;
        b.stop().await?;
        ensure!(list(node, None).await?.len() == 2);
        let by_id = |id: &str| PodSandboxFilter { id: id.to_owned(), ..PodSandboxFilter::default() };
        ensure!(ids(node, by_id(&a.id)).await? == [a.id.as_str()]);
        ensure!(ids(node, by_id(&a.id[..13])).await? == [a.id.as_str()]);
        ensure!(ids(node, by_id(UNKNOWN)).await?.is_empty());
        let in_state = |state: PodSandboxState| PodSandboxFilter {
            state: Some(PodSandboxStateValue { state: state.into() }),
            ..PodSandboxFilter::default()
        };
        ensure!(ids(node, in_state(PodSandboxState::SandboxReady)).await? == [a.id.as_str()]);
        ensure!(ids(node, in_state(PodSandboxState::SandboxNotready)).await? == [b.id.as_str()]);
        let with_label = |app: &str| PodSandboxFilter {
            label_selector: HashMap::from([("app".to_owned(), app.to_owned())]),
            ..PodSandboxFilter::default()
        };
        ensure!(ids(node, with_label("db")).await? == [b.id.as_str()]);
        ensure!(ids(node, with_label("none")).await?.is_empty());
        let contradicting =
            PodSandboxFilter { id: a.id.clone(), ..in_state(PodSandboxState::SandboxNotready) };
        ensure!(ids(node, contradicting).await?.is_empty());
        Ok(())
    });
}

#[test]
fn ids_may_be_cut_short_as_long_as_they_are_unambiguous() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let short = Pod { node, id: pod.id[..13].to_owned(), config: pod.config.clone() };
        ensure!(short.status().await?.id == pod.id);
        let container = short.run(sleeper("main")).await?;
        ensure!(container.status().await?.id.starts_with(&container.id[..13]));
        short.stop().await?;
        short.remove().await
    });
}

#[test]
fn hostname_resolver_and_hosts_are_the_pods() {
    on_node(async |node| {
        let mut config = node.pod("web");
        config.hostname = "frontend".to_owned();
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.10.10.10".to_owned()],
            searches: vec!["google.com".to_owned()],
            options: vec!["ndots:8".to_owned()],
        });
        let pod = node.run_pod(config).await?;
        let container = pod.run(sleeper("main")).await?;
        ensure!(container.sh("hostname").await? == "frontend\n");
        let resolver = container.sh("cat /etc/resolv.conf").await?;
        for line in ["nameserver 10.10.10.10", "search google.com", "options ndots:8"] {
            ensure!(resolver.lines().any(|found| found == line), "{line} is not in {resolver:?}");
        }
        Ok(())
    });
}

#[test]
fn sysctls_of_the_pods_namespaces_are_set() {
    on_node(async |node| {
        let mut config = node.pod("web");
        pod_linux(&mut config).sysctls = HashMap::from([
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
            ("net.ipv4.ip_local_port_range".to_owned(), "20000 20100".to_owned()),
        ]);
        let pod = node.run_pod(config).await?;
        let container = pod.run(sleeper("main")).await?;
        let seen = container
            .sh("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range")
            .await?;
        ensure!(seen == "1\n20000\t20100\n", "{seen:?}");
        let host = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?;
        ensure!(host == "0\n", "the host's was changed");
        Ok(())
    });
}

#[test]
fn a_sysctl_that_does_not_belong_to_a_pod_is_refused_and_leaves_nothing() {
    on_node(async |node| {
        let mut config = node.pod("web");
        pod_linux(&mut config).sysctls = HashMap::from([("kernel.panic".to_owned(), "5".to_owned())]);
        let Err(error) = node.run_pod(config).await else { bail!("it ran") };
        ensure!(format!("{error:#}").contains("kernel.panic"), "{error:#}");
        ensure!(list(node, None).await?.is_empty(), "a failed pod is listed");
        Ok(())
    });
}

#[test]
fn the_pods_cgroup_is_below_the_parent_it_names() {
    on_node(async |node| {
        let parent = format!("{}/kubepods/burstable/pod1234", node.cgroup_root());
        let mut config = node.pod("web");
        pod_linux(&mut config).cgroup_parent = parent.clone();
        let pod = node.run_pod(config).await?;
        let container = pod.run(sleeper("main")).await?;
        let controller = if host::cgroup_version() == 1 { "pids" } else { "" };
        let path = host::cgroup_path(container.pid()?, controller)?;
        // kubelet and cAdvisor look for <parent>/<container id>.
        ensure!(path == format!("{parent}/{}", container.id), "{path}");
        pod.remove().await?;
        let left = host::cgroup_hierarchies()?
            .into_values()
            .map(|folder| folder.join(parent.trim_start_matches('/')).join(&container.id))
            .find(|folder| folder.exists());
        ensure!(left.is_none(), "{left:?} is left");
        // The parent is kubelet's to remove; here nobody else does.
        for folder in host::cgroup_hierarchies()?.into_values() {
            let mut own = folder.join(parent.trim_start_matches('/'));
            for _ in 0..3 {
                let _ = std::fs::remove_dir(&own);
                own.pop();
            }
        }
        Ok(())
    });
}

#[test]
fn a_systemd_slice_as_parent_is_refused_with_the_reason() {
    on_node(async |node| {
        let mut config = node.pod("web");
        pod_linux(&mut config).cgroup_parent = "kubepods-pod1234.slice".to_owned();
        let Err(error) = node.run_pod(config).await else { bail!("it ran") };
        ensure!(format!("{error:#}").contains("cgroupfs"), "{error:#}");
        Ok(())
    });
}

#[test]
fn many_pods_start_at_the_same_time() {
    on_node(async |node| {
        let pods = futures::future::join_all((0..12).map(async |number| {
            let pod = node.run_pod(node.pod(&format!("pod-{number}"))).await?;
            pod.run(sleeper("main")).await?;
            anyhow::Ok(pod)
        }))
        .await;
        let mut addresses = Vec::new();
        for pod in pods {
            addresses.push(pod?.ips().await?.swap_remove(0));
        }
        addresses.sort();
        addresses.dedup();
        ensure!(addresses.len() == 12, "pods share addresses: {addresses:?}");
        Ok(())
    });
}
