//! Static manifests: the folder whose files' pods run as long as the files are there.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_cri::berth::v1::{ListPodsRequest, Pod};
use berth_tests::{
    Node, PATIENCE,
    manifest::{has, sleeping},
    on_node, wait_until,
};

/// The node's folder, which is followed from now on.
async fn folder(node: &Node) -> Result<std::path::PathBuf> {
    let folder = node.dir().join("manifests");
    std::fs::create_dir(&folder)?;
    node.restart().await?;
    Ok(folder)
}

#[test]
fn a_folder_of_manifests_is_followed() {
    on_node(async |node| {
        let folder = node.dir().join("manifests");
        std::fs::create_dir(&folder)?;
        let put = |name: &str, text: &str| std::fs::write(folder.join(name), text);
        // The folder was not there when the daemon started.
        put("web.yaml", &sleeping("web"))?;
        put("broken.yaml", "kind: Pod\nspec: [")?;
        put(".hidden.yaml", &sleeping("hidden"))?;
        let first = node.wait_pod_for("web", Duration::from_secs(40), ready).await?;
        ensure!(first.source.ends_with("web.yaml"), "{first:#?}");
        put("other.json", &serde_json::to_string(&other())?)?;
        node.wait_pod("other", ready).await?;
        put("web.yaml", &sleeping("web").replace("started", "changed"))?;
        let changed = |pod: &Pod| {
            ensure!(pod.uid != first.uid && pod.manifest.contains("changed"));
            ready(pod)
        };
        node.wait_pod("web", changed).await?;
        // One that is broken for a while goes on as it was.
        put("other.json", "{")?;
        std::fs::remove_file(folder.join("web.yaml"))?;
        wait_until("the pod to go", PATIENCE, async || {
            let pods = names(node).await?;
            ensure!(pods == ["other"], "{pods:?}");
            Ok(())
        })
        .await?;
        node.kill9().await?;
        std::fs::remove_file(folder.join("other.json"))?;
        node.start().await?;
        wait_until("the pod of a file that went meanwhile to go", PATIENCE, async || {
            ensure!(names(node).await?.is_empty());
            Ok(())
        })
        .await
    });
}

/// Until a pod of a file runs anew.
async fn anew(node: &Node, name: &str, before: &Pod, file: &str) -> Result<Pod> {
    let ready_anew = |pod: &Pod| {
        ensure!(pod.uid != before.uid && pod.source.ends_with(file), "{}", pod.source);
        ready(pod)
    };
    node.wait_pod(name, ready_anew).await
}

#[test]
fn a_file_that_gets_another_name_has_its_pod_again() {
    on_node(async |node| {
        let folder = folder(node).await?;
        std::fs::write(folder.join("a.yaml"), sleeping("web"))?;
        let first = node.wait_pod("web", ready).await?;
        std::fs::rename(folder.join("a.yaml"), folder.join("b.yaml"))?;
        let second = anew(node, "web", &first, "b.yaml").await?;
        node.kill9().await?;
        std::fs::rename(folder.join("b.yaml"), folder.join("c.yaml"))?;
        node.start().await?;
        anew(node, "web", &second, "c.yaml").await?;
        Ok(())
    });
}

#[test]
fn a_pod_that_another_file_has_waits_for_it_to_go() {
    on_node(async |node| {
        let folder = folder(node).await?;
        std::fs::write(folder.join("first.yaml"), sleeping("web"))?;
        let first = node.wait_pod("web", ready).await?;
        // As a copy made before an edit.
        std::fs::write(folder.join("second.yaml"), sleeping("web"))?;
        wait_until("the second file to be refused", PATIENCE, async || {
            let log = node.log_tail();
            ensure!(log.contains("second.yaml") && log.contains("from another manifest"), "{log}");
            Ok(())
        })
        .await?;
        ensure!(node.manifest_pod("web").await?.uid == first.uid, "the first one's pod is touched");
        std::fs::remove_file(folder.join("first.yaml"))?;
        anew(node, "web", &first, "second.yaml").await?;
        Ok(())
    });
}

#[test]
fn a_pod_is_another_when_its_config_map_is() {
    on_node(async |node| {
        let folder = folder(node).await?;
        let pod = sleeping("web") + "    envFrom: [{ configMapRef: { name: settings } }]\n";
        let text = |value: &str| {
            format!(
                "{pod}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: settings }}\ndata: {{ COLOUR: {value} }}\n"
            )
        };
        std::fs::write(folder.join("web.yaml"), text("red"))?;
        let red = node.wait_pod("web", ready).await?;
        std::fs::write(folder.join("web.yaml"), text("blue"))?;
        anew(node, "web", &red, "web.yaml").await?;
        let colour = node.berth_ok(&["exec", "web", "--", "sh", "-c", "echo $COLOUR"]).await?;
        ensure!(colour == "blue\n", "{colour}");
        // Nor does a request take it for the same.
        let refused = node.run_manifest(&text("green")).await.err().context("it was taken")?;
        ensure!(format!("{refused:#}").contains("from another manifest"), "{refused:#}");
        node.run_manifest(&text("blue")).await?;
        Ok(())
    });
}

#[test]
fn pods_that_are_taken_at_once_have_users_of_their_own() {
    on_node(async |node| {
        let folder = folder(node).await?;
        let names = ["one", "two", "three", "four"];
        for name in names {
            std::fs::write(folder.join(format!("{name}.yaml")), sleeping(name) + "  hostUsers: false\n")?;
        }
        node.kill9().await?;
        node.start().await?;
        let mut maps = BTreeSet::new();
        for name in names {
            node.wait_ready(name).await?;
            maps.insert(node.berth_ok(&["exec", name, "--", "cat", "/proc/self/uid_map"]).await?);
        }
        ensure!(maps.len() == names.len(), "{maps:?}");
        Ok(())
    });
}

fn ready(pod: &Pod) -> Result<()> {
    ensure!(has(pod, "Ready"), "not ready");
    Ok(())
}

fn other() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "other" },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": "busybox", "command": ["sleep", "1000"] }]
        }
    })
}

async fn names(node: &Node) -> Result<Vec<String>> {
    let pods = node.pods().list(ListPodsRequest::default()).await?.into_inner().pods;
    Ok(pods.into_iter().filter_map(|pod| Some(pod.pod?.name)).collect())
}
