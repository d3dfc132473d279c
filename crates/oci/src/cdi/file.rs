//! One spec file: read, checked, and its version's rules kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::edits::Edits;
use super::name::{check_device, check_kind};

/// Released versions of the specification that this module reads. 0.1 and 0.2 were drafts of another shape.
const VERSIONS: [Version; 8] = [
    Version(0, 3, 0),
    Version(0, 4, 0),
    Version(0, 5, 0),
    Version(0, 6, 0),
    Version(0, 7, 0),
    Version(0, 8, 0),
    Version(1, 0, 0),
    Version(1, 1, 0),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

/// Why a file describes no devices.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("not JSON")]
    Json(#[source] serde_json::Error),
    #[error("not YAML")]
    Yaml(#[source] yaml_serde::Error),
    #[error("{0}")]
    Invalid(String),
    /// What the file has is not in the version that it names.
    #[error("{feature} needs cdiVersion {needed}, and the file says {given:?}")]
    TooOld { feature: &'static str, needed: &'static str, given: String },
    /// The caller could not read it.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// A file's content (SPEC.md, "CDI JSON Specification").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Content {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(super) container_edits: Edits,
}

/// Reads a file: JSON by its name, YAML otherwise.
pub(super) fn read(path: &Path, text: &str) -> Result<Content, FileError> {
    let content: Content = match path.extension() {
        Some(end) if end == "json" => serde_json::from_str(text).map_err(FileError::Json)?,
        _ => yaml_serde::from_str(text).map_err(FileError::Yaml)?,
    };
    content.check().map_err(FileError::Invalid)?;
    content.check_version()?;
    Ok(content)
}

impl Content {
    fn check(&self) -> Result<(), String> {
        check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        let of_file = |reason| format!("containerEdits: {reason}");
        self.container_edits.check().map_err(of_file)?;
        let mut names = BTreeSet::new();
        for Device { name, container_edits, .. } in &self.devices {
            check_device(name)?;
            if !names.insert(name) {
                return Err(format!("device {name:?} stands twice in it"));
            }
            if *container_edits == Edits::default() {
                return Err(format!("device {name:?} has no containerEdits"));
            }
            container_edits.check().map_err(|reason| format!("device {name:?}: {reason}"))?;
        }
        Ok(())
    }

    /// A field that its version does not have is a file that other runtimes would read in another way.
    fn check_version(&self) -> Result<(), FileError> {
        let given = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let version = VERSIONS
            .into_iter()
            .find(|Version(major, minor, patch)| given == format!("{major}.{minor}.{patch}"));
        let Some(version) = version else {
            return Err(FileError::Invalid(format!("cdiVersion {:?} is not known", self.cdi_version)));
        };
        match self.features().find(|(needs, ..)| *needs > version) {
            None => Ok(()),
            Some((_, needed, feature)) => {
                Err(FileError::TooOld { feature, needed, given: self.cdi_version.clone() })
            }
        }
    }

    /// What the file uses that was not there from the beginning, and since when it is.
    fn features(&self) -> impl Iterator<Item = (Version, &'static str, &'static str)> {
        let edits =
            || std::iter::once(&self.container_edits).chain(self.devices.iter().map(|d| &d.container_edits));
        let rdt = || edits().filter_map(|edits| edits.intel_rdt.as_ref());
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let is_letter = |name: &String| name.starts_with(|first: char| first.is_ascii_alphabetic());
        let nodes = || edits().flat_map(|edits| &edits.device_nodes);
        [
            (Version(1, 1, 0), "1.1.0", "netDevices", edits().any(|edits| !edits.net_devices.is_empty())),
            (Version(1, 1, 0), "1.1.0", "intelRdt.schemata", rdt().any(|rdt| !rdt.schemata.is_empty())),
            (Version(1, 1, 0), "1.1.0", "intelRdt.enableMonitoring", rdt().any(|rdt| rdt.enable_monitoring)),
            (Version(0, 7, 0), "0.7.0", "intelRdt", rdt().next().is_some()),
            (
                Version(0, 7, 0),
                "0.7.0",
                "additionalGids",
                edits().any(|edits| !edits.additional_gids.is_empty()),
            ),
            (Version(0, 6, 0), "0.6.0", "a dot in the class", class.contains('.')),
            (
                Version(0, 6, 0),
                "0.6.0",
                "annotations",
                !self.annotations.is_empty()
                    || self.devices.iter().any(|device| !device.annotations.is_empty()),
            ),
            (
                Version(0, 5, 0),
                "0.5.0",
                "a device's name without a letter first",
                self.devices.iter().any(|device| !is_letter(&device.name)),
            ),
            (Version(0, 5, 0), "0.5.0", "deviceNodes.hostPath", nodes().any(|node| node.host_path.is_some())),
            (
                Version(0, 4, 0),
                "0.4.0",
                "mounts.type",
                edits().flat_map(|edits| &edits.mounts).any(|mount| mount.kind.is_some()),
            ),
        ]
        .into_iter()
        .filter(|(.., used)| *used)
        .map(|(version, needed, feature, _)| (version, needed, feature))
    }
}
