//! An archive in: an OCI layout (image-spec, "Image Layout"), or the older form of `docker save`.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::tarball::Tarball;
use super::{LoadError, Loaded, step};
use crate::digest::Digest;
use crate::images::{Images, Inner};
use crate::layout::{Layout, Temp};
use crate::manifest::{self, Descriptor, Manifest, ManifestError};
use crate::pull::{Attempt, Found, Named, WalkError, from_content, read_config};
use crate::reference::Reference;

/// The full name that containerd and docker write.
const NAME: &str = "io.containerd.image.name";
/// A tag, or a full name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Indexes in an index in a layout's.
const MAX_DEPTH: usize = 4;

/// One image of the archive, with the blobs that it needs and that are not here.
struct Ready {
    names: Vec<Reference>,
    found: Found,
    config: Vec<u8>,
    /// Checked, and waiting for their place.
    blobs: Vec<(Temp, Digest, u64)>,
}

impl Images {
    /// A file for an archive that comes piece by piece; it goes when it is closed. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn spool(&self) -> std::io::Result<File> {
        tempfile::tempfile_in(self.0.layout.tmp())
    }

    /// Takes in all images of an archive, compressed or not. `name` is for an image without one.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(&self, archive: File, name: Option<&str>) -> Result<Vec<Loaded>, LoadError> {
        let name = name.map(str::parse::<Reference>).transpose()?;
        let inner = Arc::clone(&self.0);
        let read = tokio::task::spawn_blocking(move || read(&inner, archive, name)).await;
        let ready = read.map_err(|error| step("the archive", crate::Cause::task("an archive", error)))??;
        let mut loaded = Vec::new();
        for image in ready {
            loaded.push(self.take_in(image).await?);
        }
        Ok(loaded)
    }

    async fn take_in(&self, image: Ready) -> Result<Loaded, LoadError> {
        let Ready { names, found, config, blobs } = image;
        let text = names.first().map_or_else(|| found.config.digest.to_string(), ToString::to_string);
        let walk = |error: WalkError| LoadError::Image(error.of(&text));
        let (config, specs) = read_config(&found, &config).map_err(walk)?;
        let attempt = Attempt::at(&self.0, &found, &specs);
        let inner = Arc::clone(&self.0);
        let placed = tokio::task::spawn_blocking(move || {
            blobs
                .into_iter()
                .try_for_each(|(temp, digest, size)| inner.content.commit(&inner.layout, temp, &digest, size))
        });
        placed.await.map_err(|error| step(&text, crate::Cause::task("its blobs", error)))??;
        let mut layers = Vec::new();
        for spec in &specs {
            layers.push(match self.0.layers.get(spec.diff_id.hex()) {
                Some(layer) => layer,
                None => {
                    let unpacked = from_content(&self.0, spec, &attempt).await;
                    let gone = || LoadError::Faulty(format!("layer {} is damaged", spec.blob));
                    unpacked.map_err(|cause| step(&text, cause))?.ok_or_else(gone)?
                }
            });
        }
        let named = Named {
            text,
            tags: names.iter().filter_map(Reference::tagged).collect(),
            // Which registry has it under which digest, an archive cannot say.
            digests: BTreeSet::new(),
        };
        let id = self.commit(named, found, config, specs, &layers, &attempt).await?;
        Ok(Loaded { id, names: names.iter().map(ToString::to_string).collect() })
    }
}

fn read(inner: &Inner, archive: File, name: Option<Reference>) -> Result<Vec<Ready>, LoadError> {
    let tarball = Tarball::open(archive, &inner.layout)?;
    let mut ready = if tarball.has("index.json") {
        layout_images(&tarball, inner)?
    } else if tarball.has("manifest.json") {
        docker_images(&tarball, inner)?
    } else {
        return Err(LoadError::NotAnArchive("it has neither index.json nor manifest.json".to_owned()));
    };
    if let (Some(name), [only]) = (name, &mut *ready)
        && only.names.is_empty()
    {
        only.names.push(name);
    }
    match ready.is_empty() {
        true => Err(LoadError::NotAnArchive("there is no image in it".to_owned())),
        false => Ok(ready),
    }
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

fn layout_images(tarball: &Tarball, inner: &Inner) -> Result<Vec<Ready>, LoadError> {
    let bytes = tarball.document("index.json")?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| syntax("index.json", &error))?;
    // Of one name there may be an image for each platform.
    let mut by_name: Vec<(Vec<Reference>, Vec<Descriptor>)> = Vec::new();
    for Listed { descriptor, annotations } in index.manifests {
        let names = names_of(&annotations)?;
        match by_name.iter_mut().find(|(known, _)| *known == names && !names.is_empty()) {
            Some((_, all)) => all.push(descriptor),
            None => by_name.push((names, vec![descriptor])),
        }
    }
    by_name.into_iter().map(|(names, all)| layout_image(tarball, inner, names, &all)).collect()
}

/// A name that is only a tag names nothing by itself.
fn names_of(annotations: &std::collections::BTreeMap<String, String>) -> Result<Vec<Reference>, LoadError> {
    let full = annotations.get(NAME);
    let other = annotations.get(REF_NAME).filter(|name| name.contains(['/', ':']));
    Ok(full.or(other).map(|name| name.parse()).transpose()?.into_iter().collect())
}

fn layout_image(
    tarball: &Tarball,
    inner: &Inner,
    names: Vec<Reference>,
    all: &[Descriptor],
) -> Result<Ready, LoadError> {
    let fault = |error| LoadError::Manifest("index.json".to_owned(), error);
    let mut descriptor =
        if all.len() == 1 { all[0].clone() } else { manifest::choose(all).map_err(fault)?.clone() };
    let mut documents = Vec::new();
    for _ in 0..MAX_DEPTH {
        let bytes = checked_document(tarball, &descriptor.digest)?;
        let fault = |error| LoadError::Manifest(descriptor.digest.to_string(), error);
        let parsed = manifest::parse(&bytes, &descriptor.media_type).map_err(fault)?;
        documents.push((descriptor.digest.clone(), bytes::Bytes::from(bytes)));
        match parsed {
            Manifest::Index(manifests) => descriptor = manifest::choose(&manifests).map_err(fault)?.clone(),
            Manifest::Image { config, layers } => {
                let bytes = checked_document(tarball, &config.digest)?;
                let blobs = layout_blobs(tarball, inner, &layers)?;
                let resolved = documents[0].0.clone();
                let found = Found { resolved, documents, config, layers };
                return Ok(Ready { names, found, config: bytes, blobs });
            }
        }
    }
    Err(LoadError::Faulty(format!("its indexes are nested more than {MAX_DEPTH} deep")))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn checked_document(tarball: &Tarball, digest: &Digest) -> Result<Vec<u8>, LoadError> {
    let bytes = tarball.document(&blob_name(digest))?;
    check(digest, &Digest::of(&bytes))?;
    Ok(bytes)
}

fn check(wanted: &Digest, actual: &Digest) -> Result<(), LoadError> {
    match wanted == actual {
        true => Ok(()),
        false => Err(LoadError::Faulty(format!("blob {wanted} has digest {actual}"))),
    }
}

fn layout_blobs(
    tarball: &Tarball,
    inner: &Inner,
    layers: &[Descriptor],
) -> Result<Vec<(Temp, Digest, u64)>, LoadError> {
    let mut blobs: Vec<(Temp, Digest, u64)> = Vec::new();
    for layer in layers {
        // One layer may be there twice.
        if inner.content.has(&layer.digest) || blobs.iter().any(|(_, digest, _)| *digest == layer.digest) {
            continue;
        }
        let blob = tarball.copy(&blob_name(&layer.digest), &inner.layout)?;
        check(&layer.digest, &blob.1)?;
        blobs.push(blob);
    }
    Ok(blobs)
}

/// An item of docker's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn docker_images(tarball: &Tarball, inner: &Inner) -> Result<Vec<Ready>, LoadError> {
    let bytes = tarball.document("manifest.json")?;
    let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(|error| syntax("manifest.json", &error))?;
    items.into_iter().map(|item| docker_image(tarball, &inner.layout, item)).collect()
}

/// There is no manifest for registries in it; one is made, as docker would for a push without compression.
fn docker_image(tarball: &Tarball, layout: &Layout, item: Item) -> Result<Ready, LoadError> {
    let tags = item.repo_tags.unwrap_or_default();
    let names = tags.iter().map(|name| name.parse()).collect::<Result<Vec<Reference>, _>>()?;
    let config = tarball.document(&item.config)?;
    let blobs = item.layers.iter().map(|name| tarball.copy(name, layout)).collect::<Result<Vec<_>, _>>()?;
    let layers = blobs.iter().map(|(_, digest, size)| {
        json!({ "mediaType": "application/vnd.docker.image.rootfs.diff.tar", "digest": digest, "size": size })
    });
    let document = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": Digest::of(&config),
            "size": config.len(),
        },
        "layers": layers.collect::<Vec<_>>(),
    })
    .to_string();
    let fault = |error| LoadError::Manifest("manifest.json".to_owned(), error);
    let Manifest::Image { config: described, layers } =
        manifest::parse(document.as_bytes(), "").map_err(fault)?
    else {
        return Err(fault(ManifestError::NotAnImage("an index".to_owned())));
    };
    let resolved = Digest::of(document.as_bytes());
    let documents = vec![(resolved.clone(), bytes::Bytes::from(document))];
    Ok(Ready { names, found: Found { resolved, documents, config: described, layers }, config, blobs })
}

fn syntax(what: &str, error: &serde_json::Error) -> LoadError {
    LoadError::Manifest(what.to_owned(), ManifestError::Syntax(error.to_string()))
}
