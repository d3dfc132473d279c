//! Variables and where their values come from.

use crate::config::{Reference, Scope};
use crate::fields::Fields;
use crate::{Quantity, names};

/// One variable. Later ones win over earlier ones of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    pub name: String,
    pub value: EnvValue,
}

/// A variable's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    /// `$(NAME)` in it stands for a variable before this one, `$$(NAME)` for itself.
    Text(String),
    /// From a ConfigMap or Secret: taken as it is.
    Literal(String),
    Field(FieldPath),
    Resource(ResourceField),
}

/// What the pod itself can say about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldPath {
    Name,
    Namespace,
    Uid,
    Label(String),
    Annotation(String),
    /// All of them, a line each; in files only.
    Labels,
    /// All of them, a line each; in files only.
    Annotations,
    NodeName,
    ServiceAccountName,
    HostIp,
    HostIps,
    PodIp,
    PodIps,
}

impl FieldPath {
    fn parse(text: &str) -> Option<Self> {
        let subscript = |field: &str| {
            let key = text.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")?;
            (!key.is_empty()).then(|| key.to_owned())
        };
        Some(match text {
            "metadata.name" => Self::Name,
            "metadata.namespace" => Self::Namespace,
            "metadata.uid" => Self::Uid,
            "metadata.labels" => Self::Labels,
            "metadata.annotations" => Self::Annotations,
            "spec.nodeName" => Self::NodeName,
            "spec.serviceAccountName" => Self::ServiceAccountName,
            "status.hostIP" => Self::HostIp,
            "status.hostIPs" => Self::HostIps,
            "status.podIP" => Self::PodIp,
            "status.podIPs" => Self::PodIps,
            _ => {
                return subscript("metadata.labels")
                    .map(Self::Label)
                    .or_else(|| subscript("metadata.annotations").map(Self::Annotation));
            }
        })
    }

    /// What a file can hold: nothing that is known only once the pod runs.
    fn fits_file(&self) -> bool {
        match self {
            Self::Name | Self::Namespace | Self::Uid => true,
            Self::Label(_) | Self::Annotation(_) | Self::Labels | Self::Annotations => true,
            Self::NodeName | Self::ServiceAccountName => false,
            Self::HostIp | Self::HostIps | Self::PodIp | Self::PodIps => false,
        }
    }

    fn fits_variable(&self) -> bool {
        !matches!(self, Self::Labels | Self::Annotations)
    }

    /// Reads the object `fieldRef`.
    pub(crate) fn read(fields: &mut Fields<'_>, in_file: bool) -> Option<FieldPath> {
        fields.object("fieldRef", |fields| {
            fields.word("apiVersion", &[("v1", ())]);
            let text = fields.required("fieldPath");
            let path = Self::parse(&text);
            let path = path.filter(|path| if in_file { path.fits_file() } else { path.fits_variable() });
            if path.is_none() && !text.is_empty() {
                let place = if in_file { "a file" } else { "a variable" };
                fields.fault("fieldPath", format!("{text:?} is no field that {place} can have"));
            }
            path
        })?
    }
}

/// A container's own request or limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceField {
    /// Empty: the container that asks.
    pub container: String,
    pub kind: ResourceKind,
    /// `cpu`, `memory`, `ephemeral-storage`, `hugepages-2Mi`.
    pub resource: String,
    pub divisor: Quantity,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    Request,
    Limit,
}

impl ResourceField {
    /// Reads the object `resourceFieldRef`.
    pub(crate) fn read(fields: &mut Fields<'_>, needs_container: bool) -> Option<ResourceField> {
        fields.object("resourceFieldRef", |fields| {
            let container = match needs_container {
                true => fields.required("containerName"),
                false => fields.string("containerName").unwrap_or_default(),
            };
            let divisor = fields.quantity("divisor").unwrap_or_default();
            let text = fields.required("resource");
            let parsed = text.split_once('.').and_then(|(kind, resource)| {
                let kind = match kind {
                    "requests" => ResourceKind::Request,
                    "limits" => ResourceKind::Limit,
                    _ => return None,
                };
                let known = matches!(resource, "cpu" | "memory" | "ephemeral-storage")
                    || resource.starts_with("hugepages-");
                known.then(|| (kind, resource.to_owned()))
            });
            if parsed.is_none() && !text.is_empty() {
                fields.fault("resource", format!("{text:?} is no resource: limits.cpu, requests.memory, …"));
            }
            let (kind, resource) = parsed?;
            Some(ResourceField { container, kind, resource, divisor })
        })?
    }
}

/// Reads `env` and `envFrom`; references to ConfigMaps and Secrets are their contents afterwards.
pub(crate) fn read(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Vec<Env> {
    let mut all: Vec<Env> = fields.objects("envFrom", |fields| source(fields, scope)).concat();
    let own = fields.objects("env", |fields| variable(fields, scope));
    all.extend(own.into_iter().flatten());
    all
}

/// One item of `envFrom`: every key is a variable.
fn source(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Vec<Env> {
    let prefix = fields.string("prefix").unwrap_or_default();
    let which = fields.exactly_one(&["configMapRef", "secretRef"], "a source");
    let found = which.and_then(|key| {
        let secret = key == "secretRef";
        fields.object(key, |fields| scope.reference(fields, "name", secret).config).flatten()
    });
    let data = found.map(|config| config.data.clone()).unwrap_or_default();
    let variables = data.into_iter().filter_map(|(key, value)| {
        let name = names::variable(&format!("{prefix}{key}")).ok()?;
        Some(Env { name, value: EnvValue::Literal(String::from_utf8_lossy(&value).into_owned()) })
    });
    variables.collect()
}

/// None where there is nothing to set: an optional reference that leads nowhere.
fn variable(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<Env> {
    let name = fields.required_as("name", names::variable)?;
    if !fields.has("valueFrom") {
        let value = fields.string("value").unwrap_or_default();
        return Some(Env { name, value: EnvValue::Text(value) });
    }
    if fields.string("value").is_some_and(|value| !value.is_empty()) {
        fields.fault("value", "cannot be given together with valueFrom");
    }
    let value = fields.object("valueFrom", |fields| {
        let sources = ["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"];
        fields.meaningless(&["fileKeyRef"], "it is alpha in Kubernetes");
        match fields.exactly_one(&sources, "a source")? {
            "fieldRef" => FieldPath::read(fields, false).map(EnvValue::Field),
            "resourceFieldRef" => ResourceField::read(fields, false).map(EnvValue::Resource),
            key => {
                let secret = key == "secretKeyRef";
                fields.object(key, |fields| key_of(fields, scope, secret)).flatten().map(EnvValue::Literal)
            }
        }
    });
    Some(Env { name, value: value.flatten()? })
}

fn key_of(fields: &mut Fields<'_>, scope: &Scope<'_>, secret: bool) -> Option<String> {
    let key = fields.required("key");
    let Reference { config, optional } = scope.reference(fields, "name", secret);
    match config?.data.get(&key) {
        Some(value) => match String::from_utf8(value.clone()) {
            Ok(text) => Some(text),
            Err(_) => {
                fields.fault("key", format!("what {key:?} holds is not UTF-8"));
                None
            }
        },
        None if optional => None,
        None => {
            fields.fault("key", format!("there is no key {key:?} in it"));
            None
        }
    }
}
