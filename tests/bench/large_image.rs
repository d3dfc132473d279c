//! A large image, made to order: seven gzip layers of the sizes that images of a language's tool chain have, with
//! files as a distribution has them. The same bytes every time.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, anyhow};
use berth_tests::image::{
    Blob, BuiltImage, Content, Image,
    tar::{self, Entry, Kind},
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

mod content;

use self::content::{Random, Source};

/// Unpacked, in megabytes.
const LAYERS: [u64; 7] = [120, 60, 180, 620, 20, 800, 400];

const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What `docker build` and `docker push` compress with.
const LEVEL: u32 = 6;

/// Every so many files a new folder.
const FILES_PER_FOLDER: u64 = 25;

/// The image and the folder with its layers, which is removed with it.
#[derive(Debug)]
pub(crate) struct LargeImage {
    pub(crate) image: BuiltImage,
    pub(crate) files: u64,
    /// Bytes in files.
    pub(crate) unpacked: u64,
    _folder: tempfile::TempDir,
}

impl LargeImage {
    /// Builds it; takes both processors of a small machine for a while.
    pub(crate) async fn build() -> Result<LargeImage> {
        let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
        let path = folder.path().to_owned();
        let layers = tokio::task::spawn_blocking(move || build_layers(&path)).await??;
        let (files, unpacked) =
            layers.iter().fold((0, 0), |(files, bytes), layer| (files + layer.files, bytes + layer.unpacked));
        let (blobs, diff_ids) = layers.into_iter().map(|layer| (layer.blob, layer.diff_id)).unzip();
        let image = BuiltImage::assemble(&Image::new(Vec::new()), blobs, diff_ids);
        Ok(LargeImage { image, files, unpacked, _folder: folder })
    }

    /// Bytes that a pull transfers.
    pub(crate) fn packed(&self) -> u64 {
        self.image.layers.iter().map(|layer| layer.size).sum()
    }
}

/// A layer on disk.
struct Packed {
    blob: Blob,
    diff_id: String,
    files: u64,
    unpacked: u64,
}

fn build_layers(folder: &Path) -> Result<Vec<Packed>> {
    let source = Source::new();
    // The largest first, so that no processor is left alone with it at the end.
    let mut order: Vec<usize> = (0..LAYERS.len()).collect();
    order.sort_by_key(|layer| LAYERS[*layer]);
    let (left, done) = (Mutex::new(order), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        loop {
            let next = left.lock().map_err(|_| anyhow!("another layer panicked"))?.pop();
            let Some(layer) = next else { return Ok(()) };
            let path = folder.join(format!("layer-{layer}"));
            let packed = build_layer(&source, layer, path).with_context(|| format!("layer {layer}"))?;
            done.lock().map_err(|_| anyhow!("another layer panicked"))?.push((layer, packed));
        }
    };
    let workers = thread::available_parallelism()?.get().min(LAYERS.len());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a layer panicked"))?)
    })?;
    let mut done = done.into_inner().map_err(|_| anyhow!("a layer panicked"))?;
    done.sort_by_key(|(layer, _)| *layer);
    Ok(done.into_iter().map(|(_, packed)| packed).collect())
}

fn build_layer(source: &Source, layer: usize, path: PathBuf) -> Result<Packed> {
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let packed = Hashed::new(BufWriter::with_capacity(1 << 20, file));
    let mut archive = Hashed::new(GzEncoder::new(packed, Compression::new(LEVEL)));
    let (mut files, mut unpacked) = (0, 0);
    let mut random = Random::new(layer as u64);
    let mut piece = Vec::new();
    let mut name = String::new();
    while unpacked < LAYERS[layer] * 1_000_000 {
        if files % FILES_PER_FOLDER == 0 {
            name = format!("usr/layer{layer}/part{}/package{files}", files / 1000);
            tar::append(&mut piece, &Entry::new(&format!("{name}/"), Kind::Dir, 0o755));
        }
        let content = source.file(&mut random);
        unpacked += content.len() as u64;
        let mode = if random.below(8) == 0 { 0o755 } else { 0o644 };
        tar::append(&mut piece, &Entry::new(&format!("{name}/file{files}"), Kind::File(content), mode));
        if files % 40 == 0 {
            let link =
                Entry::new(&format!("{name}/link{files}"), Kind::Symlink(format!("file{files}")), 0o777);
            tar::append(&mut piece, &link);
        }
        files += 1;
        archive.write_all(&piece)?;
        piece.clear();
    }
    tar::finish(&mut piece);
    archive.write_all(&piece)?;
    let (gzip, diff_id) = archive.finish();
    let (mut file, digest) = gzip.finish()?.finish();
    file.flush()?;
    let size = fs::metadata(&path)?.len();
    let blob = Blob { media_type: MEDIA_TYPE.to_owned(), digest, size, content: Content::File(path) };
    Ok(Packed { blob, diff_id, files, unpacked })
}

/// A writer that keeps the digest of what went through it.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Hashed<W> {
        Hashed { inner, hash: Sha256::new() }
    }

    /// What was written into, and `sha256:<hex>` of all that was.
    fn finish(self) -> (W, String) {
        (self.inner, format!("sha256:{}", hex::encode(self.hash.finalize())))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
