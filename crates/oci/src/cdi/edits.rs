//! What a device changes in a container's spec, as its file writes it (SPEC.md, "Container Edits").

use std::collections::BTreeSet;
use std::path::{Component, PathBuf};

use serde::Deserialize;

/// Longest name of a resctrl group: it is a folder's name in a path.
const MAX_CLOS_ID: usize = 4095;

/// `containerEdits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub net_devices: Vec<NetDevice>,
    pub hooks: Vec<Hook>,
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<IntelRdt>,
    pub additional_gids: Vec<u32>,
}

/// A device node. What the file leaves out is as on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host; without one it is `path`.
    pub host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub kind: Option<NodeType>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub file_mode: Option<u32>,
    /// Of `r`, `w` and `m`; all of them when absent.
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum NodeType {
    #[serde(rename = "b")]
    Block,
    #[serde(rename = "c", alias = "u")]
    Character,
    #[serde(rename = "p")]
    Fifo,
}

impl DeviceNode {
    /// Whether the host has to be asked what this is.
    pub fn is_incomplete(&self) -> bool {
        match self.kind {
            None => true,
            Some(NodeType::Fifo) => false,
            Some(NodeType::Block | NodeType::Character) => self.major.unwrap_or(0) == 0,
        }
    }

    /// Where it is on the host.
    pub fn source(&self) -> &std::path::Path {
        self.host_path.as_deref().filter(|path| !path.as_os_str().is_empty()).unwrap_or(&self.path)
    }
}

/// An interface of the host's that moves into the container's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetDevice {
    #[serde(rename = "hostInterfaceName")]
    pub host: String,
    pub name: String,
}

/// A hook of the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: HookName,
    pub path: PathBuf,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// In seconds.
    #[serde(default)]
    pub timeout: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(default)]
    pub options: Option<Vec<String>>,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
}

/// `linux.intelRdt` of the OCI specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    pub l3_cache_schema: Option<String>,
    pub mem_bw_schema: Option<String>,
    pub schemata: Vec<String>,
    pub enable_monitoring: bool,
    // Until version 1.1.0.
    #[serde(rename = "enableCMT")]
    pub enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    pub enable_mbm: bool,
}

impl Edits {
    /// Adds those of `other` after its own.
    pub(super) fn append(&mut self, other: Self) {
        self.env.extend(other.env);
        self.device_nodes.extend(other.device_nodes);
        self.net_devices.extend(other.net_devices);
        self.hooks.extend(other.hooks);
        self.mounts.extend(other.mounts);
        self.intel_rdt = other.intel_rdt.or(self.intel_rdt.take());
        self.additional_gids.extend(other.additional_gids);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.env.iter().try_for_each(|entry| check_variable(entry))?;
        self.device_nodes.iter().try_for_each(check_node)?;
        let mut names = BTreeSet::new();
        for device in &self.net_devices {
            let fresh = names.insert(("host", &device.host)) & names.insert(("container", &device.name));
            if device.host.is_empty() || device.name.is_empty() || !fresh {
                return Err(format!("netDevices: {device:?} has an empty name, or one that stands twice"));
            }
        }
        for hook in &self.hooks {
            absolute("hooks: path", &hook.path)?;
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(format!("hooks: {}: timeout is not above zero", hook.path.display()));
            }
            hook.env.iter().flatten().try_for_each(|entry| check_variable(entry))?;
        }
        for mount in &self.mounts {
            absolute("mounts: containerPath", &mount.container_path)?;
            if mount.host_path.as_os_str().is_empty() {
                return Err(format!("mounts: {}: no hostPath", mount.container_path.display()));
            }
        }
        if let Some(clos) = self.intel_rdt.as_ref().and_then(|rdt| rdt.clos_id.as_ref())
            && (clos.len() > MAX_CLOS_ID || clos == "." || clos == ".." || clos.contains(['/', '\n']))
        {
            return Err(format!("intelRdt: closID {clos:?} is no name of a folder"));
        }
        Ok(())
    }
}

fn check_variable(entry: &str) -> Result<(), String> {
    match entry.split_once('=') {
        Some((name, _)) if !name.is_empty() && !entry.contains('\0') => Ok(()),
        _ => Err(format!("env: {entry:?} is not NAME=value")),
    }
}

fn check_node(node: &DeviceNode) -> Result<(), String> {
    absolute("deviceNodes: path", &node.path)?;
    absolute("deviceNodes: hostPath", node.source())?;
    match node.permissions.as_deref() {
        Some(letters) if letters.chars().any(|letter| !"rwm".contains(letter)) => Err(format!(
            "deviceNodes: {}: permissions {letters:?} are not of r, w and m",
            node.path.display()
        )),
        _ => Ok(()),
    }
}

fn absolute(field: &str, path: &std::path::Path) -> Result<(), String> {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if path.is_absolute() && !climbs {
        Ok(())
    } else {
        Err(format!("{field} {path:?} is not an absolute path"))
    }
}
