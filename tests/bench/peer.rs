//! containerd as a peer: a private one, of the binaries that `tests/tools/peers/build` builds.
//!
//! It lives in a network and a mount namespace of its own, so that its bridge, its firewall rules and its mounts end
//! with its processes, and in a cgroup of its own, by which its processes are found.

mod config;

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use berth_tests::{
    PATIENCE, cri::image_spec, host, image, marker_hierarchy, node, registry::Registry, remove_cgroup, tools,
    wait_until,
};
use k8s_cri::v1::{
    PullImageRequest, StatusRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::transport::Channel;

use crate::under_test::{Runtime, processes_named};

/// Enters the cgroup and becomes the daemon.
const ENTER: &str = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;

/// A running containerd; dropping it kills and removes all that it and its pods have.
#[derive(Debug)]
pub(crate) struct Containerd {
    /// In the names of its cgroups.
    tag: String,
    daemon: Child,
    channel: Channel,
    registry: Registry,
    /// Last, because it takes what the others use away.
    dir: tempfile::TempDir,
}

impl Containerd {
    /// A daemon that answers, with the busybox image pulled. Builds the binaries when that has not been done yet.
    pub(crate) async fn boot() -> Result<Containerd> {
        eprintln!("berth-bench: building the peers, unless that was done before");
        let tools = tools::peers()?;
        let tag = format!("berth-peer-{}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&format!("{tag}-")).tempdir()?;
        let network = private_network()?;
        let namespace = PathBuf::from(format!("/proc/self/fd/{}", network.as_raw_fd()));
        let registry = host::in_network(&namespace, Registry::start)?;
        registry.push("library/busybox", "latest", &image::busybox()?.build()?);
        let mut sandbox_image = image::busybox()?;
        sandbox_image.config.cmd = ["sleep", "infinity"].map(str::to_owned).to_vec();
        registry.push("bench/sandbox", "latest", &sandbox_image.build()?);
        let sandbox_image = registry.reference("bench/sandbox:latest");

        config::write(dir.path(), &tools, registry.address(), &sandbox_image)?;
        let marker = marker_hierarchy()?.join(format!("{tag}-daemon"));
        fs::create_dir_all(&marker).with_context(|| format!("creating {}", marker.display()))?;
        let daemon = host::in_network(&namespace, || spawn(dir.path(), &tools, &marker))?;
        let channel = node::channel_to(dir.path().join("containerd.sock"));
        let peer = Containerd { tag, daemon, channel, registry, dir };
        peer.wait_until_ready().await.with_context(|| peer.log_tail())?;
        for image in [&sandbox_image, node::BUSYBOX] {
            let request = PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
            peer.images().pull_image(request).await.with_context(|| format!("pulling {image}"))?;
        }
        Ok(peer)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        wait_until("containerd to be ready", PATIENCE, async || {
            let answer =
                self.runtime().status(StatusRequest::default()).await.context("Status")?.into_inner();
            let conditions = answer.status.unwrap_or_default().conditions;
            for needed in ["RuntimeReady", "NetworkReady"] {
                let met = conditions.iter().any(|condition| condition.r#type == needed && condition.status);
                ensure!(met, "not yet {needed}: {conditions:?}");
            }
            Ok(())
        })
        .await
    }

    /// The newest part of the daemon's log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.dir.path().join("containerd.log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(6_000)..]).into_owned()
    }

    /// Ends everything and says what could not be removed.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.sweep()
    }

    fn sweep(&mut self) -> Result<()> {
        let own = format!("/{}", self.tag);
        for _ in 0..200 {
            let left = host::processes_in_cgroup(&own)?;
            if left.is_empty() {
                break;
            }
            for pid in left {
                // It may have ended meanwhile.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            // The one that is our own child; the others have a reaper.
            let _ = self.daemon.try_wait();
            thread::sleep(Duration::from_millis(10));
        }
        for root in host::cgroup_hierarchies()?.values() {
            remove_cgroup(&root.join(&self.tag))?;
            remove_cgroup(&root.join(format!("{}-daemon", self.tag)))?;
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.sweep() {
            eprintln!("berth-bench: cleaning up after {}: {error:#}", self.tag);
        }
    }
}

impl Runtime for Containerd {
    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn cgroup_parent(&self) -> String {
        format!("/{}", self.tag)
    }

    fn daemon(&self) -> Result<i32> {
        Ok(i32::try_from(self.daemon.id())?)
    }

    /// The shims. What the sandbox image's own process costs is left out.
    fn keepers(&self) -> Result<Vec<i32>> {
        processes_named("containerd-shim", &format!("/{}-daemon", self.tag))
    }
}

/// A new network namespace in which the loopback interface is up.
fn private_network() -> Result<File> {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("running ip")?;
        ensure!(status.success(), "ip ended with {status}");
        File::open("/proc/thread-self/ns/net").context("opening the network namespace")
    })
    .join()
    .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?
}

/// Starts the daemon in the caller's network and a mount namespace of its own.
fn spawn(dir: &Path, tools: &Path, marker: &Path) -> Result<Child> {
    let log = File::create(dir.join("containerd.log")).context("creating the daemon's log")?;
    Command::new("unshare")
        .args(["--mount", "sh", "-c", ENTER])
        .arg(marker)
        .arg(tools.join("containerd"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting containerd")
}
