//! The calling side of CNI, specification 0.3.0 to 1.1.0: ADD, CHECK, DEL, STATUS, GC, VERSION over a list of plugins.
//! The loopback is up before a plugin sees the namespace, so no list needs to contain it.

mod capabilities;
pub(crate) mod config;
mod plugin;
pub(crate) mod watch;

use std::{
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

pub(crate) use self::capabilities::{arguments, of_request};
use self::{
    config::NetworkList,
    plugin::{Plugins, Verb},
};
pub use self::{
    config::{ConfigError, ContentError},
    plugin::PluginError,
};
use crate::{bridge::POD_INTERFACE, lease::CniLease, pin};

/// CNI could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A recorded list that does not parse any more.
    #[error("the recorded CNI configuration")]
    Recorded(#[source] ContentError),
    /// A plugin.
    #[error("CNI network {network}")]
    Plugin {
        /// The list's name.
        network: String,
        /// What happened.
        #[source]
        source: PluginError,
    },
    /// A plugin without the list's version.
    #[error("CNI network {network}: plugin {plugin} does not speak cniVersion {version}")]
    Unsupported {
        /// The list's name.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// The list's version.
        version: String,
    },
    /// ADD succeeded without an address for the pod.
    #[error("CNI network {network} gave the pod no address")]
    NoAddress {
        /// The list's name.
        network: String,
    },
}

/// The plugins of a list, run in order.
#[derive(Clone, Debug)]
pub(crate) struct Cni {
    plugins: Plugins,
}

impl Cni {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self { plugins: Plugins { directories } }
    }

    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.plugins.directories
    }

    /// Attaches; gives the result and the pod's addresses. On an error the caller runs DEL.
    pub(crate) async fn add(
        &self,
        list: &NetworkList,
        sandbox: &str,
        lease: &CniLease,
    ) -> Result<(Value, Vec<IpAddr>), CniError> {
        let mut result = None;
        for plugin in &list.plugins {
            let input = plugin.input(list, result.as_ref(), &lease.capabilities);
            let variables = variables(sandbox, Some(&lease.netns), &lease.arguments);
            let answer = self.run(list, &plugin.kind, Verb::Add, &variables, input).await?;
            result = Some(answer);
        }
        let result = result.unwrap_or(Value::Null);
        let addresses = addresses(&result);
        if addresses.is_empty() {
            return Err(CniError::NoAddress { network: list.name.clone() });
        }
        Ok((result, addresses))
    }

    /// Asks every plugin whether its work is still in place. Nothing is asked where the version or the list forbid it.
    pub(crate) async fn check(&self, sandbox: &str, lease: &CniLease) -> Result<(), CniError> {
        let list = recorded(lease)?;
        if list.disable_check || !list.version.has_check() {
            return Ok(());
        }
        for plugin in &list.plugins {
            let input = plugin.input(&list, lease.result.as_ref(), &lease.capabilities);
            let variables = variables(sandbox, Some(&lease.netns), &lease.arguments);
            self.run(&list, &plugin.kind, Verb::Check, &variables, input).await?;
        }
        Ok(())
    }

    /// Detaches, last plugin first. A namespace that is gone is left out; plugins then free what they hold elsewhere.
    pub(crate) async fn del(&self, sandbox: &str, lease: &CniLease) -> Result<(), CniError> {
        let list = recorded(lease)?;
        let netns = pin::is_netns(&lease.netns).then_some(lease.netns.as_path());
        let previous = lease.result.as_ref().filter(|_| list.version.has_check());
        for plugin in list.plugins.iter().rev() {
            let input = plugin.input(&list, previous, &lease.capabilities);
            let variables = variables(sandbox, netns, &lease.arguments);
            self.run(&list, &plugin.kind, Verb::Del, &variables, input).await?;
        }
        Ok(())
    }

    /// Whether the list can attach pods: all plugins are there, speak its version and, since 1.1.0, say so themselves.
    pub(crate) async fn status(&self, list: &NetworkList) -> Result<(), CniError> {
        for plugin in &list.plugins {
            self.check_version(list, &plugin.kind).await?;
        }
        if list.version.has_status() {
            for plugin in &list.plugins {
                let input = plugin.input(list, None, &Map::new());
                self.run(list, &plugin.kind, Verb::Status, &[], input).await?;
            }
        }
        Ok(())
    }

    async fn check_version(&self, list: &NetworkList, plugin: &str) -> Result<(), CniError> {
        let Value::Object(input) = json!({"cniVersion": list.version.to_string()}) else {
            return Ok(());
        };
        let answer = self.run(list, plugin, Verb::Version, &[], input).await?;
        let wanted = list.version.to_string();
        let spoken = answer.get("supportedVersions").and_then(Value::as_array);
        if spoken.is_some_and(|versions| versions.iter().any(|version| version == wanted.as_str())) {
            return Ok(());
        }
        Err(CniError::Unsupported { network: list.name.clone(), plugin: plugin.to_owned(), version: wanted })
    }

    /// Tells the plugins which sandboxes live, so that they free what others left (since 1.1.0).
    pub(crate) async fn gc(&self, list: &NetworkList, sandboxes: &[String]) -> Result<(), CniError> {
        if list.disable_gc || !list.version.has_status() {
            return Ok(());
        }
        let living: Vec<Value> = sandboxes
            .iter()
            .map(|sandbox| json!({"containerID": sandbox, "ifname": POD_INTERFACE}))
            .collect();
        for plugin in &list.plugins {
            let mut input = plugin.input(list, None, &Map::new());
            input.insert("cni.dev/valid-attachments".to_owned(), Value::Array(living.clone()));
            self.run(list, &plugin.kind, Verb::Gc, &[], input).await?;
        }
        Ok(())
    }

    async fn run(
        &self,
        list: &NetworkList,
        plugin: &str,
        verb: Verb,
        variables: &[(&'static str, OsString)],
        input: Map<String, Value>,
    ) -> Result<Value, CniError> {
        self.plugins
            .run(plugin, verb, variables, input)
            .await
            .map_err(|source| CniError::Plugin { network: list.name.clone(), source })
    }
}

fn recorded(lease: &CniLease) -> Result<NetworkList, CniError> {
    NetworkList::parse(lease.list.clone()).map_err(CniError::Recorded)
}

fn variables(sandbox: &str, netns: Option<&Path>, arguments: &str) -> [(&'static str, OsString); 4] {
    [
        ("CNI_CONTAINERID", sandbox.into()),
        ("CNI_NETNS", netns.map(|path| path.as_os_str().to_owned()).unwrap_or_default()),
        ("CNI_IFNAME", POD_INTERFACE.into()),
        ("CNI_ARGS", arguments.into()),
    ]
}

/// The pod's addresses in a result, IPv4 first. Addresses of interfaces on the host side do not count.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let in_pod = |ip: &Value| {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        match (index, interfaces) {
            (Some(index), Some(interfaces)) => interfaces
                .get(index)
                .and_then(|interface| interface.get("sandbox"))
                .and_then(Value::as_str)
                .is_some_and(|sandbox| !sandbox.is_empty()),
            _ => true,
        }
    };
    let mut addresses: Vec<IpAddr> = result
        .get("ips")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|ip| in_pod(ip))
        .filter_map(|ip| ip.get("address")?.as_str()?.parse::<IpNet>().ok())
        .map(|net| net.addr())
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_pods_interfaces_come_ipv4_first() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
            "ips": [
                {"address": "fd00::5/64", "interface": 1},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.5/24", "interface": 1},
                {"address": "10.9.0.5/24"},
                {"address": "nonsense"},
            ],
        });
        let expected: Vec<IpAddr> =
            ["10.0.0.5", "10.9.0.5", "fd00::5"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(addresses(&result), expected);
        assert_eq!(addresses(&json!(null)), Vec::<IpAddr>::new());
    }
}
