//! The whole way with the real crictl: what a person does by hand, and what the demo shows.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, PATIENCE, on_node, on_node_with, wait_until};
use serde_json::{Value, json};

/// Writes a config for crictl and returns its path.
fn config(node: &Node, name: &str, value: &Value) -> Result<String> {
    let path = node.dir().join(name);
    fs::write(&path, value.to_string())?;
    Ok(path.display().to_string())
}

fn pod_config(node: &Node) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "uid-web", "attempt": 1 },
        "hostname": "web",
        "log_directory": node.dir().join("logs"),
        "labels": { "app": "web" },
        "linux": {},
    })
}

fn container_config(command: &[&str]) -> Value {
    json!({
        "metadata": { "name": "main" },
        "image": { "image": "busybox" },
        "command": command,
        "log_path": "main.log",
        "linux": {},
    })
}

/// What crictl printed, as JSON.
fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("crictl printed {text:?}"))
}

#[test]
fn a_pod_is_run_looked_at_and_removed_with_crictl() {
    on_node_with(berth_tests::Options::without_images(), async |node| {
        node.registry().push("library/busybox", "latest", &berth_tests::image::busybox()?.build()?);
        node.crictl(&["pull", "busybox"]).await?;
        let images = node.crictl(&["images"]).await?;
        ensure!(images.contains("docker.io/library/busybox") && images.contains("latest"), "{images}");

        let pod_file = config(node, "pod.json", &pod_config(node))?;
        let command = ["sh", "-c", "echo hello from berth; exec sleep 1000"];
        let container_file = config(node, "container.json", &container_config(&command))?;
        let pod = node.crictl(&["runp", &pod_file]).await?.trim().to_owned();
        let container = node.crictl(&["create", &pod, &container_file, &pod_file]).await?.trim().to_owned();
        node.crictl(&["start", &container]).await?;

        // crictl prints ids cut to 13 characters, and people type those back.
        let listed = node.crictl(&["ps"]).await?;
        ensure!(listed.contains(&container[..13]) && listed.contains("Running"), "{listed}");
        ensure!(listed.contains("busybox"), "{listed}");
        let inspected = parsed(&node.crictl(&["inspect", &container[..13]]).await?)?;
        ensure!(inspected["status"]["state"] == "CONTAINER_RUNNING", "{inspected:#}");
        let inspected = parsed(&node.crictl(&["inspectp", &pod[..13]]).await?)?;
        ensure!(inspected["status"]["state"] == "SANDBOX_READY", "{inspected:#}");
        ensure!(inspected["status"]["network"]["ip"].as_str().is_some_and(|ip| ip.contains('.')));

        let log = wait_until("the container's first line", PATIENCE, async || {
            let log = node.crictl(&["logs", &container[..13]]).await?;
            ensure!(!log.is_empty(), "nothing yet");
            Ok(log)
        })
        .await?;
        ensure!(log == "hello from berth\n", "{log:?}");
        let hostname = node.crictl(&["exec", "--sync", &container[..13], "hostname"]).await?;
        ensure!(hostname.trim_end() == "web", "{hostname:?}");

        node.crictl(&["stop", &container[..13]]).await?;
        let listed = node.crictl(&["ps", "--all"]).await?;
        ensure!(listed.contains("Exited"), "{listed}");
        node.crictl(&["rm", &container[..13]]).await?;
        node.crictl(&["stopp", &pod[..13]]).await?;
        let listed = node.crictl(&["pods"]).await?;
        ensure!(listed.contains("NotReady"), "{listed}");
        node.crictl(&["rmp", &pod[..13]]).await?;
        node.crictl(&["rmi", "busybox"]).await?;
        ensure!(node.crictl(&["pods", "--quiet"]).await?.is_empty());
        ensure!(node.crictl(&["images", "--quiet"]).await?.is_empty());
        Ok(())
    });
}

#[test]
fn info_version_and_imagefsinfo_answer_what_crictl_expects() {
    on_node(async |node| {
        let version = node.crictl(&["version"]).await?;
        ensure!(version.contains("RuntimeName:  berth"), "{version}");
        ensure!(version.contains("RuntimeApiVersion:  v1"), "{version}");
        let info = parsed(&node.crictl(&["info"]).await?)?;
        let conditions = info["status"]["conditions"].as_array().context("conditions")?;
        for kind in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions.iter().find(|condition| condition["type"] == kind);
            ensure!(condition.is_some_and(|condition| condition["status"] == true), "{info:#}");
        }
        let used = parsed(&node.crictl(&["imagefsinfo"]).await?)?;
        let filesystem = &used["status"]["imageFilesystems"][0];
        let bytes: u64 = filesystem["usedBytes"]["value"].as_str().context("usedBytes")?.parse()?;
        // The image holds Debian's busybox, which is about two megabytes.
        ensure!((1_000_000..20_000_000).contains(&bytes), "{used:#}");
        Ok(())
    });
}

#[test]
fn a_missing_container_is_an_error_that_names_it() {
    on_node(async |node| {
        let Err(error) = node.crictl(&["inspect", "0123456789abc"]).await else {
            anyhow::bail!("crictl inspected a container that isn't there");
        };
        let text = format!("{error:#}");
        ensure!(text.contains("NotFound") && text.contains("0123456789abc"), "{text}");
        Ok(())
    });
}

/// What newer kubelets send only to a runtime that says it knows it; the bindings of the other tests are older.
#[test]
fn the_newest_fields_are_announced_and_obeyed() {
    on_node(async |node| {
        let info = parsed(&node.crictl(&["info"]).await?)?;
        for feature in ["supplemental_groups_policy", "user_namespaces_host_network", "mount_options"] {
            ensure!(info["features"][feature] == true, "{feature}: {info:#}");
        }
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        let mut container =
            container_config(&["sh", "-c", "trap 'exit 7' USR1; while :; do sleep 0.1; done"]);
        container["mounts"] = json!([{ "host_path": volume, "container_path": "/volume",
                                       "mount_options": ["noexec", "nosuid"] }]);
        container["stop_signal"] = json!(29); // CRI's own number of SIGUSR1
        let (pod_file, container_file) =
            (config(node, "pod.json", &pod_config(node))?, config(node, "container.json", &container)?);
        let pod = node.crictl(&["runp", &pod_file]).await?.trim().to_owned();
        let id = node.crictl(&["create", &pod, &container_file, &pod_file]).await?.trim().to_owned();
        node.crictl(&["start", &id]).await?;
        let mounts = node.crictl(&["exec", "--sync", &id, "grep", " /volume ", "/proc/mounts"]).await?;
        ensure!(mounts.contains("noexec") && mounts.contains("nosuid"), "{mounts}");
        node.crictl(&["stop", "--timeout", "20", &id]).await?;
        let inspected = parsed(&node.crictl(&["inspect", &id]).await?)?;
        ensure!(inspected["status"]["exitCode"] == 7, "{inspected:#}");

        container["mounts"][0]["mount_options"] = json!(["size=1"]);
        container["metadata"]["name"] = json!("refused");
        let container_file = config(node, "refused.json", &container)?;
        let refused = node.crictl(&["create", &pod, &container_file, &pod_file]).await;
        ensure!(refused.is_err_and(|error| format!("{error:#}").contains("size=1")));
        Ok(())
    });
}
