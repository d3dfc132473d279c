//! Root, mounts, devices, masks.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::*;

pub const TESTS: &[Test] = &[
    ("masked_and_readonly_paths_are", masked_and_readonly_paths_are),
    ("a_readonly_root_leaves_its_mounts_alone", a_readonly_root_leaves_its_mounts_alone),
    ("nothing_of_the_host_is_in_sight", nothing_of_the_host_is_in_sight),
    (
        "a_readonly_bind_leaves_what_is_mounted_below_writable",
        a_readonly_bind_leaves_what_is_mounted_below_writable,
    ),
    ("a_recursively_readonly_bind_does_not", a_recursively_readonly_bind_does_not),
    ("propagation_works_as_each_mount_says", propagation_works_as_each_mount_says),
    ("files_and_links_can_be_mounted", files_and_links_can_be_mounted),
    ("links_in_the_image_never_lead_outside", links_in_the_image_never_lead_outside),
    ("a_mount_led_into_proc_is_refused", a_mount_led_into_proc_is_refused),
    ("devices_have_the_owner_and_mode_of_the_spec", devices_have_the_owner_and_mode_of_the_spec),
    ("a_false_device_in_the_image_is_refused", a_false_device_in_the_image_is_refused),
    ("mount_options_are_what_they_say", mount_options_are_what_they_say),
];

fn push(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

fn masked_and_readonly_paths_are() {
    let mut spec = spec(
        "cat /proc/keys | wc -c; ls /proc/acpi | wc -l; cat /etc/secret | wc -c; touch /tmp/x 2>&1; \
         echo 1 2>&1 > /proc/sys/vm/swappiness; touch /proc/acpi/x 2>&1",
    );
    spec["linux"]["maskedPaths"].as_array_mut().unwrap().push(json!("/etc/secret"));
    spec["linux"]["readonlyPaths"].as_array_mut().unwrap().push(json!("/tmp"));
    let root = busybox_root();
    fs::write(root.path().join("etc/secret"), "secret").unwrap();
    let mut container = Container::create_in(root, &spec, None);
    container.process.ready().unwrap();
    let (output, _) = container.process.finish();
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1], "0");
    assert!(output.contains("touch: /tmp/x: Read-only file system"), "{output}");
    assert!(output.contains("touch: /proc/acpi/x: Read-only file system"), "{output}");
    assert!(output.contains("can't create /proc/sys/vm/swappiness: Read-only file system"), "{output}");
    assert_eq!(lines[2], "0", "a masked file is empty");
}

fn a_readonly_root_leaves_its_mounts_alone() {
    let mut spec = spec("touch /x 2>&1; touch /dev/shm/x && echo shm");
    spec["root"]["readonly"] = json!(true);
    assert_eq!(run_container(&spec).0, "touch: /x: Read-only file system\nshm\n");
}

fn nothing_of_the_host_is_in_sight() {
    let (output, _) =
        run_container(&spec("ls /; ls /..; wc -l < /proc/self/mountinfo; cat /proc/self/mountinfo"));
    assert!(!output.contains("target"), "{output}");
    let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for line in host.lines() {
        let id = line.split(' ').next().unwrap();
        assert!(!output.lines().any(|seen| seen.starts_with(&format!("{id} "))), "{line} is still there");
    }
}

/// A tmpfs with another one in `below`, on this test's own mount table.
struct Volume(TempDir);

impl Volume {
    fn new() -> Volume {
        let volume = Volume(TempDir::new().unwrap());
        mount_tmpfs(volume.0.path());
        fs::create_dir(volume.0.path().join("below")).unwrap();
        mount_tmpfs(&volume.0.path().join("below"));
        volume
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn propagation(&self, flags: MountPropagationFlags) {
        rustix::mount::mount_change(self.0.path(), flags | MountPropagationFlags::REC).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn mount_tmpfs(path: &Path) {
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
}

fn a_readonly_bind_leaves_what_is_mounted_below_writable() {
    let volume = Volume::new();
    let mut spec = spec("touch /data/x 2>&1; touch /data/below/x && echo below");
    push(
        &mut spec,
        json!({ "destination": "/data", "source": volume.path(), "options": ["rbind", "ro", "rprivate"] }),
    );
    assert_eq!(run_container(&spec).0, "touch: /data/x: Read-only file system\nbelow\n");
    assert!(volume.0.path().join("below/x").exists());
}

fn a_recursively_readonly_bind_does_not() {
    let volume = Volume::new();
    let mut spec = spec("touch /data/x 2>&1; touch /data/below/x 2>&1");
    push(
        &mut spec,
        json!({ "destination": "/data", "source": volume.path(), "options": ["rbind", "rro", "rprivate"] }),
    );
    assert_eq!(
        run_container(&spec).0,
        "touch: /data/x: Read-only file system\ntouch: /data/below/x: Read-only file system\n"
    );
}

fn propagation_works_as_each_mount_says() {
    // option, linux.rootfsPropagation, host's mount seen inside, container's mount seen outside
    let cases = [
        ("rprivate", "rslave", false, false),
        ("rslave", "rslave", true, false),
        ("rshared", "rshared", true, true),
    ];
    for (option, root, inside, outside) in cases {
        let volume = Volume::new();
        volume.propagation(MountPropagationFlags::SHARED);
        for name in ["host", "container"] {
            fs::create_dir(volume.0.path().join(name)).unwrap();
        }
        let mut spec = spec(
            "mount -t tmpfs inner /data/container; touch /data/container/made; echo mounted; read go; \
             ls /data/host; umount /data/container",
        );
        let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        spec["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
        spec["linux"]["rootfsPropagation"] = json!(root);
        push(
            &mut spec,
            json!({ "destination": "/data", "source": volume.path(), "options": ["rbind", option] }),
        );
        let mut container = Container::started(&spec);
        let mut line = [0; 8];
        std::io::Read::read_exact(&mut container.process.streams.stdout, &mut line).unwrap();
        assert_eq!(volume.0.path().join("container/made").exists(), outside, "{option}");
        mount_tmpfs(&volume.0.path().join("host"));
        fs::write(volume.0.path().join("host/made"), "").unwrap();
        rustix::io::write(container.process.streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
        let output = container.process.result().0;
        assert_eq!(output, if inside { "made\n" } else { "" }, "{option}");
    }
}

fn files_and_links_can_be_mounted() {
    let source = TempDir::new().unwrap();
    fs::write(source.path().join("file"), "content").unwrap();
    symlink("file", source.path().join("link")).unwrap();
    let mut spec = spec("cat /etc/a /dev/termination-log /var/run/deep/er; ls -ld /run");
    for (destination, name) in
        [("/etc/a", "file"), ("/dev/termination-log", "link"), ("/var/run/deep/er", "file")]
    {
        let path = source.path().join(name);
        push(
            &mut spec,
            json!({ "destination": destination, "source": path, "type": "bind", "options": ["ro"] }),
        );
    }
    let root = busybox_root();
    fs::create_dir(root.path().join("var")).unwrap();
    // As in many images, and here to something that is missing.
    symlink("/run", root.path().join("var/run")).unwrap();
    let mut container = Container::create_in(root, &spec, None);
    container.process.ready().unwrap();
    let output = container.process.finish().0;
    assert!(output.starts_with("contentcontentcontentdrwxr-xr-x"), "{output}");
}

fn links_in_the_image_never_lead_outside() {
    let outside = TempDir::new().unwrap();
    let source = TempDir::new().unwrap();
    fs::write(source.path().join("marker"), "").unwrap();
    let root = busybox_root();
    symlink(outside.path(), root.path().join("absolute")).unwrap();
    let up = "../".repeat(20);
    symlink(format!("{up}{}", outside.path().display()), root.path().join("relative")).unwrap();
    let mut spec = spec(&format!("ls {0} {0}/new/below", outside.path().display()));
    push(&mut spec, json!({ "destination": "/absolute", "source": source.path(), "options": ["bind"] }));
    push(
        &mut spec,
        json!({ "destination": "/relative/new/below", "source": source.path(), "options": ["bind"] }),
    );
    let mut container = Container::create_in(root, &spec, None);
    container.process.ready().unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let output = container.process.finish().0;
    assert_eq!(output.matches("marker").count(), 2, "{output}");
}

fn a_mount_led_into_proc_is_refused() {
    let source = TempDir::new().unwrap();
    let root = busybox_root();
    symlink("/proc/self", root.path().join("trap")).unwrap();
    let mut spec = spec("true");
    push(&mut spec, json!({ "destination": "/trap/attr", "source": source.path(), "options": ["bind"] }));
    let mut container = Container::create_in(root, &spec, None);
    let error = container.process.ready().unwrap_err();
    assert_eq!(error.step, "mount /trap/attr");
    assert!(error.message.contains("/proc"), "{error}");
}

fn devices_have_the_owner_and_mode_of_the_spec() {
    let mut spec = spec(
        "stat -c '%n %a %t:%T %u:%g %F' /dev/null /dev/mine /dev/disk/one; echo x > /dev/mine && echo ok; cat /dev/disk/one 2>&1",
    );
    spec["linux"]["devices"] = json!([
        { "path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8 },
        { "path": "/dev/disk/one", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600 }
    ]);
    let (output, _) = run_container(&spec);
    assert!(
        output.starts_with(
            "/dev/null 666 1:3 0:0 character special file\n\
         /dev/mine 640 1:3 7:8 character special file\n\
         /dev/disk/one 600 7:c8 0:0 block special file\nok\n"
        ),
        "{output}"
    );
}

fn a_false_device_in_the_image_is_refused() {
    let root = busybox_root();
    fs::write(root.path().join("dev/null"), "").unwrap();
    let mut spec = spec("true");
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let mut container = Container::create_in(root, &spec, None);
    let error = container.process.ready().unwrap_err();
    assert_eq!(error.step, "make device /dev/null");
}

fn mount_options_are_what_they_say() {
    let source = TempDir::new().unwrap();
    let mut spec = spec("");
    spec["process"]["args"] =
        json!(["awk", "$5 ~ /^.(one|two|three)$/ { print $5, $6, $NF }", "/proc/self/mountinfo"]);
    push(
        &mut spec,
        json!({ "destination": "/one", "source": source.path(),
        "options": ["rbind", "nosuid", "noexec", "nodev", "noatime", "ro"] }),
    );
    push(
        &mut spec,
        json!({ "destination": "/two", "type": "tmpfs", "source": "mine",
        "options": ["nodiratime", "strictatime", "size=64k", "mode=0700"] }),
    );
    push(&mut spec, json!({ "destination": "/three", "source": source.path(), "options": ["bind"] }));
    let output = run_container(&spec).0;
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert!(lines[0].starts_with("/one ro,nosuid,nodev,noexec,noatime "), "{output}");
    assert!(lines[2].starts_with("/two rw,nodiratime rw,size=64k,mode=700"), "{output}");
    assert!(lines[1].starts_with("/three rw,relatime "), "{output}");
}
