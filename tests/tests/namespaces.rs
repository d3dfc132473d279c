//! Which namespaces a container shares, and with whom.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    PATIENCE,
    cri::{Container, NamespaceMode, Pod, pod_namespaces, script, security, sleeper},
    host, on_node, wait_until,
};
use k8s_cri::v1::{ContainerConfig, PodSandboxState};

/// A namespace of the test itself, which is the host's.
fn of_host(name: &str) -> Result<String> {
    Ok(fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string())
}

async fn of(container: &Container<'_>, name: &str) -> Result<String> {
    Ok(container.sh(&format!("readlink /proc/self/ns/{name}")).await?.trim().to_owned())
}

/// A sleeper with the pod's modes, as kubelet repeats them in each container.
fn in_modes(name: &str, network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> ContainerConfig {
    let mut config = sleeper(name);
    let options = security(&mut config).namespace_options.get_or_insert_default();
    (options.network, options.pid, options.ipc) = (network.into(), pid.into(), ipc.into());
    config
}

#[test]
fn by_default_the_pod_shares_network_ipc_and_hostname_and_nothing_else() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let (a, b) = (pod.run(sleeper("a")).await?, pod.run(sleeper("b")).await?);
        for name in ["net", "ipc", "uts"] {
            let namespace = of(&a, name).await?;
            ensure!(namespace == of(&b, name).await?, "{name} differs inside the pod");
            ensure!(namespace != of_host(name)?, "{name} is the host's");
        }
        for name in ["mnt", "pid"] {
            let namespace = of(&a, name).await?;
            ensure!(namespace != of(&b, name).await?, "{name} is shared");
            ensure!(namespace != of_host(name)?, "{name} is the host's");
        }
        ensure!(a.sh("tr '\\0' ' ' < /proc/1/cmdline").await?.starts_with("sh -c trap"));
        Ok(())
    });
}

#[test]
fn host_network_is_the_hosts_and_reported_so() {
    on_node(async |node| {
        let mut config = node.pod("web");
        config.hostname = String::new();
        pod_namespaces(&mut config).network = NamespaceMode::Node.into();
        let pod = node.run_pod(config).await?;
        let config = in_modes("main", NamespaceMode::Node, NamespaceMode::Container, NamespaceMode::Pod);
        let container = pod.run(config).await?;
        ensure!(of(&container, "net").await? == of_host("net")?);
        let status = pod.status().await?;
        // kubelet makes a new sandbox when the mode differs from the pod's.
        let options = status.linux.and_then(|linux| linux.namespaces).and_then(|found| found.options);
        ensure!(options.is_some_and(|options| options.network() == NamespaceMode::Node));
        ensure!(status.network.is_none_or(|network| network.ip.is_empty()));
        let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
        ensure!(container.sh("hostname").await? == host);
        Ok(())
    });
}

#[test]
fn host_pid_sees_the_hosts_processes() {
    on_node(async |node| {
        let mut config = node.pod("web");
        pod_namespaces(&mut config).pid = NamespaceMode::Node.into();
        let pod = node.run_pod(config).await?;
        let container =
            pod.run(in_modes("main", NamespaceMode::Pod, NamespaceMode::Node, NamespaceMode::Pod)).await?;
        ensure!(of(&container, "pid").await? == of_host("pid")?);
        let own = std::process::id();
        ensure!(container.sh(&format!("test -d /proc/{own} && echo seen")).await? == "seen\n");
        // Its processes are killed one by one: no pid namespace goes with the first.
        let crowd = pod
            .run({
                let mut config = script("crowd", "sleep 999 & sleep 999 & touch /ready; sleep 999");
                security(&mut config).namespace_options.get_or_insert_default().pid =
                    NamespaceMode::Node.into();
                config
            })
            .await?;
        crowd.wait_file("/ready").await?;
        crowd.stop(0).await?;
        ensure!(crowd.pids()?.is_empty(), "{:?}", crowd.pids()?);
        Ok(())
    });
}

#[test]
fn host_ipc_is_the_hosts() {
    on_node(async |node| {
        let mut config = node.pod("web");
        pod_namespaces(&mut config).ipc = NamespaceMode::Node.into();
        let pod = node.run_pod(config).await?;
        let container = pod
            .run(in_modes("main", NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node))
            .await?;
        ensure!(of(&container, "ipc").await? == of_host("ipc")?);
        Ok(())
    });
}

fn pod_pid(name: &str) -> ContainerConfig {
    in_modes(name, NamespaceMode::Pod, NamespaceMode::Pod, NamespaceMode::Pod)
}

async fn pod_with_shared_pids(node: &berth_tests::Node) -> Result<Pod<'_>> {
    let mut config = node.pod("shared");
    pod_namespaces(&mut config).pid = NamespaceMode::Pod.into();
    node.run_pod(config).await
}

#[test]
fn a_shared_pid_namespace_has_a_first_process_that_is_nobodys_program() {
    on_node(async |node| {
        let pod = pod_with_shared_pids(node).await?;
        let (a, b) = (pod.run(pod_pid("a")).await?, pod.run(pod_pid("b")).await?);
        ensure!(of(&a, "pid").await? == of(&b, "pid").await?);
        ensure!(of(&a, "pid").await? != of_host("pid")?);
        let first = a.sh("cat /proc/1/cmdline | tr '\\0' ' '").await?;
        ensure!(!first.contains("sh -c"), "pid 1 is a container's program: {first}");
        // One ends, the other goes on: the namespace is the pod's.
        a.stop(0).await?;
        ensure!(a.pids()?.is_empty(), "{:?}", a.pids()?);
        ensure!(b.sh("echo alive").await? == "alive\n");
        Ok(())
    });
}

#[test]
fn a_pod_whose_shared_first_process_is_killed_is_over() {
    on_node(async |node| {
        let pod = pod_with_shared_pids(node).await?;
        let container = pod.run(pod_pid("a")).await?;
        let supervisor = host::supervisor(&pod.id)?;
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        let mut children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let first = children.find(|pid| name(pid) == "berth-pause\n");
        host::send(first.context("it has no first process")?, nix::sys::signal::Signal::SIGKILL)?;
        container.wait_exited().await?;
        wait_until("the sandbox to be no longer ready", PATIENCE, async || {
            ensure!(pod.status().await?.state() == PodSandboxState::SandboxNotready);
            Ok(())
        })
        .await?;
        pod.stop().await?;
        pod.remove().await
    });
}

#[test]
fn a_container_can_join_anothers_pid_namespace() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let target = pod.run(sleeper("target")).await?;
        let mut config = sleeper("debugger");
        let options = security(&mut config).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        options.target_id = target.id.clone();
        let debugger = pod.run(config.clone()).await?;
        ensure!(of(&debugger, "pid").await? == of(&target, "pid").await?);
        ensure!(of(&debugger, "mnt").await? != of(&target, "mnt").await?);
        ensure!(debugger.sh("cat /proc/1/cmdline | tr '\\0' ' '").await?.contains("trap"));
        // The debugger is no part of the target: stopping it leaves the target alone.
        debugger.stop(0).await?;
        ensure!(debugger.pids()?.is_empty() && !target.pids()?.is_empty());

        target.stop(0).await?;
        config.metadata.get_or_insert_default().name = "late".to_owned();
        let Err(error) = pod.create(config).await else { bail!("it joined an exited container") };
        ensure!(format!("{error:#}").contains(&target.id[..12]), "{error:#}");
        Ok(())
    });
}

#[test]
fn the_cgroup_a_container_sees_is_its_own_on_version_2() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let seen = container.sh("cat /proc/self/cgroup").await?;
        if host::cgroup_version() == 2 {
            ensure!(seen.trim() == "0::/", "{seen}");
        } else {
            let path = host::cgroup_path(container.pid()?, "memory")?;
            ensure!(path.ends_with(&container.id), "{path}");
        }
        Ok(())
    });
}
