//! From text to documents of a kind.

use serde_json::Value;

use crate::config::{self, Configs, Scope};
use crate::ephemeral::EphemeralContainers;
use crate::fault::{Fault, Faults};
use crate::fields::{Fields, Notes};
use crate::pod::{Metadata, Pod};

/// A text to read: YAML or JSON, one or more documents.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What it is called in faults: a file's path.
    pub name: &'a str,
    pub text: &'a str,
}

/// What to do about fields that mean nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// They are faults.
    #[default]
    Strict,
    /// They are warnings.
    Lenient,
}

/// All that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    pub pods: Vec<Pod>,
    pub ephemeral: Vec<EphemeralContainers>,
    /// Secrets are also credentials for pulling.
    pub configs: Configs,
    /// These as they were written.
    pub config_documents: Vec<Value>,
    /// Fields that were passed over.
    pub warnings: Vec<Fault>,
}

/// More than any pod needs, and little enough to be parsed at once.
const MAX_TEXT: usize = 4 << 20;

/// Reads manifests. What pods refer to may stand in any of the sources, before or after them.
///
/// # Errors
/// All that is wrong.
pub fn read(sources: &[Source<'_>], strictness: Strictness) -> Result<Manifests, Faults> {
    let mut reading = Reading { strictness, manifests: Manifests::default(), faults: Vec::new() };
    let mut documents = Vec::new();
    for source in sources {
        match parse(source.text) {
            Ok(values) => {
                let found =
                    values.into_iter().enumerate().map(|(index, value)| (source.name, index + 1, value));
                documents.extend(found.flat_map(|(name, index, value)| unlisted(name, index, value)));
            }
            Err(problem) => reading.faults.push(Fault {
                source: source.name.to_owned(),
                document: 1,
                path: String::new(),
                problem,
            }),
        }
    }
    // References are followed while pods are read.
    let (configs, others): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| matches!(document.kind(), "ConfigMap" | "Secret"));
    for document in configs.iter().chain(&others) {
        reading.document(document);
    }
    match reading.faults.is_empty() {
        true => Ok(reading.manifests),
        false => Err(Faults(reading.faults)),
    }
}

fn parse(text: &str) -> Result<Vec<Value>, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("is larger than {} MiB", MAX_TEXT >> 20));
    }
    // As the API server's parser has it: `mode: 0400` is octal. A fault is one line; the text is at hand.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let values = serde_saphyr::from_multiple_with_options::<Value>(text, options);
    let values = values.map_err(|error| error.to_string())?;
    match values.is_empty() {
        true => Err("has no document".to_owned()),
        false => Ok(values),
    }
}

#[derive(Debug)]
struct Document {
    source: String,
    number: usize,
    /// Where it stands in a list; empty outside of one.
    path: String,
    value: Value,
}

impl Document {
    fn kind(&self) -> &str {
        self.value.get("kind").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The items of a `List`, as `kubectl get -o yaml` writes it; anything else as it is.
fn unlisted(source: &str, number: usize, value: Value) -> Vec<Document> {
    let document = |path: String, value| Document { source: source.to_owned(), number, path, value };
    if !matches!(value.get("kind").and_then(Value::as_str), Some("List" | "PodList")) {
        return vec![document(String::new(), value)];
    }
    let items = value.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    items.into_iter().enumerate().map(|(index, item)| document(format!("items[{index}]"), item)).collect()
}

struct Reading {
    strictness: Strictness,
    manifests: Manifests,
    faults: Vec<Fault>,
}

impl Reading {
    fn document(&mut self, document: &Document) {
        let notes = Notes::new(&document.source, document.number, self.strictness);
        let manifests = &mut self.manifests;
        Fields::of(&document.value, document.path.clone(), &notes, |fields| {
            let version = fields.required("apiVersion");
            let kind = fields.required("kind");
            if !version.is_empty() && version != "v1" {
                fields.fault("apiVersion", format!("must be v1, not {version:?}"));
            }
            add(manifests, fields, &kind, &document.value);
        });
        let (faults, warnings) = notes.into_parts();
        self.faults.extend(faults);
        self.manifests.warnings.extend(warnings);
    }
}

fn add(manifests: &mut Manifests, fields: &mut Fields<'_>, kind: &str, document: &Value) {
    let twice = |fields: &Fields<'_>, metadata: &Metadata| {
        let Metadata { namespace, name, .. } = metadata;
        fields.fault("metadata.name", format!("{kind} {namespace}/{name} is there twice"));
    };
    match kind {
        "ConfigMap" | "Secret" => {
            let ((metadata, config), all) = match kind {
                "Secret" => (config::secret(fields), &mut manifests.configs.secrets),
                _ => (config::config_map(fields), &mut manifests.configs.config_maps),
            };
            manifests.config_documents.push(document.clone());
            let key = (metadata.namespace.clone(), metadata.name.clone());
            if all.insert(key, config).is_some() {
                twice(fields, &metadata);
            }
        }
        "Pod" => {
            let metadata = Metadata::read(fields);
            let same = |pod: &Pod| {
                (&pod.metadata.namespace, &pod.metadata.name) == (&metadata.namespace, &metadata.name)
            };
            if manifests.pods.iter().any(same) {
                twice(fields, &metadata);
            }
            let namespace = metadata.namespace.clone();
            let scope = Scope { namespace: &namespace, configs: &manifests.configs, pod: None };
            let pod = Pod::read(fields, &scope, metadata);
            manifests.pods.extend(pod.map(|pod| Pod { document: document.clone(), ..pod }));
        }
        "EphemeralContainers" => {
            let metadata = Metadata::read(fields);
            let namespace = metadata.namespace.clone();
            let scope = Scope { namespace: &namespace, configs: &manifests.configs, pod: None };
            let read = EphemeralContainers::read(fields, &scope, metadata);
            let documents = document.get("ephemeralContainers").and_then(Value::as_array);
            let documents = documents.cloned().unwrap_or_default();
            manifests.ephemeral.push(EphemeralContainers { documents, ..read });
        }
        "" => fields.ignore_rest(),
        other => {
            let problem =
                format!("{other:?} cannot be run here: Pod, EphemeralContainers, ConfigMap, Secret");
            fields.fault("kind", problem);
            fields.ignore_rest();
        }
    }
}
