//! What is durable about a sandbox's network.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{hostport::PortMapping, ipam::Subnets};

/// A sandbox's network. It says who attached it: what the built-in bridge attached, the built-in bridge detaches, even
/// when a CNI configuration has appeared meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub(crate) enum Lease {
    BuiltIn(BridgeLease),
    Cni(Box<CniLease>),
}
berth_store::json_record!(Lease, "network-lease", 1);

/// Attached by the built-in bridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BridgeLease {
    /// IPv4 first, each with its network's length.
    pub(crate) addresses: Vec<IpNet>,
    /// The cable's end on the host.
    pub(crate) veth: String,
    pub(crate) ports: Vec<PortMapping>,
}

/// Attached by CNI plugins, or about to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CniLease {
    /// The configuration list as it was at ADD: DEL must see the same.
    pub(crate) list: Value,
    /// The pinned namespace.
    pub(crate) netns: PathBuf,
    /// `CNI_ARGS`.
    pub(crate) arguments: String,
    /// All `runtimeConfig` values; each plugin gets those it declares.
    pub(crate) capabilities: serde_json::Map<String, Value>,
    /// The last plugin's answer to ADD; absent while ADD runs.
    pub(crate) result: Option<Value>,
}

/// What kubelet said in UpdateRuntimeConfig. It does not say it again after a restart of the runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodCidr {
    pub(crate) subnets: Subnets,
}
berth_store::json_record!(PodCidr, "network-pod-cidr", 1);

/// The one key of [`PodCidr`].
pub(crate) const POD_CIDR_KEY: &str = "current";
