//! What is kept of a pod: what it is to be, flushed to the disk, and how far it has got, of which only some is flushed
//! (see [`crate::node::Node::keep_progress`]).

use berth_manifest::cri::Ids;
use berth_manifest::{Config, Configs, Manifests, Pod, Source, Strictness};
use berth_sandbox_manager::sequence::Sequence;
use berth_store::json_record;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock;
use crate::timeline::Span;

/// A pod's manifest. By uid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestRecord {
    pub(crate) uid: String,
    /// The Pod document as it was given.
    pub(crate) document: Value,
    /// Items of `ephemeralContainers` that were added since.
    pub(crate) ephemeral: Vec<Value>,
    /// ConfigMaps and Secrets that were given with it.
    pub(crate) configs: Vec<Value>,
    /// Path of the static manifest it comes from.
    pub(crate) source: Option<String>,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// Of a pod with users of its own: the node's first user id that is its.
    pub(crate) first_id: Option<u32>,
}

json_record!(ManifestRecord, "manifest-pod", 1);

/// How far a pod has got. By uid; where it is written to last, and where a power loss leaves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProgressRecord {
    /// Greater than in any record before.
    pub(crate) step: u64,
    /// The boot that the sequence's times count from.
    pub(crate) boot_id: String,
    pub(crate) sequence: Sequence,
    pub(crate) history: History,
}

json_record!(ProgressRecord, "manifest-pod-progress", 1);

/// When what happened. Nanoseconds since the epoch; 0: not yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    /// When each condition became what it is: by `Condition::ALL`.
    pub(crate) conditions: Vec<(bool, i64)>,
    /// When the start began that `ready_at` and `spans` are of: the pod's first, or the first since the machine's boot.
    pub(crate) began_at: i64,
    pub(crate) ready_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) spans: Vec<Span>,
}

impl History {
    pub(crate) fn new(now: i64) -> Self {
        Self { began_at: now, ..Self::default() }
    }

    /// The start that it told of is the machine's boot before's.
    pub(crate) fn starts_anew(&mut self) {
        let conditions = std::mem::take(&mut self.conditions);
        *self = Self { conditions, ..Self::new(clock::unix()) };
    }
}

/// How many ids a pod with users of its own gets, as kubelet has it.
pub(crate) const IDS: u32 = 65_536;

/// A manifest that was read.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) record: ManifestRecord,
    pub(crate) pod: Pod,
    pub(crate) configs: Configs,
}

impl Plan {
    /// Reads a record; what was warned of once is not warned of again.
    ///
    /// # Errors
    /// A manifest that this version of berth cannot read any more.
    pub(crate) fn read(record: ManifestRecord) -> Result<Self, berth_manifest::Faults> {
        let mut document = record.document.clone();
        if !record.ephemeral.is_empty()
            && let Some(Value::Object(spec)) = document.get_mut("spec")
        {
            let all = spec.entry("ephemeralContainers").or_insert_with(|| json!([]));
            if let Value::Array(all) = all {
                all.extend(record.ephemeral.iter().cloned());
            }
        }
        let mut items = record.configs.clone();
        items.push(document);
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
        let source = Source { name: "the pod's record", text: &list };
        let Manifests { pods, configs, .. } = berth_manifest::read(&[source], Strictness::Lenient)?;
        match pods.into_iter().next() {
            Some(pod) => Ok(Self { record, pod, configs }),
            None => Err(berth_manifest::Faults(vec![berth_manifest::Fault {
                source: "the pod's record".to_owned(),
                document: 1,
                path: String::new(),
                problem: "has no Pod".to_owned(),
            }])),
        }
    }

    /// Whether this is the pod that a manifest asks for, with the ConfigMaps and Secrets that it has now. Ephemeral
    /// containers that were added since do not make it another.
    pub(crate) fn is(&self, pod: &Pod, configs: &Configs) -> bool {
        let read = |pod: &Pod| Pod { ephemeral: Vec::new(), document: Value::Null, ..pod.clone() };
        let secrets = |configs: &Configs| -> Vec<Option<Config>> {
            let keys =
                pod.image_pull_secrets.iter().map(|name| (pod.metadata.namespace.clone(), name.clone()));
            keys.map(|key| configs.secrets.get(&key).cloned()).collect()
        };
        self.record.document == pod.document
            && read(&self.pod) == read(pod)
            && secrets(&self.configs) == secrets(configs)
    }

    pub(crate) fn ids(&self) -> Option<Ids> {
        self.record.first_id.map(|first| Ids { first, count: IDS })
    }

    /// `namespace/name`
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.pod.metadata.namespace, self.pod.metadata.name)
    }
}
