//! Pod networks made by CNI plugins.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Result, bail, ensure};
use berth_tests::{Node, Options, PATIENCE, cri::sleeper, node::CNI_BRIDGE, on_node_with, wait_until};
use k8s_cri::v1::{PortMapping, RuntimeCondition, StatusRequest};
use serde_json::Value;

/// A plugin of the test's own, which writes down how it was called.
const RECORDING: &str = r#"{
  "cniVersion": "1.1.0",
  "name": "recorded",
  "plugins": [{ "type": "recorder", "capabilities": { "portMappings": true } }]
}"#;

/// Logs command, interface, namespace and standard input; fails a command for which a file `fail-COMMAND` is there.
const RECORDER: &str = r#"#!/bin/sh
input=$(cat | tr -d '\n')
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'; exit 0; }
echo "$CNI_COMMAND $CNI_IFNAME $CNI_CONTAINERID $input" >> @DIR@/calls
if [ -e "@DIR@/fail-$CNI_COMMAND" ]; then
    echo '{"cniVersion":"1.1.0","code":50,"msg":"no luck today","details":"the test wants it so"}'
    exit 1
fi
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"192.0.2.7/24","interface":0}]}'
exit 0
"#;

fn with_network(conflist: &str) -> Options {
    Options { cni_conflist: Some(conflist.to_owned()), ..Options::default() }
}

/// Runs a test on a node whose network is the recording plugin.
fn on_recorded_node(body: impl AsyncFnOnce(&Node) -> Result<()>) {
    on_node_with(with_network(RECORDING), async |node| {
        let folder = node.dir().join("cni-bin");
        fs::create_dir_all(&folder)?;
        let plugin = folder.join("recorder");
        fs::write(&plugin, RECORDER.replace("@DIR@", &node.dir().display().to_string()))?;
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
        // As kubelet does: no pods before the network is ready.
        wait_until("the plugin to be noticed", PATIENCE, async || {
            let condition = network_condition(node).await?;
            ensure!(condition.status, "{condition:?}");
            Ok(())
        })
        .await?;
        body(node).await
    });
}

/// The calls so far: command, then what came on standard input.
fn calls(node: &Node) -> Result<Vec<(String, Value)>> {
    let text = fs::read_to_string(node.dir().join("calls")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let command = words.next().unwrap_or_default().to_owned();
            let input = words.nth(2).unwrap_or_default();
            Ok((command, serde_json::from_str(input)?))
        })
        .collect()
}

async fn network_condition(node: &Node) -> Result<RuntimeCondition> {
    let status = node.runtime().status(StatusRequest::default()).await?.into_inner().status;
    let found =
        status.unwrap_or_default().conditions.into_iter().find(|found| found.r#type == "NetworkReady");
    let Some(found) = found else { bail!("no NetworkReady") };
    Ok(found)
}

#[test]
fn debians_bridge_plugin_gives_pods_their_addresses() {
    on_node_with(with_network(CNI_BRIDGE), async |node| {
        let (server, client) = (node.run_pod(node.pod("a")).await?, node.run_pod(node.pod("b")).await?);
        let ips = server.ips().await?;
        ensure!(ips.len() == 2 && ips[0].contains('.') && ips[1].contains(':'), "{ips:?}");
        let main = server.run(sleeper("main")).await?;
        let seen = main.sh("ip -o addr show eth0; ip -o link show lo").await?;
        ensure!(seen.contains(&ips[0]) && seen.contains("lo: <LOOPBACK,UP"), "{seen}");
        let from = client.run(sleeper("main")).await?;
        from.sh(&format!("ping -c 1 -W 5 {}", ips[0])).await?;
        // What the plugins gave is known to the next daemon too.
        node.kill9().await?;
        node.start().await?;
        ensure!(server.ips().await? == ips);
        server.remove().await?;
        client.remove().await?;
        let kept = fs::read_dir(node.dir().join("ipam/test"))?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains(['.', ':']))
            .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_hexdigit())
            .count();
        ensure!(kept == 0, "{kept} addresses were not given back");
        Ok(())
    });
}

#[test]
fn add_and_del_get_the_same_call_and_the_result_of_add() {
    on_recorded_node(async |node| {
        let mut config = node.pod("web");
        config.port_mappings =
            vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
        let pod = node.run_pod(config).await?;
        ensure!(pod.ips().await? == ["192.0.2.7"]);
        pod.stop().await?;
        pod.stop().await?;
        let calls: Vec<_> =
            calls(node)?.into_iter().filter(|(command, _)| command == "ADD" || command == "DEL").collect();
        ensure!(calls.len() == 2 && calls[0].0 == "ADD" && calls[1].0 == "DEL", "{calls:?}");
        for (_, input) in &calls {
            ensure!(input["name"] == "recorded" && input["cniVersion"] == "1.1.0", "{input}");
            let mapping = &input["runtimeConfig"]["portMappings"][0];
            ensure!(mapping["hostPort"] == 8080 && mapping["containerPort"] == 80, "{input}");
        }
        ensure!(calls[1].1["prevResult"]["ips"][0]["address"] == "192.0.2.7/24", "{}", calls[1].1);
        Ok(())
    });
}

#[test]
fn a_failing_add_fails_the_pod_with_the_plugins_words_and_undoes_it() {
    on_recorded_node(async |node| {
        fs::write(node.dir().join("fail-ADD"), "")?;
        let Err(error) = node.run_pod(node.pod("web")).await else { bail!("it ran") };
        for part in ["recorder", "no luck today", "the test wants it so"] {
            ensure!(format!("{error:#}").contains(part), "{part} is not in {error:#}");
        }
        ensure!(calls(node)?.iter().any(|(command, _)| command == "DEL"), "a failed ADD needs a DEL");
        fs::remove_file(node.dir().join("fail-ADD"))?;
        node.run_pod(node.pod("web")).await?;
        Ok(())
    });
}

#[test]
fn a_failing_del_fails_the_stop_which_can_be_repeated() {
    on_recorded_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        fs::write(node.dir().join("fail-DEL"), "")?;
        let Err(error) = pod.stop().await else { bail!("it was stopped") };
        ensure!(format!("{error:#}").contains("no luck today"), "{error:#}");
        fs::remove_file(node.dir().join("fail-DEL"))?;
        pod.stop().await?;
        pod.remove().await
    });
}

#[test]
fn a_failing_status_makes_the_network_not_ready_with_the_reason() {
    on_recorded_node(async |node| {
        wait_until("the network to be ready", PATIENCE, async || {
            let condition = network_condition(node).await?;
            ensure!(condition.status, "{condition:?}");
            Ok(())
        })
        .await?;
        fs::write(node.dir().join("fail-STATUS"), "")?;
        wait_until("the network not to be ready", PATIENCE, async || {
            let condition = network_condition(node).await?;
            ensure!(!condition.status && condition.message.contains("no luck today"), "{condition:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn a_changed_folder_is_noticed_and_a_broken_file_is_named() {
    on_recorded_node(async |node| {
        let file = node.dir().join("cni/10-test.conflist");
        let good = fs::read_to_string(&file)?;
        fs::write(&file, "{ not json")?;
        wait_until("the broken file to be noticed", PATIENCE, async || {
            let condition = network_condition(node).await?;
            ensure!(!condition.status && condition.message.contains("10-test.conflist"), "{condition:?}");
            Ok(())
        })
        .await?;
        fs::write(&file, good)?;
        wait_until("the mended file to be noticed", PATIENCE, async || {
            let condition = network_condition(node).await?;
            ensure!(condition.status, "{condition:?}");
            Ok(())
        })
        .await?;
        node.run_pod(node.pod("web")).await?;
        Ok(())
    });
}

#[test]
fn a_plugin_that_is_not_installed_is_named_with_the_folders() {
    let missing = RECORDING.replace("recorder", "no-such-plugin");
    on_node_with(with_network(&missing), async |node| {
        let Err(error) = node.run_pod(node.pod("web")).await else { bail!("it ran") };
        ensure!(format!("{error:#}").contains("no-such-plugin"), "{error:#}");
        ensure!(format!("{error:#}").contains("/usr/lib/cni"), "{error:#}");
        Ok(())
    });
}

#[test]
fn pods_with_host_network_need_no_plugin() {
    on_recorded_node(async |node| {
        let mut config = node.pod("web");
        config.hostname = String::new();
        berth_tests::cri::pod_namespaces(&mut config).network = berth_tests::cri::NamespaceMode::Node.into();
        let pod = node.run_pod(config).await?;
        pod.remove().await?;
        ensure!(!calls(node)?.iter().any(|(command, _)| command == "ADD" || command == "DEL"));
        Ok(())
    });
}

#[test]
fn a_new_daemon_has_the_plugins_collect_what_no_pod_owns() {
    on_recorded_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        node.restart().await?;
        wait_until("a GC call that keeps the pod's attachment", PATIENCE, async || {
            let kept = calls(node)?.into_iter().filter(|(command, _)| command == "GC").any(|(_, input)| {
                let valid = &input["cni.dev/valid-attachments"];
                valid
                    .as_array()
                    .is_some_and(|valid| valid.iter().any(|one| one["containerID"] == pod.id.as_str()))
            });
            ensure!(kept, "{:?}", calls(node)?);
            Ok(())
        })
        .await
    });
}
