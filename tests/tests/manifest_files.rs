//! The manifests of tests/manifests, run for real by the `berth` command.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_cri::berth::v1::pod::Phase;
use berth_tests::{
    Node, PATIENCE,
    manifest::{has, state, times},
    on_node, wait_until,
};

/// Runs a manifest until it is ready, or with `--wait` over; what `berth` said.
async fn run(node: &Node, file: &str, wait: bool) -> Result<String> {
    node.push_manifest_images()?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(file);
    let path = path.display().to_string();
    let mut arguments = vec!["run", &path];
    if wait {
        arguments.push("--wait");
    }
    node.berth_ok(&arguments).await
}

/// What a pod's server answers to a request from its own network.
async fn page(node: &Node, pod: &str, container: &str, url: &str) -> Result<String> {
    wait_until(&format!("{url} of {pod}"), PATIENCE, async || {
        node.berth_ok(&["exec", pod, "-c", container, "--", "busybox", "wget", "-q", "-O", "-", url]).await
    })
    .await
}

#[test]
fn nginx_serves_what_the_init_container_wrote() {
    on_node(async |node| {
        let said = run(node, "web.yaml", false).await?;
        ensure!(said.contains("fetch: Completed") && said.contains("default/web is ready after"), "{said}");
        let page = page(node, "web", "nginx", "http://127.0.0.1/").await?;
        ensure!(page == "<h1>Written by web's init container</h1>\n", "{page}");
        Ok(())
    });
}

/// Both forms of the bookings pod: the proxy is first, and last.
async fn bookings(node: &Node, name: &str) -> Result<()> {
    run(node, &format!("{name}.yaml"), false).await?;
    let pod = node.manifest_pod(name).await?;
    ensure!(times(&pod, "proxy")?.0 < times(&pod, "app")?.0, "{pod:#?}");
    let page = page(node, name, "app", "http://127.0.0.1:8080/").await?;
    ensure!(page == "3 bookings\n", "{page}");
    node.stop_manifest_pod(name).await?;
    let pod = node.manifest_pod(name).await?;
    ensure!(times(&pod, "app")?.1 <= times(&pod, "proxy")?.1, "{pod:#?}");
    Ok(())
}

#[test]
fn a_proxy_sidecar_comes_first_and_goes_last() {
    on_node(async |node| bookings(node, "bookings").await);
}

#[test]
fn so_does_one_that_is_marked_in_the_older_way() {
    on_node(async |node| bookings(node, "bookings-lifecycle").await);
}

#[test]
fn an_ephemeral_container_joins_the_pod_that_its_manifest_names() {
    on_node(async |node| {
        run(node, "demo-pod.yaml", false).await?;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/ephemeral.json");
        node.berth_ok(&["ephemeral", "-f", &path.display().to_string()]).await?;
        node.wait_pod("demo-pod", |pod| {
            ensure!(state(pod, "debugger")? == "running", "{}", state(pod, "debugger")?);
            Ok(())
        })
        .await?;
        // Its target's processes are its own first ones, and their files are there.
        let look = [
            "exec",
            "demo-pod",
            "-c",
            "debugger",
            "--",
            "sh",
            "-c",
            "cat /proc/1/comm; ls /proc/1/root/etc/nginx",
        ];
        let seen = node.berth_ok(&look).await?;
        ensure!(seen.starts_with("nginx\n") && seen.contains("nginx.conf"), "{seen}");
        Ok(())
    });
}

#[test]
fn a_job_ends_and_its_sidecar_with_it() {
    on_node(async |node| {
        let said = run(node, "job.yaml", true).await?;
        ensure!(said.contains("default/job succeeded"), "{said}");
        let pod = node.manifest_pod("job").await?;
        ensure!(pod.phase() == Phase::Succeeded && state(&pod, "collector")? == "ended 0", "{pod:#?}");
        ensure!(node.pod_log("job", "collector").await? == "42\n");
        let document = node.berth_ok(&["get", "job", "-o", "json"]).await?;
        let document: serde_json::Value = serde_json::from_str(&document)?;
        let message = &document["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
        ensure!(message == "done\n", "its last words: {document:#}");
        Ok(())
    });
}

#[test]
fn every_probe_and_every_hook_works() {
    on_node(async |node| {
        run(node, "everything.yaml", false).await?;
        let pod = node.manifest_pod("everything").await?;
        ensure!(
            has(&pod, "Ready") && pod.containers.iter().all(|one| one.started && one.restarts == 0),
            "{pod:#?}"
        );
        let notes = node.berth_ok(&["exec", "everything", "-c", "exec", "--", "cat", "/notes/log"]).await?;
        ensure!(notes == "exec postStart\n", "{notes}");
        node.stop_manifest_pod("everything").await?;
        let log = node.pod_log("everything", "http").await?;
        let asked = |what: &str| log.lines().filter(|line| line.contains(what)).count();
        ensure!(asked("GET /?ready ") > 0 && asked("GET /?preStop ") == 1, "{log}");
        let events = node.berth_ok(&["events", "everything"]).await?;
        ensure!(!events.contains("FailedPreStopHook") && !events.contains("FailedPostStartHook"), "{events}");
        let pod = node.manifest_pod("everything").await?;
        let folder = node.root().join("manifest-pods").join(&pod.uid).join("volumes/notes/log");
        let notes = std::fs::read_to_string(&folder).context("the notes")?;
        ensure!(notes == "exec postStart\nexec preStop\n", "{notes}");
        Ok(())
    });
}
