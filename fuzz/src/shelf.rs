//! A store that takes in archives of images, each of which is gone again before the next.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use berth_image::{Digest, ImageConfig, Images};
use berth_store::{Durability, Store};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::tar::Tar;

/// An image as docker saves it and as a layout, and several that share.
pub static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds);

/// What a failed load began is undone beside it.
const PATIENCE: Duration = Duration::from_secs(10);

fn seeds() -> Vec<Vec<u8>> {
    let layer = Tar::new().file("hello", "hello\n").finish();
    let config = |layers: &[&[u8]]| {
        let diff_ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", Digest::of(layer))).collect();
        let diff_ids = diff_ids.join(",");
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"User":"1:2","Env":["A=b"]}},
            "rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}}}"#
        )
    };
    let one = config(&[&layer]);
    let docker = Tar::new().file("c.json", &one).file("1/layer.tar", &layer).file(
        "manifest.json",
        r#"[{"Config":"c.json","RepoTags":["a:1","b/c:2"],"Layers":["1/layer.tar"]}]"#,
    );
    let two = config(&[&layer, &layer]);
    let shared = Tar::new()
        .file("c.json", &two)
        .file("1/layer.tar", &layer)
        .symlink("2/layer.tar", "../1/layer.tar")
        .hard_link("3", "1/layer.tar")
        .file("manifest.json", r#"[{"Config":"c.json","Layers":["2/layer.tar","3"]}]"#);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let described = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len());
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        described("config.v1+json", one.as_bytes()),
        described("layer.v1.tar", &layer)
    );
    let inner = format!(r#"{{"manifests":[{}]}}"#, described("manifest.v1+json", manifest.as_bytes()));
    let named = described("index.v1+json", inner.as_bytes())
        .replace("\"size\"", r#""annotations":{"io.containerd.image.name":"d.example/e:1"},"size""#);
    let layout = Tar::new()
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", format!(r#"{{"manifests":[{named}]}}"#))
        .file(&blob(inner.as_bytes()), &inner)
        .file(&blob(manifest.as_bytes()), &manifest)
        .file(&blob(one.as_bytes()), &one)
        .file(&blob(&layer), &layer);
    vec![docker.finish(), shared.finish(), layout.finish()]
}

/// The store.
#[derive(Debug)]
pub struct Shelf {
    images: Images,
    runtime: Runtime,
    dir: TempDir,
}

impl Shelf {
    /// # Errors
    /// The disk's.
    pub fn new() -> io::Result<Shelf> {
        let dir = tempfile::tempdir()?;
        let store =
            Store::open(&dir.path().join("images.redb"), Durability::Background).map_err(io::Error::other)?;
        let config = ImageConfig {
            root: dir.path().to_owned(),
            registry_config_dir: dir.path().join("certs.d"),
            max_parallel_downloads: 1,
            progress_timeout: PATIENCE,
        };
        let images = Images::open(config, store).map_err(io::Error::other)?;
        Ok(Shelf { images, runtime: Builder::new_current_thread().enable_all().build()?, dir })
    }

    /// Takes in an archive, and puts away what was in it. How many images that was, or why it was refused.
    ///
    /// # Panics
    /// When something is left.
    pub fn load(&self, archive: &[u8]) -> Result<usize, String> {
        self.runtime.block_on(async {
            let mut file = tempfile::tempfile_in(self.dir.path()).expect("there is room for the archive");
            file.write_all(archive).and_then(|()| file.rewind()).expect("there is room for the archive");
            let loaded = self.take_in(file).await;
            for image in self.images.list() {
                self.images.remove(image.id.as_str()).await.expect("an image that is there can be removed");
            }
            let deadline = Instant::now() + PATIENCE;
            while let Some(left) = self.left() {
                assert!(Instant::now() < deadline, "{} is left of {loaded:?}", left.display());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            loaded
        })
    }

    async fn take_in(&self, file: File) -> Result<usize, String> {
        let loaded = self.images.load(file, Some("unnamed:1")).await;
        loaded.map(|images| images.len()).map_err(|error| error.to_string())
    }

    fn left(&self) -> Option<PathBuf> {
        let folders = ["tmp", "content/sha256", "layers"].map(|folder| self.dir.path().join(folder));
        let mut entries = folders.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        entries.find_map(|entry| Some(entry.ok()?.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_archive_to_begin_with_is_taken_in_and_put_away() {
        let shelf = Shelf::new().unwrap();
        let outcomes: Vec<_> = SEEDS.iter().map(|seed| shelf.load(seed)).collect();
        assert_eq!(outcomes, [Ok(1), Ok(1), Ok(1)]);
        assert!(shelf.load(&SEEDS[2][..5000]).is_err(), "it ends in the middle");
    }
}
