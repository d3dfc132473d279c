//! What Prometheus reads of the daemon and of pods.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node, Options, PATIENCE,
    cri::{script, sleeper},
    on_node_with, wait_until,
};
use k8s_cri::v1::{PodSandboxStatusRequest, VersionRequest};

/// A node that serves them at [`Node::service_port`].
fn on_measured_node(body: impl AsyncFnOnce(&Node) -> Result<()>) {
    let extra_config = "[metrics]\naddress = \"127.0.0.1:@PORT@\"\n".to_owned();
    on_node_with(Options { extra_config, ..Options::default() }, body);
}

/// Head and body.
fn get(node: &Node, path: &str) -> Result<(String, String)> {
    let mut socket = TcpStream::connect(("127.0.0.1", node.service_port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// The value of the series that is written so, labels and all.
fn value(page: &str, series: &str) -> Result<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {series} in {page}"))?.parse()?)
}

/// OpenMetrics: every sample belongs to the family named last, no family comes twice, and the page has an end.
fn check_page(page: &str) -> Result<()> {
    ensure!(page.ends_with("# EOF\n"), "{page}");
    let mut families = Vec::new();
    for line in page.lines().filter(|line| !line.starts_with("# HELP") && *line != "# EOF") {
        match line.strip_prefix("# TYPE ") {
            Some(family) => {
                let (name, _) = family.split_once(' ').context("no type")?;
                ensure!(!families.contains(&name), "{name} comes twice");
                families.push(name);
            }
            None if line.starts_with("# UNIT ") => {}
            None => {
                let family = families.last().context("a sample before any family")?;
                ensure!(line.starts_with(family), "{line} stands under {family}");
            }
        }
    }
    ensure!(!families.is_empty(), "an empty page");
    Ok(())
}

#[test]
fn the_daemon_tells_of_its_calls_and_of_what_is_on_the_node() {
    on_measured_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        pod.run(sleeper("main")).await?;
        let done = pod.run(script("done", "exit 0")).await?;
        done.wait_exited().await?;
        let request = PodSandboxStatusRequest { pod_sandbox_id: "no-such-pod".to_owned(), verbose: false };
        ensure!(node.runtime().pod_sandbox_status(request).await.is_err());

        let (head, page) = get(node, "/metrics")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        ensure!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
        check_page(&page)?;
        for (series, expected) in [
            ("berth_pods{owner=\"cri\",state=\"ready\"}", 1.0),
            ("berth_pods{owner=\"manifest\",state=\"ready\"}", 0.0),
            ("berth_containers{owner=\"cri\",state=\"running\"}", 1.0),
            ("berth_containers{owner=\"cri\",state=\"exited\"}", 1.0),
            ("berth_images", 1.0),
            ("berth_rpc_duration_seconds_count{method=\"RunPodSandbox\",code=\"Ok\"}", 1.0),
            ("berth_rpc_duration_seconds_count{method=\"CreateContainer\",code=\"Ok\"}", 2.0),
            ("berth_rpc_duration_seconds_count{method=\"PodSandboxStatus\",code=\"NotFound\"}", 1.0),
        ] {
            let seen = value(&page, series)?;
            ensure!(seen == expected, "{series} is {seen}, not {expected}");
        }
        ensure!(
            page.contains(&format!("berth_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))),
            "{page}"
        );
        ensure!(value(&page, "process_resident_memory_bytes")? > 1e6);
        ensure!(value(&page, "process_open_fds")? > 5.0);
        ensure!(value(&page, "process_cpu_seconds_total")? > 0.0);
        ensure!(value(&page, "berth_image_fs_used_bytes")? > 1e5);

        // A second scrape counts on.
        node.runtime().version(VersionRequest { version: String::new() }).await?;
        let version = "berth_rpc_duration_seconds_count{method=\"Version\",code=\"Ok\"}";
        let before = value(&page, version).unwrap_or_default();
        ensure!(value(&get(node, "/metrics")?.1, version)? > before);

        let (head, _) = get(node, "/")?;
        ensure!(head.starts_with("HTTP/1.1 404"), "{head}");
        Ok(())
    });
}

#[test]
fn pods_and_containers_are_measured_under_cadvisors_names() {
    on_measured_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let image = container.status().await?.image.context("no image")?.image;
        let labels = format!(
            "pod=\"web\",namespace=\"tests\",container=\"main\",id=\"{}\",image=\"{image}\"",
            container.id
        );
        wait_until("the container to be measured", PATIENCE, async || {
            let (_, page) = get(node, "/metrics/pods")?;
            check_page(&page)?;
            value(&page, &format!("container_cpu_usage_seconds_total{{{labels},cpu=\"total\"}}"))?;
            ensure!(value(&page, &format!("container_processes{{{labels}}}"))? >= 1.0, "{page}");
            ensure!(
                value(&page, &format!("container_memory_working_set_bytes{{{labels}}}"))? > 0.0,
                "{page}"
            );
            ensure!(page.contains("container_network_receive_bytes_total{pod=\"web\""), "{page}");
            Ok(())
        })
        .await
    });
}
