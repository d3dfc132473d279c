//! Plugins of the Node Resource Interface: a real one, with the Go module's own stub, against the real daemon.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node, Options, PATIENCE,
    cri::{code_of, container, resources, script, sleeper},
    host,
    nri::{self, Plugin},
    on_node, on_node_with, wait_until,
};
use futures::future::join_all;
use k8s_cri::v1::{
    ContainerState, ContainerStatusRequest, LinuxContainerResources, ListContainersRequest,
    UpdateContainerResourcesRequest,
};
use serde_json::{Value, json};

const MIB: i64 = 1 << 20;

fn memory_limit(pid: i32) -> Result<String> {
    host::cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max")
}

fn shares(pid: i32) -> Result<String> {
    host::cgroup_value(pid, "cpu", "cpu.shares", "cpu.weight")
}

/// What a plugin answers to the creation of `name`.
fn create(name: &str, adjust: Value) -> Value {
    json!({ "create": { name: { "adjust": adjust } } })
}

async fn containers(node: &Node) -> Result<usize> {
    let answer = node.runtime().list_containers(ListContainersRequest::default()).await?;
    Ok(answer.into_inner().containers.len())
}

#[test]
fn without_being_enabled_there_is_no_socket_and_status_says_so() {
    on_node(async |node| {
        ensure!(nri::info(node).await?["enabled"] == false);
        ensure!(!nri::socket(node).exists());
        Ok(())
    });
}

#[test]
fn a_plugin_hears_of_everything_in_its_order_and_with_what_it_is() {
    on_node_with(nri::options(""), async |node| {
        let mode = fs::metadata(nri::socket(node))?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        let plugin = Plugin::connect(node, "10-watch", json!({})).await?;
        let configured = plugin.log.wait_for("Configure", "").await?;
        ensure!(configured["text"].as_str().is_some_and(|text| text.starts_with("berth ")), "{configured}");

        let mut config = node.pod("web");
        config.labels.insert("app".to_owned(), "shop".to_owned());
        let pod = node.run_pod(config).await?;
        let container = pod.run(sleeper("main")).await?;
        let limits = LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        node.runtime().update_container_resources(request).await?;
        container.stop(5).await?;
        container.remove().await?;
        // One that ends by itself, and is taken along with its pod.
        pod.run(script("short", "exit 3")).await?.wait_exited().await?;
        plugin.log.wait_for("StopContainer", "short").await?;
        pod.stop().await?;
        pod.stop().await?;
        pod.remove().await?;

        let calls = plugin.log.calls_about("main")?;
        let life = [
            "CreateContainer",
            "ValidateContainerAdjustment",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
        ];
        let changes = ["UpdateContainer", "PostUpdateContainer"];
        let end = ["StopContainer", "RemoveContainer"];
        ensure!(calls == [&life[..], &changes, &end].concat(), "{calls:?}");
        ensure!(plugin.log.calls_about("short")? == [&life[..], &end].concat());
        let calls = plugin.log.calls_about("web")?;
        ensure!(calls == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"], "{calls:?}");

        let seen = plugin.log.wait_for("RunPodSandbox", "web").await?["seen"].clone();
        ensure!(
            seen["id"] == pod.id && seen["labels"]["app"] == "shop" && seen["namespace"] == "tests",
            "{seen}"
        );
        ensure!(seen["ips"].as_array().is_some_and(|ips| !ips.is_empty()), "{seen}");
        let seen = plugin.log.wait_for("CreateContainer", "main").await?["seen"].clone();
        ensure!(seen["id"] == container.id && seen["podSandboxId"] == pod.id, "{seen}");
        ensure!(seen["args"][0] == "sh" && seen["env"].to_string().contains("PATH="), "{seen}");
        ensure!(seen["mounts"].to_string().contains("/etc/resolv.conf"), "{seen}");
        let seen = plugin.log.wait_for("PostStartContainer", "main").await?["seen"].clone();
        ensure!(seen["state"] == "CONTAINER_RUNNING" && seen["pid"].as_i64() > Some(0), "{seen}");
        let seen = plugin.log.wait_for("StopContainer", "short").await?["seen"].clone();
        ensure!(seen["state"] == "CONTAINER_STOPPED" && seen["exitCode"] == 3, "{seen}");
        Ok(())
    });
}

#[test]
fn a_plugin_may_object_to_new_limits_of_a_pod_and_later_ones_see_those_in_force() {
    on_node_with(nri::options(""), async |node| {
        let limits = |mib: i64| LinuxContainerResources {
            memory_limit_in_bytes: mib * MIB,
            ..LinuxContainerResources::default()
        };
        let mut plugin = Plugin::connect(node, "10-watch", json!({})).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        pod.update(limits(64)).await?;
        let told = plugin.log.wait_for("limits", "web").await?;
        let limit = json!((64 * MIB).to_string());
        ensure!(told["seen"]["memory"]["limit"]["value"] == limit, "{told}");
        let told = plugin.log.wait_for("PostUpdatePodSandbox", "web").await?;
        let seen = &told["seen"]["linux"]["podResources"]["memory"]["limit"]["value"];
        ensure!(*seen == limit, "{told}");
        plugin.kill().await?;

        let fail = json!({ "fail": { "UpdatePodSandbox": "too much" } });
        let plugin = Plugin::connect(node, "20-no", fail).await?;
        let text = format!("{:#}", pod.update(limits(128)).await.unwrap_err());
        ensure!(text.contains("too much"), "{text}");
        pod.stop().await?;
        let told = plugin.log.wait_for("StopPodSandbox", "web").await?;
        ensure!(told["seen"]["linux"]["podResources"]["memory"]["limit"]["value"] == limit, "{told}");
        Ok(())
    });
}

#[test]
fn a_new_plugin_is_told_what_there_is_also_after_a_restart_of_the_daemon() {
    on_node_with(nri::options(""), async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let main = pod.run(sleeper("main")).await?;
        pod.create(sleeper("waiting")).await?;
        pod.run(script("ended", "exit 0")).await?.wait_exited().await?;
        let expected = json!(["main CONTAINER_RUNNING", "waiting CONTAINER_CREATED"]);
        let found = |line: &Value| {
            let mut found: Vec<_> = line["found"].as_array().cloned().unwrap_or_default();
            found.sort_by_key(Value::to_string);
            json!(found)
        };
        let mut plugin = Plugin::connect(node, "10-late", json!({})).await?;
        let synchronised = plugin.log.wait_for("Synchronize", "").await?;
        ensure!(synchronised["pods"] == json!(["web"]) && found(&synchronised) == expected, "{synchronised}");

        node.restart().await?;
        plugin.log.wait_for("Shutdown", "").await?;
        // The stub ends with its connection, as a plugin in a pod does, which is started again.
        plugin.wait().await?;
        let again = Plugin::connect(node, "20-again", json!({})).await?;
        let synchronised = again.log.wait_for("Synchronize", "").await?;
        ensure!(synchronised["pods"] == json!(["web"]) && found(&synchronised) == expected, "{synchronised}");
        main.stop(5).await?;
        ensure!(again.log.calls_about("main")? == ["StopContainer"]);

        // One that was killed has left its socket behind.
        node.kill9().await?;
        node.start().await?;
        let third = Plugin::connect(node, "30-third", json!({})).await?;
        let synchronised = third.log.wait_for("Synchronize", "").await?;
        ensure!(synchronised["found"] == json!(["waiting CONTAINER_CREATED"]), "{synchronised}");
        Ok(())
    });
}

#[test]
fn a_plugin_of_before_version_0_10_hears_of_everything_by_the_one_call_that_it_knows() {
    on_node_with(nri::options(""), async |node| {
        let plugin = Plugin::connect_in_mode(node, "10-old", "old", json!({})).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        container.stop(5).await?;
        container.remove().await?;
        pod.remove().await?;
        let calls = plugin.log.calls_about("main")?;
        let life = ["CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"];
        ensure!(calls == [&life[..], &["StopContainer", "RemoveContainer"]].concat(), "{calls:?}");
        let calls = plugin.log.calls_about("web")?;
        ensure!(calls == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"], "{calls:?}");
        Ok(())
    });
}

#[test]
fn pods_that_come_at_once_are_told_one_after_the_other_and_none_is_forgotten() {
    on_node_with(nri::options(""), async |node| {
        let memory = |mib: i64| json!({ "memory": { "limit": { "value": mib * MIB } } });
        let mut script = json!({ "create": {}, "stop": {} });
        for number in 0..8 {
            let updates = json!([{ "container": "shared", "resources": memory(64 + number) }]);
            script["create"][format!("main-{number}")] = json!({ "updates": updates });
            script["stop"][format!("main-{number}")] = json!({ "updates": updates });
        }
        let plugin = Plugin::connect(node, "10-share", script).await?;
        let pod = node.run_pod(node.pod("first")).await?;
        pod.run(sleeper("shared")).await?;
        let lives = (0..8).map(async |number| {
            // Two of them in the pod of the one that all of them change.
            let own = match number {
                0 | 1 => None,
                _ => Some(node.run_pod(node.pod(&format!("web-{number}"))).await?),
            };
            let container = own.as_ref().unwrap_or(&pod).run(sleeper(&format!("main-{number}"))).await?;
            container.stop(5).await?;
            container.remove().await
        });
        for life in join_all(lives).await {
            life?;
        }
        for number in 0..8 {
            let calls = plugin.log.calls_about(&format!("main-{number}"))?;
            ensure!(calls.len() == 7 && calls[6] == "RemoveContainer", "{number}: {calls:?}");
        }
        Ok(())
    });
}

#[test]
fn what_a_plugin_wants_of_a_new_container_is_so_in_the_container() {
    on_node_with(nri::options(""), async |node| {
        let folder = node.dir().join("from-plugin");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("file"), "hello")?;
        let adjust = json!({
            "annotations": { "plugin.example/was": "here" },
            "env": [{ "key": "ADDED", "value": "by plugin" }, { "key": "-REMOVED" }],
            "mounts": [{ "destination": "/given", "type": "bind", "source": folder, "options": ["rbind", "ro"] }],
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 77, "soft": 66 }],
            "linux": {
                "oomScoreAdj": { "value": 777 },
                "sysctl": { "net.ipv4.ip_default_ttl": "55" },
                "devices": [{ "path": "/dev/given", "type": "c", "major": 1, "minor": 3 }],
                "resources": {
                    "memory": { "limit": { "value": 64 * MIB } },
                    "pids": { "limit": 123 },
                },
            },
        });
        let _plugin = Plugin::connect(node, "10-change", create("main", adjust)).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        for name in ["REMOVED", "KEPT"] {
            let value = "x".to_owned();
            config.envs.push(k8s_cri::v1::KeyValue { key: name.to_owned(), value });
        }
        let container = pod.run(config).await?;
        let environment = container.sh("cat /proc/1/environ | tr '\\0' '\\n'").await?;
        ensure!(environment.contains("ADDED=by plugin") && environment.contains("KEPT=x"), "{environment}");
        ensure!(!environment.contains("REMOVED"), "{environment}");
        ensure!(container.sh("cat /given/file").await? == "hello");
        ensure!(container.exec(&["touch", "/given/new"]).await?.code != 0);
        let limits = container.sh("grep 'open files' /proc/1/limits").await?;
        let limits: Vec<_> = limits.split_whitespace().collect();
        ensure!(limits[3..5] == ["66", "77"], "{limits:?}");
        ensure!(container.sh("cat /proc/sys/net/ipv4/ip_default_ttl").await?.trim() == "55");
        ensure!(container.sh("echo gone > /dev/given; stat -c %t,%T /dev/given").await?.trim() == "1,3");
        let pid = container.pid()?;
        ensure!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim() == "777");
        ensure!(memory_limit(pid)? == (64 * MIB).to_string());
        ensure!(host::cgroup_value(pid, "pids", "pids.max", "pids.max")? == "123");
        // Also for those who ask: the limits in force, and the spec.
        let linux = container.status().await?.resources.and_then(|resources| resources.linux);
        ensure!(linux.unwrap_or_default().memory_limit_in_bytes == 64 * MIB);
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
        let info = node.runtime().container_status(request).await?.into_inner().info;
        ensure!(info.values().any(|text| text.contains("plugin.example/was")), "{info:?}");
        // What is run in it later is limited as its first process is.
        ensure!(container.sh("ulimit -n").await?.trim() == "66");
        Ok(())
    });
}

#[test]
fn a_plugin_may_change_the_command() {
    on_node_with(nri::options(""), async |node| {
        let adjust = json!({ "args": ["sh", "-c", "echo from the plugin"] });
        let _plugin = Plugin::connect(node, "10-change", create("main", adjust)).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let output = pod.output_of(container("main", &["echo", "as asked"])).await?;
        ensure!(output == "from the plugin\n", "{output:?}");
        Ok(())
    });
}

#[test]
fn a_plugin_may_say_how_a_container_is_scheduled() {
    on_node_with(nri::options(""), async |node| {
        let linux = json!({
            "scheduler": { "policy": "SCHED_BATCH", "nice": 7 },
            "ioPriority": { "class": "IOPRIO_CLASS_IDLE" },
        });
        let adjust = json!({ "linux": linux });
        let _plugin = Plugin::connect(node, "10-change", create("main", adjust)).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        // proc_pid_stat(5): nice is the 19th field, the policy the 41st. The same for what is run in it later.
        for process in ["1", "self"] {
            let seen = container.sh(&format!("awk '{{ print $19, $41 }}' /proc/{process}/stat")).await?;
            ensure!(seen.trim() == "7 3", "{process}: {seen}");
        }
        ensure!(container.sh("ionice -p 1; ionice").await? == "idle\nidle\n");
        Ok(())
    });
}

#[test]
fn what_the_native_launcher_cannot_do_is_an_error_with_the_fields_name() {
    on_node_with(nri::options(""), async |node| {
        let mut script = json!({ "create": {
            "path": { "adjust": { "linux": { "cgroupsPath": "/elsewhere" } } },
            "class": { "adjust": { "linux": { "resources": { "rdtClass": { "value": "gold" } } } } },
            "cache": { "adjust": { "linux": { "rdt": { "closId": { "value": "gold" } } } } },
        } });
        script["events"] = json!("CreateContainer,StopContainer,RemoveContainer");
        let plugin = Plugin::connect(node, "10-change", script).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        for (name, field) in
            [("path", "linux.cgroupsPath"), ("class", "RDT class"), ("cache", "linux.intelRdt")]
        {
            let error = pod.create(sleeper(name)).await.unwrap_err();
            ensure!(format!("{error:#}").contains(field), "{error:#}");
            // Who gave it something takes that back.
            let calls = plugin.log.calls_about(name)?;
            ensure!(calls == ["CreateContainer", "StopContainer", "RemoveContainer"], "{calls:?}");
        }
        ensure!(containers(node).await? == 0);
        Ok(())
    });
}

#[test]
fn plugins_are_asked_in_their_order_and_a_conflict_names_both() {
    on_node_with(nri::options(""), async |node| {
        let set = |value: &str, also: Value| json!([also, { "key": "WHO", "value": value }, { "key": "SEEN", "value": "" }]);
        let first = json!({ "create": {
            "main": { "adjust": { "env": [{ "key": "WHO", "value": "first" }] } },
            "both": { "adjust": { "env": [{ "key": "WHO", "value": "first" }] } },
        } });
        let second = json!({ "create": {
            "main": { "adjust": { "env": set("second", json!({ "key": "-WHO" })) } },
            "both": { "adjust": { "env": [{ "key": "WHO", "value": "second" }] } },
        } });
        // Connected in the other order.
        let second = Plugin::connect(node, "20-second", second).await?;
        let _first = Plugin::connect(node, "10-first", first).await?;
        ensure!(nri::names(node, "connected").await? == ["10-first", "20-second"]);
        let pod = node.run_pod(node.pod("web")).await?;
        let main = pod.run(sleeper("main")).await?;
        ensure!(main.sh("tr '\\0' '\\n' < /proc/1/environ | grep WHO").await? == "WHO=second\n");
        let seen = second.log.wait_for("CreateContainer", "main").await?;
        ensure!(seen["seen"]["env"].to_string().contains("WHO=first"), "{seen}");
        let error = format!("{:#}", pod.create(sleeper("both")).await.unwrap_err());
        for part in ["20-second", "10-first", "Env WHO"] {
            ensure!(error.contains(part), "{error}");
        }
        Ok(())
    });
}

#[test]
fn a_validating_plugin_has_the_last_word() {
    on_node_with(nri::options(""), async |node| {
        let adjust = json!({ "env": [{ "key": "WHO", "value": "first" }] });
        let _first = Plugin::connect(node, "10-first", create("main", adjust)).await?;
        let script = json!({ "events": "ValidateContainerAdjustment", "reject": "not on this node" });
        let judge = Plugin::connect(node, "99-judge", script).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let error = format!("{:#}", pod.create(sleeper("main")).await.unwrap_err());
        ensure!(error.contains("99-judge") && error.contains("not on this node"), "{error}");
        let seen = judge.log.wait_for("ValidateContainerAdjustment", "main").await?;
        ensure!(seen["seen"].to_string().contains("10-first"), "{seen}");
        ensure!(containers(node).await? == 0);
        Ok(())
    });
}

#[test]
fn containers_that_are_there_are_updated_on_the_side_and_unasked() {
    on_node_with(nri::options(""), async |node| {
        let limit = |name: &str, mib: i64| {
            let memory = json!({ "limit": { "value": mib * MIB } });
            json!({ "container": name, "resources": { "memory": memory } })
        };
        let script = json!({
            "create": { "new": { "updates": [limit("old", 70)] } },
            "update": { "new": { "updates": [limit("new", 50), limit("old", 80)] } },
            "stop": { "new": { "updates": [limit("old", 90)] } },
        });
        let mut plugin = Plugin::connect(node, "10-share", script).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let old = pod.run(sleeper("old")).await?;
        // In another pod as well as in its own.
        let other = node.run_pod(node.pod("other")).await?;
        let new = other.run(sleeper("new")).await?;
        ensure!(memory_limit(old.pid()?)? == (70 * MIB).to_string());
        let linux = old.status().await?.resources.and_then(|resources| resources.linux);
        ensure!(linux.unwrap_or_default().memory_limit_in_bytes == 70 * MIB);

        let request = UpdateContainerResourcesRequest {
            container_id: new.id.clone(),
            linux: Some(LinuxContainerResources {
                memory_limit_in_bytes: 40 * MIB,
                cpu_shares: 512,
                ..Default::default()
            }),
            ..Default::default()
        };
        let before = shares(new.pid()?)?;
        node.runtime().update_container_resources(request).await?;
        ensure!(memory_limit(new.pid()?)? == (50 * MIB).to_string(), "not as the caller asked");
        ensure!(shares(new.pid()?)? != before, "but the rest is");
        ensure!(memory_limit(old.pid()?)? == (80 * MIB).to_string());

        new.stop(5).await?;
        ensure!(memory_limit(old.pid()?)? == (90 * MIB).to_string());

        let updated = plugin.update(json!([limit("old", 99), limit("nobody", 1)])).await?;
        ensure!(updated["found"] == json!(["nobody"]), "what failed comes back: {updated}");
        ensure!(memory_limit(old.pid()?)? == (99 * MIB).to_string());
        Ok(())
    });
}

#[test]
fn an_update_that_cannot_be_made_keeps_its_container_from_being_made_unless_nobody_minds() {
    on_node_with(nri::options(""), async |node| {
        let update = |ignore: bool| {
            let resources = json!({ "memory": { "limit": { "value": MIB } } });
            json!([{ "container": "nobody", "resources": resources, "ignore_failure": ignore }])
        };
        let script = json!({ "create": {
            "minds": { "updates": update(false) },
            "does-not": { "updates": update(true) },
        } });
        let _plugin = Plugin::connect(node, "10-share", script).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let error = format!("{:#}", pod.create(sleeper("minds")).await.unwrap_err());
        ensure!(error.contains("nobody") && error.contains("not found"), "{error}");
        pod.create(sleeper("does-not")).await?;
        Ok(())
    });
}

#[test]
fn a_plugin_may_evict_a_container() {
    on_node_with(nri::options(""), async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let arguments = ["-mode", "evict", "-evict", &container.id].map(AsRef::as_ref);
        Plugin::run(node, "10-evict", &arguments)?.wait().await?;
        let status = container.wait_exited().await?;
        ensure!(status.exit_code == 0, "it was asked to end, not killed: {status:?}");
        Ok(())
    });
}

#[test]
fn a_refusal_is_the_callers_error_and_leaves_nothing() {
    on_node_with(nri::options(""), async |node| {
        let fail = json!({ "fail": { "CreateContainer": "no room", "StopContainer": "never mind" } });
        let mut plugin = Plugin::connect(node, "10-no", fail).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let error = pod.create(sleeper("main")).await.unwrap_err();
        let text = format!("{error:#}");
        ensure!(text.contains("10-no refuses CreateContainer") && text.contains("no room"), "{text}");
        ensure!(containers(node).await? == 0);
        ensure!(nri::names(node, "connected").await? == ["10-no"], "to refuse is no failure");
        plugin.kill().await?;

        let plugin =
            Plugin::connect(node, "10-no-start", json!({ "fail": { "StartContainer": "not now" } })).await?;
        let container = pod.create(sleeper("main")).await?;
        let text = format!("{:#}", container.start().await.unwrap_err());
        ensure!(text.contains("not now"), "{text}");
        ensure!(container.status().await?.state() == ContainerState::ContainerExited);
        let calls = plugin.log.wait_for("StopContainer", "main").await?;
        ensure!(calls["seen"]["state"] == "CONTAINER_STOPPED", "{calls}");
        Ok(())
    });
}

#[test]
fn a_pod_that_a_plugin_refuses_is_not_there_and_may_come_later() {
    on_node_with(nri::options(""), async |node| {
        let fail = json!({ "fail": { "RunPodSandbox": "not yet" } });
        let mut plugin = Plugin::connect(node, "10-no", fail).await?;
        let text = format!("{:#}", node.run_pod(node.pod("web")).await.unwrap_err());
        ensure!(text.contains("not yet"), "{text}");
        plugin.log.wait_for("RemovePodSandbox", "web").await?;
        plugin.kill().await?;
        wait_until("the plugin to be gone", PATIENCE, async || {
            ensure!(nri::names(node, "connected").await?.is_empty());
            Ok(())
        })
        .await?;
        node.run_pod(node.pod("web")).await?;
        Ok(())
    });
}

/// A plugin that does `how` over the creation of a container, and what becomes of that.
async fn failing(node: &Node, how: &str) -> Result<(Result<String>, Duration)> {
    let mut script = json!({});
    script[how] = json!(["CreateContainer"]);
    let _plugin = Plugin::connect(node, "10-bad", script).await?;
    let pod = node.run_pod(node.pod("web")).await?;
    let began = Instant::now();
    let created = pod.create(sleeper("main")).await.map(|container| container.id);
    let after = began.elapsed();
    let info = nri::info(node).await?;
    ensure!(info["connected"] == json!([]), "{info}");
    ensure!(info["lost"][0]["name"] == "10-bad", "{info}");
    ensure!(info["lost"][0]["why"].as_str().is_some_and(|why| why.contains("CreateContainer")), "{info}");
    // The next one is not in its hands any more.
    pod.create(sleeper("next")).await?;
    Ok((created, after))
}

#[test]
fn one_that_hangs_fails_the_request_in_time_and_is_cut_off() {
    on_node_with(nri::options(nri::IMPATIENT), async |node| {
        let (created, after) = failing(node, "hang").await?;
        let text = format!("{:#}", created.unwrap_err());
        ensure!(text.contains("10-bad") && text.contains("did not answer within 1s"), "{text}");
        ensure!(after < Duration::from_secs(10), "after {after:?}");
        Ok(())
    });
}

#[test]
fn one_that_hangs_is_left_behind_where_that_is_its_policy() {
    let open = format!("{}[nri.plugins.bad]\non_failure = \"open\"\n", nri::IMPATIENT);
    on_node_with(nri::options(&open), async |node| {
        failing(node, "hang").await?.0?;
        ensure!(node.log_tail().contains("an NRI plugin failed and is disconnected"), "it is written down");
        Ok(())
    });
}

#[test]
fn one_that_dies_fails_the_request() {
    on_node_with(nri::options("on_failure = \"closed\"\n"), async |node| {
        let text = format!("{:#}", failing(node, "die").await?.0.unwrap_err());
        ensure!(text.contains("10-bad") && text.contains("closed the connection"), "{text}");
        Ok(())
    });
}

#[test]
fn one_that_dies_is_left_behind_where_that_is_the_policy() {
    on_node_with(nri::options("on_failure = \"open\"\n"), async |node| {
        failing(node, "die").await?.0?;
        Ok(())
    });
}

#[test]
fn one_that_hangs_over_an_end_does_not_keep_it_from_being_one() {
    on_node_with(nri::options(nri::IMPATIENT), async |node| {
        let _plugin = Plugin::connect(node, "10-bad", json!({ "hang": ["StopContainer"] })).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        container.stop(5).await?;
        ensure!(nri::names(node, "lost").await? == ["10-bad"]);
        container.remove().await?;
        Ok(())
    });
}

#[test]
fn nothing_is_made_without_a_required_plugin_but_in_its_own_namespace() {
    let policy = "[nri.plugins.guard]\nrequired = true\nexcept_namespaces = [\"guards\"]\n";
    on_node_with(nri::options(policy), async |node| {
        let text = format!("{:#}", node.run_pod(node.pod("web")).await.unwrap_err());
        ensure!(text.contains("guard is required and not connected"), "{text}");
        let mut own = node.pod("guard");
        own.metadata.as_mut().context("a pod has metadata")?.namespace = "guards".to_owned();
        node.run_pod(own).await?.run(sleeper("main")).await?;
        let mut guard = Plugin::connect(node, "50-guard", json!({})).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        pod.create(sleeper("main")).await?;
        guard.kill().await?;
        wait_until("the plugin to be missed", PATIENCE, async || {
            ensure!(nri::names(node, "lost").await? == ["50-guard"]);
            Ok(())
        })
        .await?;
        let error = pod.create(sleeper("second")).await.unwrap_err();
        ensure!(code_of(&error) == Some(tonic::Code::Unknown), "{error:#}");
        ensure!(format!("{error:#}").contains("guard is required"), "{error:#}");
        Ok(())
    });
}

#[test]
fn what_is_no_plugin_does_no_harm_to_those_that_are() {
    on_node_with(nri::options("registration_timeout = \"200ms\"\n"), async |node| {
        let plugin = Plugin::connect(node, "10-good", json!({})).await?;
        let mut silent = Plugin::run(node, "20-silent", &["-mode", "silent"].map(AsRef::as_ref))?;
        let mut rubbish = Plugin::run(node, "30-rubbish", &["-mode", "rubbish"].map(AsRef::as_ref))?;
        wait_until("both to be turned away", PATIENCE, async || {
            let log = node.log_tail();
            ensure!(log.contains("did not register within 200ms"), "the silent one is not");
            ensure!(log.contains("it sent a frame of"), "the other one is not");
            Ok(())
        })
        .await?;
        let pod = node.run_pod(node.pod("web")).await?;
        pod.run(sleeper("main")).await?;
        plugin.log.wait_for("PostStartContainer", "main").await?;
        silent.kill().await?;
        rubbish.kill().await
    });
}

#[test]
fn an_installed_plugin_lives_with_the_daemon() {
    on_node_with(nri::options(""), async |node| {
        let adjust = json!({ "env": [{ "key": "WHO", "value": "installed" }] });
        let log = nri::install(node, "10-own", create("main", adjust))?;
        node.restart().await?;
        // It is there before anybody can ask for anything.
        ensure!(nri::names(node, "connected").await? == ["10-own"]);
        let info = nri::info(node).await?;
        ensure!(info["connected"][0]["installed"] == true, "{info}");
        let pid = info["connected"][0]["pid"].as_i64().context("it has a pid")?;
        let pod = node.run_pod(node.pod("web")).await?;
        let main = pod.run(sleeper("main")).await?;
        ensure!(main.sh("tr '\\0' '\\n' < /proc/1/environ | grep WHO").await? == "WHO=installed\n");
        log.wait_for("PostStartContainer", "main").await?;

        // One that dies is started again.
        let kill = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
        ensure!(kill.success());
        wait_until("it to be started again", PATIENCE, async || {
            let info = nri::info(node).await?;
            let again = info["connected"][0]["pid"].as_i64().context("it is not")?;
            ensure!(again != pid);
            Ok(())
        })
        .await?;
        node.stop().await?;
        log.wait_for("Shutdown", "").await?;
        // `finish` fails when its process is still there.
        nri::uninstall(node)?;
        node.start().await
    });
}

#[test]
fn an_installed_plugin_that_cannot_be_started_is_missed_and_the_daemon_serves() {
    on_node_with(nri::options(nri::IMPATIENT), async |node| {
        nri::install(node, "10-hangs", json!({ "hang": ["Synchronized"] }))?;
        fs::write(node.dir().join("nri/plugins/20-broken"), "no program")?;
        fs::set_permissions(node.dir().join("nri/plugins/20-broken"), fs::Permissions::from_mode(0o755))?;
        node.restart().await?;
        let lost = nri::names(node, "lost").await?;
        ensure!(lost == ["10-hangs", "20-broken"], "{lost:?}");
        node.run_pod(node.pod("web")).await?;
        node.stop().await?;
        nri::uninstall(node)?;
        node.start().await
    });
}

#[test]
fn hooks_of_a_plugins_run_with_every_handler() {
    on_node_with(nri::options(""), async |node| {
        let mark = node.dir().join("hook-was-here");
        let hook = json!({ "path": "/bin/touch", "args": ["touch", mark] });
        let adjust = json!({
            "env": [{ "key": "WHO", "value": "plugin" }],
            "hooks": { "createRuntime": [hook] },
        });
        let _plugin = Plugin::connect(node, "10-change", create("main", adjust)).await?;
        for handler in ["", "crun"] {
            let pod = node.run_pod_with(node.pod(&format!("web{handler}")), handler).await?;
            let main = pod.run(sleeper("main")).await?;
            ensure!(
                main.sh("tr '\\0' '\\n' < /proc/1/environ | grep WHO").await? == "WHO=plugin\n",
                "{handler}"
            );
            fs::remove_file(&mark).with_context(|| format!("the hook did not run: {handler:?}"))?;
        }
        // In this process as in those after it: nothing of the plugin's is anybody else's.
        let plain = node.run_pod(node.pod("plain")).await?;
        let other = plain.run(sleeper("other")).await?;
        ensure!(!other.sh("tr '\\0' '\\n' < /proc/1/environ").await?.contains("WHO"));
        Ok(())
    });
}

#[test]
fn a_plugin_gives_a_container_cdi_devices() {
    let nri = nri::options("");
    let extra_config = format!("cdi_spec_dirs = [\"@DIR@/cdi\"]\n{}", nri.extra_config);
    on_node_with(Options { extra_config, ..nri }, async |node| {
        fs::create_dir(node.dir().join("cdi"))?;
        let edits = json!({ "env": ["CARD=yes"], "deviceNodes": [{ "path": "/dev/card0", "hostPath": "/dev/null" }] });
        let device = json!({ "name": "card", "containerEdits": edits });
        let spec = json!({ "cdiVersion": "0.6.0", "kind": "vendor.com/thing", "devices": [device] });
        fs::write(node.dir().join("cdi/vendor.json"), spec.to_string())?;
        let wish = |name: &str| json!({ "adjust": { "CDI_devices": [{ "name": format!("vendor.com/thing={name}") }] } });
        let script = json!({ "create": { "main": wish("card"), "other": wish("missing") } });
        let _plugin = Plugin::connect(node, "10-devices", script).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let main = pod.run(sleeper("main")).await?;
        ensure!(main.sh("echo $CARD; stat -c %F /dev/card0").await? == "yes\ncharacter special file\n");
        let text = format!("{:#}", pod.create(sleeper("other")).await.unwrap_err());
        ensure!(text.contains("vendor.com/thing=missing"), "{text}");
        Ok(())
    });
}

#[test]
fn limits_asked_by_the_caller_hold_where_no_plugin_has_another_wish() {
    on_node_with(nri::options(""), async |node| {
        let _plugin = Plugin::connect(node, "10-watch", json!({})).await?;
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        *resources(&mut config) =
            LinuxContainerResources { memory_limit_in_bytes: 48 * MIB, ..Default::default() };
        let container = pod.run(config).await?;
        ensure!(memory_limit(container.pid()?)? == (48 * MIB).to_string());
        Ok(())
    });
}
