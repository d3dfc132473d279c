//! Images once they are here: finding, removing, surviving, mounting.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use berth_image::{MountError, MountOptions, ReferenceError, Shown, SnapshotError};
use support::{ImageBuilder, Mounted, Node, Registry, Tar};

fn layer(name: &str) -> Tar {
    Tar::new().file(name, name)
}

#[tokio::test]
async fn an_image_is_found_by_every_name_it_has() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pushed = ImageBuilder::new().layer(layer("a")).push(&registry, "team/app", "v1");
    let tag = registry.reference("team/app:v1");
    node.pull(&tag).await.unwrap();
    let (id, hex) = (pushed.config.as_str(), pushed.config.hex());
    let name = registry.reference("team/app");
    for found in [
        id.to_owned(),
        hex.to_owned(),
        hex[..13].to_owned(),
        id[..20].to_owned(),
        tag.clone(),
        format!("{name}@{}", pushed.manifest),
        format!("{name}:other@{}", pushed.manifest),
    ] {
        assert_eq!(node.image(&found).id.as_str(), id, "{found}");
    }
    for missing in [
        name.clone(),
        format!("{name}:v2"),
        "busybox".into(),
        "0".repeat(64),
        format!("{name}@sha256:{}", "0".repeat(64)),
    ] {
        assert!(node.images.find(&missing).unwrap().is_none(), "{missing}");
    }
    assert!(matches!(node.images.find("Not A Name"), Err(ReferenceError::Invalid { .. })));
    ImageBuilder::new().layer(layer("b")).push(&registry, "team/app", "latest");
    node.pull(&name).await.unwrap();
    assert!(node.images.find(&name).unwrap().is_some(), "the default tag");
    let mut at = 0;
    while node.images.find(&format!("{:x}", at % 16)).is_ok() && at < 16 {
        at += 1;
    }
    // With two images some one-digit prefix may or may not be shared; the empty prefix names nothing.
    assert!(node.images.find("sha256:").is_err());
}

#[tokio::test]
async fn removing_takes_all_names_and_what_nobody_else_needs() {
    let (registry, node) = (Registry::start().await, Node::new());
    let shared = || layer("shared");
    let one = ImageBuilder::new().layer(shared()).layer(layer("one")).push(&registry, "one", "a");
    ImageBuilder::new().layer(shared()).layer(layer("one")).push(&registry, "one", "b");
    let two = ImageBuilder::new().layer(shared()).layer(layer("two")).push(&registry, "two", "latest");
    for name in ["one:a", "one:b", "two"] {
        node.pull(&registry.reference(name)).await.unwrap();
    }
    let before = node.images.fs_info().await.unwrap();
    assert!(before.used_bytes > 0 && before.inodes_used > 6);
    let removals = ["one:a", "one:b", "one:a"].map(|name| registry.reference(name));
    let ended = futures::future::join_all(removals.iter().map(|name| node.images.remove(name))).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert!(node.images.find(one.config.as_str()).unwrap().is_none());
    assert_eq!(node.images.list().len(), 1);
    assert!(!node.layer_fs(&one.diff_ids[1]).exists());
    assert!(node.layer_fs(&two.diff_ids[0]).exists());
    assert!(node.images.fs_info().await.unwrap().used_bytes < before.used_bytes);
    node.images.remove(&"0".repeat(64)).await.unwrap();
    node.images.remove(two.config.as_str()).await.unwrap();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    let after = node.images.fs_info().await.unwrap();
    assert_eq!((after.used_bytes, after.inodes_used), (0, 0));
}

#[tokio::test]
async fn a_removed_images_layers_stay_while_a_container_has_them() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pushed = ImageBuilder::new().layer(layer("a")).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    let image = node.image(pushed.config.as_str());
    node.images.create_snapshot("c1", &image, None).await.unwrap();
    assert!(matches!(node.images.create_snapshot("c1", &image, None).await, Err(SnapshotError::Exists(_))));
    assert!(matches!(node.images.create_snapshot("../x", &image, None).await, Err(SnapshotError::Name(_))));
    node.images.remove("app").await.unwrap(); // some other app
    node.images.remove(pushed.config.as_str()).await.unwrap();
    assert!(node.images.list().is_empty());
    // The daemon dies and comes back; the container is still there.
    let node = node.restart();
    node.images.sweep_snapshots(&HashSet::from(["c1".to_owned()])).await.unwrap();
    let snapshot = node.images.snapshot("c1").unwrap();
    let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
    assert_eq!(root.read("a"), "a");
    drop(root);
    node.images.remove_snapshot("c1").await.unwrap();
    node.images.remove_snapshot("c1").await.unwrap();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[tokio::test]
async fn a_restart_keeps_images_and_sweeps_what_was_half_made() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pushed = ImageBuilder::new().layer(layer("a")).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    let image = node.image(pushed.config.as_str());
    let id = image.id.clone();
    node.images.create_snapshot("orphan", &image, None).await.unwrap();
    node.images.set_pinned(&id, true).unwrap();
    let root = node.root();
    std::fs::create_dir_all(root.join("tmp/77/fs/half/made")).unwrap();
    std::fs::write(root.join("content/sha256").join("f".repeat(64)), "no image has this").unwrap();
    std::fs::create_dir_all(root.join("layers").join("e".repeat(64)).join("fs")).unwrap();
    std::fs::create_dir_all(root.join("snapshots/torn")).unwrap();
    let node = node.restart();
    node.images.sweep_snapshots(&HashSet::new()).await.unwrap();
    let after = node.image(id.as_str());
    assert!(after.pinned);
    assert_eq!(after.repo_tags, image.repo_tags);
    assert_eq!(after.config_json, image.config_json);
    assert_eq!(after.uid(), None);
    assert_eq!(node.leftovers().len(), 4, "blob, config, manifest, layer: {:?}", node.leftovers());
    assert!(node.images.snapshot("orphan").is_none());
}

#[tokio::test]
async fn a_damaged_layer_is_made_again_from_its_blob() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pushed = ImageBuilder::new().layer(layer("a")).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    std::fs::remove_dir_all(node.root().join("layers").join(pushed.diff_ids[0].hex())).unwrap();
    let node = node.restart();
    registry.forget_seen();
    let image = node.image(pushed.config.as_str());
    let snapshot = node.images.create_snapshot("c1", &image, None).await.unwrap();
    let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
    assert_eq!(root.read("a"), "a");
    drop(root);
    assert!(registry.seen().is_empty());
    // Without the blob the pull mends it, although the image is present.
    node.images.remove_snapshot("c1").await.unwrap();
    std::fs::remove_dir_all(node.root().join("layers").join(pushed.diff_ids[0].hex())).unwrap();
    std::fs::remove_file(node.root().join("content/sha256").join(pushed.blobs[0].hex())).unwrap();
    let node = node.restart();
    let image = node.image(pushed.config.as_str());
    let gone = node.images.create_snapshot("c1", &image, None).await;
    assert!(matches!(gone, Err(SnapshotError::LayerGone { .. })), "{gone:?}");
    node.pull(&registry.reference("app")).await.unwrap();
    node.images.create_snapshot("c1", &image, None).await.unwrap();
}

#[tokio::test]
async fn images_of_120_layers_one_layer_and_none_mount() {
    let (registry, node) = (Registry::start().await, Node::new());
    for count in [0usize, 1, 120] {
        let builder = (0..count).fold(ImageBuilder::new(), |builder, at| {
            builder.layer(Tar::new().file(&format!("f{at}"), "x").file("last", at.to_string()))
        });
        let tag = format!("l{count}");
        builder.push(&registry, "app", &tag);
        let reference = registry.reference(&format!("app:{tag}"));
        node.pull(&reference).await.unwrap();
        let image = node.image(&reference);
        let snapshot = node.images.create_snapshot(&tag, &image, None).await.unwrap();
        let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
        if count > 0 {
            assert_eq!(root.read("last"), (count - 1).to_string());
            assert_eq!(root.names("").len(), count + 1);
        }
        std::fs::write(root.path("written"), "w").unwrap();
        assert_eq!(std::fs::metadata(root.dir.path()).unwrap().permissions().mode() & 0o7777, 0o755);
        drop(root);
        // Mounted again within one boot: the volatile mark is no obstacle, the file is still there.
        let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
        assert_eq!(root.read("written"), "w");
        drop(root);
        let root = Mounted::at(
            snapshot.mount(MountOptions { shown: Shown::Remains, ..MountOptions::default() }).unwrap(),
        );
        assert_eq!(root.read("written"), "w", "what the container left");
        if count > 0 {
            assert_eq!(root.names("").len(), count + 2, "and the image");
        }
        drop(root);
        let root = Mounted::at(
            snapshot.mount(MountOptions { shown: Shown::Image, ..MountOptions::default() }).unwrap(),
        );
        assert!(!root.path("written").exists(), "the image alone");
        assert_eq!(
            std::fs::write(root.path("x"), "x").unwrap_err().raw_os_error(),
            Some(rustix::io::Errno::ROFS.raw_os_error())
        );
    }
}

#[tokio::test]
async fn the_same_layer_twice_in_one_image_mounts() {
    let (registry, node) = (Registry::start().await, Node::new());
    let empty = Tar::new;
    ImageBuilder::new().layer(empty()).layer(layer("a")).layer(empty()).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    let image = node.image(&registry.reference("app"));
    let snapshot = node.images.create_snapshot("c1", &image, None).await.unwrap();
    let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
    assert_eq!(root.read("a"), "a");
}

#[tokio::test]
async fn the_root_directory_looks_as_the_image_says() {
    let (registry, node) = (Registry::start().await, Node::new());
    let base = Tar::new().mode(0o711).owner(1, 2).dir("./").file("a", "a");
    ImageBuilder::new().layer(base).layer(layer("b")).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    let image = node.image(&registry.reference("app"));
    let snapshot = node.images.create_snapshot("c1", &image, None).await.unwrap();
    let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
    let meta = std::fs::metadata(root.dir.path()).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o711, 1, 2));
}

#[tokio::test]
async fn a_snapshot_in_use_at_a_crash_of_the_machine_is_not_trusted() {
    let (registry, node) = (Registry::start().await, Node::new());
    ImageBuilder::new().layer(layer("a")).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    let image = node.image(&registry.reference("app"));
    let snapshot = node.images.create_snapshot("c1", &image, None).await.unwrap();
    drop(snapshot.mount(MountOptions::default()).unwrap());
    // As if it had been made before a reboot.
    let path = node.root().join("snapshots/c1/snapshot.json");
    let mut description: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    description["boot"] = "another".into();
    std::fs::write(&path, description.to_string()).unwrap();
    drop(snapshot);
    let node = node.restart();
    let lost = node.images.snapshot("c1").unwrap().mount(MountOptions::default());
    assert!(matches!(lost, Err(MountError::LostAtReboot { .. })), "{lost:?}");
    node.images.remove_snapshot("c1").await.unwrap();
}

#[tokio::test]
async fn what_containers_write_is_counted() {
    let (registry, node) = (Registry::start().await, Node::new());
    ImageBuilder::new().layer(layer("a")).push(&registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    let image = node.image(&registry.reference("app"));
    let snapshot = node.images.create_snapshot("c1", &image, None).await.unwrap();
    let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
    std::fs::write(root.path("big"), vec![1u8; 5_000_000]).unwrap();
    rustix::fs::syncfs(std::fs::File::open(node.root()).unwrap()).unwrap();
    assert!(node.images.fs_info().await.unwrap().used_bytes > 5_000_000);
}
