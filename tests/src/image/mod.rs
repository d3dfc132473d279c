//! Small images, built in memory: layers from a list of entries, a config, a manifest in OCI's or Docker's format.

mod busybox;
pub mod critest;
pub mod manifests;
pub mod tar;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use self::busybox::{busybox, busybox_layer};
use self::tar::{Entry, Kind};

/// `sha256:<hex>` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// How a layer's archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

/// Whose media types the manifest speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Oci,
    /// Docker's image manifest version 2, schema 2.
    Docker,
}

/// Bytes a registry can serve under a digest.
#[derive(Debug, Clone)]
pub struct Blob {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub content: Content,
}

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub enum Content {
    Memory(Bytes),
    File(PathBuf),
}

impl Blob {
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Blob {
        let bytes = bytes.into();
        Blob {
            media_type: media_type.to_owned(),
            digest: digest_of(&bytes),
            size: bytes.len() as u64,
            content: Content::Memory(bytes),
        }
    }

    /// The descriptor by which manifests and indexes name this blob.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

/// A layer to be: entries in order. Methods that shape an entry (`owner`, `xattr`) change the one added last.
#[derive(Debug, Clone)]
pub struct Layer {
    entries: Vec<Entry>,
    compression: Compression,
}

impl Default for Layer {
    fn default() -> Layer {
        Layer::new()
    }
}

impl Layer {
    pub fn new() -> Layer {
        Layer { entries: Vec::new(), compression: Compression::Gzip }
    }

    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Layer {
        self.compression = compression;
        self
    }

    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Layer {
        self.entries.push(entry);
        self
    }

    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Layer {
        self.entry(Entry::new(path, Kind::File(content.as_ref().to_vec()), mode))
    }

    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Layer {
        self.entry(Entry::new(&format!("{path}/"), Kind::Dir, mode))
    }

    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(Entry::new(path, Kind::Symlink(target.to_owned()), 0o777))
    }

    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Layer {
        self.entry(Entry::new(path, Kind::Hardlink(target.to_owned()), 0o644))
    }

    #[must_use]
    pub fn char_device(self, path: &str, mode: u32, major: u32, minor: u32) -> Layer {
        self.entry(Entry::new(path, Kind::Char(major, minor), mode))
    }

    /// Hides `path` of the layers below.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Layer {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if parent.is_empty() { "" } else { "/" };
        self.file(&format!("{parent}{slash}.wh.{name}"), 0o644, "")
    }

    /// Hides everything the layers below have in `dir`.
    #[must_use]
    pub fn opaque(self, dir: &str) -> Layer {
        self.file(&format!("{dir}/.wh..wh..opq"), 0o644, "")
    }

    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Layer {
        self.shape(|entry| (entry.uid, entry.gid) = (uid, gid))
    }

    #[must_use]
    pub fn xattr(self, name: &str, value: &[u8]) -> Layer {
        self.shape(|entry| entry.xattrs.push((name.to_owned(), value.to_vec())))
    }

    fn shape(mut self, change: impl FnOnce(&mut Entry)) -> Layer {
        change(self.entries.last_mut().expect("an entry was added before it is shaped"));
        self
    }

    /// The packed layer and its diff id.
    fn build(&self, format: Format) -> Result<(Blob, String)> {
        let archive = tar::archive(&self.entries);
        let diff_id = digest_of(&archive);
        let packed = compress(&archive, self.compression).context("packing a layer")?;
        Ok((Blob::new(layer_media_type(format, self.compression), packed), diff_id))
    }
}

fn compress(archive: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(archive.to_vec()),
        Compression::Zstd => zstd::encode_all(archive, 3),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive)?;
            encoder.finish()
        }
    }
}

fn layer_media_type(format: Format, compression: Compression) -> &'static str {
    match (format, compression) {
        (Format::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Format::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Format::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
        (Format::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
        (Format::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
}

/// The `config` section of an image: what a container made from it runs unless told otherwise.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub stop_signal: String,
    pub working_dir: String,
}

impl Config {
    fn json(&self) -> Value {
        let mut section = Map::new();
        let lists = [("Entrypoint", &self.entrypoint), ("Cmd", &self.cmd), ("Env", &self.env)];
        for (key, value) in lists.into_iter().filter(|(_, value)| !value.is_empty()) {
            section.insert(key.to_owned(), json!(value));
        }
        let texts =
            [("User", &self.user), ("StopSignal", &self.stop_signal), ("WorkingDir", &self.working_dir)];
        for (key, value) in texts.into_iter().filter(|(_, value)| !value.is_empty()) {
            section.insert(key.to_owned(), json!(value));
        }
        Value::Object(section)
    }
}

/// An image for one platform, not yet packed.
#[derive(Debug, Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub config: Config,
    pub format: Format,
    pub architecture: String,
}

impl Image {
    /// An OCI image for this machine.
    pub fn new(layers: Vec<Layer>) -> Image {
        Image {
            layers,
            config: Config::default(),
            format: Format::Oci,
            architecture: native_architecture().to_owned(),
        }
    }

    pub fn build(&self) -> Result<BuiltImage> {
        let layers = self.layers.iter().map(|layer| layer.build(self.format)).collect::<Result<Vec<_>>>()?;
        let (blobs, diff_ids) = layers.into_iter().unzip();
        Ok(BuiltImage::assemble(self, blobs, diff_ids))
    }
}

/// Go's name of this machine's architecture, which is what image configs use.
pub fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Manifest, config and layers, ready to be pushed.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
    pub architecture: String,
}

impl BuiltImage {
    /// Makes the config and the manifest over layers that are already packed.
    pub fn assemble(image: &Image, layers: Vec<Blob>, diff_ids: Vec<String>) -> BuiltImage {
        let (config_type, manifest_type) = match image.format {
            Format::Oci => {
                ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.manifest.v1+json")
            }
            Format::Docker => (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
        };
        let config = json!({
            "architecture": image.architecture,
            "os": "linux",
            "config": image.config.json(),
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(config_type, config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        BuiltImage {
            manifest: Blob::new(manifest_type, manifest.to_string()),
            config,
            layers,
            architecture: image.architecture.clone(),
        }
    }

    /// The image id: the config's digest.
    pub fn id(&self) -> &str {
        &self.config.digest
    }
}

/// An index (OCI) or manifest list (Docker) over images for several platforms.
pub fn index(format: Format, images: &[&BuiltImage]) -> Blob {
    let media_type = match format {
        Format::Oci => "application/vnd.oci.image.index.v1+json",
        Format::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut descriptor = image.manifest.descriptor();
            descriptor["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
            descriptor
        })
        .collect();
    let body = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    Blob::new(media_type, body.to_string())
}
