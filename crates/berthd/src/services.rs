//! Everything behind the socket, built in one place.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_image::{ImageConfig, Images};
use berth_network::{Network, NetworkConfig};
use berth_nri::Nri;
use berth_pods::{Pods, PodsConfig};
use berth_sandbox_manager::{Handler, ManagerConfig, OpenFiles, Owner, SandboxManager};
use berth_store::{Durability, Store};
use berth_streaming::{Streaming, StreamingConfig, TlsConfig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, RuntimeHandler};
use crate::image_service::ImageHandlers;
use crate::images_service::ImagesHandlers;
use crate::metrics::{self, Calls, Sources};
use crate::plugins::Plugins;
use crate::pods_service::PodsHandlers;
use crate::runtime_service::RuntimeHandlers;
use crate::usage::Usage;

/// The handlers of all services, ready to answer.
#[derive(Debug)]
pub struct Handlers {
    pub(crate) runtime: RuntimeHandlers,
    pub(crate) images: ImageHandlers,
    pub(crate) pods: PodsHandlers,
    pub(crate) more_images: ImagesHandlers,
}

/// All that is behind the socket.
#[derive(Debug)]
pub struct Services {
    pub(crate) handlers: Handlers,
    pub(crate) network: Network,
    /// What goes on beside the calls, until `stopping`; ends when this is dropped.
    pub(crate) background: JoinSet<()>,
    /// Absent when they are not wanted.
    pub(crate) plugins: Option<Plugins>,
}

impl Services {
    /// Opens stores, recovers pods, makes the handlers. Nobody can connect before this is done: kubelet takes an
    /// empty list for "all pods are gone", and no answer for what it is.
    ///
    /// `calls` are counted by the server. `stopping` is cancelled when the daemon ends; streams that would never end by
    /// themselves end with it.
    ///
    /// # Errors
    /// Whatever keeps the daemon from working at all.
    pub async fn build(
        config: Config,
        calls: Calls,
        stopping: CancellationToken,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let image_records = config.root.join("images.redb");
        let pod_records = config.root.join("pods.redb");
        let image_config = image_config(&config);
        let manifest_records = config.root.join("manifests.redb");
        let (images, pods, manifests) = tokio::task::spawn_blocking(move || {
            // Images survive a power loss, pods do not.
            let images = Images::open(image_config, Store::open(&image_records, Durability::Flushed)?)?;
            let pods = Store::open(&pod_records, Durability::Background)?;
            // What is to run, whereas the others say what runs.
            let manifests = Store::open(&manifest_records, Durability::Flushed)?;
            Ok::<_, Box<dyn Error + Send + Sync>>((images, pods, manifests))
        })
        .await??;
        let open_files = raise_open_files()?;
        let network = Network::start(network_config(&config), pods.clone()).await?;
        let nri = config
            .nri
            .enabled
            .then(|| Nri::new("berth", env!("CARGO_PKG_VERSION"), config.nri.plugins.clone()));
        let known = manager_config(&config, open_files);
        let manager =
            SandboxManager::start(known, images.clone(), network.clone(), pods.clone(), nri.clone()).await?;
        let usage = Usage::new(manager.clone(), images.clone(), config.root.clone());
        let plugins = match nri {
            Some(nri) => Some(Plugins::start(nri, &config.nri.socket, manager.clone()).await?),
            None => None,
        };
        let (streaming, server) = Streaming::start(streaming_config(&config)?).await?;
        tracing::info!(address = %streaming.address(), "streaming");
        let mut background = JoinSet::new();
        background.spawn(server.run(stopping.clone()));
        background.spawn(usage.clone().follow(manager.listen(), stopping.clone()));
        if let Some(address) = config.metrics.address {
            let (manager, usage, images) = (manager.clone(), usage.clone(), images.clone());
            let metrics = metrics::Server::bind(address, Sources { calls, manager, usage, images }).await?;
            background.spawn(metrics.run(stopping.clone()));
        }
        let of_manifests = manager.of(Owner::Manifest);
        let driver = Pods::start(
            PodsConfig {
                root: config.root.join("manifest-pods"),
                manifests: Some(config.manifest_dir.clone()),
                seccomp_profiles: config.seccomp_profile_dir.clone(),
            },
            of_manifests.clone(),
            images.clone(),
            manifests,
            pods,
        )
        .await?;
        let more_images =
            ImagesHandlers { images: images.clone(), pods: driver.clone(), manager: manager.clone() };
        let pods = PodsHandlers {
            pods: driver,
            usage: usage.of(of_manifests.clone()),
            manager: of_manifests,
            streaming: streaming.clone(),
            stopping: stopping.clone(),
        };
        let config = Arc::new(config);
        let of_cri = manager.of(Owner::Cri);
        let runtime = RuntimeHandlers {
            config,
            usage: usage.of(of_cri.clone()),
            manager: of_cri,
            network: network.clone(),
            streaming,
            stopping,
            nri: plugins.as_ref().map(Plugins::nri),
        };
        let handlers = Handlers { runtime, images: ImageHandlers { images }, pods, more_images };
        Ok(Self { handlers, network, background, plugins })
    }
}

fn streaming_config(config: &Config) -> Result<StreamingConfig, StreamingFileError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| StreamingFileError { path: path.to_owned(), source })
    };
    let tls = match &config.streaming.tls {
        None => None,
        Some(files) => Some(TlsConfig { certificates: read(&files.certificate)?, key: read(&files.key)? }),
    };
    Ok(StreamingConfig { address: config.streaming.address, tls, ..StreamingConfig::default() })
}

/// A file of the streaming server's.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
struct StreamingFileError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn image_config(config: &Config) -> ImageConfig {
    ImageConfig {
        root: config.root.clone(),
        registry_config_dir: config.registry_config_dir.clone(),
        max_parallel_downloads: config.images.max_parallel_downloads.get(),
        progress_timeout: config.images.progress_timeout,
    }
}

fn network_config(config: &Config) -> NetworkConfig {
    let network = &config.network;
    NetworkConfig {
        state: config.state.clone(),
        cni_conf_dir: network.cni_conf_dir.clone(),
        cni_bin_dirs: network.cni_bin_dirs.clone(),
        bridge: network.bridge.clone(),
        ipv4_subnet: network.ipv4_subnet,
        ipv6_subnet: network.ipv6_subnet,
        mtu: network.mtu.map(NonZeroU32::get),
    }
}

/// Lets the daemon have as many files open as it may, with descriptors for every pod. Gives what it was told to have, which
/// containers get.
fn raise_open_files() -> nix::Result<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(OpenFiles { soft, hard })
}

fn manager_config(config: &Config, open_files: OpenFiles) -> ManagerConfig {
    let handlers = config.runtime_handlers.iter().map(|(name, handler)| (name.clone(), launcher(handler)));
    let default = config.runtime_handlers.get(&config.default_runtime_handler).map(launcher);
    let unnamed = default.map(|handler| (String::new(), handler));
    ManagerConfig {
        root: config.root.clone(),
        state: config.state.clone(),
        supervisor: config.supervisor.clone(),
        cgroup_root: config.cgroup_root.clone(),
        handlers: handlers.chain(unnamed).collect::<BTreeMap<_, _>>(),
        exec_output_limit: config.limits.exec_output_bytes.get(),
        cdi_spec_dirs: config.cdi_spec_dirs.clone(),
        criu: config.criu_path.clone(),
        external_timeout: config.limits.runtime_timeout,
        open_files,
    }
}

fn launcher(handler: &RuntimeHandler) -> Handler {
    match handler {
        RuntimeHandler::Native => Handler::Native,
        RuntimeHandler::External { path } => Handler::External { path: path.clone() },
    }
}
