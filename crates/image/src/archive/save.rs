//! An archive out: an OCI layout that docker, podman and containerd read as well.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::SaveError;
use crate::digest::Digest;
use crate::images::{Images, Inner, Pins};
use crate::records::Image;

/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// Pieces that wait to be read.
const WAITING: usize = 4;

impl Images {
    /// Writes images to one archive, piece by piece. The receiver's end ends the writing.
    ///
    /// # Errors
    /// [`SaveError::NotFound`], before anything is written; what fails later is the last piece.
    pub fn save(&self, names: &[String]) -> Result<mpsc::Receiver<Result<Bytes, SaveError>>, SaveError> {
        let mut images = Vec::new();
        for name in names {
            let image = self.find(name)?.ok_or_else(|| SaveError::NotFound(name.clone()))?;
            images.push((name.clone(), image));
        }
        let blobs = images.iter().flat_map(|(_, image)| digests(image));
        let pins = self.0.pin(blobs.map(|digest| digest.hex().to_owned()).collect());
        let (pieces, receiver) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let mut sink = Sink { pieces: pieces.clone(), piece: Vec::new() };
            if let Err(error) = write(&pins, &images, &mut sink) {
                // Whoever went away needs no reason.
                let _ = pieces.blocking_send(Err(error));
            }
        });
        Ok(receiver)
    }
}

/// All blobs that an image consists of.
fn digests(image: &Image) -> BTreeSet<Digest> {
    let layers = image.record.layers.iter().map(|layer| layer.blob.clone());
    let documents = image.record.manifests.iter().cloned();
    layers.chain(documents).chain([image.id.digest().clone()]).collect()
}

fn write(pins: &Pins, images: &[(String, Arc<Image>)], sink: &mut Sink) -> Result<(), SaveError> {
    let inner = pins.inner();
    let mut archive = tar::Builder::new(sink);
    let mut put = |name: &str, bytes: &[u8]| {
        archive.append_data(&mut header(bytes.len() as u64), name, bytes).map_err(SaveError::Write)
    };
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let (mut listed, mut items) = (Vec::new(), Vec::new());
    for (name, image) in images {
        let names: Vec<&String> = named(name, image);
        listed.extend(descriptors(inner, image, &names)?);
        items.push(docker_item(image, &names));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": listed,
    });
    put("index.json", index.to_string().as_bytes())?;
    put("manifest.json", Value::Array(items).to_string().as_bytes())?;
    let all: BTreeSet<(Digest, String)> = images
        .iter()
        .flat_map(|(name, image)| digests(image).into_iter().map(|digest| (digest, name.clone())))
        .collect();
    let mut written = BTreeSet::new();
    for (digest, name) in all {
        if !written.insert(digest.clone()) {
            continue;
        }
        let gone = |source| SaveError::Blob { image: name.clone(), source };
        let mut file = inner.content.read(&inner.layout, &digest).map_err(gone)?;
        let size = file.metadata().map_err(SaveError::Write)?.len();
        let path = format!("blobs/sha256/{}", digest.hex());
        archive.append_data(&mut header(size), path, &mut file).map_err(SaveError::Write)?;
    }
    archive.into_inner().and_then(|sink| sink.flush()).map_err(SaveError::Write)
}

/// The same bytes for the same images.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

/// The name that was asked for when it is one; all of them for an id.
fn named<'a>(asked: &str, image: &'a Image) -> Vec<&'a String> {
    let reference = asked.parse::<crate::Reference>().ok().and_then(|reference| reference.tagged());
    let one: Vec<_> = image.repo_tags.iter().filter(|tag| Some(*tag) == reference.as_ref()).collect();
    if one.is_empty() { image.repo_tags.iter().collect() } else { one }
}

/// The manifest for this machine, once for each name: the others of an index are not here.
fn descriptors(inner: &Inner, image: &Image, names: &[&String]) -> Result<Vec<Value>, SaveError> {
    let (digest, bytes) = manifest(inner, image)?;
    let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let media_type = document["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
    let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
    if names.is_empty() {
        return Ok(vec![descriptor]);
    }
    let with = |name: &&String| {
        let tag = name.rsplit(':').next().unwrap_or_default();
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] =
            json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
        descriptor
    };
    Ok(names.iter().map(with).collect())
}

/// The one of an image's documents that names its config.
fn manifest(inner: &Inner, image: &Image) -> Result<(Digest, Vec<u8>), SaveError> {
    let name = image.digested_reference();
    let fault = |source| SaveError::Blob { image: name.to_owned(), source };
    for digest in &image.record.manifests {
        let mut bytes = Vec::new();
        let mut file = inner.content.read(&inner.layout, digest).map_err(fault)?;
        io::Read::read_to_end(&mut file, &mut bytes).map_err(SaveError::Write)?;
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if document["config"]["digest"] == image.id.as_str() {
            return Ok((digest.clone(), bytes));
        }
    }
    Err(SaveError::NotFound(format!("{name} with its manifest")))
}

/// For docker before version 25.
fn docker_item(image: &Image, names: &[&String]) -> Value {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let layers: Vec<String> = image.record.layers.iter().map(|layer| path(&layer.blob)).collect();
    json!({ "Config": path(image.id.digest()), "RepoTags": names, "Layers": layers })
}

/// Pieces of a good size.
struct Sink {
    pieces: mpsc::Sender<Result<Bytes, SaveError>>,
    piece: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
