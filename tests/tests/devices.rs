//! Devices that vendors describe in files (CDI), and hooks, which come to a container with them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, Options,
    cri::{NamespaceMode, code_of, pod_namespaces, script, security, sleeper},
    host::ip,
    on_node_with,
};
use k8s_cri::v1::{CdiDevice, ContainerConfig, Int64Value};
use serde_json::{Value, json};
use tonic::Code;

/// The native one by its default name, then the others.
const HANDLERS: [&str; 3] = ["", "runc", "crun"];

/// A node with two spec folders of its own, `cdi` and `cdi-late`.
fn on_cdi_node(body: impl AsyncFnOnce(&Node) -> Result<()>) {
    let extra_config = "cdi_spec_dirs = [\"@DIR@/cdi\", \"@DIR@/cdi-late\"]".to_owned();
    on_node_with(Options { extra_config, ..Options::default() }, body);
}

/// Writes a spec file with one device, `vendor.com/thing=NAME`.
fn describe(node: &Node, file: &str, device: &str, edits: &Value) -> Result<PathBuf> {
    let path = node.dir().join(file);
    fs::create_dir_all(path.parent().context("a folder")?)?;
    let spec = json!({
        "cdiVersion": "1.1.0",
        "kind": "vendor.com/thing",
        "devices": [{ "name": device, "containerEdits": edits }],
    });
    fs::write(&path, spec.to_string())?;
    Ok(path)
}

fn with_device(config: ContainerConfig, device: &str) -> ContainerConfig {
    let name = format!("vendor.com/thing={device}");
    ContainerConfig { cdi_devices: vec![CdiDevice { name }], ..config }
}

/// A program of the host's that appends to a file what it is told, and where it is.
fn hook(node: &Node, name: &str, text: &str) -> Result<PathBuf> {
    let path = node.dir().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn a_device_brings_nodes_mounts_variables_and_groups_with_every_handler() {
    on_cdi_node(async |node| {
        let library = node.dir().join("library");
        fs::write(&library, "of the vendor\n")?;
        let edits = json!({
            "env": ["VENDOR=yes"],
            "deviceNodes": [
                { "path": "/dev/thing0", "hostPath": "/dev/null", "permissions": "rw", "fileMode": 0o640, "uid": 7, "gid": 8 },
                { "path": "/dev/vendor/zero", "hostPath": "/dev/zero" },
            ],
            "mounts": [{ "hostPath": library, "containerPath": "/usr/lib/vendor", "options": ["ro", "nosuid", "bind"] }],
            "additionalGids": [4242],
        });
        describe(node, "cdi/vendor.json", "one", &edits)?;
        for handler in HANDLERS {
            let pod = node.run_pod_with(node.pod("web"), handler).await?;
            let container =
                pod.run(with_device(sleeper("main"), "one")).await.with_context(|| handler.to_owned())?;
            let look = "stat -c '%n %F %t,%T %a %u %g' /dev/thing0; cat /usr/lib/vendor; echo $VENDOR; \
                        echo x > /dev/thing0 && head -c 3 /dev/vendor/zero | wc -c; \
                        grep -o 4242 /proc/self/status; touch /usr/lib/vendor 2>/dev/null || echo read-only";
            let seen = container.sh(look).await?;
            let wanted =
                "/dev/thing0 character special file 1,3 640 7 8\nof the vendor\nyes\n3\n4242\nread-only\n";
            ensure!(seen == wanted, "{handler:?}: {seen}");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn a_device_that_only_the_spec_file_allows_can_be_used() {
    on_cdi_node(async |node| {
        // None of those that every container may use.
        let edits = json!({ "deviceNodes": [{ "path": "/dev/control", "hostPath": "/dev/btrfs-control", "permissions": "r" }] });
        describe(node, "cdi/vendor.json", "control", &edits)?;
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(with_device(sleeper("main"), "control")).await?;
        container.sh("exec 3< /dev/control").await?;
        let denied = container.exec(&["sh", "-c", "exec 3> /dev/control"]).await?;
        ensure!(denied.code != 0, "written to: {denied:?}");
        Ok(())
    });
}

#[test]
fn a_process_that_is_not_roots_owns_the_node_it_is_given() {
    on_cdi_node(async |node| {
        describe(
            node,
            "cdi/vendor.json",
            "one",
            &json!({ "deviceNodes": [{ "path": "/dev/thing0", "hostPath": "/dev/null" }] }),
        )?;
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = with_device(sleeper("main"), "one");
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        let container = pod.run(config).await?;
        ensure!(container.sh("stat -c %u /dev/thing0").await? == "1000\n");
        Ok(())
    });
}

#[test]
fn annotations_name_devices_too() {
    on_cdi_node(async |node| {
        describe(node, "cdi/a.json", "one", &json!({ "env": ["ONE=1"] }))?;
        describe(node, "cdi/b.json", "two", &json!({ "env": ["TWO=2"] }))?;
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = with_device(sleeper("main"), "one");
        config
            .annotations
            .insert("cdi.k8s.io/plugin_x".into(), "vendor.com/thing=two,vendor.com/thing=one".into());
        let container = pod.run(config).await?;
        ensure!(container.sh("echo $ONE$TWO").await? == "12\n");
        Ok(())
    });
}

#[test]
fn a_device_that_cannot_be_told_is_an_error_with_what_was_found() {
    on_cdi_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let refused = async |device: &str| match pod.create(with_device(sleeper(device), device)).await {
            Ok(_) => bail!("{device} was found"),
            Err(error) => Ok((code_of(&error), format!("{error:#}"))),
        };
        let (code, text) = refused("one").await?;
        ensure!(code == Some(Code::FailedPrecondition), "{code:?}: {text}");
        for part in ["vendor.com/thing=one", "/cdi,", "/cdi-late"] {
            ensure!(text.contains(part), "{part}: {text}");
        }
        let first = describe(node, "cdi/a.json", "one", &json!({ "env": ["FROM=a"] }))?;
        fs::write(node.dir().join("cdi/broken.yaml"), "cdiVersion: [")?;
        let (_, text) = refused("two").await?;
        ensure!(text.contains("there is one") && text.contains("broken.yaml"), "{text}");

        // Two files of one folder: neither counts, and both are named.
        let second = describe(node, "cdi/b.json", "one", &json!({ "env": ["FROM=b"] }))?;
        let (code, text) = refused("one").await?;
        ensure!(code == Some(Code::FailedPrecondition), "{code:?}: {text}");
        for file in [first, second] {
            ensure!(text.contains(&file.display().to_string()), "{text}");
        }
        // A later folder has the last word.
        describe(node, "cdi-late/c.json", "one", &json!({ "env": ["FROM=late"] }))?;
        let container = pod.run(with_device(sleeper("main"), "one")).await?;
        ensure!(container.sh("echo $FROM").await? == "late\n");

        let mut config = sleeper("unnamed");
        config.cdi_devices = vec![CdiDevice { name: "no name".into() }];
        let error = pod.create(config).await.err().context("it was made")?;
        ensure!(code_of(&error) == Some(Code::InvalidArgument), "{error:#}");
        describe(node, "cdi/d.json", "gone", &json!({ "deviceNodes": [{ "path": "/dev/no-such-thing" }] }))?;
        let (_, text) = refused("gone").await?;
        ensure!(text.contains("/dev/no-such-thing"), "{text}");
        Ok(())
    });
}

/// A cable between two interfaces of the host's, gone with either of them.
struct Cable {
    given: String,
    other: String,
}

impl Cable {
    fn new() -> Result<Self> {
        let id = std::process::id();
        let cable = Self { given: format!("given{id}"), other: format!("other{id}") };
        ip(&format!("link add {} type veth peer name {}", cable.given, cable.other))?;
        for address in ["192.0.2.7/24", "2001:db8::7/64 nodad"] {
            ip(&format!("address add {address} dev {}", cable.given))?;
        }
        Ok(cable)
    }

    fn is_on_the_host(&self) -> bool {
        Path::new("/sys/class/net").join(&self.given).exists()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // Gone with the pod already, unless the test failed.
        let _ = ip(&format!("link delete {}", self.other));
    }
}

#[test]
fn an_interface_of_the_hosts_moves_to_the_pod_with_its_addresses() {
    on_cdi_node(async |node| {
        let cable = Cable::new()?;
        let device =
            |host: &str, name: &str| json!({ "netDevices": [{ "hostInterfaceName": host, "name": name }] });
        describe(node, "cdi/card.json", "card", &device(&cable.given, "data0"))?;
        describe(node, "cdi/taken.json", "taken", &device(&cable.given, "lo"))?;
        describe(node, "cdi/missing.json", "missing", &device("no-such-card", "data1"))?;
        let pod = node.run_pod(node.pod("web")).await?;
        for (wrong, why) in [("taken", "the pod has another interface"), ("missing", "no-such-card")] {
            let error = pod.create(with_device(sleeper(wrong), wrong)).await.err().context("it was made")?;
            ensure!(code_of(&error) == Some(Code::FailedPrecondition), "{error:#}");
            ensure!(format!("{error:#}").contains(why), "{error:#}");
        }
        ensure!(cable.is_on_the_host(), "a refused container keeps nothing");

        let mut on_host = node.pod("on-host");
        pod_namespaces(&mut on_host).network = NamespaceMode::Node.into();
        let on_host = node.run_pod(on_host).await?;
        let error =
            on_host.create(with_device(sleeper("main"), "card")).await.err().context("it was made")?;
        ensure!(format!("{error:#}").contains("linux.netDevices"), "{error:#}");

        // Twice: it is there already when a container of the pod starts again.
        for name in ["main", "again"] {
            let container = pod.run(with_device(sleeper(name), "card")).await?;
            let seen = container.sh("ip -o address show data0; ip link show data0").await?;
            for part in ["192.0.2.7/24", "2001:db8::7/64", ",UP"] {
                ensure!(seen.contains(part), "{name}: no {part} in {seen}");
            }
        }
        ensure!(!cable.is_on_the_host(), "it is the pod's now");
        pod.remove().await?;
        on_host.remove().await
    });
}

/// What a hook wrote: the state that it was told, and what it saw.
fn told(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[test]
fn hooks_run_at_their_moments_with_every_handler() {
    on_cdi_node(async |node| {
        for handler in HANDLERS {
            let folder = node.dir().join(format!("hooks-{handler}"));
            fs::create_dir(&folder)?;
            let write = |name: &str| -> Result<PathBuf> {
                hook(
                    node,
                    &format!("hooks-{handler}/{name}"),
                    &format!("cat >> {0}/{name}.told; echo >> {0}/{name}.told", folder.display()),
                )
            };
            let mut hooks = Vec::new();
            for name in ["createRuntime", "createContainer", "poststart", "poststop"] {
                hooks.push(json!({ "hookName": name, "path": write(name)?, "args": [name], "timeout": 10 }));
            }
            // Of the image's own programs, in the container.
            hooks.push(json!({
                "hookName": "startContainer", "path": "/bin/sh",
                "args": ["sh", "-c", "id -u > /tmp/started; cat >> /tmp/started; echo >> /tmp/started"], "env": ["PATH=/bin"],
            }));
            describe(node, "cdi/vendor.json", "hooked", &json!({ "hooks": hooks }))?;

            let pod = node.run_pod_with(node.pod("web"), handler).await?;
            let mut config = with_device(script("main", "cat /tmp/started; sleep 1000"), "hooked");
            security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
            let container = pod.create(config).await.with_context(|| handler.to_owned())?;
            let file = |name: &str| folder.join(format!("{name}.told"));
            let [runtime] =
                told(&file("createRuntime"))?.try_into().ok().context("createRuntime ran once")?;
            let [inside] =
                told(&file("createContainer"))?.try_into().ok().context("createContainer ran once")?;
            // runc runs it when it creates.
            ensure!(
                handler == "runc" || !file("poststart").exists(),
                "{handler}: poststart before the start"
            );
            container.start().await?;
            let [started] = told(&file("poststart"))?.try_into().ok().context("poststart ran once")?;
            let pid = container.pid()?;
            for (state, status) in [(&runtime, "creating"), (&started, "running")] {
                ensure!(
                    state["pid"] == pid && state["id"] == container.id.as_str(),
                    "{handler}: {state} for {pid}"
                );
                // Each of the others has an opinion of its own.
                ensure!(!handler.is_empty() || state["status"] == status, "{handler}: {state}");
                ensure!(Path::new(state["bundle"].as_str().context("bundle")?).join("config.json").exists());
            }
            ensure!(inside["id"] == container.id.as_str(), "{inside}");
            let mode = fs::metadata(file("createContainer"))?.permissions().mode();
            ensure!(mode & 0o022 == 0, "{handler}: what a hook writes anybody can change: {mode:o}");
            let lines = container.wait_log(2).await?;
            ensure!(lines[0].content == "1000", "{handler}: startContainer ran as {}", lines[0].content);
            ensure!(lines[1].content.contains(&container.id), "{handler}: {}", lines[1].content);

            ensure!(!file("poststop").exists(), "{handler}: poststop before the end");
            container.stop(0).await?;
            container.remove().await?;
            let [stopped] = told(&file("poststop"))?.try_into().ok().context("poststop ran once")?;
            ensure!(stopped["status"] == "stopped", "{handler}: {stopped}");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn a_create_container_hook_changes_the_root_by_the_bundles_path() {
    on_cdi_node(async |node| {
        // As vendors' hooks do it: config.json of the bundle tells where the root is. `/proc/self/ns/mnt` is the
        // container's, so what the hook mounts there is seen by nobody else.
        let text = r#"bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/'); root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' $bundle/config.json)
            case $root in /*) ;; *) root=$bundle/$root ;; esac
            echo written > $root/etc/by-hook && mkdir $root/mnt && mount -t tmpfs hook $root/mnt && echo mounted > $root/mnt/by-hook"#;
        let path = hook(node, "hook", text)?;
        describe(
            node,
            "cdi/vendor.json",
            "hooked",
            &json!({ "hooks": [{ "hookName": "createContainer", "path": path }] }),
        )?;
        for handler in HANDLERS {
            let pod = node.run_pod_with(node.pod("web"), handler).await?;
            let config = with_device(script("main", "cat /etc/by-hook /mnt/by-hook; sleep 1000"), "hooked");
            let container = pod.run(config).await.with_context(|| handler.to_owned())?;
            let lines = container.wait_log(2).await?;
            ensure!(lines[0].content == "written" && lines[1].content == "mounted", "{handler}: {lines:?}");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn a_hook_that_fails_or_hangs_fails_the_creation_and_leaves_nothing() {
    on_cdi_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let failing = hook(node, "failing", "echo no card in slot 7 >&2; exit 3")?;
        let hanging = hook(node, "hanging", "echo waiting; sleep 1000")?;
        for moment in ["prestart", "createRuntime", "createContainer", "startContainer"] {
            for (path, part) in
                [(&failing, "status 3: no card in slot 7"), (&hanging, "did not end within 1s: waiting")]
            {
                // The container has the node's folder, so that its own hook is found by the same path.
                let edits = json!({
                    "hooks": [{ "hookName": moment, "path": path, "timeout": 1 }],
                    "mounts": [{ "hostPath": node.dir(), "containerPath": node.dir(), "options": ["rbind", "ro"] }],
                });
                describe(node, "cdi/vendor.json", "hooked", &edits)?;
                let error = match pod.create(with_device(sleeper("main"), "hooked")).await {
                    Err(error) => error,
                    Ok(container) => {
                        let error = container.start().await.err().with_context(|| format!("{moment} ran"))?;
                        container.remove().await?;
                        error
                    }
                };
                let text = format!("{error:#}");
                for part in [part, &path.display().to_string()] {
                    ensure!(text.contains(part), "{moment}: {part}: {text}");
                }
            }
        }
        // Those that are only warned about.
        for moment in ["poststart", "poststop"] {
            describe(
                node,
                "cdi/vendor.json",
                "hooked",
                &json!({ "hooks": [{ "hookName": moment, "path": failing }] }),
            )?;
            let container = pod.run(with_device(sleeper("main"), "hooked")).await?;
            container.stop(0).await?;
            container.remove().await?;
            ensure!(node.log_tail().contains("no card in slot 7"), "{moment}: {}", node.log_tail());
        }
        Ok(())
    });
}

#[test]
fn a_daemon_killed_in_a_hook_leaves_nothing_of_the_container() {
    on_cdi_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let marker = node.dir().join("began");
        let path = hook(node, "hook", &format!("touch {}; sleep 3", marker.display()))?;
        for moment in ["createRuntime", "createContainer"] {
            describe(
                node,
                "cdi/vendor.json",
                "hooked",
                &json!({ "hooks": [{ "hookName": moment, "path": path }] }),
            )?;
            let creating = pod.create(with_device(sleeper("main"), "hooked"));
            let kill = async {
                while !marker.exists() {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                node.kill9().await
            };
            let (created, killed) = tokio::join!(creating, kill);
            killed?;
            ensure!(created.is_err(), "{moment}: it was made");
            fs::remove_file(&marker)?;
            node.start().await?;
            ensure!(pod.run(sleeper(moment)).await?.sh("echo here").await? == "here\n");
        }
        Ok(())
    });
}
