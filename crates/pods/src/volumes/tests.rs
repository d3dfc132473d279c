//! On real mounts, as root.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use berth_manifest::{Mount, Pod, Source, Strictness};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use tempfile::TempDir;

use super::*;
use crate::facts::NodeFacts;

const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;

/// A pod's folder, and one that stands for the host's. No mount is left, however a test ends.
struct Place {
    dir: TempDir,
    facts: NodeFacts,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pod")).unwrap();
        fs::create_dir(dir.path().join("host")).unwrap();
        Self { dir, facts: NodeFacts::gather(PathBuf::new(), false, false) }
    }

    fn pod(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn volumes(&self) -> Volumes {
        Volumes::new(self.pod())
    }

    async fn prepare(&self, pod: &Pod) -> Result<(), VolumeError> {
        self.volumes().prepare(pod, &self.facts.of("uid", &[], "/logs", None)).await
    }

    fn mounts(&self) -> usize {
        let points = fs::read_to_string("/proc/self/mountinfo").unwrap();
        points.lines().filter(|line| line.contains(self.dir.path().to_str().unwrap())).count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        mounts::detach_below(self.dir.path()).ok();
    }
}

/// A pod with these volumes, all of them mounted in the order of their names; `more` goes to its spec.
fn pod(volumes: &str, more: &str) -> Pod {
    with_documents(volumes, more, "")
}

fn with_documents(volumes: &str, more: &str, documents: &str) -> Pod {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p, labels: {{a: b}}}}, spec: {{{more}\n\
         containers: [{{name: c, image: i, resources: {{limits: {{memory: 64Mi}}}}}}],\n\
         volumes: [{volumes}]}}}}\n{documents}"
    );
    let manifests = berth_manifest::read(&[Source { name: "test", text: &text }], Strictness::Strict);
    manifests.unwrap().pods.remove(0)
}

fn mount(volume: &str) -> Mount {
    Mount {
        volume: volume.to_owned(),
        path: "/m".to_owned(),
        read_only: false,
        recursive_read_only: berth_manifest::RecursiveReadOnly::Disabled,
        sub_path: String::new(),
        sub_path_expr: String::new(),
        propagation: MountPropagation::None,
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn file_system(path: &Path) -> i64 {
    rustix::fs::statfs(path).unwrap().f_type
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn empty_dirs_are_the_groups_and_keep_what_is_in_them() {
    let place = Place::new();
    let pod = pod(
        "{name: disk}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}},
         {name: whole, emptyDir: {medium: Memory}}",
        "securityContext: {fsGroup: 1234},",
    );
    place.prepare(&pod).await.unwrap();
    let at = |name: &str| place.pod().join("volumes").join(name);
    for name in ["disk", "memory", "whole"] {
        assert_eq!((mode(&at(name)), fs::metadata(at(name)).unwrap().gid()), (0o2777, 1234), "{name}");
    }
    assert_eq!(file_system(&at("memory")), TMPFS);
    let size = |name: &str| {
        let stat = rustix::fs::statvfs(at(name)).unwrap();
        stat.f_blocks * stat.f_frsize
    };
    assert_eq!((size("memory"), size("whole")), (1 << 20, 64 << 20));

    for name in ["disk", "memory"] {
        fs::write(at(name).join("kept"), "x").unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(0o700)).unwrap();
    }
    let mounts = place.mounts();
    place.prepare(&pod).await.unwrap();
    assert_eq!(place.mounts(), mounts);
    for name in ["disk", "memory"] {
        assert_eq!((read(at(name).join("kept")), mode(&at(name))), ("x".to_owned(), 0o700));
    }
    place.volumes().remove().await.unwrap();
    assert_eq!((place.mounts(), fs::read_dir(place.pod()).unwrap().count()), (0, 0));
    place.volumes().remove().await.unwrap();
}

#[tokio::test]
async fn huge_pages_are_of_the_size_that_is_asked_for() {
    if !read("/proc/filesystems").contains("hugetlbfs") {
        return eprintln!("not run: this kernel has no hugetlbfs");
    }
    let place = Place::new();
    let pod = pod("{name: v, emptyDir: {medium: HugePages-2Mi}}", "securityContext: {fsGroup: 1234},");
    place.prepare(&pod).await.unwrap();
    let at = place.pod().join("volumes/v");
    assert_eq!((mode(&at), fs::metadata(&at).unwrap().gid()), (0o2777, 1234));
    assert_eq!((file_system(&at), rustix::fs::statfs(&at).unwrap().f_bsize), (HUGETLBFS, 2 << 20));
}

#[tokio::test]
async fn files_change_all_at_once_and_only_when_they_are_others() {
    let place = Place::new();
    let config = |value: &str, more: &str| {
        with_documents(
            "{name: v, configMap: {name: c}}, {name: s, secret: {secretName: s, defaultMode: 0400}},
             {name: d, downwardAPI: {items: [{path: a/b/labels, fieldRef: {fieldPath: metadata.labels}}]}}",
            "",
            &format!(
                "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c}}, data: {{key: {value} {more}}}}}\n\
                 ---\n{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, stringData: {{word: secret}}}}\n"
            ),
        )
    };
    let first = config("one", ", gone: x");
    place.prepare(&first).await.unwrap();
    let at = |name: &str| place.pod().join("volumes").join(name);
    let version = || fs::read_link(at("v/..data")).unwrap();
    assert_eq!(fs::read_link(at("v/key")).unwrap(), Path::new("..data/key"));
    assert_eq!((read(at("v/key")), mode(&fs::canonicalize(at("v/key")).unwrap())), ("one".to_owned(), 0o644));
    assert_eq!(
        (read(at("s/word")), mode(&fs::canonicalize(at("s/word")).unwrap())),
        ("secret".to_owned(), 0o400)
    );
    assert_eq!((file_system(&at("s")), file_system(&at("d"))), (TMPFS, TMPFS));
    assert_eq!(fs::read_link(at("d/a")).unwrap(), Path::new("..data/a"));
    assert_eq!(read(at("d/a/b/labels")), "a=\"b\"");

    let before = version();
    place.prepare(&first).await.unwrap();
    assert_eq!(version(), before);
    // As a crash in the middle leaves it: a link is missing, and another version lies about.
    fs::remove_file(at("v/key")).unwrap();
    fs::create_dir(at("v/..17")).unwrap();
    place.prepare(&first).await.unwrap();
    assert_eq!(
        (version(), read(at("v/key")), at("v/..17").exists()),
        (before.clone(), "one".to_owned(), false)
    );

    let open = File::open(at("v/..data")).unwrap();
    place.prepare(&config("two", "")).await.unwrap();
    assert_ne!(version(), before);
    assert_eq!((read(at("v/key")), at("v/gone").is_symlink()), ("two".to_owned(), false));
    let left: Vec<_> = tree::names(&open).unwrap();
    assert!(left.is_empty(), "the version of before is gone: {left:?}");
    place.volumes().remove().await.unwrap();
    assert_eq!(place.mounts(), 0);
}

#[tokio::test]
async fn the_group_may_read_files() {
    let place = Place::new();
    let secret = "---\n{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {a: b}}\n";
    let volume = "{name: s, secret: {secretName: s, defaultMode: 0400, items: [{key: a, path: x/a}]}}";
    let pod = with_documents(volume, "securityContext: {fsGroup: 1234},", secret);
    place.prepare(&pod).await.unwrap();
    let at = place.pod().join("volumes/s");
    let file = fs::metadata(at.join("x/a")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.gid()), (0o440, 1234));
    let folder = fs::metadata(at.join("x")).unwrap();
    assert_eq!((folder.mode() & 0o7777, folder.gid(), mode(&at)), (0o2755, 1234, 0o2755));
}

#[test]
fn a_file_has_a_place_of_its_own_in_its_volume() {
    let item =
        |path: &str| Item { path: path.to_owned(), content: berth_manifest::Content::Bytes(vec![]), mode: 0 };
    for bad in ["../a", "a/../../b", "/a", "..data", "..data/a", "..1/a", "", ".", "a\0b"] {
        assert_eq!(files::Files::of(&[item(bad)], |_| vec![], None).unwrap_err(), bad);
    }
    assert!(files::Files::of(&[item("./a//b"), item("a/..b")], |_| vec![], None).is_ok());
}

#[tokio::test]
async fn host_paths_are_what_they_are_to_be() {
    let place = Place::new();
    let host = place.host();
    File::create(host.join("file")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(host.join("socket")).unwrap();
    assert!(fs::metadata(host.join("socket")).unwrap().file_type().is_socket());
    let checked = async |path: &str, kind: &str| {
        let volume = format!("{{name: v, hostPath: {{path: {path}, type: {kind}}}}}");
        place.prepare(&pod(&volume, "")).await
    };
    let at = |name: &str| host.join(name).to_str().unwrap().to_owned();
    for (path, kind) in [
        (at("nothing"), "''"),
        (at("made/deep"), "DirectoryOrCreate"),
        (at("made/deep"), "Directory"),
        (at("made/file"), "FileOrCreate"),
        (at("file"), "FileOrCreate"),
        (at("file"), "File"),
        (at("socket"), "Socket"),
        ("/dev/null".to_owned(), "CharDevice"),
    ] {
        checked(&path, kind).await.unwrap();
    }
    assert_eq!((mode(&host.join("made/deep")), mode(&host.join("made/file"))), (0o755, 0o644));
    assert!(!host.join("nothing").exists());
    for (path, kind, found) in [
        (at("file"), "Directory", "a folder, and is a file"),
        (at("file"), "DirectoryOrCreate", "a folder, and is a file"),
        (at("made"), "FileOrCreate", "a file, and is a folder"),
        (at("none"), "Socket", "a socket, and is not there"),
        ("/dev/null".to_owned(), "BlockDevice", "a block device, and is a character device"),
    ] {
        let error = checked(&path, kind).await.unwrap_err().to_string();
        assert!(error.contains(&path) && error.contains(found), "{error}");
    }
    assert!(matches!(checked(&at("file/x"), "Directory").await, Err(VolumeError::Host { .. })));
}

#[tokio::test]
async fn a_sub_path_is_made_as_the_volume_is() {
    let place = Place::new();
    let pod = pod("{name: v}", "securityContext: {fsGroup: 1234},");
    place.prepare(&pod).await.unwrap();
    let volumes = place.volumes();
    assert_eq!(volumes.place(&pod, &mount("v"), "", "c", 0).await.unwrap(), place.pod().join("volumes/v"));
    let at = volumes.place(&pod, &mount("v"), "a/./b", "c", 0).await.unwrap();
    let made = place.pod().join("volumes/v/a/b");
    assert_eq!((mode(&made), fs::metadata(&made).unwrap().gid()), (0o2777, 1234));
    fs::write(made.join("file"), "x").unwrap();
    assert_eq!(read(at.join("file")), "x");
    // The container's next attempt.
    let mounts = place.mounts();
    assert_eq!(volumes.place(&pod, &mount("v"), "a/b", "c", 0).await.unwrap(), at);
    assert_eq!(place.mounts(), mounts);
    // Something else is there by now: a file.
    fs::remove_dir_all(&made).unwrap();
    fs::write(&made, "y").unwrap();
    assert_eq!(read(volumes.place(&pod, &mount("v"), "a/b", "c", 0).await.unwrap()), "y");
    assert_eq!(place.mounts(), mounts);
    volumes.remove().await.unwrap();
    assert_eq!(place.mounts(), 0);
}

#[tokio::test]
async fn a_sub_path_of_files_follows_their_links() {
    let place = Place::new();
    let config = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {key: value}}\n";
    let pod = with_documents("{name: v, configMap: {name: c}}", "", config);
    place.prepare(&pod).await.unwrap();
    let at = place.volumes().place(&pod, &mount("v"), "key", "c", 0).await.unwrap();
    assert_eq!(read(at), "value");
}

#[tokio::test]
async fn no_link_leads_out_of_a_volume() {
    let place = Place::new();
    fs::write(place.host().join("secret"), "host").unwrap();
    let host = place.host();
    let host_volume = format!("{{name: h, hostPath: {{path: {}}}}}", host.display());
    let pod = pod(&format!("{{name: v}}, {host_volume}"), "");
    place.prepare(&pod).await.unwrap();
    let (volumes, volume) = (place.volumes(), place.pod().join("volumes/v"));
    symlink(&host, volume.join("absolute")).unwrap();
    symlink("../../../host", volume.join("up")).unwrap();
    symlink("/proc/self/root", volume.join("root")).unwrap();
    symlink("/etc", host.join("etc")).unwrap();
    for (name, sub_path) in [
        ("v", "absolute"),
        ("v", "up"),
        ("v", "up/new"),
        ("v", "root/tmp"),
        ("v", "../x"),
        ("v", "/x"),
        ("h", "etc"),
    ] {
        let refused = volumes.place(&pod, &mount(name), sub_path, "c", 0).await;
        assert!(matches!(refused, Err(VolumeError::Escapes { .. })), "{sub_path}: {refused:?}");
    }
    assert!(!host.join("new").exists());
    // A link that stays in, and one that changes after the mount.
    fs::create_dir(volume.join("good")).unwrap();
    symlink("good", volume.join("link")).unwrap();
    let at = volumes.place(&pod, &mount("v"), "link", "c", 1).await.unwrap();
    fs::remove_file(volume.join("link")).unwrap();
    symlink(&host, volume.join("link")).unwrap();
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    // A dangling one is not made into something.
    symlink("nowhere", volume.join("dangling")).unwrap();
    let refused = volumes.place(&pod, &mount("v"), "dangling/x", "c", 2).await;
    assert!(matches!(refused, Err(VolumeError::SubPath { .. })), "{refused:?}");
}

/// The host's mounts that are seen through a subPath are the host's, also where both are peers.
#[tokio::test]
async fn removal_touches_neither_files_nor_mounts_of_the_host() {
    for propagation in [MountPropagation::None, MountPropagation::Bidirectional] {
        let place = Place::new();
        let host = place.host();
        mounts::attach(&mounts::new("tmpfs", &[]).unwrap(), &host).unwrap();
        mount_change(&host, MountPropagationFlags::SHARED).unwrap();
        fs::create_dir_all(host.join("data/inner")).unwrap();
        fs::write(host.join("data/file"), "x").unwrap();
        let pod = pod(&format!("{{name: v}}, {{name: h, hostPath: {{path: {}}}}}", host.display()), "");
        place.prepare(&pod).await.unwrap();
        let volumes = place.volumes();
        let at = volumes.place(&pod, &Mount { propagation, ..mount("h") }, "data", "c", 0).await.unwrap();
        mounts::attach(&mounts::new("tmpfs", &[]).unwrap(), &host.join("data/inner")).unwrap();
        fs::write(host.join("data/inner/file"), "y").unwrap();
        assert_eq!(read(at.join("inner/file")), "y", "the mount came through");
        // What a container with the right to do so may have left in its volume.
        let inside = place.pod().join("volumes/v/host");
        fs::create_dir(&inside).unwrap();
        mount_bind(&host, &inside).unwrap();

        volumes.remove().await.unwrap();
        assert_eq!(
            (read(host.join("data/file")), read(host.join("data/inner/file"))),
            ("x".to_owned(), "y".to_owned())
        );
        assert_eq!(place.mounts(), 2, "the host's own");
        assert_eq!(fs::read_dir(place.pod()).unwrap().count(), 0);
    }
}

#[test]
fn a_tree_is_removed_however_deep_and_never_across_a_mount() {
    let place = Place::new();
    let (pod, host) = (place.pod(), place.host());
    fs::write(host.join("file"), "x").unwrap();
    let parent = File::open(&pod).unwrap();
    let mut at = tree::open_in(&parent, c".").unwrap();
    for name in ["top"; 3000] {
        rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        rustix::fs::symlinkat(&host, &at, "link").unwrap();
        at = tree::open_in(&at, c"top").unwrap();
    }
    tree::remove(&parent, c"top").unwrap();
    tree::remove(&parent, c"top").unwrap();
    fs::create_dir_all(pod.join("top/a/mounted")).unwrap();
    mount_bind(&host, pod.join("top/a/mounted")).unwrap();
    tree::remove(&parent, c"top").unwrap_err();
    mounts::detach_below(&pod).unwrap();
    assert_eq!(read(host.join("file")), "x");
}

#[tokio::test]
async fn what_is_over_its_limit_is_told() {
    let place = Place::new();
    let pod = pod("{name: free}, {name: v, emptyDir: {sizeLimit: 1Mi}}", "");
    place.prepare(&pod).await.unwrap();
    let at = |name: &str| place.pod().join("volumes").join(name);
    let fill = |path: PathBuf, size: usize| fs::write(path, vec![1; size]).unwrap();
    fill(at("free").join("a"), 2 << 20);
    fs::create_dir(at("v").join("b")).unwrap();
    fill(at("v").join("b/a"), 800 << 10);
    fs::hard_link(at("v").join("b/a"), at("v").join("twice")).unwrap();
    assert_eq!(place.volumes().over_limit(&pod).await.unwrap(), None);
    fill(at("v").join("c"), 800 << 10);
    let excess = place.volumes().over_limit(&pod).await.unwrap().unwrap();
    assert_eq!((excess.volume.as_str(), excess.limit), ("v", 1 << 20));
    assert!((1600 << 10..2 << 20).contains(&excess.used), "{excess:?}");
}
