//! Manifests and indexes, OCI's and Docker's: told apart, checked, and one chosen for this machine.

use std::cmp::Reverse;

use serde::Deserialize;

use crate::digest::Digest;

/// All we can read; sent as `Accept`.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Why a document is no image that can be run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or fields of the wrong kind.
    #[error("it is not a valid manifest: {0}")]
    Syntax(String),
    /// Docker's first format, which has no digests to check.
    #[error("manifest schema 1 is not supported: push the image again with a current tool")]
    SchemaOne,
    /// Something else that registries also store.
    #[error("it is not a container image but {0}")]
    NotAnImage(String),
    /// An index without an entry for this machine.
    #[error("it has no image for {wanted}; it has {has}")]
    NoPlatform {
        /// This machine.
        wanted: String,
        /// What the index lists.
        has: String,
    },
    /// The parts contradict each other.
    #[error("it contradicts itself: {0}")]
    Inconsistent(String),
}

/// A part of an image as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// What a document turned out to be.
#[derive(Debug)]
pub(crate) enum Manifest {
    Image { config: Descriptor, layers: Vec<Descriptor> },
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Reads a document. `content_type` is what the registry called it; the document's own word decides.
pub(crate) fn parse(bytes: &[u8], content_type: &str) -> Result<Manifest, ManifestError> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| ManifestError::Syntax(error.to_string()))?;
    if document.schema_version == 1 {
        return Err(ManifestError::SchemaOne);
    }
    let media_type = if document.media_type.is_empty() { content_type } else { &document.media_type };
    // One document must not be an image to one reader and an index to another.
    match (document.config, document.layers, document.manifests) {
        (Some(config), layers, None)
            if !media_type.contains("index") && !media_type.contains("manifest.list") =>
        {
            let layers = layers.unwrap_or_default();
            if let Some(layer) = layers.iter().find(|layer| layer.media_type.contains("+encrypted")) {
                return Err(ManifestError::NotAnImage(format!("encrypted ({})", layer.media_type)));
            }
            if !is_image_config(&config.media_type) {
                let what = if document.artifact_type.is_empty() {
                    config.media_type
                } else {
                    document.artifact_type
                };
                return Err(ManifestError::NotAnImage(what));
            }
            Ok(Manifest::Image { config, layers })
        }
        (None, None, Some(manifests)) => Ok(Manifest::Index(manifests)),
        _ => Err(ManifestError::Inconsistent(format!("a document of type {media_type:?} has other parts"))),
    }
}

fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
    )
}

/// This machine, in the words of image indexes: architecture and the variants it runs, best first.
fn host_platform() -> (&'static str, &'static [&'static str]) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", &["", "v1"]),
        "x86" => ("386", &[""]),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "", "v6", "v5"]),
        "powerpc64" => ("ppc64le", &[""]),
        "loongarch64" => ("loong64", &[""]),
        other => (other, &[""]),
    }
}

/// The entry of an index for this machine: the best variant, and of equals the first listed.
pub(crate) fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    let (architecture, variants) = host_platform();
    let rank = |descriptor: &Descriptor| match &descriptor.platform {
        Some(platform) if platform.os == "linux" && platform.architecture == architecture => {
            variants.iter().position(|variant| *variant == platform.variant)
        }
        Some(_) => None,
        // An entry that names no platform may be for any: the last resort.
        None => MANIFEST_TYPES.contains(&descriptor.media_type.as_str()).then_some(variants.len()),
    };
    let best = manifests
        .iter()
        .enumerate()
        .filter_map(|(at, descriptor)| {
            rank(descriptor).map(|rank| ((Reverse(rank), Reverse(at)), descriptor))
        })
        .max_by_key(|(order, _)| *order);
    best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
        let mut has: Vec<String> =
            manifests.iter().filter_map(|d| d.platform.as_ref()).map(Platform::text).collect();
        has.truncate(20);
        let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
        ManifestError::NoPlatform { wanted: format!("linux/{architecture}"), has }
    })
}

impl Platform {
    fn text(&self) -> String {
        let variant = if self.variant.is_empty() { String::new() } else { format!("/{}", self.variant) };
        format!("{}/{}{variant}", self.os, self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: &str, mark: &str) -> Descriptor {
        Descriptor {
            media_type: MANIFEST_TYPES[0].into(),
            digest: Digest::of(mark.as_bytes()),
            size: 1,
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.into(),
            }),
        }
    }

    #[test]
    fn the_best_variant_of_this_machine_is_chosen() {
        let (architecture, variants) = host_platform();
        let index = [
            entry("unknown", "unknown", "", "attestation"),
            entry("windows", architecture, "", "windows"),
            entry("linux", "mips", "", "mips"),
            entry("linux", architecture, variants[1], "second"),
            entry("linux", architecture, variants[0], "best"),
            entry("linux", architecture, variants[0], "best, again"),
        ];
        assert_eq!(choose(&index).unwrap().digest, Digest::of(b"best"));
        assert_eq!(choose(&index[..4]).unwrap().digest, Digest::of(b"second"));
        let none = choose(&index[..3]).unwrap_err();
        assert!(none.to_string().contains("linux/mips"), "{none}");
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_kind() {
        let digest = Digest::of(b"x");
        let config =
            |media_type: &str| format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":1}}"#);
        let helm = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#,
            config("application/vnd.cncf.helm.config.v1+json")
        );
        assert!(
            matches!(parse(helm.as_bytes(), ""), Err(ManifestError::NotAnImage(what)) if what.contains("helm"))
        );
        assert!(matches!(parse(br#"{"schemaVersion":1}"#, ""), Err(ManifestError::SchemaOne)));
        let both = format!(r#"{{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}}"#, config(""));
        assert!(matches!(parse(both.as_bytes(), ""), Err(ManifestError::Inconsistent(_))));
        let disguised = format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, config(""));
        assert!(matches!(
            parse(disguised.as_bytes(), MANIFEST_TYPES[1]),
            Err(ManifestError::Inconsistent(_))
        ));
        assert!(parse(disguised.as_bytes(), MANIFEST_TYPES[2]).is_ok());
    }
}
