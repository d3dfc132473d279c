//! What the owner of a node decides about plugins.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Where plugins come from, how long they may take, and what happens when one fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NriConfig {
    /// Programs named NN-NAME that are started with the daemon; may be absent.
    pub plugin_dir: PathBuf,
    /// Their configuration, `NN-NAME.conf` or `NAME.conf`; may be absent.
    pub plugin_config_dir: PathBuf,
    /// From a connection to RegisterPlugin.
    pub registration_timeout: Duration,
    /// For each call of a plugin.
    pub request_timeout: Duration,
    /// For plugins that are not in `plugins`.
    pub on_failure: OnFailure,
    /// By the plugin's name, without the number in front.
    pub plugins: BTreeMap<String, PluginPolicy>,
}

/// What becomes of a request when a plugin hangs or dies over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It fails.
    Closed,
    /// It goes on without the plugin.
    Open,
}

/// What is decided about one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginPolicy {
    /// When it hangs or dies over a request.
    pub on_failure: OnFailure,
    /// No pod and no container is made while it is not connected.
    pub required: bool,
    /// Kubernetes namespaces whose pods are made without it nonetheless: its own, when it runs in a pod.
    pub except_namespaces: Vec<String>,
}

impl NriConfig {
    pub(crate) fn on_failure(&self, plugin: &str) -> OnFailure {
        self.plugins.get(plugin).map_or(self.on_failure, |policy| policy.on_failure)
    }

    /// The plugins that a pod of this namespace must not be made without.
    pub(crate) fn required(&self, namespace: &str) -> impl Iterator<Item = &str> {
        self.plugins
            .iter()
            .filter(move |(_, policy)| {
                policy.required && !policy.except_namespaces.iter().any(|name| name == namespace)
            })
            .map(|(name, _)| name.as_str())
    }
}
