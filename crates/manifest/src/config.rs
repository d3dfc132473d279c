//! ConfigMaps and Secrets: what they hold, and finding them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::container::Protocol;
use crate::fields::Fields;
use crate::names;
use crate::pod::Metadata;
use crate::volume::Volume;

/// The content of a ConfigMap or a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// By key.
    pub data: BTreeMap<String, Vec<u8>>,
    /// A Secret's type, such as `kubernetes.io/dockerconfigjson`; empty for a ConfigMap.
    pub secret_type: String,
}

/// All ConfigMaps and all Secrets of the input, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configs {
    pub config_maps: BTreeMap<(String, String), Config>,
    pub secrets: BTreeMap<(String, String), Config>,
}

/// Where the references of a pod lead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) configs: &'a Configs,
    /// None: the pod stands elsewhere.
    pub(crate) pod: Option<&'a Siblings<'a>>,
}

/// What the containers of a pod share, and must not both have.
#[derive(Debug)]
pub(crate) struct Siblings<'a> {
    pub(crate) volumes: &'a [Volume],
    pub(crate) host_network: bool,
    /// Of containers that were read before.
    pub(crate) names: RefCell<HashSet<String>>,
    /// Taken by containers that were read before: address, port, protocol.
    pub(crate) host_ports: RefCell<HashSet<(String, u16, Protocol)>>,
}

/// A reference that was followed.
#[derive(Debug)]
pub(crate) struct Reference<'a> {
    /// None: it leads nowhere, which was noted unless it is optional.
    pub(crate) config: Option<&'a Config>,
    pub(crate) optional: bool,
}

impl<'a> Scope<'a> {
    /// Reads the name below `name_key`, and `optional`.
    pub(crate) fn reference(
        &self,
        fields: &mut Fields<'_>,
        name_key: &'static str,
        secret: bool,
    ) -> Reference<'a> {
        let optional = fields.flag("optional");
        let Some(name) = fields.required_as(name_key, names::subdomain) else {
            return Reference { config: None, optional };
        };
        let (all, kind) = match secret {
            true => (&self.configs.secrets, "Secret"),
            false => (&self.configs.config_maps, "ConfigMap"),
        };
        let config = all.get(&(self.namespace.to_owned(), name.clone()));
        if config.is_none() && !optional {
            let namespace = self.namespace;
            let problem = format!("the input has no {kind} {name:?} in namespace {namespace:?}");
            fields.fault(name_key, problem);
        }
        Reference { config, optional }
    }
}

/// Reads a ConfigMap's own fields.
pub(crate) fn config_map(fields: &mut Fields<'_>) -> (Metadata, Config) {
    let metadata = Metadata::read(fields);
    let mut data = BTreeMap::new();
    for (key, text) in fields.string_map("data") {
        insert(fields, "data", &mut data, key, text.into_bytes());
    }
    for (key, text) in fields.string_map("binaryData") {
        if let Some(bytes) = decoded(fields, "binaryData", &key, &text) {
            insert(fields, "binaryData", &mut data, key, bytes);
        }
    }
    fields.skip(&["immutable"]);
    (metadata, Config { data, secret_type: String::new() })
}

/// Reads a Secret's own fields.
pub(crate) fn secret(fields: &mut Fields<'_>) -> (Metadata, Config) {
    let metadata = Metadata::read(fields);
    let mut data = BTreeMap::new();
    for (key, text) in fields.string_map("data") {
        if let Some(bytes) = decoded(fields, "data", &key, &text) {
            insert(fields, "data", &mut data, key, bytes);
        }
    }
    // The API server writes these over the ones in `data`.
    for (key, text) in fields.string_map("stringData") {
        data.remove(&key);
        insert(fields, "stringData", &mut data, key, text.into_bytes());
    }
    fields.skip(&["immutable"]);
    let secret_type = fields.string("type").unwrap_or_else(|| "Opaque".to_owned());
    (metadata, Config { data, secret_type })
}

fn insert(
    fields: &Fields<'_>,
    field: &str,
    data: &mut BTreeMap<String, Vec<u8>>,
    key: String,
    value: Vec<u8>,
) {
    if let Err(problem) = names::config_key(&key) {
        return fields.fault(field, problem);
    }
    let path = format!("{field}.{key}");
    if data.insert(key, value).is_some() {
        fields.fault(&path, "this key is given twice");
    }
}

fn decoded(fields: &Fields<'_>, field: &str, key: &str, text: &str) -> Option<Vec<u8>> {
    // kubectl wraps long values.
    let compact: String = text.split_whitespace().collect();
    let decoded = STANDARD.decode(compact);
    if decoded.is_err() {
        fields.fault(&format!("{field}.{key}"), "is not base64");
    }
    decoded.ok()
}
