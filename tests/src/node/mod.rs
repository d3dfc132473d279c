//! A node: one daemon with everything around it that it needs, and nothing shared with other nodes.

mod config;
mod daemon;
mod slot;

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use berth_cri::berth::v1::pods_client::PodsClient;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{
    VersionRequest, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

pub use self::slot::Outside;
use self::{
    daemon::{Daemon, Launch},
    slot::Slot,
};
use crate::{PATIENCE, crictl, image, leak, registry::Registry, wait_until};

/// Answers up to two full 16 MiB streams of an ExecSync and more.
const MAX_MESSAGE: usize = 64 << 20;

/// The daemon's socket in the node's folder.
const SOCKET: &str = "berth.sock";

/// The image every node has unless told otherwise.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// A CNI network: Debian's bridge plugin with addresses of the node's subnets.
pub const CNI_BRIDGE: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "test",
  "plugins": [{
    "type": "bridge",
    "bridge": "@BRIDGE@",
    "isGateway": true,
    "ipam": {
      "type": "host-local",
      "dataDir": "@DIR@/ipam",
      "ranges": [[{ "subnet": "@SUBNET4@" }], [{ "subnet": "@SUBNET6@" }]],
      "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
    }
  }]
}"#;

/// The plugin for host ports, to stand after the bridge.
const CNI_PORTMAP: &str = r#"    "type": "portmap",
    "capabilities": { "portMappings": true }
"#;

/// Set to `cni` where the kernel lacks what the built-in network needs: nodes have [`CNI_BRIDGE`] instead, and host ports
/// by [`CNI_PORTMAP`].
const NETWORK_VARIABLE: &str = "BERTH_TEST_NETWORK";

/// How a node differs from the usual one.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pull [`BUSYBOX`] at boot.
    pub busybox: bool,
    /// Lines for the top of `berth.toml`; `@DIR@` stands for the node's folder, `@PORT@` for [`Node::service_port`].
    pub extra_config: String,
    /// A CNI network, which takes the place of the built-in bridge. `@BRIDGE@`, `@DIR@`, `@SUBNET4@` and `@SUBNET6@`
    /// stand for this node's. Plugins are looked for in `DIR/cni-bin`, then among Debian's. `None` is the built-in
    /// bridge.
    pub cni_conflist: Option<String>,
    /// Length of the built-in network's IPv4 prefix.
    pub ipv4_prefix: u8,
    /// The daemon's `log_level`.
    pub log_level: String,
}

/// What a program wrote, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            busybox: true,
            extra_config: String::new(),
            cni_conflist: std::env::var(NETWORK_VARIABLE)
                .is_ok_and(|network| network == "cni")
                .then(|| CNI_BRIDGE.replace("  }]", &format!("  }}, {{\n{CNI_PORTMAP}  }}]"))),
            ipv4_prefix: 24,
            log_level: "debug".to_owned(),
        }
    }
}

impl Options {
    /// A node without images.
    pub fn without_images() -> Options {
        Options { busybox: false, ..Options::default() }
    }
}

/// A daemon under test. Dropping it kills and removes whatever it or its pods still have.
#[derive(Debug)]
pub struct Node {
    slot: Slot,
    dir: PathBuf,
    registry: Registry,
    /// `None` while it is stopped. Locked for moments only.
    daemon: Mutex<Option<Daemon>>,
    channel: Mutex<Channel>,
    boot_id: Mutex<Option<PathBuf>>,
    /// What root and state hold before the test, to be compared with at its end.
    files_at_boot: BTreeSet<PathBuf>,
}

impl Node {
    /// A running daemon, answering on its socket.
    pub async fn boot(options: Options) -> Result<Node> {
        let slot = Slot::take()?;
        let dir = slot.folder()?;
        let registry = Registry::start()?;
        config::write(&dir, &slot, &registry, &binaries()?, &options)?;
        let channel = Mutex::new(channel_to(dir.join(SOCKET)));
        let mut node = Node {
            slot,
            dir,
            registry,
            daemon: Mutex::new(None),
            channel,
            boot_id: Mutex::new(None),
            files_at_boot: BTreeSet::new(),
        };
        node.start().await?;
        node.files_at_boot = leak::files_below(&[node.root(), node.state()])?;
        if options.busybox {
            node.registry.push("library/busybox", "latest", &image::busybox()?.build()?);
            node.pull(BUSYBOX).await?;
        }
        Ok(node)
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        ensure!(lock(&self.daemon).is_none(), "the daemon is running already");
        let marker = self.marker_cgroup()?;
        fs::create_dir_all(&marker).with_context(|| format!("creating {}", marker.display()))?;
        *lock(&self.daemon) = Some(self.launch()?.spawn(&[])?);
        *lock(&self.channel) = channel_to(self.socket());
        wait_until("the daemon to answer", PATIENCE, async || {
            self.runtime().version(VersionRequest::default()).await.context("calling Version")?;
            Ok(())
        })
        .await
        .with_context(|| match lock(&self.daemon).as_mut().map(Daemon::ended) {
            Some(Ok(Some(status))) => format!("the daemon ended with {status}:\n{}", self.log_tail()),
            _ => format!("the daemon does not answer:\n{}", self.log_tail()),
        })
    }

    /// SIGTERM, as an upgrade does it: pods stay. Fails unless the daemon ends with status 0.
    pub async fn stop(&self) -> Result<()> {
        let running = lock(&self.daemon).take();
        running.context("the daemon is not running")?.terminate().await
    }

    /// SIGKILL.
    pub async fn kill9(&self) -> Result<()> {
        let running = lock(&self.daemon).take();
        running.context("the daemon is not running")?.kill().await
    }

    /// SIGTERM, then a new one.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// What a reboot looks like to the next daemon: every process of the node is gone, mounts and interfaces with
    /// them, the state folder is empty, the kernel has another boot id. The daemon is started again.
    pub async fn reboot(&self) -> Result<()> {
        self.go_down().await?;
        self.start().await
    }

    /// A reboot after which nothing is there that was not flushed to the disk.
    pub async fn lose_power(&self) -> Result<()> {
        self.go_down().await?;
        fs::remove_file(self.root().join("pods.redb")).context("losing what was not flushed")?;
        self.start().await
    }

    async fn go_down(&self) -> Result<()> {
        self.kill9().await?;
        leak::sweep(self)?;
        fs::remove_dir_all(self.state()).context("emptying the state folder")?;
        let boot_id = self.dir.join("boot_id");
        fs::write(&boot_id, "5e1f0c7a-0000-4000-8000-00000000b007\n").context("writing another boot id")?;
        *lock(&self.boot_id) = Some(boot_id);
        Ok(())
    }

    /// Runs the daemon's binary on a configuration file until it ends by itself: how it ended, and all it wrote.
    pub async fn berthd(&self, config: &Path, arguments: &[&str]) -> Result<(ExitStatus, String)> {
        let mut command = tokio::process::Command::new(binaries()?.join("berthd"));
        command.arg("--config").arg(config).args(arguments).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("berthd {arguments:?} did not end by itself"))?
            .context("running berthd")?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok((output.status, text))
    }

    /// The node's own configuration.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("berth.toml")
    }

    /// CRI's RuntimeService.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(lock(&self.channel).clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// A call that the bindings of [`runtime`](Node::runtime) are too old for.
    pub async fn call<A, B>(&self, path: &'static str, request: A) -> Result<B>
    where
        A: prost::Message + Send + Sync + 'static,
        B: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(lock(&self.channel).clone());
        client.ready().await.context("reaching the daemon")?;
        let codec = ProstCodec::<A, B>::default();
        let answer = client.unary(Request::new(request), PathAndQuery::from_static(path), codec).await;
        Ok(answer.context(path)?.into_inner())
    }

    /// CRI's ImageService, on a connection of the same kind.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(lock(&self.channel).clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The Pods service.
    pub fn pods(&self) -> PodsClient<Channel> {
        PodsClient::new(lock(&self.channel).clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// `berth` against this node.
    pub fn berth_command(&self, arguments: &[&str]) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(binaries()?.join("berth"));
        command.args(arguments).env("BERTH_ADDRESS", format!("unix://{}", self.socket().display()));
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Runs `berth` to its end: its exit code, and what it wrote.
    pub async fn berth(&self, arguments: &[&str]) -> Result<Said> {
        let output = tokio::time::timeout(3 * PATIENCE, self.berth_command(arguments)?.output());
        let output = output.await.with_context(|| format!("berth {arguments:?} does not end"))??;
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// As [`berth`](Node::berth), which must work; its standard output.
    pub async fn berth_ok(&self, arguments: &[&str]) -> Result<String> {
        let said = self.berth(arguments).await?;
        ensure!(said.code == 0, "berth {arguments:?}: {said:?}");
        Ok(said.out)
    }

    /// Serves the images that tests/manifests name.
    pub fn push_manifest_images(&self) -> Result<()> {
        image::manifests::push(&self.registry, &binaries()?)
    }

    /// The real crictl against this node, for those who want its streams.
    pub fn crictl_command(&self, arguments: &[&str]) -> Result<tokio::process::Command> {
        crictl::command(&self.dir.join("crictl.yaml"), arguments)
    }

    /// Runs the real crictl against this node and returns its standard output; a failure of crictl is an error with
    /// what it wrote.
    pub async fn crictl(&self, arguments: &[&str]) -> Result<String> {
        let output = crictl::run(&self.dir.join("crictl.yaml"), arguments).await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("crictl {arguments:?}: {stdout}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(stdout)
    }

    /// Where the node's images come from.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The node's own folder. Tests may put files beside what is there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Name of the built-in bridge.
    pub fn bridge(&self) -> String {
        self.slot.bridge()
    }

    /// Parent of the cgroups of all pods that name none themselves.
    pub fn cgroup_root(&self) -> String {
        self.slot.cgroup_root()
    }

    /// In the name of everything the node makes.
    pub fn tag(&self) -> String {
        self.slot.tag()
    }

    /// Host ports that no other test uses.
    pub fn host_ports(&self) -> Range<i32> {
        self.slot.host_ports()
    }

    /// A port of the daemon's own, for what it serves besides CRI.
    pub fn service_port(&self) -> u16 {
        self.slot.service_port()
    }

    /// Addresses for a link to somewhere beyond the node.
    pub fn outside(&self) -> Outside {
        self.slot.outside()
    }

    /// How all addresses of the node's pods begin, IPv4 and IPv6.
    pub fn address_beginnings(&self) -> [String; 2] {
        [self.slot.ipv4_beginning(), self.slot.ipv6_beginning()]
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Result<i32> {
        lock(&self.daemon).as_ref().context("the daemon is not running")?.pid()
    }

    /// The newest part of the daemon's log.
    pub fn log_tail(&self) -> String {
        daemon::log_tail(&self.dir)
    }

    /// Removes all pods and images over CRI, stops the daemon, and fails if anything is left over.
    pub async fn finish(&self) -> Result<()> {
        if lock(&self.daemon).is_none() {
            self.start().await.context("starting the daemon again to clean up")?;
        }
        self.remove_everything().await.context("removing what the test made")?;
        leak::expect_nothing_left(self, &self.files_at_boot).await?;
        self.stop().await?;
        leak::expect_nothing_runs(self).await
    }

    pub(crate) fn marker_cgroup(&self) -> Result<PathBuf> {
        Ok(leak::marker_hierarchy()?.join(format!("{}-daemon", self.slot.tag())))
    }

    fn launch(&self) -> Result<Launch> {
        Ok(Launch {
            binary: binaries()?.join("berthd"),
            dir: self.dir.clone(),
            marker: self.marker_cgroup()?,
            boot_id: lock(&self.boot_id).clone(),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        lock(&self.daemon).take();
        if let Err(error) = leak::sweep(self) {
            eprintln!("cleaning up after {}: {error:#}", self.slot.tag());
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("removing {}: {error}", self.dir.display());
        }
    }
}

/// A connection made at the first call and again after a break.
pub fn channel_to(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

/// The folder with `berthd` and `berth-pod`.
fn binaries() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("BERTH_BIN_DIR") {
        return Ok(given.into());
    }
    // target/<profile>/<binary> or target/<profile>/deps/<test>-<hash>
    let own = std::env::current_exe().context("finding this program's own binary")?;
    let complete = |folder: &&Path| folder.join("berthd").exists() && folder.join("berth-pod").exists();
    let folder = own.ancestors().skip(1).take(2).find(complete).with_context(|| {
        format!("berthd or berth-pod is missing beside {}; build them or run `make test`", own.display())
    })?;
    Ok(folder.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
