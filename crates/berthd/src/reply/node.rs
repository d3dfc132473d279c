//! What the runtime says of itself and of the node.

use std::time::UNIX_EPOCH;

use berth_cri::runtime::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse, RuntimeFeatures,
    RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse, VersionResponse,
};
use berth_network::{Mode, NetworkStatus};
use berth_nri::Nri;
use berth_sandbox_manager::SandboxManager;
use serde_json::{Value, json};

use super::{Info, topic};
use crate::config::{self, Config};

/// kubelet refuses to start on another one (`kubeRuntimeAPIVersion`), whatever CRI's own version is.
const KUBELET_API_VERSION: &str = "0.1.0";

pub(crate) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: "berth".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// The condition RuntimeReady is true whenever this is asked: the socket answers only once the pods are recovered.
pub(crate) fn status(manager: &SandboxManager, network: &NetworkStatus) -> StatusResponse {
    let condition = |kind: &str, status, reason: &str, message: &str| RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let features = |name: &str| RuntimeHandlerFeatures {
        recursive_read_only_mounts: manager.mounts_read_only_recursively(),
        user_namespaces: manager.has_user_namespaces(name),
    };
    let handlers = manager.handler_names();
    StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", true, "", ""),
                condition("NetworkReady", network.ready, network.reason, &network.message),
            ],
        }),
        info: Info::new(),
        runtime_handlers: handlers
            .map(|name| RuntimeHandler { name: name.to_owned(), features: Some(features(name)) })
            .collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: manager.has_user_namespaces(""),
            mount_options: true,
        }),
    }
}

/// `stateDir` in `config` is what critest looks for.
pub(crate) fn status_info(config: &Config, network: &NetworkStatus, nri: Option<&Nri>) -> Info {
    let network = match &network.mode {
        Mode::Cni { name } => json!({ "mode": "cni", "name": name, "confDir": config.network.cni_conf_dir }),
        Mode::BuiltIn => json!({
            "mode": "built-in",
            "bridge": config.network.bridge,
            "ipv4Subnet": config.network.ipv4_subnet.to_string(),
            "ipv6Subnet": config.network.ipv6_subnet.map(|net| net.to_string()),
        }),
    };
    Info::from([
        topic(
            "config",
            &json!({ "rootDir": config.root, "stateDir": config.state, "cdiSpecDirs": config.cdi_spec_dirs }),
        ),
        topic("network", &network),
        topic("nri", &nri_info(config, nri)),
    ])
}

fn nri_info(config: &Config, nri: Option<&Nri>) -> Value {
    let Some(nri) = nri else { return json!({ "enabled": false }) };
    let (connected, lost) = nri.plugins();
    let connected = connected.into_iter().map(|plugin| {
        json!({
            "name": plugin.name, "pid": plugin.pid, "installed": plugin.installed, "events": plugin.events,
        })
    });
    let lost = lost.into_iter().map(|plugin| {
        let since = plugin.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        json!({ "name": plugin.name, "since": since, "why": plugin.why })
    });
    json!({
        "enabled": true,
        "socket": config.nri.socket,
        "connected": connected.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
    })
}

pub(crate) fn runtime_config(config: &Config) -> RuntimeConfigResponse {
    let driver = match config.cgroup_driver {
        config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
    };
    RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}
