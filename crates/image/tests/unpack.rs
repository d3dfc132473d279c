//! What arrives on disk and in a mounted root file system, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use berth_image::{Image, MountOptions, PullError};
use support::{ImageBuilder, Mounted, Node, Registry, Tar};

/// Pulls an image of these layers.
async fn pulled(
    node: &Node,
    registry: &Registry,
    layers: impl IntoIterator<Item = Tar>,
) -> std::sync::Arc<Image> {
    let builder = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer);
    let pushed = builder.push(registry, "app", "latest");
    node.pull(&registry.reference("app")).await.unwrap();
    node.image(pushed.config.as_str())
}

/// Pulls and mounts an image of these layers.
async fn mounted(layers: impl IntoIterator<Item = Tar>) -> (Node, Mounted) {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = pulled(&node, &registry, layers).await;
    let snapshot = node.images.create_snapshot("c1", &image, None).await.unwrap();
    let root = Mounted::at(snapshot.mount(MountOptions::default()).unwrap());
    (node, root)
}

#[tokio::test]
async fn layers_that_reach_outside_are_refused_with_the_entrys_name() {
    let registry = Registry::start().await;
    let victim = tempfile::tempdir().unwrap();
    std::fs::write(victim.path().join("secret"), "untouched").unwrap();
    let outside = victim.path().to_str().unwrap();
    let up = "../".repeat(20);
    let long_way = format!("{up}{}", &outside[1..]);
    for (tag, entry, tar) in [
        ("dotdot", "../evil", Tar::new().file("../evil", "x")),
        ("dotdot-inside", "a/../../evil", Tar::new().dir("a").file("a/../../evil", "x")),
        ("dotdot-dir", "..", Tar::new().dir("..")),
        ("absolute", "/evil", Tar::new().file("/evil", "x")),
        ("absolute-dir", "/etc", Tar::new().dir("/etc")),
        ("symlink-absolute", "l/secret", Tar::new().symlink("l", outside).file("l/secret", "x")),
        ("symlink-relative", "l/secret", Tar::new().symlink("l", &long_way).file("l/secret", "x")),
        ("symlink-dir", "l/new/", Tar::new().symlink("l", outside).dir("l/new/")),
        ("symlink-node", "l/node", Tar::new().symlink("l", outside).fifo("l/node")),
        ("symlink-whiteout", "l/.wh.secret", Tar::new().symlink("l", outside).file("l/.wh.secret", "")),
        ("symlink-opaque", "l/.wh..wh..opq", Tar::new().symlink("l", outside).file("l/.wh..wh..opq", "")),
        ("symlink-implied", "l/a/b", Tar::new().symlink("l", outside).file("l/a/b", "x")),
        ("link-absolute", "h", Tar::new().hard_link("h", &format!("{outside}/secret"))),
        ("link-dotdot", "h", Tar::new().hard_link("h", &format!("{long_way}/secret"))),
        ("link-symlink", "h", Tar::new().symlink("l", outside).hard_link("h", "l/secret")),
        ("link-missing", "h", Tar::new().hard_link("h", "nothing")),
        ("link-dir", "h", Tar::new().dir("d").hard_link("h", "d")),
        ("magic", "l/x", Tar::new().symlink("l", "/proc/self/cwd").file("l/x", "x")),
        ("whiteout-dotdot", ".wh...", Tar::new().file(".wh...", "")),
        ("whiteout-dot", "a/.wh..", Tar::new().dir("a").file("a/.wh..", "")),
        ("whiteout-empty", ".wh.", Tar::new().file(".wh.", "")),
        ("below-file", "f/x", Tar::new().file("f", "").file("f/x", "")),
        ("root-file", "./", Tar::new().entry(b'2', b"./", "/etc", b"", 0o777, (0, 0))),
        ("pax-name", "../evil", Tar::new().pax("path", "../evil").file("fine", "x")),
        ("pax-link", "h", Tar::new().pax("linkpath", "/etc/passwd").hard_link("h", "fine")),
        ("owner", "f", Tar::new().pax("uid", "4294967295").file("f", "")),
        ("kind", "f", Tar::new().entry(b'V', b"f", "", b"", 0, (0, 0))),
    ] {
        let node = Node::new();
        ImageBuilder::new().layer(tar).push(&registry, "app", tag);
        let error = node.pull(&registry.reference(&format!("app:{tag}"))).await.unwrap_err();
        match &error {
            PullError::LayerRejected { entry: named, .. } => assert_eq!(named, entry, "{tag}"),
            other => panic!("{tag}: {other:?}"),
        }
        assert!(node.leftovers().is_empty(), "{tag}: {:?}", node.leftovers());
        let names: Vec<_> =
            std::fs::read_dir(victim.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"], "{tag}");
        let secret = victim.path().join("secret");
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
        assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1, "{tag}");
    }
}

#[tokio::test]
async fn truncated_and_senseless_archives_are_damaged() {
    let registry = Registry::start().await;
    for (tag, bytes) in [
        ("cut", Tar::new().file("f", vec![1u8; 5000]).finish()[..3000].to_vec()),
        ("text", b"this is no archive at all".repeat(100)),
    ] {
        let node = Node::new();
        let mut builder = ImageBuilder::new();
        builder.layers.push((bytes, support::Pack::Gzip));
        builder.push(&registry, "app", tag);
        let error = node.pull(&registry.reference(&format!("app:{tag}"))).await.unwrap_err();
        assert!(matches!(error, PullError::Damaged { .. }), "{tag}: {error:?}");
        assert!(node.leftovers().is_empty());
    }
}

#[tokio::test]
async fn owners_modes_times_links_and_devices_arrive_exactly() {
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .dir("d")
        .owner(1000, 2000)
        .mode(0o4755)
        .pax("mtime", "1234567890.5")
        .file("d/suid", "x")
        .owner(7, 8)
        .pax("SCHILY.xattr.security.capability", capability)
        .pax("SCHILY.xattr.user.note", "kept")
        .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
        .file("d/cap", "x")
        .owner(5, 6)
        .symlink("d/sym", "/somewhere/else")
        .hard_link("d/again", "d/suid")
        .char_device("null", 1, 3)
        .block_device("disk", 7, 200)
        .mode(0o600)
        .fifo("pipe")
        .mode(0o1777)
        .pax("mtime", "-1.25")
        .dir("tmp");
    let (_node, root) = mounted([layer]).await;
    let meta = |name: &str| std::fs::symlink_metadata(root.path(name)).unwrap();
    let suid = meta("d/suid");
    assert_eq!((suid.uid(), suid.gid(), suid.mode() & 0o7777, suid.nlink()), (1000, 2000, 0o4755, 2));
    assert_eq!((suid.mtime(), suid.mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(meta("d/again").ino(), suid.ino());
    let mut value = [0u8; 64];
    let length =
        rustix::fs::getxattr(root.path("d/cap"), "security.capability", value.as_mut_slice()).unwrap();
    assert_eq!(value[..length], capability);
    let length = rustix::fs::getxattr(root.path("d/cap"), "user.note", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..length], b"kept");
    assert_eq!((meta("d/sym").uid(), meta("d/sym").gid()), (5, 6));
    assert_eq!(std::fs::read_link(root.path("d/sym")).unwrap().to_str(), Some("/somewhere/else"));
    let null = meta("null");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(null.mode() & 0o7777, 0o666);
    assert!(meta("disk").file_type().is_block_device());
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(meta("pipe").mode() & 0o7777, 0o600);
    assert_eq!(meta("tmp").mode() & 0o7777, 0o1777);
    assert_eq!((meta("tmp").mtime(), meta("tmp").mtime_nsec()), (-2, 750_000_000));
    assert_eq!(meta("d").mtime(), 1_000_000_000, "a directory's time is not that of its last entry");
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_hide_what_lies_below() {
    let base = Tar::new()
        .dir("keep")
        .file("keep/a", "1")
        .dir("gone")
        .file("gone/a", "1")
        .dir("replaced")
        .file("replaced/old", "1")
        .dir("later")
        .file("later/old", "1")
        .dir("opaque")
        .file("opaque/old", "1")
        .file("file", "1")
        .file("turned", "1");
    let upper = Tar::new()
        .file("keep/.wh.a", "")
        .file(".wh.gone", "")
        // A directory whited out and made anew, in both orders.
        .file(".wh.replaced", "")
        .dir("replaced")
        .file("replaced/new", "2")
        .dir("later")
        .file("later/new", "2")
        .file(".wh.later", "")
        .dir("opaque")
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        // Whiteouts that are hard links, as aufs made them, and its bookkeeping.
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", "")
        .hard_link(".wh.file", ".wh..wh.plnk/1.2")
        // A whiteout does not hide what its own layer brings.
        .file("turned", "2")
        .file(".wh.turned", "")
        .file(".wh.never-there", "");
    let (_node, root) = mounted([base, upper]).await;
    let names = |name| {
        let mut names: Vec<_> = root.names(name).into_iter().collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(""), "keep later opaque replaced turned");
    assert_eq!(names("keep"), "");
    assert_eq!(names("replaced"), "new");
    assert_eq!(names("later"), "new");
    assert_eq!(names("opaque"), "new");
    assert_eq!(root.read("turned"), "2");
}

#[tokio::test]
async fn a_later_entry_replaces_an_earlier_one_of_any_kind() {
    let layer = Tar::new()
        .file("a", "first")
        .file("a", "second")
        .dir("b")
        .file("b/x", "x")
        .file("b", "now a file")
        .symlink("c", "/etc")
        .file("c", "never through the link")
        .symlink("d", "/etc")
        .dir("d")
        .file("d/inside", "x")
        .file("e", "x")
        .fifo("e");
    let (_node, root) = mounted([layer]).await;
    assert_eq!(root.read("a"), "second");
    assert_eq!(root.read("b"), "now a file");
    assert_eq!(root.read("c"), "never through the link");
    assert_eq!(root.read("d/inside"), "x");
    assert!(std::fs::metadata(root.path("e")).unwrap().file_type().is_fifo());
}

#[tokio::test]
async fn deep_and_oddly_named_trees_unpack_and_are_removed() {
    let component = "x".repeat(200);
    let deep = vec![component.as_str(); 40].join("/"); // 8 kB: twice PATH_MAX
    let odd = "Übergrößenträger/日本語/ sp ace\t\"quote\"\\";
    let layer = Tar::new()
        .file(&format!("{deep}/file"), "deep")
        .pax("path", odd)
        .file("odd", "odd")
        .entry(b'0', b"latin-\xe9", "", b"1", 0o644, (0, 0))
        .symlink("l", &"t".repeat(300));
    let (registry, node) = (Registry::start().await, Node::new());
    let image = pulled(&node, &registry, [layer]).await;
    let fs = node.layer_fs(&image.layers[0]);
    assert_eq!(std::fs::read_to_string(fs.join(odd)).unwrap(), "odd");
    assert!(fs.join(std::ffi::OsStr::from_bytes(b"latin-\xe9")).exists());
    assert_eq!(std::fs::read_link(fs.join("l")).unwrap().as_os_str().len(), 300);
    let mut at = std::fs::File::open(&fs).unwrap();
    for _ in 0..40 {
        let flags = rustix::fs::OFlags::RDONLY;
        at = rustix::fs::openat(&at, component.as_str(), flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    assert_eq!(rustix::fs::statat(&at, "file", rustix::fs::AtFlags::empty()).unwrap().st_size, 4);
    node.images.remove(image.id.as_str()).await.unwrap();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[tokio::test]
async fn sparse_files_stay_sparse() {
    // PAX sparse 1.0: the map stands before the content.
    let mut content = b"2\n0\n4\n1048576\n4\n".to_vec();
    content.resize(512, 0);
    content.extend(b"headtail");
    let layer = Tar::new()
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "sparse")
        .pax("GNU.sparse.realsize", "4194304")
        .file("GNUSparseFile.0/sparse", content);
    let (_node, root) = mounted([layer]).await;
    let bytes = std::fs::read(root.path("sparse")).unwrap();
    assert_eq!(bytes.len(), 4_194_304);
    assert_eq!(&bytes[..4], b"head");
    assert_eq!(&bytes[1_048_576..1_048_580], b"tail");
    assert!(bytes[1_048_580..].iter().all(|b| *b == 0));
    assert!(std::fs::metadata(root.path("sparse")).unwrap().blocks() < 100);
}

#[tokio::test]
async fn gnu_tars_own_archives_unpack_to_the_same_tree() {
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name);
    std::fs::create_dir_all(path("a/b")).unwrap();
    std::fs::write(path("a/b/file"), vec![7u8; 100_000]).unwrap();
    std::fs::set_permissions(path("a/b/file"), std::fs::Permissions::from_mode(0o751)).unwrap();
    std::fs::hard_link(path("a/b/file"), path("a/link")).unwrap();
    symlink("b/file", path("a/sym")).unwrap();
    std::fs::write(path(&"n".repeat(180)), "long name").unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let tar = std::process::Command::new("tar")
            .args(["--format", format, "--numeric-owner", "-C"])
            .arg(source.path())
            .args(["-cf", "-", "a"])
            .args((format != "ustar").then(|| "n".repeat(180)))
            .output()
            .unwrap();
        assert!(tar.status.success());
        let target = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(target.path()).unwrap();
        berth_image::unpack_tar(tar.stdout.as_slice(), root.into()).unwrap();
        let meta = |name: &str| std::fs::symlink_metadata(target.path().join(name)).unwrap();
        let original = std::fs::metadata(path("a/b/file")).unwrap();
        let file = meta("a/b/file");
        assert_eq!((file.mode(), file.nlink(), file.len()), (original.mode(), 2, 100_000));
        assert_eq!(file.mtime(), original.mtime());
        if format == "pax" {
            assert_eq!(file.mtime_nsec(), original.mtime_nsec());
        }
        assert!(meta("a/sym").is_symlink());
    }
}

#[tokio::test]
async fn directories_a_layer_does_not_describe_keep_a_lower_layers_attributes() {
    let base = Tar::new()
        .mode(0o1777)
        .owner(3, 4)
        .dir("tmp")
        .dir("srv")
        .mode(0o700)
        .owner(9, 9)
        .dir("srv/private")
        .dir("opt")
        .mode(0o711)
        .dir("opt/gone");
    let upper = Tar::new()
        .file("tmp/new", "x")
        .file("srv/private/deep/new", "x")
        .file("opt/.wh.gone", "")
        .file("plain/new", "x");
    let top = Tar::new().file("opt/gone/new", "x").file("tmp/newer", "x");
    let (node, root) = mounted([base.clone(), upper, top]).await;
    let meta = |name: &str| std::fs::metadata(root.path(name)).unwrap();
    let seen = |name: &str| (meta(name).mode() & 0o7777, meta(name).uid(), meta(name).gid());
    assert_eq!(seen("tmp"), (0o1777, 3, 4));
    assert_eq!(meta("tmp").mtime(), 1_000_000_000);
    assert_eq!(seen("srv/private"), (0o700, 9, 9));
    assert_eq!(seen("srv"), (0o755, 0, 0));
    assert_eq!(seen("srv/private/deep"), (0o755, 0, 0));
    assert_eq!(seen("opt/gone"), (0o755, 0, 0), "hidden by a whiteout in between");
    assert!(root.path("tmp/new").exists() && root.path("tmp/newer").exists());
    // A second snapshot finds the added layer; all of it goes with the image and the containers.
    let image = node.images.list().remove(0);
    node.images.create_snapshot("c2", &image, None).await.unwrap();
    drop(root);
    node.images.remove(image.id.as_str()).await.unwrap();
    node.images.remove_snapshot("c1").await.unwrap();
    node.images.remove_snapshot("c2").await.unwrap();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}
