//! A registry on loopback, images to put in it, and a store to pull them into.
#![allow(dead_code, unreachable_pub, missing_debug_implementations)]

pub mod registry;
pub mod tar;

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_image::{Credentials, Digest, Image, ImageConfig, ImageId, Images, Progress, PullError};
use berth_store::{Durability, Store};
pub use registry::Registry;
pub use tar::Tar;

/// An image store in a folder of its own.
pub struct Node {
    pub images: Images,
    pub dir: Arc<tempfile::TempDir>,
}

impl Node {
    pub fn new() -> Node {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Node { images: open(dir.path()), dir }
    }

    /// As after a crash: the same folder, everything in memory lost.
    pub fn restart(self) -> Node {
        let Node { images, dir } = self;
        drop(images);
        Node { images: open(dir.path()), dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn certs_d(&self) -> PathBuf {
        self.dir.path().join("certs.d")
    }

    pub async fn pull(&self, reference: &str) -> Result<ImageId, PullError> {
        self.images.pull(reference, None, &Progress::default()).await
    }

    pub async fn pull_as(
        &self,
        reference: &str,
        username: &str,
        password: &str,
    ) -> Result<ImageId, PullError> {
        let credentials =
            Credentials { username: username.into(), password: password.into(), ..Default::default() };
        self.images.pull(reference, Some(credentials), &Progress::default()).await
    }

    pub fn image(&self, text: &str) -> Arc<Image> {
        self.images.find(text).unwrap().expect("the image is there")
    }

    /// Names below the root, as deep as the layout goes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for dir in ["tmp", "content/sha256", "layers", "snapshots"] {
            for entry in std::fs::read_dir(self.root().join(dir)).unwrap() {
                found.push(format!("{dir}/{}", entry.unwrap().file_name().display()));
            }
        }
        found
    }

    /// Waits until nothing is left of what a dropped pull began.
    pub async fn wait_until_empty(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !self.leftovers().is_empty() {
            assert!(std::time::Instant::now() < deadline, "left over: {:?}", self.leftovers());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root().join("content/sha256").join(digest.hex())
    }

    pub fn layer_fs(&self, diff_id: &Digest) -> PathBuf {
        self.root().join("layers").join(diff_id.hex()).join("fs")
    }
}

fn open(dir: &Path) -> Images {
    let root = dir.join("root");
    std::fs::create_dir_all(&root).unwrap();
    let store = Store::open(&root.join("images.redb"), Durability::Flushed).unwrap();
    let config = ImageConfig {
        root,
        registry_config_dir: dir.join("certs.d"),
        max_parallel_downloads: 3,
        progress_timeout: Duration::from_secs(20),
    };
    Images::open(config, store).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

impl Pack {
    pub fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Pack::Plain => tar.to_vec(),
            Pack::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                encoder.finish().unwrap()
            }
            Pack::Zstd => zstd::encode_all(tar, 3).unwrap(),
        }
    }

    fn media_type(self, docker: bool) -> &'static str {
        match (docker, self) {
            (true, Pack::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (false, Pack::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (false, Pack::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Pack::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image as pushed: everything by digest.
pub struct Pushed {
    pub manifest: Digest,
    pub config: Digest,
    pub diff_ids: Vec<Digest>,
    pub blobs: Vec<Digest>,
}

/// An image to be pushed.
pub struct ImageBuilder {
    pub layers: Vec<(Vec<u8>, Pack)>,
    pub docker: bool,
    pub user: &'static str,
    /// Put into the config, to make otherwise equal images differ.
    pub mark: String,
    /// The config names the layers in the wrong order.
    pub swap_diff_ids: bool,
    /// The manifest says that the layers' blobs are so much longer than they are.
    pub size_off_by: i64,
}

impl ImageBuilder {
    pub fn new() -> ImageBuilder {
        ImageBuilder {
            layers: Vec::new(),
            docker: false,
            user: "",
            mark: String::new(),
            swap_diff_ids: false,
            size_off_by: 0,
        }
    }

    pub fn layer(mut self, tar: Tar) -> ImageBuilder {
        self.layers.push((tar.finish(), Pack::Gzip));
        self
    }

    pub fn layer_as(mut self, tar: Tar, pack: Pack) -> ImageBuilder {
        self.layers.push((tar.finish(), pack));
        self
    }

    pub fn docker(mut self) -> ImageBuilder {
        self.docker = true;
        self
    }

    pub fn mark(mut self, mark: &str) -> ImageBuilder {
        self.mark = mark.to_owned();
        self
    }

    /// Stores the parts under `repository`, and the manifest under its digest and `tag`.
    pub fn push(self, registry: &Registry, repository: &str, tag: &str) -> Pushed {
        let mut diff_ids: Vec<Digest> = self.layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
        if self.swap_diff_ids {
            diff_ids.reverse();
        }
        let config = serde_json::json!({
            "architecture": arch(), "os": "linux", "author": self.mark,
            "config": { "User": self.user, "Cmd": ["/bin/sh"], "Env": ["A=B"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let config_digest = registry.put_blob(&config);
        let mut blobs = Vec::new();
        let mut layers = Vec::new();
        for (tar, pack) in &self.layers {
            let blob = pack.pack(tar);
            let digest = registry.put_blob(&blob);
            layers.push(serde_json::json!({
                "mediaType": pack.media_type(self.docker), "digest": digest, "size": blob.len() as i64 + self.size_off_by,
            }));
            blobs.push(digest);
        }
        let (manifest_type, config_type) = match self.docker {
            true => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
            false => {
                ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
            }
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": { "mediaType": config_type, "digest": config_digest, "size": config.len() },
            "layers": layers,
        });
        let manifest = registry.put_manifest(repository, &[tag], manifest_type, &manifest);
        Pushed { manifest, config: config_digest, diff_ids, blobs }
    }
}

pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A mounted root file system at a path, for looking at it with ordinary calls. Unmounted when dropped.
pub struct Mounted {
    pub dir: tempfile::TempDir,
}

impl Mounted {
    pub fn at(mount: std::os::fd::OwnedFd) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            dir.path(),
            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap();
        Mounted { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn names(&self, name: &str) -> HashSet<String> {
        std::fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
