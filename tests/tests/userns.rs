//! Pods with user and group ids of their own (`hostUsers: false`): who root is, inside and outside.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, Options, PATIENCE,
    cri::{
        Container, NamespaceMode, Pod, code_of, image_spec, pod_linux, pod_namespaces, script, security,
        sleeper,
    },
    host,
    image::{Image, Layer},
    on_node, on_node_with, tools, wait_until,
};
use k8s_cri::v1::{
    CdiDevice, ContainerConfig, ContainerState, ContainerStatsRequest, IdMapping, Mount, PodSandboxConfig,
    StatusRequest, UserNamespace,
};
use serde_json::json;

/// Where the pods' ids begin on the host, as kubelet gives them out.
const FIRST: u32 = 131_072;
const LENGTH: u32 = 65_536;

fn range() -> Vec<IdMapping> {
    vec![IdMapping { container_id: 0, host_id: FIRST, length: LENGTH }]
}

fn own_ids() -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: range(), gids: range() }
}

/// A pod with ids of its own, which it has all to itself.
fn pod(node: &Node, name: &str) -> PodSandboxConfig {
    let mut config = node.pod(name);
    pod_namespaces(&mut config).userns_options = Some(own_ids());
    config
}

/// A container as kubelet sends it for such a pod.
fn inside(mut config: ContainerConfig) -> ContainerConfig {
    let options = security(&mut config).namespace_options.get_or_insert_default();
    options.pid = NamespaceMode::Container.into();
    options.userns_options = Some(own_ids());
    config
}

fn volume(from: &std::path::Path, to: &str, mapped: bool) -> Mount {
    let ids = if mapped { range() } else { Vec::new() };
    Mount {
        host_path: from.display().to_string(),
        container_path: to.to_owned(),
        uid_mappings: ids.clone(),
        gid_mappings: ids,
        ..Mount::default()
    }
}

/// A file of the container as the host sees it.
fn outside(container: &Container<'_>, path: &str) -> Result<fs::Metadata> {
    Ok(fs::metadata(format!("/proc/{}/root{path}", container.pid()?))?)
}

#[test]
fn cdi_devices_and_hooks_come_to_it_as_to_any_other() {
    let extra_config = "cdi_spec_dirs = [\"@DIR@/cdi\"]".to_owned();
    on_node_with(Options { extra_config, ..Options::default() }, async |node| {
        let hook = node.dir().join("hook");
        fs::write(
            &hook,
            format!("#!/bin/sh\nid -u > {0}.ran; cat /proc/self/uid_map >> {0}.ran\n", hook.display()),
        )?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        let edits = json!({
            "deviceNodes": [{ "path": "/dev/thing0", "hostPath": "/dev/null" }],
            "hooks": [
                { "hookName": "createRuntime", "path": "/bin/true" },
                { "hookName": "createContainer", "path": hook },
                { "hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "cat /proc/self/uid_map > /tmp/map"] },
            ],
        });
        let device = json!({ "name": "one", "containerEdits": edits });
        let spec = json!({ "cdiVersion": "0.6.0", "kind": "vendor.com/thing", "devices": [device] });
        fs::create_dir(node.dir().join("cdi"))?;
        fs::write(node.dir().join("cdi/vendor.json"), spec.to_string())?;
        let pod = node.run_pod(pod(node, "web")).await?;
        let mut config = inside(sleeper("main"));
        config.cdi_devices = vec![CdiDevice { name: "vendor.com/thing=one".into() }];
        let container = pod.run(config).await?;
        ensure!(
            container.sh("stat -c '%F %t,%T' /dev/thing0; echo x > /dev/thing0").await?
                == "character special file 1,3\n"
        );
        // The vendor's is the host's root; the image's is the pod's.
        let ran = fs::read_to_string(hook.with_extension("ran"))?;
        let words: Vec<&str> = ran.split_whitespace().collect();
        ensure!(words == ["0", "0", "0", "4294967295"], "{ran}");
        let map = container.sh("cat /tmp/map").await?;
        ensure!(map.split_whitespace().nth(1) == Some(&FIRST.to_string()), "{map}");
        Ok(())
    });
}

#[test]
fn root_in_the_pod_is_somebody_else_on_the_node() {
    on_node(async |node| {
        let pod = node.run_pod(pod(node, "web")).await?;
        let text = "echo first > /dev/stdout; touch /made; exec sleep 1000";
        let (main, other) =
            (pod.run(inside(script("main", text))).await?, pod.run(inside(sleeper("other"))).await?);
        main.wait_file("/made").await?;

        let map = main.sh("cat /proc/self/uid_map /proc/self/gid_map").await?;
        let wanted = ["0", "131072", "65536"].repeat(2);
        ensure!(map.split_whitespace().collect::<Vec<_>>() == wanted, "{map:?}");
        ensure!(main.sh("id -u; id -g").await? == "0\n0\n");
        ensure!(host::status_field(main.pid()?, "Uid")?.split_whitespace().all(|uid| uid == "131072"));
        let namespace = |container: &Container<'_>| -> Result<PathBuf> {
            Ok(fs::read_link(format!("/proc/{}/ns/user", container.pid()?))?)
        };
        ensure!(namespace(&main)? == namespace(&other)?, "the pod's containers are in different ones");
        ensure!(namespace(&main)? != fs::read_link("/proc/self/ns/user")?);

        // The image's files, what was made before and after the start, what the pod gives, and devices.
        for path in [
            "/",
            "/bin",
            "/bin/busybox",
            "/etc/passwd",
            "/made",
            "/dev",
            "/dev/null",
            "/dev/pts/ptmx",
            "/dev/shm",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/hostname",
        ] {
            ensure!(main.sh(&format!("stat -c %u:%g {path}")).await? == "0:0\n", "{path}");
            ensure!(outside(&main, path)?.uid() == FIRST, "{path}");
        }
        ensure!(
            main.sh("echo 127.0.0.1 more >> /etc/hosts && tail -n 1 /etc/hosts").await?.ends_with("more\n")
        );
        ensure!(main.sh("chown 1000:1000 /made && stat -c %u /made").await? == "1000\n");
        ensure!(outside(&main, "/made")?.uid() == FIRST + 1000);
        ensure!(main.log_text()? == "first\n");
        let request = ContainerStatsRequest { container_id: main.id.clone() };
        let stats = node.runtime().container_stats(request).await?.into_inner().stats;
        let layer = stats.and_then(|stats| stats.writable_layer).context("no usage of the writable layer")?;
        ensure!(layer.inodes_used.is_some_and(|inodes| inodes.value > 0), "{layer:?}");
        Ok(())
    });
}

#[test]
fn users_of_the_pod_are_confined_like_anywhere() {
    on_node(async |node| {
        let pod = node.run_pod(pod(node, "web")).await?;
        let mut config =
            inside(script("user", "id -u; id -g; echo again > /dev/stdout; grep CapEff /proc/self/status"));
        security(&mut config).run_as_user = Some(k8s_cri::v1::Int64Value { value: 1000 });
        let seen = pod.output_of(config).await?;
        ensure!(seen == "1000\n1000\nagain\nCapEff:\t0000000000000000\n", "{seen}");

        let mut beyond = inside(sleeper("beyond"));
        security(&mut beyond).run_as_user = Some(k8s_cri::v1::Int64Value { value: LENGTH.into() });
        let Err(error) = pod.create(beyond).await else { bail!("a user that the pod does not have") };
        ensure!(code_of(&error) == Some(tonic::Code::InvalidArgument), "{error:#}");

        // All the capabilities there are: they reach as far as the pod.
        let mut config = inside(script(
            "capable",
            "mount -t tmpfs tmpfs /tmp && echo mounted; umount /proc/keys || mount -o remount,rw /proc/sys || \
             echo covered; mknod /x c 1 3 || echo no device; hostname other && hostname; cat /proc/1/root/x || echo none",
        ));
        security(&mut config).capabilities.get_or_insert_default().add_capabilities = vec!["ALL".to_owned()];
        security(&mut config).masked_paths = vec!["/proc/keys".to_owned()];
        security(&mut config).readonly_paths = vec!["/proc/sys".to_owned()];
        let seen = pod.output_of(config).await?;
        ensure!(seen == "mounted\ncovered\nno device\nother\nnone\n", "{seen}");
        ensure!(fs::read_to_string("/proc/sys/kernel/hostname")?.trim() != "other");
        Ok(())
    });
}

#[test]
fn a_privileged_container_is_mighty_in_its_pod_alone() {
    on_node(async |node| {
        let mut config = pod(node, "web");
        pod_linux(&mut config).security_context.get_or_insert_default().privileged = true;
        let pod = node.run_pod(config).await?;
        let mut config = inside(sleeper("main"));
        security(&mut config).privileged = true;
        let container = pod.run(config).await?;
        ensure!(container.sh("mount -t tmpfs tmpfs /tmp && hostname other && hostname").await? == "other\n");
        // The host's devices are there, but not root's in the pod, nor are its settings.
        ensure!(container.sh("stat -c %u /dev/kmsg").await? == "65534\n");
        for denied in [
            "echo berth > /dev/kmsg",
            "echo 0 > /proc/sys/kernel/panic",
            "chown 0 /dev/kmsg",
            "mknod /x c 1 3",
        ] {
            ensure!(container.exec(&["sh", "-c", denied]).await?.code != 0, "{denied}");
        }
        Ok(())
    });
}

#[test]
fn volumes_have_the_owners_that_cri_says() {
    on_node(async |node| {
        let shared = node.dir().join("shared");
        fs::create_dir(&shared)?;
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755))?;
        fs::write(shared.join("roots"), "")?;
        fs::write(shared.join("users"), "")?;
        chown(shared.join("users"), Some(1000), Some(1000))?;
        let pod = node.run_pod(pod(node, "web")).await?;
        let mut config = inside(sleeper("main"));
        config.mounts.extend([volume(&shared, "/mapped", true), volume(&shared, "/plain", false)]);
        let container = pod.run(config).await?;
        let owners =
            async |folder: &str| container.sh(&format!("stat -c %u {folder}/roots {folder}/users")).await;
        ensure!(owners("/mapped").await? == "0\n1000\n");
        ensure!(owners("/plain").await? == "65534\n65534\n");
        container.sh("touch /mapped/made").await?;
        ensure!(
            fs::metadata(shared.join("made"))?.uid() == 0,
            "root in the pod writes as root on the volume"
        );
        ensure!(container.exec(&["touch", "/plain/made"]).await?.code != 0);
        ensure!(container.status().await?.mounts[0].uid_mappings == range());

        // A file system that has no owners to map.
        let mut config = inside(sleeper("refused"));
        config.mounts.push(volume(std::path::Path::new("/proc"), "/host/proc", true));
        let Err(error) = pod.create(config).await else { bail!("/proc was idmapped") };
        let text = format!("{error:#}");
        ensure!(["/host/proc", "of type proc", "idmapped"].iter().all(|part| text.contains(part)), "{text}");
        Ok(())
    });
}

#[test]
fn an_image_volume_belongs_to_the_pods_ids() {
    on_node(async |node| {
        let data = Image::new(vec![Layer::new().dir("data", 0o755).file("data/mine", 0o600, "hello")]);
        node.registry().push("library/data", "latest", &data.build()?);
        node.pull("data").await?;
        let pod = node.run_pod(pod(node, "web")).await?;
        let mut config = inside(sleeper("main"));
        config.mounts.push(Mount {
            container_path: "/volume".to_owned(),
            image: Some(image_spec("data")),
            readonly: true,
            uid_mappings: range(),
            gid_mappings: range(),
            ..Mount::default()
        });
        let container = pod.run(config).await?;
        ensure!(container.sh("stat -c %u /volume/data/mine; cat /volume/data/mine").await? == "0\nhello");
        Ok(())
    });
}

#[test]
fn the_pods_network_is_roots_own() {
    on_node(async |node| {
        let mut config = pod(node, "web");
        pod_linux(&mut config)
            .sysctls
            .insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned());
        pod_linux(&mut config).sysctls.insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
        let pod = node.run_pod(config).await?;
        let text =
            "mkdir /w && echo hello > /w/index.html && httpd -p 80 -h /w && touch /ready; exec sleep 1000";
        let mut config = inside(script("main", text));
        security(&mut config).capabilities.get_or_insert_default().add_capabilities =
            vec!["NET_ADMIN".to_owned()];
        let container = pod.run(config).await?;
        container.wait_file("/ready").await?;
        ensure!(container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await? == "1024\n");
        ensure!(container.sh("cat /proc/sys/kernel/shm_rmid_forced").await? == "1\n");
        ensure!(
            container
                .sh("ip addr add 192.0.2.7/32 dev lo && ip addr show dev lo | grep -c 192.0.2.7")
                .await?
                == "1\n"
        );
        for address in pod.ips().await? {
            let at: SocketAddr = SocketAddr::new(address.parse()?, 80);
            let answer = get(at).with_context(|| format!("asking {at}"))?;
            ensure!(answer.ends_with("hello\n"), "{at}: {answer:?}");
        }

        let local = free_port()?;
        let forwarded = format!("{local}:80");
        let mut command = node.crictl_command(&["port-forward", &pod.id, &forwarded])?;
        let _forward = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        wait_until("the forward to stand", PATIENCE, async || {
            ensure!(get(([127, 0, 0, 1], local).into())?.ends_with("hello\n"), "not yet");
            Ok(())
        })
        .await
    });
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn get(at: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_hosts_network_is_not_roots_own() {
    on_node(async |node| {
        let mut config = pod(node, "web");
        config.hostname = String::new();
        pod_namespaces(&mut config).network = NamespaceMode::Node.into();
        let pod = node.run_pod(config).await?;
        let mut config = inside(sleeper("main"));
        let options = security(&mut config).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
        security(&mut config).capabilities.get_or_insert_default().add_capabilities =
            vec!["NET_ADMIN".to_owned()];
        let container = pod.run(config).await?;
        ensure!(
            container.sh("readlink /proc/self/ns/net").await?.trim()
                == fs::read_link("/proc/self/ns/net")?.to_string_lossy()
        );
        ensure!(
            container
                .sh("cut -c 11-20 /proc/self/uid_map; ls /sys/class/net | grep -c lo")
                .await?
                .contains("1\n")
        );
        ensure!(host::status_field(container.pid()?, "Uid")?.starts_with("131072"));
        ensure!(container.exec(&["httpd", "-p", "127.0.0.1:81"]).await?.code != 0);
        ensure!(container.exec(&["touch", "/sys/kernel/x"]).await?.code != 0);
        Ok(())
    });
}

#[test]
fn terminals_belong_to_the_user() {
    on_node(async |node| {
        let pod = node.run_pod(pod(node, "web")).await?;
        let mut config =
            inside(script("main", "tty; stat -c %u $(tty); echo x > /dev/console; exec sleep 1000"));
        config.tty = true;
        security(&mut config).run_as_user = Some(k8s_cri::v1::Int64Value { value: 7 });
        let container = pod.run(config).await?;
        let lines = container.wait_log(3).await?;
        let text: Vec<&str> = lines.iter().map(|line| line.content.trim()).collect();
        ensure!(text == ["/dev/pts/0", "7", "x"], "{text:?}");
        Ok(())
    });
}

#[test]
fn a_shared_pid_namespace_is_in_the_user_namespace() {
    on_node(async |node| {
        let mut config = pod(node, "web");
        pod_namespaces(&mut config).pid = NamespaceMode::Pod.into();
        let pod = node.run_pod(config).await?;
        let shared = |name: &str| {
            let mut config = inside(sleeper(name));
            security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
            config
        };
        let (one, other) = (pod.run(shared("one")).await?, pod.run(shared("other")).await?);
        ensure!(one.sh("cat /proc/1/comm").await? == "berth-pause\n");
        ensure!(one.sh("readlink /proc/self/ns/pid").await? == other.sh("readlink /proc/self/ns/pid").await?);
        // Root in the pod may signal the processes of all its containers.
        let seen = one.sh("for p in /proc/[0-9]*; do stat -c %u $p; done | sort -u").await?;
        ensure!(seen == "0\n", "{seen}");
        Ok(())
    });
}

#[test]
fn a_daemon_that_comes_back_knows_the_pods_ids() {
    on_node(async |node| {
        let pod = node.run_pod(pod(node, "web")).await?;
        let first = pod.run(inside(sleeper("first"))).await?;
        node.kill9().await?;
        node.start().await?;
        ensure!(first.sh("id -u; touch /x").await? == "0\n");
        ensure!(outside(&first, "/x")?.uid() == FIRST);
        let second = pod.run(inside(sleeper("second"))).await?;
        let namespaces = second.sh("readlink /proc/self/ns/user").await?;
        ensure!(namespaces == first.sh("readlink /proc/self/ns/user").await?);
        ensure!(second.sh("stat -c %u /bin/busybox").await? == "0\n");
        let options =
            pod.status().await?.linux.and_then(|linux| linux.namespaces).and_then(|found| found.options);
        ensure!(options.and_then(|options| options.userns_options) == Some(own_ids()));
        Ok(())
    });
}

/// Whatever was being made is whole or gone afterwards, and a retry makes it. The leak check at the end sees the rest.
#[test]
fn a_daemon_killed_in_the_middle_leaves_nothing_of_such_a_pod() {
    on_node(async |node| {
        for round in 0..8_u64 {
            let name = format!("pod-{round}");
            let making = async { node.run_pod(pod(node, &name)).await?.run(inside(sleeper("main"))).await };
            // At other moments each round.
            let kill = async {
                tokio::time::sleep(Duration::from_millis(2 + 6 * round)).await;
                node.kill9().await
            };
            let (_, killed) = futures::join!(making, kill);
            killed?;
            node.start().await?;
            let again = node.run_pod(pod(node, &name)).await?;
            let main = again.create(inside(sleeper("main"))).await?;
            if main.status().await?.state() != ContainerState::ContainerRunning {
                main.start().await?;
            }
            ensure!(main.sh("stat -c %u /bin/busybox").await? == "0\n");
            again.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_meant_is_refused() {
    on_node(async |node| {
        let refused = async |what: &str, options: UserNamespace| -> Result<()> {
            let mut config = node.pod("refused");
            pod_namespaces(&mut config).userns_options = Some(options);
            let Err(error) = node.run_pod(config).await else { bail!("{what} was taken") };
            ensure!(code_of(&error) == Some(tonic::Code::InvalidArgument), "{what}: {error:#}");
            Ok(())
        };
        let two = vec![range()[0], IdMapping { container_id: LENGTH, host_id: 500_000, length: 1 }];
        refused("two ranges", UserNamespace { uids: two, ..own_ids() }).await?;
        let without_root = vec![IdMapping { container_id: 1, ..range()[0] }];
        refused("no root", UserNamespace { uids: without_root, ..own_ids() }).await?;
        let fewer = vec![IdMapping { length: 10, ..range()[0] }];
        refused("fewer groups", UserNamespace { gids: fewer, ..own_ids() }).await?;
        refused("no ids", UserNamespace { mode: NamespaceMode::Pod.into(), ..Default::default() }).await?;
        for mode in [NamespaceMode::Container, NamespaceMode::Target] {
            refused("a mode", UserNamespace { mode: mode.into(), ..own_ids() }).await?;
        }

        let pod = node.run_pod(pod(node, "web")).await?;
        let mut config = inside(sleeper("other"));
        let options = security(&mut config).namespace_options.get_or_insert_default();
        options.userns_options =
            Some(UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() });
        let Err(error) = pod.create(config).await else { bail!("a container with other ids than its pod") };
        ensure!(code_of(&error) == Some(tonic::Code::InvalidArgument), "{error:#}");
        Ok(())
    });
}

/// The pinned runc; Debian's cannot make idmapped mounts.
fn with_new_runc() -> Result<Options> {
    let path = tools::runc()?;
    let extra = format!("[runtime_handlers.new-runc]\npath = \"{}\"\n", path.display());
    Ok(Options { extra_config: extra, ..Options::default() })
}

#[test]
fn handlers_say_whether_they_can() {
    on_node_with(with_new_runc().expect("runc builds"), async |node| {
        let status = node.runtime().status(StatusRequest { verbose: false }).await?.into_inner();
        let can: Vec<(String, bool)> = status
            .runtime_handlers
            .into_iter()
            .map(|handler| (handler.name, handler.features.is_some_and(|features| features.user_namespaces)))
            .collect();
        for (name, wanted) in [("", true), ("new-runc", true), ("runc", false), ("crun", false)] {
            ensure!(can.contains(&(name.to_owned(), wanted)), "{name}: {can:?}");
        }
        let Err(error) = node.run_pod_with(pod(node, "web"), "runc").await else { bail!("runc 1.1 can it") };
        ensure!(format!("{error:#}").contains("user namespace"), "{error:#}");

        let shared = node.dir().join("shared");
        fs::create_dir(&shared)?;
        fs::write(shared.join("roots"), "")?;
        let pod: Pod<'_> = node.run_pod_with(pod(node, "web"), "new-runc").await?;
        let mut config = inside(sleeper("main"));
        config.mounts.push(volume(&shared, "/mapped", true));
        let container = pod.run(config).await.context("with runc")?;
        ensure!(container.sh("id -u; stat -c %u /bin/busybox /mapped/roots").await? == "0\n0\n0\n");
        ensure!(host::status_field(container.pid()?, "Uid")?.starts_with("131072"));
        pod.remove().await?;

        // Entering a namespace from inside takes that it belongs to the pod's user namespace, and so does mounting sysfs.
        let mut config = self::pod(node, "shared");
        config.hostname = String::new();
        let options = pod_namespaces(&mut config);
        (options.network, options.pid) = (NamespaceMode::Node.into(), NamespaceMode::Pod.into());
        let pod = node.run_pod_with(config, "new-runc").await?;
        let mut config = inside(script("main", "echo out > /dev/stdout; exec sleep 1000"));
        let options = security(&mut config).namespace_options.get_or_insert_default();
        (options.network, options.pid) = (NamespaceMode::Node.into(), NamespaceMode::Pod.into());
        let container = pod.run(config).await.context("with runc, in the host's network")?;
        ensure!(container.wait_log(1).await?[0].content == "out");
        ensure!(container.sh("echo again > /dev/stdout").await? == "again\n");
        let seen =
            container.sh("cat /proc/1/comm; ls /sys/class/net | grep -c lo; cat /proc/self/uid_map").await?;
        let wanted = ["berth-pause", "1", "0", "131072", "65536"];
        ensure!(seen.split_whitespace().collect::<Vec<_>>() == wanted, "{seen}");
        Ok(())
    });
}
