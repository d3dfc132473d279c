//! Volumes: where their content comes from.

use std::collections::BTreeMap;

use crate::config::{Reference, Scope};
use crate::container::PullPolicy;
use crate::env::{FieldPath, ResourceField};
use crate::fields::Fields;
use crate::{Quantity, names};

/// A folder, or a file, that containers of the pod may mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

/// What is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    EmptyDir(EmptyDir),
    HostPath {
        path: String,
        kind: HostPathType,
    },
    /// ConfigMap, Secret, downward API, or several of these in one folder.
    Files {
        items: Vec<Item>,
        /// Secrets lie in memory.
        in_memory: bool,
    },
    Image {
        reference: String,
        pull_policy: PullPolicy,
    },
}

/// A folder that is empty when the pod starts and goes with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmptyDir {
    pub medium: Medium,
    pub size_limit: Option<Quantity>,
}

/// What a folder lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    #[default]
    Disk,
    /// A tmpfs.
    Memory,
    /// A hugetlbfs with pages of this size; the host's default size without one.
    HugePages(Option<Quantity>),
}

/// What must be at a path of the host, and what is made there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostPathType {
    /// Whatever it is.
    #[default]
    Any,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Below the volume.
    pub path: String,
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Bytes(Vec<u8>),
    Field(FieldPath),
    Resource(ResourceField),
}

const SOURCES: [&str; 7] =
    ["emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "image"];

/// Those that need a cluster.
const ELSEWHERE: [&str; 23] = [
    "persistentVolumeClaim",
    "ephemeral",
    "csi",
    "nfs",
    "iscsi",
    "fc",
    "cephfs",
    "rbd",
    "glusterfs",
    "gitRepo",
    "flexVolume",
    "flocker",
    "cinder",
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "gcePersistentDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

const DEFAULT_MODE: u32 = 0o644;

impl Volume {
    /// Reads one item of `volumes`; None when its source cannot be used.
    pub(crate) fn read(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<Volume> {
        let name = fields.required_as("name", names::label);
        let elsewhere: Vec<&str> = ELSEWHERE.into_iter().filter(|key| fields.has(key)).collect();
        fields.refuse(&ELSEWHERE, "is not supported: without a cluster nobody provides it");
        if !elsewhere.is_empty() {
            return None;
        }
        if !SOURCES.iter().any(|key| fields.has(key)) {
            // As the API server has it.
            let source = VolumeSource::EmptyDir(EmptyDir::default());
            return Some(Volume { name: name?, source });
        }
        let source = match fields.exactly_one(&SOURCES, "a source")? {
            "emptyDir" => fields.object("emptyDir", empty_dir).map(VolumeSource::EmptyDir),
            "hostPath" => fields.object("hostPath", host_path)?,
            "image" => fields.object("image", image),
            "projected" => fields.object("projected", |fields| projected(fields, scope)),
            "downwardAPI" => fields.object("downwardAPI", |fields| {
                let mode = mode(fields, "defaultMode", DEFAULT_MODE);
                VolumeSource::Files { items: downward(fields, mode), in_memory: true }
            }),
            key => {
                let in_memory = key == "secret";
                fields.object(key, |fields| {
                    let mode = mode(fields, "defaultMode", DEFAULT_MODE);
                    let name = if in_memory { "secretName" } else { "name" };
                    VolumeSource::Files { items: config(fields, scope, name, in_memory, mode), in_memory }
                })
            }
        };
        Some(Volume { name: name?, source: source? })
    }
}

fn empty_dir(fields: &mut Fields<'_>) -> EmptyDir {
    let medium = fields.checked("medium", |text| match text {
        "" => Ok(Medium::Disk),
        "Memory" => Ok(Medium::Memory),
        "HugePages" => Ok(Medium::HugePages(None)),
        other => match other.strip_prefix("HugePages-").map(str::parse) {
            Some(Ok(size)) => Ok(Medium::HugePages(Some(size))),
            _ => Err(format!("must be Memory, HugePages or HugePages-SIZE, not {other:?}")),
        },
    });
    let size_limit = fields.quantity("sizeLimit");
    if size_limit.is_some_and(Quantity::is_negative) {
        fields.fault("sizeLimit", "must not be negative");
    }
    EmptyDir { medium: medium.unwrap_or_default(), size_limit }
}

fn host_path(fields: &mut Fields<'_>) -> Option<VolumeSource> {
    let path = fields.required_as("path", names::absolute_path);
    let kinds = [
        ("", HostPathType::Any),
        ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
        ("Directory", HostPathType::Directory),
        ("FileOrCreate", HostPathType::FileOrCreate),
        ("File", HostPathType::File),
        ("Socket", HostPathType::Socket),
        ("CharDevice", HostPathType::CharDevice),
        ("BlockDevice", HostPathType::BlockDevice),
    ];
    let kind = fields.word("type", &kinds).unwrap_or_default();
    Some(VolumeSource::HostPath { path: path?, kind })
}

fn image(fields: &mut Fields<'_>) -> VolumeSource {
    let reference = fields.required("reference");
    let pull_policy = PullPolicy::read(fields, "pullPolicy", &reference);
    VolumeSource::Image { reference, pull_policy }
}

fn projected(fields: &mut Fields<'_>, scope: &Scope<'_>) -> VolumeSource {
    let default = mode(fields, "defaultMode", DEFAULT_MODE);
    let mut in_memory = false;
    let items = fields.objects("sources", |fields| {
        fields.refuse(
            &["serviceAccountToken", "clusterTrustBundle", "podCertificate"],
            "is not supported: there is no API server to give it out",
        );
        match fields.exactly_one(&["configMap", "secret", "downwardAPI"], "a source") {
            Some("downwardAPI") => fields.object("downwardAPI", |fields| downward(fields, default)),
            Some(key) => {
                in_memory |= key == "secret";
                fields.object(key, |fields| config(fields, scope, "name", key == "secret", default))
            }
            None => None,
        }
        .unwrap_or_default()
    });
    VolumeSource::Files { items: merged(items.concat()), in_memory }
}

/// Of two files of one path the later one holds.
fn merged(items: Vec<Item>) -> Vec<Item> {
    let by_path: BTreeMap<String, Item> = items.into_iter().map(|item| (item.path.clone(), item)).collect();
    by_path.into_values().collect()
}

/// The keys of a ConfigMap or Secret as files: those of `items`, or all.
fn config(
    fields: &mut Fields<'_>,
    scope: &Scope<'_>,
    name: &'static str,
    secret: bool,
    default: u32,
) -> Vec<Item> {
    let Reference { config, optional } = scope.reference(fields, name, secret);
    let listed = fields.has("items");
    let items = fields.objects("items", |fields| {
        let key = fields.required("key");
        let path = fields.required_as("path", names::path_below);
        let mode = mode(fields, "mode", default);
        let content = config.and_then(|config| config.data.get(&key));
        if content.is_none() && config.is_some() && !optional {
            fields.fault("key", format!("there is no key {key:?} in it"));
        }
        Some(Item { path: path?, content: Content::Bytes(content?.clone()), mode })
    });
    if listed {
        return items.into_iter().flatten().collect();
    }
    let all = config.into_iter().flat_map(|config| &config.data);
    all.map(|(key, value)| Item { path: key.clone(), content: Content::Bytes(value.clone()), mode: default })
        .collect()
}

fn downward(fields: &mut Fields<'_>, default: u32) -> Vec<Item> {
    let items = fields.objects("items", |fields| {
        let path = fields.required_as("path", names::path_below);
        let mode = mode(fields, "mode", default);
        let content = match fields.exactly_one(&["fieldRef", "resourceFieldRef"], "a source")? {
            "fieldRef" => FieldPath::read(fields, true).map(Content::Field),
            _ => ResourceField::read(fields, true).map(Content::Resource),
        };
        Some(Item { path: path?, content: content?, mode })
    });
    items.into_iter().flatten().collect()
}

/// Permission bits; JSON has no octal numbers, YAML does.
fn mode(fields: &mut Fields<'_>, key: &'static str, default: u32) -> u32 {
    let given = fields.integer(key, 0..=0o777);
    given.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(default)
}
