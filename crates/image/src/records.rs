//! What is kept about an image, and the form in which it is handed out.

use std::collections::BTreeSet;
use std::fmt;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::unpack::LayerSpec;

/// An image's id: `sha256:` and the digest of its config, the same wherever it was pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageId(pub(crate) Digest);

impl ImageId {
    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The digest of the config.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The durable record of an image, keyed by its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// `name:tag`.
    pub(crate) tags: BTreeSet<String>,
    /// `name@digest`, the digest being what the reference resolved to.
    pub(crate) digests: BTreeSet<String>,
    /// Digests of the manifest and of the indexes that led to it.
    pub(crate) manifests: BTreeSet<Digest>,
    /// The config as the registry has it.
    pub(crate) config: String,
    pub(crate) layers: Vec<LayerRecord>,
    /// Bytes on disk: unpacked layers, their blobs, config and manifest.
    pub(crate) size: u64,
    pub(crate) pinned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    pub(crate) blob: Digest,
    pub(crate) size: u64,
}

berth_store::json_record!(ImageRecord, "images", 1);

/// An image that is present and whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the config.
    pub id: ImageId,
    /// Fully qualified `name:tag`s; empty for an image pulled by digest only.
    pub repo_tags: Vec<String>,
    /// Fully qualified `name@digest`s.
    pub repo_digests: Vec<String>,
    /// Bytes on disk, shared parts counted in full; never 0.
    pub size: u64,
    /// The config, read.
    pub config: ImageConfiguration,
    /// The config, as the registry has it.
    pub config_json: String,
    /// Diff ids, lowest layer first.
    pub layers: Vec<Digest>,
    /// Not to be removed by a garbage collector.
    pub pinned: bool,
    pub(crate) record: ImageRecord,
}

impl Image {
    pub(crate) fn new(id: ImageId, record: ImageRecord) -> Result<Image, serde_json::Error> {
        let config = serde_json::from_str(&record.config)?;
        Ok(Image {
            id,
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: record.size.max(1),
            config,
            config_json: record.config.clone(),
            layers: record.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
            pinned: record.pinned,
            record,
        })
    }

    /// The user the image wants to run as, as CRI's `Image.uid` means it: only when it is a number.
    pub fn uid(&self) -> Option<i64> {
        self.user().parse::<u32>().ok().map(i64::from)
    }

    /// The user the image wants to run as, when it is a name.
    pub fn username(&self) -> Option<&str> {
        let user = self.user();
        (!user.is_empty() && self.uid().is_none()).then_some(user)
    }

    /// `user` of `user[:group]`.
    fn user(&self) -> &str {
        let user = self.config.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or("");
        user.split(':').next().unwrap_or("")
    }

    /// What containers' statuses call the image's reference: a `name@digest`, or the id when there is none.
    pub fn digested_reference(&self) -> &str {
        self.repo_digests.first().map_or(self.id.as_str(), String::as_str)
    }

    pub(crate) fn specs(&self) -> Vec<LayerSpec> {
        self.record
            .layers
            .iter()
            .map(|layer| LayerSpec {
                blob: layer.blob.clone(),
                size: layer.size,
                diff_id: layer.diff_id.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(user: &str) -> Image {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"User":"{user}"}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        );
        let record = ImageRecord {
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            manifests: BTreeSet::new(),
            config,
            layers: Vec::new(),
            size: 0,
            pinned: false,
        };
        Image::new(ImageId(Digest::of(b"x")), record).unwrap()
    }

    #[test]
    fn users_are_numbers_or_names() {
        for (user, uid, name) in [
            ("", None, None),
            ("1002", Some(1002), None),
            ("1003:1003", Some(1003), None),
            ("www-data", None, Some("www-data")),
            ("www-data:www-data", None, Some("www-data")),
            ("0", Some(0), None),
        ] {
            let image = image(user);
            assert_eq!((image.uid(), image.username()), (uid, name), "{user}");
        }
    }

    #[test]
    fn size_is_never_zero() {
        assert_eq!(image("").size, 1);
    }
}
