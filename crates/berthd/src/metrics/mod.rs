//! What the daemon tells Prometheus, where `[metrics]` has an address: `/metrics` is about the daemon and its node,
//! `/metrics/pods` about pods and containers, under the names that cAdvisor gave them.
//!
//! `calls` counts while the daemon works; all else is looked at when it is asked for. `server` is the HTTP of it.

mod calls;
mod node;
mod process;
mod server;

use std::fmt;

use berth_image::Images;
use berth_sandbox_manager::SandboxManager;
use berth_stats::Exposition;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::calls::Calls;
use self::node::Node;
use self::process::Process;
pub(crate) use self::server::Server;
use crate::error::Chain;
use crate::usage::Usage;

/// Where the pages' contents come from.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) calls: Calls,
    /// Of every owner's pods.
    pub(crate) manager: SandboxManager,
    pub(crate) usage: Usage,
    pub(crate) images: Images,
}

impl Sources {
    /// The page about the daemon.
    async fn daemon(&self) -> Result<String, fmt::Error> {
        let disk = self.images.fs_info().await;
        if let Err(error) = &disk {
            tracing::warn!(error = %Chain(error), "what images take cannot be measured");
        }
        let node = Node { pods: self.manager.sandboxes(), images: self.images.list().len(), disk: disk.ok() };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::measure()));
        let ours = registry.sub_registry_with_prefix("berth");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "The daemon that answers", version);
        self.calls.register(ours);
        ours.register_collector(Box::new(node));
        text(&registry)
    }

    /// The page about pods and containers.
    async fn pods(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exposition(self.usage.metrics().await)));
        text(&registry)
    }
}

fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}
