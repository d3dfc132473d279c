//! What a container asks for and may use.

use std::collections::BTreeMap;

use crate::Quantity;
use crate::fields::Fields;

/// Requests and limits by the names of resources: `cpu` in CPUs, `memory`, `ephemeral-storage` and `hugepages-*` in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// A resource with a limit and no request has its limit here too, as the API server does it.
    pub requests: BTreeMap<String, Quantity>,
    pub limits: BTreeMap<String, Quantity>,
}

impl Resources {
    /// Reads the object `resources`.
    pub(crate) fn read(fields: &mut Fields<'_>) -> Resources {
        let read = fields.object("resources", |fields| {
            let limits = named(fields, "limits");
            let mut requests = named(fields, "requests");
            for (name, request) in &requests {
                if limits.get(name).is_some_and(|limit| request > limit) {
                    fields.fault(&format!("requests.{name}"), "must not be more than the limit");
                }
            }
            for (name, limit) in &limits {
                requests.entry(name.clone()).or_insert(*limit);
            }
            fields.meaningless(&["claims"], "there is no scheduler to allocate devices");
            Resources { requests, limits }
        });
        read.unwrap_or_default()
    }
}

fn named(fields: &mut Fields<'_>, key: &'static str) -> BTreeMap<String, Quantity> {
    let mut amounts = fields.quantity_map(key);
    amounts.retain(|name, amount| {
        let path = format!("{key}.{name}");
        let known = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.strip_prefix("hugepages-").is_some_and(|size| size.parse::<Quantity>().is_ok());
        if !known {
            fields.fault(
                &path,
                "is no resource of this node: cpu, memory, ephemeral-storage or hugepages-SIZE",
            );
        } else if amount.is_negative() {
            fields.fault(&path, "must not be negative");
        }
        known
    });
    amounts
}
