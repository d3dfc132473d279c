//! User namespaces and idmapped mounts.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use berth_launcher::compile::{CompileError, compile, compile_exec};
use berth_launcher::container::{self, Console, PidEntry, Progress};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::*;
use crate::processes::read_until;

pub const TESTS: &[Test] = &[
    ("root_inside_is_somebody_else_outside", root_inside_is_somebody_else_outside),
    ("what_is_made_belongs_to_root_inside", what_is_made_belongs_to_root_inside),
    ("a_user_inside_may_open_its_output_again", a_user_inside_may_open_its_output_again),
    ("nothing_can_be_uncovered_from_inside", nothing_can_be_uncovered_from_inside),
    ("root_inside_may_mount", root_inside_may_mount),
    ("a_terminal_inside_has_its_name", a_terminal_inside_has_its_name),
    ("a_further_process_is_inside_as_well", a_further_process_is_inside_as_well),
    ("a_further_process_has_a_terminal_inside", a_further_process_has_a_terminal_inside),
    ("an_idmapped_mount_has_other_owners", an_idmapped_mount_has_other_owners),
    ("a_mount_that_cannot_be_idmapped_is_named", a_mount_that_cannot_be_idmapped_is_named),
    ("ids_that_are_not_mapped_are_refused", ids_that_are_not_mapped_are_refused),
];

fn inside(script: &str) -> Value {
    in_user_namespace(spec(script))
}

fn run_inside(spec: &Value) -> String {
    let mut container = Container::create_in(busybox_root_inside(), spec, None);
    container.process.ready().unwrap();
    let (output, status) = container.process.finish();
    assert_eq!(status, 0, "{output}{}", container.process.streams.errors());
    output
}

fn all_capabilities(spec: &mut Value) {
    let all = json!(["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_SYS_CHROOT"]);
    spec["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
}

fn root_inside_is_somebody_else_outside() {
    let mut container = Container::create_in(
        busybox_root_inside(),
        &inside("id -u; cat /proc/self/uid_map; cat /proc/self/setgroups; cat"),
        None,
    );
    container.process.ready().unwrap();
    container.process.launched.gate.open().unwrap();
    container.process.executed().unwrap();
    let status = fs::metadata(format!("/proc/{}", container.process.launched.pid)).unwrap();
    assert_eq!((status.uid(), status.gid()), (FIRST_ID, FIRST_ID));
    let (output, _) = container.process.result();
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "0", "300000", "65536", "allow"]);
}

fn what_is_made_belongs_to_root_inside() {
    let mut spec = inside(
        "for path in / /dev /dev/null /dev/mine /dev/fd /dev/pts /dev/pts/ptmx /dev/shm /made /made/for/it; do \
         stat -c '%n %u:%g' $path; done; touch /x && stat -c '%u:%g' /x",
    );
    spec["process"]["cwd"] = json!("/made/for/it");
    spec["linux"]["devices"] =
        json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 11, "uid": 7, "gid": 8 }]);
    let root = busybox_root_inside();
    let made = root.path().join("made/for/it");
    let mut container = Container::create_in(root, &spec, None);
    container.process.ready().unwrap();
    assert_eq!(fs::metadata(made).unwrap().uid(), FIRST_ID);
    let (output, _) = container.process.finish();
    for line in output.lines() {
        // The host's owner of a device is nobody inside.
        let owner = if line.starts_with("/dev/mine") { "65534:65534" } else { "0:0" };
        assert!(line.ends_with(owner), "{output}");
    }
    assert_eq!(output.lines().count(), 11, "{output}");
}

fn a_user_inside_may_open_its_output_again() {
    let mut spec =
        inside("echo out > /dev/stdout; echo err > /dev/stderr; id -u; stat -L -c %u /proc/self/fd/1");
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    assert_eq!(run_inside(&spec), "out\n1000\n1000\n");
}

fn nothing_can_be_uncovered_from_inside() {
    let mut spec = inside(
        "umount /proc/keys || umount -l /sys/firmware || mount -o remount,rw /proc/sys || \
         mount -o remount,rw,bind /data || echo no",
    );
    all_capabilities(&mut spec);
    let volume = TempDir::new().unwrap();
    spec["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/data", "type": "bind",
        "source": volume.path(), "options": ["rbind", "rprivate", "ro"] }));
    assert_eq!(run_inside(&spec), "no\n");
}

fn root_inside_may_mount() {
    let mut spec =
        inside("mount -t tmpfs tmpfs /tmp && grep -c ' /tmp tmpfs' /proc/mounts && umount /tmp && echo gone");
    all_capabilities(&mut spec);
    assert_eq!(run_inside(&spec), "1\ngone\n");
}

fn a_terminal_inside_has_its_name() {
    let mut spec = inside("tty; stat -c '%u:%g' /dev/pts/0; echo written > /dev/console; cat");
    spec["process"]["terminal"] = json!(true);
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let root = busybox_root_inside();
    let cgroup = OwnCgroup::new();
    let parsed = parse(&spec);
    let compiled = compile(&parsed, input(&cgroup.0)).unwrap();
    let user = user_namespace_of(&parsed);
    let mut launched = launch_on(Console::Tty, user, &compiled, root.path(), PidEntry::New);
    let (master, warnings) = match next(&mut launched.gate) {
        Progress::Ready { console: Some(master), warnings } => (master, warnings),
        other => panic!("{other:?}"),
    };
    assert!(warnings.is_empty(), "{warnings:?}");
    launched.gate.open().unwrap();
    let mut master = fs::File::from(master);
    assert_eq!(read_until(&mut master, "written\r\n"), "/dev/pts/0\r\n1000:5\r\nwritten\r\n");
    master.write_all(b"\x04").unwrap();
    reap(&launched.pidfd);
}

fn a_further_process_is_inside_as_well() {
    let mut container = Container::create_in(busybox_root_inside(), &inside("sleep 1000"), None);
    container.process.ready().unwrap();
    container.process.launched.gate.open().unwrap();
    container.process.executed().unwrap();
    let mut exec = container.exec(
        "for of in self 1; do readlink /proc/$of/ns/user; done | sort -u | wc -l; id -u; grep CapEff /proc/self/status; \
         grep CapEff /proc/1/status; echo again > /dev/stdout; touch /x && stat -c %u /x",
    );
    exec.ready().unwrap();
    exec.executed().unwrap();
    let (output, _) = exec.result();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["1", "0"], "{output}");
    assert_eq!(lines[2], lines[3], "{output}");
    assert_eq!(lines[4..], ["again", "0"], "{output}");
    assert_eq!(fs::metadata(container.root.path().join("x")).unwrap().uid(), FIRST_ID);
}

fn a_further_process_has_a_terminal_inside() {
    let mut container = Container::create_in(busybox_root_inside(), &inside("sleep 1000"), None);
    container.process.ready().unwrap();
    container.process.launched.gate.open().unwrap();
    container.process.executed().unwrap();
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(vec!["sh".into(), "-c".into(), "tty; stat -c '%u:%g' $(tty); id -u".into()]));
    process.set_terminal(Some(true));
    let compiled = compile_exec(&process, &container.spec, input(&container.cgroup.0)).unwrap();
    let plan = memfd(&compiled.plan);
    let pidfd = container.process.launched.pidfd.as_fd();
    let mut launched = container::exec(plan.as_fd(), pidfd, Console::Tty).unwrap();
    let Progress::Ready { console: Some(master), .. } = next(&mut launched.gate) else {
        panic!("no console")
    };
    assert_eq!(read_until(&mut master.into(), ":5\r\n0\r\n"), "/dev/pts/0\r\n0:5\r\n0\r\n");
    assert!(matches!(next(&mut launched.gate), Progress::Executed));
    reap(&launched.pidfd);
}

fn an_idmapped_mount_has_other_owners() {
    let volume = TempDir::new().unwrap();
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(volume.path().join("mine"), "").unwrap();
    fs::write(volume.path().join("theirs"), "").unwrap();
    chown(volume.path().join("theirs"), Some(1000), Some(1000)).unwrap();
    let bind = |destination: &str, option: &str, mappings: Value| {
        let mut mount = json!({ "destination": destination, "type": "bind", "source": volume.path(),
                                "options": ["rbind", "rprivate", option] });
        mount["uidMappings"] = mappings.clone();
        mount["gidMappings"] = mappings;
        mount
    };
    let pod = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": 65536 }]);
    let shifted = json!([{ "containerID": 0, "hostID": FIRST_ID + 1000, "size": 1001 }]);
    let mut spec = inside(
        "for folder in pod none shifted own; do stat -c %u /$folder/mine /$folder/theirs; done; touch /pod/made",
    );
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(bind("/pod", "ridmap", pod));
    mounts.push(bind("/none", "rw", json!([])));
    mounts.push(bind("/shifted", "idmap", shifted));
    mounts.push(bind("/own", "idmap", json!([])));
    let output = run_inside(&spec);
    assert_eq!(
        output.split_whitespace().collect::<Vec<_>>(),
        ["0", "1000", "65534", "65534", "1000", "2000", "0", "1000"],
        "/pod and /own as on disk, /none as nobody's, /shifted further up"
    );
    assert_eq!(
        fs::metadata(volume.path().join("made")).unwrap().uid(),
        0,
        "what root inside makes is root's on disk"
    );
}

fn a_mount_that_cannot_be_idmapped_is_named() {
    let mut spec = inside("true");
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "destination": "/data", "type": "bind", "source": "/proc",
        "options": ["bind", "rprivate", "idmap"] }));
    let mut container = Container::create_in(busybox_root_inside(), &spec, None);
    let error = container.process.ready().unwrap_err();
    for part in ["/data", "/proc", "of type proc", "idmapped"] {
        assert!(error.step.contains(part), "{error}");
    }
    assert_eq!(container.process.wait(), 255);
}

fn ids_that_are_not_mapped_are_refused() {
    let cgroup = OwnCgroup::new();
    let refused = |spec: &Value| compile(&parse(spec), input(&cgroup.0)).unwrap_err();
    let mut user = inside("true");
    user["process"]["user"]["uid"] = json!(65536);
    assert!(matches!(refused(&user), CompileError::Invalid { value, .. } if value == "65536"));
    let mut group = inside("true");
    group["process"]["user"]["additionalGids"] = json!([70000]);
    assert!(matches!(refused(&group), CompileError::Invalid { value, .. } if value == "70000"));
    let mut no_root = inside("true");
    no_root["linux"]["uidMappings"][0]["containerID"] = json!(1);
    assert!(matches!(refused(&no_root), CompileError::Invalid { value, .. } if value == "0"));
    let mut half = inside("true");
    half["linux"].as_object_mut().unwrap().remove("gidMappings");
    assert!(matches!(refused(&half), CompileError::Invalid { .. }));
}
