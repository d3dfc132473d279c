//! Archives of images: in, out, and those that nobody should take in.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use berth_image::{Digest, Images, LoadError, Loaded, Progress};
use serde_json::json;
use support::{ImageBuilder, Node, Registry, Tar};

/// An archive from names and contents.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Straight into the header: the builder refuses names that lead out, which are to be tried here.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

async fn saved(images: &Images, names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut pieces = images.save(&names).unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.recv().await {
        bytes.extend(piece.unwrap());
    }
    bytes
}

async fn load(node: &Node, bytes: &[u8]) -> Result<Vec<Loaded>, LoadError> {
    node.images.load(file(bytes), None).await
}

/// A layer, its config and docker's list of them.
fn docker(layer: &[u8], names: &[&str]) -> Vec<u8> {
    let config = config(&[Digest::of(layer)]);
    let items =
        json!([{ "Config": "config.json", "RepoTags": names, "Layers": ["one/layer.tar"] }]).to_string();
    archive(&[
        ("config.json", config.as_bytes()),
        ("one/layer.tar", layer),
        ("manifest.json", items.as_bytes()),
    ])
}

fn config(diff_ids: &[Digest]) -> String {
    json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
}

fn layer() -> Vec<u8> {
    archive(&[("hello", b"from an archive\n")])
}

#[tokio::test]
async fn what_was_saved_is_loaded_as_it_was() {
    let (registry, node, other) = (Registry::start().await, Node::new(), Node::new());
    let shared = || Tar::new().file("base", "shared");
    ImageBuilder::new().layer(shared()).layer(Tar::new().file("a", "a")).push(&registry, "one", "v1");
    ImageBuilder::new().layer(shared()).layer(Tar::new().file("b", "b")).push(&registry, "two", "latest");
    let names = [registry.reference("one:v1"), registry.reference("two")];
    for name in &names {
        node.images.pull(name, None, &Progress::default()).await.unwrap();
    }
    let bytes = saved(&node.images, &[&names[0], &names[1]]).await;
    assert_eq!(
        bytes,
        saved(&node.images, &[&names[0], &names[1]]).await,
        "the same images are the same bytes"
    );
    let loaded = load(&other, &bytes).await.unwrap();
    assert_eq!(loaded.len(), 2);
    for (name, loaded) in names.iter().zip(&loaded) {
        let (before, after) = (node.image(name), other.image(name));
        assert_eq!(
            (&before.id, &before.layers, &before.config_json),
            (&after.id, &after.layers, &after.config_json)
        );
        assert_eq!((loaded.id.as_str(), &loaded.names), (before.id.as_str(), &before.repo_tags));
    }
    // After a restart as well, and once more is no harm.
    let other = other.restart();
    assert_eq!(other.images.list().len(), 2);
    assert_eq!(load(&other, &bytes).await.unwrap(), loaded);
    assert_eq!(other.images.list().len(), 2);
}

#[tokio::test]
async fn what_docker_saved_is_loaded_also_compressed() {
    let node = Node::new();
    let plain = docker(&layer(), &["busybox:1", "registry.example/team/app:2"]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for bytes in [&plain, &gzip.finish().unwrap(), &zstd] {
        let loaded = load(&node, bytes).await.unwrap();
        assert_eq!(loaded[0].names, ["docker.io/library/busybox:1", "registry.example/team/app:2"]);
    }
    let image = node.image("busybox:1");
    assert_eq!(image.repo_tags.len(), 2);
    assert!(image.repo_digests.is_empty(), "no registry has it under a digest that is known");
    let folder = node.root().join("layers").join(image.layers[0].hex()).join("fs/hello");
    let mut text = String::new();
    File::open(folder).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "from an archive\n");
}

#[tokio::test]
async fn an_image_without_a_name_is_given_one() {
    let node = Node::new();
    let bytes = docker(&layer(), &[]);
    let loaded = node.images.load(file(&bytes), Some("mine:3")).await.unwrap();
    assert_eq!(loaded[0].names, ["docker.io/library/mine:3"]);
    assert_eq!(node.image("mine:3").id, loaded[0].id);
}

#[tokio::test]
async fn what_is_not_as_promised_is_refused_and_leaves_nothing() {
    let node = Node::new();
    let layer = layer();
    let (digest, diff_id) = (Digest::of(&layer), Digest::of(&layer));
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let config = config(&[diff_id]);
    let manifest = json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len() }],
    })
    .to_string();
    let index = json!({ "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(manifest.as_bytes()), "size": manifest.len() }] })
    .to_string();
    let (config_at, manifest_at, layer_at) =
        (blob(&Digest::of(config.as_bytes())), blob(&Digest::of(manifest.as_bytes())), blob(&digest));
    let whole: Vec<(&str, &[u8])> = vec![
        ("index.json", index.as_bytes()),
        (&manifest_at, manifest.as_bytes()),
        (&config_at, config.as_bytes()),
        (&layer_at, &layer),
    ];
    let without = |at: usize| {
        let mut entries = whole.clone();
        entries.remove(at);
        archive(&entries)
    };
    let changed = |at: usize, bytes: &'static [u8]| {
        let mut entries = whole.clone();
        entries[at].1 = bytes;
        archive(&entries)
    };
    let huge = vec![b' '; 5 << 20];
    let large = archive(&[("index.json", &huge)]);
    let up = archive(&[("../../../etc/passwd", b"x"), ("index.json", index.as_bytes())]);
    let absolute = archive(&[("/etc/passwd", b"x"), ("index.json", index.as_bytes())]);
    let mut cut = archive(&whole);
    cut.truncate(cut.len() - layer.len() - 1200);
    let mut wrong_diff_id = docker(&layer, &["x:1"]);
    let at = wrong_diff_id.windows(4).position(|window| window == b"from").unwrap();
    wrong_diff_id[at] = b'F';
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("no archive", b"hello".repeat(1000)),
        ("an archive of something else", archive(&[("hello", b"x")])),
        ("no manifest", without(1)),
        ("no config", without(2)),
        ("no layer", without(3)),
        ("another manifest", changed(1, b"{}")),
        ("another layer", changed(3, b"x")),
        ("an index that is none", changed(0, b"[")),
        ("a document of 5 MiB", large),
        ("a name that leads up", up),
        ("an absolute name", absolute),
        ("one that is cut off", cut),
        ("a layer with another diff id", wrong_diff_id),
    ];
    for (what, bytes) in bad {
        let error = load(&node, &bytes).await.expect_err(what);
        assert!(!error.to_string().is_empty());
        assert!(node.images.list().is_empty(), "{what}");
        node.wait_until_empty().await;
    }
    assert_eq!(load(&node, &archive(&whole)).await.unwrap().len(), 1, "as a whole it is fine");
    assert!(node.images.save(&["absent:1".to_owned()]).is_err());
}
