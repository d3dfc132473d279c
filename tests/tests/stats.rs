//! What containers and pods use, as kubelet and crictl ask for it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node, PATIENCE,
    cri::{resources, script, sleeper},
    on_node, wait_until,
};
use k8s_cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, LinuxContainerResources,
    ListContainerStatsRequest, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest,
    ListPodSandboxStatsRequest, PodSandboxStatsRequest,
};

async fn list(node: &Node, filter: Option<ContainerStatsFilter>) -> Result<Vec<ContainerStats>> {
    let answer = node.runtime().list_container_stats(ListContainerStatsRequest { filter }).await?;
    Ok(answer.into_inner().stats)
}

async fn stats_of(node: &Node, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    node.runtime().container_stats(request).await?.into_inner().stats.context("no stats")
}

#[test]
fn a_containers_cpu_memory_and_layer_are_measured() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = script(
            "main",
            "head -c 3000000 /dev/zero > /file; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; touch /done; sleep 1000",
        );
        resources(&mut config).memory_limit_in_bytes = 64 << 20;
        config.labels.insert("app".to_owned(), "web".to_owned());
        let container = pod.run(config).await?;
        // At once, before anything has been sampled.
        let first = stats_of(node, &container.id).await?;
        ensure!(
            first.attributes.as_ref().is_some_and(|attributes| attributes.id == container.id),
            "{first:?}"
        );
        ensure!(first.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0), "{first:?}");
        ensure!(first.memory.as_ref().is_some_and(|memory| memory.timestamp > 0), "{first:?}");
        container.wait_file("/done").await?;
        let later = stats_of(node, &container.id).await?;
        let used = later.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).context("no cpu usage")?.value;
        ensure!(used > 10_000_000, "{used} ns for a loop of 200,000");
        let memory = later.memory.context("no memory")?;
        let working_set = memory.working_set_bytes.context("no working set")?.value;
        let available = memory.available_bytes.context("limited, so something is available")?.value;
        ensure!(working_set > 0 && available < 64 << 20 && working_set + available == 64 << 20, "{memory:?}");
        let layer = wait_until("the layer to be measured", PATIENCE, async || {
            let layer = stats_of(node, &container.id).await?.writable_layer.context("no layer")?;
            let used = layer.used_bytes.as_ref().map_or(0, |used| used.value);
            ensure!(used >= 3_000_000, "{layer:?}");
            Ok(layer)
        })
        .await?;
        ensure!(
            layer
                .fs_id
                .is_some_and(|id| node.root().starts_with(&id.mountpoint) || node.root() == *id.mountpoint)
        );
        Ok(())
    });
}

#[test]
fn lists_hold_running_containers_and_filter() {
    on_node(async |node| {
        let (a, b) = (node.run_pod(node.pod("a")).await?, node.run_pod(node.pod("b")).await?);
        let in_a = a.run(sleeper("main")).await?;
        let in_b = b.run(sleeper("main")).await?;
        let ended = a.run(script("ended", "exit 0")).await?;
        ended.wait_exited().await?;
        let ids = |stats: Vec<ContainerStats>| -> BTreeSet<String> {
            stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect()
        };
        let both = BTreeSet::from([in_a.id.clone(), in_b.id.clone()]);
        ensure!(ids(list(node, None).await?) == both);
        let of_a = ContainerStatsFilter { pod_sandbox_id: a.id.clone(), ..ContainerStatsFilter::default() };
        ensure!(ids(list(node, Some(of_a)).await?) == BTreeSet::from([in_a.id.clone()]));
        let crictl = node.crictl(&["stats"]).await?;
        ensure!(crictl.contains(&in_a.id[..13]) && !crictl.contains(&ended.id[..13]), "{crictl}");
        Ok(())
    });
}

#[test]
fn a_pods_stats_have_its_network_and_its_containers() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let (ip, _) = (pod.ips().await?[0].clone(), ());
        container.sh(&format!("ping -c 1 -W 5 {}", gateway(&ip)?)).await?;
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
        let stats = node.runtime().pod_sandbox_stats(request).await?.into_inner().stats.context("none")?;
        let linux = stats.linux.context("linux must be set")?;
        ensure!(linux.containers.len() == 1, "{linux:?}");
        let interface =
            linux.network.and_then(|network| network.default_interface).context("no interface")?;
        ensure!(interface.name == "eth0", "{interface:?}");
        ensure!(interface.rx_bytes.is_some_and(|bytes| bytes.value > 0), "no byte was received");
        ensure!(
            linux.process.and_then(|process| process.process_count).is_some_and(|count| count.value >= 1)
        );
        let all = node.runtime().list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None }).await?;
        ensure!(all.into_inner().stats.len() == 1);
        Ok(())
    });
}

/// The first address of a /24.
fn gateway(ip: &str) -> Result<String> {
    let (net, _) = ip.rsplit_once('.').context("not IPv4")?;
    Ok(format!("{net}.1"))
}

#[test]
fn every_metric_that_is_described_is_there_with_as_many_labels() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        *resources(&mut config) = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 1024,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            ..LinuxContainerResources::default()
        };
        pod.run(config).await?;
        let described = node.runtime().list_metric_descriptors(ListMetricDescriptorsRequest {}).await?;
        let labels: BTreeMap<String, usize> = described
            .into_inner()
            .descriptors
            .into_iter()
            .map(|descriptor| (descriptor.name, descriptor.label_keys.len()))
            .collect();
        let metrics = node.runtime().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?;
        let [ours] = metrics.into_inner().pod_metrics.try_into().map_err(|all| anyhow::anyhow!("{all:?}"))?;
        ensure!(ours.pod_sandbox_id == pod.id);
        let mut seen = BTreeSet::new();
        let of_containers = ours.container_metrics.into_iter().flat_map(|container| container.metrics);
        for metric in ours.metrics.into_iter().chain(of_containers) {
            let wanted =
                labels.get(&metric.name).with_context(|| format!("{} is not described", metric.name))?;
            ensure!(metric.label_values.len() == *wanted && metric.value.is_some(), "{metric:?}");
            seen.insert(metric.name);
        }
        for must in
            ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes"]
        {
            ensure!(seen.contains(must), "{must} is missing");
        }
        Ok(())
    });
}
