//! What a runtime has to offer to be measured.

use std::path::Path;

use anyhow::{Context, Result};
use berth_tests::{Node, host, registry::Registry};
use futures::future::LocalBoxFuture;
use k8s_cri::v1::{
    VersionRequest, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::Channel;

/// A runtime that runs, with a registry of its own and the busybox image pulled.
pub(crate) trait Runtime {
    fn runtime(&self) -> RuntimeServiceClient<Channel>;
    fn images(&self) -> ImageServiceClient<Channel>;
    fn registry(&self) -> &Registry;
    /// A folder for logs.
    fn dir(&self) -> &Path;
    /// What kubelet would name as the pods' cgroup.
    fn cgroup_parent(&self) -> String;
    /// The daemon's process.
    fn daemon(&self) -> Result<i32>;
    /// The processes that the runtime keeps for the pods, not counting those of the containers.
    fn keepers(&self) -> Result<Vec<i32>>;

    /// Name and version.
    fn name(&self) -> LocalBoxFuture<'_, Result<String>> {
        Box::pin(async {
            let answer = self.runtime().version(VersionRequest::default()).await.context("Version")?;
            let answer = answer.into_inner();
            Ok(format!("{} {}", answer.runtime_name, answer.runtime_version.trim_start_matches('v')))
        })
    }
}

impl Runtime for Node {
    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        Node::runtime(self)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        Node::images(self)
    }

    fn registry(&self) -> &Registry {
        Node::registry(self)
    }

    fn dir(&self) -> &Path {
        Node::dir(self)
    }

    fn cgroup_parent(&self) -> String {
        self.cgroup_root()
    }

    fn daemon(&self) -> Result<i32> {
        self.pid()
    }

    fn keepers(&self) -> Result<Vec<i32>> {
        processes_named("berth-pod", &format!("/{}-daemon", self.tag()))
    }
}

/// Processes of a name, which the kernel keeps 15 bytes of, in a cgroup.
pub(crate) fn processes_named(name: &str, cgroup: &str) -> Result<Vec<i32>> {
    let mut found = host::processes_in_cgroup(cgroup)?;
    // One that is gone has no name.
    found.retain(|pid| host::status_field(*pid, "Name").is_ok_and(|known| known == name));
    Ok(found)
}
