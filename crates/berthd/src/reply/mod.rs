//! CRI messages made from what the crates below know. Pure: no handler logic, no I/O.

pub(crate) mod images;
pub(crate) mod manifest;
pub(crate) mod node;
pub(crate) mod pods;

use std::collections::BTreeMap;

use serde_json::Value;

/// CRI's verbose `info`: JSON texts by topic.
pub(crate) type Info = BTreeMap<String, String>;

/// Whether a label selector picks these labels.
fn selected(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One topic of an `info`.
fn topic(name: &str, value: &Value) -> (String, String) {
    (name.to_owned(), value.to_string())
}
