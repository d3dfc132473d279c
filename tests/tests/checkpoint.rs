//! Containers written to an archive by CRIU, and containers made from one.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, Options, PATIENCE,
    cri::{Container, Pod, code_of, image_spec, script, security, sleeper},
    on_node_with, tools, wait_until,
};
use k8s_cri::v1::{
    CheckpointContainerRequest, ContainerConfig, ContainerState, Mount, SecurityProfile,
    security_profile::ProfileType,
};
use tempfile::TempDir;
use tonic::Code;

/// A node with a criu that works here.
fn on_criu_node(body: impl AsyncFnOnce(&Node) -> Result<()>) {
    let criu = tools::criu().expect("there is a criu");
    on_node_with_criu(&criu.display().to_string(), body);
}

fn on_node_with_criu(path: &str, body: impl AsyncFnOnce(&Node) -> Result<()>) {
    on_node_with(Options { extra_config: format!("criu_path = \"{path}\""), ..Options::default() }, body);
}

async fn checkpoint(container: &Container<'_>, location: &Path, timeout: i64) -> Result<()> {
    let request = CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: location.display().to_string(),
        timeout,
    };
    container.node.runtime().checkpoint_container(request).await.context("CheckpointContainer")?;
    Ok(())
}

/// Counts, to its log and a file, ten times a second; ends with 5 when it is asked to.
const COUNT: &str = "trap 'exit 5' TERM; echo kept > /etc/kept; rm /etc/passwd; mkdir /etc/folder; \
    exec 7> /tmp/count; i=0; while :; do i=$((i+1)); echo $i; echo $i >&7; sleep 0.1; done";

/// A counter as kubelet would send it: masked and read-only paths, the default seccomp profile, a volume.
fn counter(volume: &Path) -> ContainerConfig {
    let mut config = script("main", COUNT);
    config.mounts = vec![Mount {
        container_path: "/data".into(),
        host_path: volume.display().to_string(),
        ..Mount::default()
    }];
    let security = security(&mut config);
    security.masked_paths =
        ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).into();
    security.readonly_paths = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"].map(str::to_owned).into();
    security.seccomp = Some(SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    });
    config
}

/// The numbers in a container's log.
fn numbers(container: &Container<'_>) -> Result<Vec<u64>> {
    container.log()?.iter().map(|line| line.content.parse().context("a number")).collect()
}

/// A counter that has come to 5 at least.
async fn counting<'n>(pod: &Pod<'n>) -> Result<Container<'n>> {
    let volume = pod.node.dir().join("volume");
    fs::create_dir_all(&volume)?;
    let container = pod.run(counter(&volume)).await?;
    container.wait_log(5).await?;
    Ok(container)
}

async fn runs_on(container: &Container<'_>) -> Result<()> {
    let before = numbers(container)?.len();
    container.wait_log(before + 3).await.context("it does not run on")?;
    Ok(())
}

#[test]
fn a_restored_container_goes_on_where_the_checkpoint_was_taken() {
    on_criu_node(async |node| {
        let pod = node.run_pod(node.pod("first")).await?;
        let container = counting(&pod).await?;
        let archive = node.dir().join("checkpoint-first_tests-main-2026-01-01T00:00:00Z.tar");
        checkpoint(&container, &archive, 0).await?;
        let last = *numbers(&container)?.last().context("numbers")?;
        runs_on(&container).await?;
        ensure!(container.status().await?.state() == ContainerState::ContainerRunning);

        ensure!(fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600, "others may read it");
        let listed = Command::new("tar").arg("--list").arg("--file").arg(&archive).output()?;
        let listed = String::from_utf8(listed.stdout)?;
        for part in
            ["config.dump", "spec.dump", "rootfs-diff.tar", "dump.log", "stats-dump", "checkpoint/pstree.img"]
        {
            ensure!(listed.lines().any(|name| name == part), "{part} is not in {listed}");
        }

        let second = node.run_pod(node.pod("second")).await?;
        let config = ContainerConfig {
            image: Some(image_spec(&archive.display().to_string())),
            ..counter(&node.dir().join("volume"))
        };
        let restored = second.create(config).await?;
        ensure!(restored.status().await?.state() == ContainerState::ContainerCreated);
        ensure!(numbers(&restored)?.is_empty(), "it ran before it was started");
        restored.start().await?;
        restored.wait_log(5).await?;
        let seen = numbers(&restored)?;
        ensure!(seen[0] > 5 && seen[0] <= last + 1, "it went on with {}, after {last}", seen[0]);
        ensure!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");

        // The files are as they were, the pod is the new one, and it is confined as it was.
        let look = "cat /etc/kept; ls -d /etc/folder; test ! -e /etc/passwd && echo gone; hostname; \
                    grep Seccomp: /proc/1/status; wc -c < /proc/keys; touch /data/touched; cat /proc/self/cgroup | grep -c :/$";
        let seen = restored.sh(look).await?;
        let lines: Vec<&str> = seen.lines().collect();
        ensure!(lines[..4] == ["kept", "/etc/folder", "gone", "second"], "{seen}");
        ensure!(lines[4].ends_with('2') && lines[5] == "0" && lines[6] != "0", "{seen}");
        ensure!(node.dir().join("volume/touched").exists());
        let beginning = restored.sh("head -n 3 /tmp/count").await?;
        ensure!(beginning == "1\n2\n3\n", "{beginning}");

        // It outlives the daemon, ends as a container does, and its exit status is its own.
        node.kill9().await?;
        node.start().await?;
        runs_on(&restored).await?;
        restored.stop(20).await?;
        let status = restored.status().await?;
        ensure!(status.exit_code == 5, "{status:?}");
        runs_on(&container).await
    });
}

#[test]
fn several_processes_a_server_and_an_open_stdin_are_restored() {
    on_criu_node(async |node| {
        let pod = node.run_pod(node.pod("first")).await?;
        let text = "mkdir -p /srv; echo page > /srv/index.html; httpd -p 8080 -h /srv; mkfifo /tmp/fifo; \
                    (while :; do cat /tmp/fifo; done) & echo ready; while read line; do echo heard $line; done";
        let config = || ContainerConfig { stdin: true, ..script("main", text) };
        let container = pod.run(config()).await?;
        container.wait_log(1).await?;
        // A connection is open while the checkpoint is taken. The restored server has no use for it.
        let address = format!("{}:8080", pod.ips().await?[0]);
        let connection = tokio::net::TcpStream::connect(&address).await?;
        container.sh("until netstat -tn | grep -q ESTABLISHED; do sleep 0.1; done").await?;
        let archive = node.dir().join("archive.tar");
        checkpoint(&container, &archive, 0).await?;
        ensure!(http_get(&address).await?.ends_with("page\n"), "the old server");
        drop(connection);
        container.stop(0).await?;

        let second = node.run_pod(node.pod("second")).await?;
        let image = Some(image_spec(&archive.display().to_string()));
        let restored = second.create(ContainerConfig { image, ..config() }).await?;
        restored.start().await?;
        let address = format!("{}:8080", second.ips().await?[0]);
        ensure!(http_get(&address).await?.ends_with("page\n"), "the new server");
        restored.sh("echo through the fifo > /tmp/fifo").await?;
        ensure!(restored.wait_log(1).await?[0].content == "through the fifo");
        attach(&restored, "hello\n").await?;
        ensure!(restored.wait_log(2).await?[1].content == "heard hello");
        Ok(())
    });
}

async fn http_get(address: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connecting")?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.context("no answer")??;
    Ok(answer)
}

/// Writes to a container's stdin with crictl.
async fn attach(container: &Container<'_>, text: &str) -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut command = container.node.crictl_command(&["attach", "-i", &container.id])?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(text.as_bytes()).await?;
    stdin.flush().await?;
    container.wait_log(2).await?;
    child.kill().await?;
    Ok(())
}

#[test]
fn crictl_takes_checkpoints() {
    on_criu_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = counting(&pod).await?;
        let archive = node.dir().join("archive.tar");
        node.crictl(&["checkpoint", &format!("--export={}", archive.display()), &container.id]).await?;
        ensure!(fs::metadata(&archive)?.len() > 0);
        runs_on(&container).await
    });
}

#[test]
fn a_restored_container_that_was_never_started_can_be_removed() {
    on_criu_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = counting(&pod).await?;
        let archive = node.dir().join("archive.tar");
        checkpoint(&container, &archive, 0).await?;
        let second = node.run_pod(node.pod("second")).await?;
        let config = || ContainerConfig {
            image: Some(image_spec(&archive.display().to_string())),
            ..counter(&node.dir().join("volume"))
        };
        let restored = second.create(config()).await?;
        restored.remove().await?;
        // An archive that others may write to would give them everything.
        fs::set_permissions(&archive, fs::Permissions::from_mode(0o622))?;
        let error = second.create(config()).await.err().context("made from anybody's archive")?;
        ensure!(code_of(&error) == Some(Code::InvalidArgument), "{error:#}");
        fs::set_permissions(&archive, fs::Permissions::from_mode(0o600))?;
        // A mount that the processes know must be there.
        let Err(error) = second.create(ContainerConfig { mounts: Vec::new(), ..config() }).await else {
            bail!("made without its volume")
        };
        ensure!(code_of(&error) == Some(Code::InvalidArgument), "{error:#}");
        ensure!(format!("{error:#}").contains("/data"), "{error:#}");
        Ok(())
    });
}

#[test]
fn without_criu_the_error_says_what_to_install() {
    on_node_with_criu("/no/such/criu", async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = counting(&pod).await?;
        let error = checkpoint(&container, &node.dir().join("x.tar"), 0).await.err().context("taken")?;
        ensure!(code_of(&error) == Some(Code::FailedPrecondition), "{error:#}");
        let text = format!("{error:#}");
        ensure!(text.contains("/no/such/criu") && text.contains("install"), "{text}");
        runs_on(&container).await
    });
}

#[test]
fn what_cannot_be_written_down_is_refused_by_name() {
    on_criu_node(async |node| {
        let refused = async |container: &Container<'_>, location: &Path| -> Result<(Option<Code>, String)> {
            let error = checkpoint(container, location, 0).await.err().context("it was taken")?;
            Ok((code_of(&error), format!("{error:#}")))
        };
        let good = node.dir().join("x.tar");
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.create(sleeper("main")).await?;
        let (code, text) = refused(&container, &good).await?;
        ensure!(code == Some(Code::FailedPrecondition), "not started: {text}");
        container.start().await?;
        for location in [PathBuf::from("x.tar"), PathBuf::from("/"), node.dir().join("missing/x.tar")] {
            let (code, text) = refused(&container, &location).await?;
            ensure!(code == Some(Code::InvalidArgument) && text.contains("location"), "{location:?}: {text}");
        }
        let terminal = pod.run(ContainerConfig { tty: true, ..sleeper("terminal") }).await?;
        let (code, text) = refused(&terminal, &good).await?;
        ensure!(code == Some(Code::Unimplemented) && text.contains("terminal"), "{text}");
        let other = node.run_pod_with(node.pod("other"), "runc").await?;
        let (code, text) = refused(&other.run(sleeper("main")).await?, &good).await?;
        ensure!(code == Some(Code::Unimplemented) && text.contains("runc"), "{text}");

        // And archives that are none.
        fs::write(node.dir().join("short.tar"), [0x41; 700])?;
        for name in ["missing.tar", "short.tar"] {
            let archive = node.dir().join(name).display().to_string();
            let config = ContainerConfig { image: Some(image_spec(&archive)), ..sleeper("restored") };
            let error = pod.create(config).await.err().with_context(|| format!("made from {name}"))?;
            ensure!(code_of(&error) == Some(Code::InvalidArgument), "{error:#}");
            ensure!(format!("{error:#}").contains(name), "{error:#}");
        }
        Ok(())
    });
}

/// A program that stands in for criu, in a folder that goes with it.
fn stand_in(text: &str) -> Result<(TempDir, String)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("criu");
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((folder, path.display().to_string()))
}

#[test]
fn when_criu_fails_its_errors_are_told_and_the_container_runs_on() {
    let text = "while [ $# -gt 1 ]; do [ $1 = --log-file ] && log=$2; shift; done
        echo '(00.1) Error (criu/files.c:1): no way to write that down' > $log; exit 1";
    let (_folder, criu) = stand_in(text).expect("a program");
    on_node_with_criu(&criu, async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = counting(&pod).await?;
        let archive = node.dir().join("x.tar");
        let error = checkpoint(&container, &archive, 0).await.err().context("taken")?;
        ensure!(format!("{error:#}").contains("no way to write that down"), "{error:#}");
        ensure!(!archive.exists());
        runs_on(&container).await
    });
}

#[test]
fn a_criu_that_hangs_is_killed_and_a_killed_daemon_leaves_nothing_frozen() {
    let (_folder, criu) = stand_in("exec sleep 1000").expect("a program");
    on_node_with_criu(&criu, async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = counting(&pod).await?;
        let archive = node.dir().join("x.tar");
        let error = checkpoint(&container, &archive, 1).await.err().context("taken")?;
        ensure!(format!("{error:#}").contains("had not ended in time"), "{error:#}");
        runs_on(&container).await?;

        let taking = checkpoint(&container, &archive, 5);
        let kill = async {
            // It stands still when nothing comes for a while that ten lines would have come in.
            let mut seen = numbers(&container)?.len();
            wait_until("the container to stand still", PATIENCE, async || {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let now = numbers(&container)?.len();
                ensure!(std::mem::replace(&mut seen, now) == now, "it counts");
                Ok(())
            })
            .await?;
            node.kill9().await
        };
        let (taken, killed) = tokio::join!(taking, kill);
        killed?;
        ensure!(taken.is_err(), "taken");
        node.start().await?;
        runs_on(&container).await
    });
}
