//! The same specs through the native launcher, runc and crun: what a process inside sees must be the same.
//!
//! Every difference that is let through is named in [`EXPLAINED`], with its reason.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};

use common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const TESTS: &[Test] = &[
    ("an_ordinary_container_is_the_same", an_ordinary_container_is_the_same),
    ("a_user_without_privileges_is_the_same", a_user_without_privileges_is_the_same),
    ("a_privileged_container_is_the_same", a_privileged_container_is_the_same),
    ("a_readonly_container_with_volumes_is_the_same", a_readonly_container_with_volumes_is_the_same),
    ("a_user_namespace_is_the_same", a_user_namespace_is_the_same),
];

fn main() -> ExitCode {
    run(TESTS)
}

/// Prints what a process can see of itself and its surroundings, a section each.
const PROBE: &str = r#"
echo "== status"; grep -E '^(Umask|State|Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap|Sig(Blk|Ign|Cgt)|NSpid|Threads)' /proc/self/status
echo "== mountinfo"; cat /proc/self/mountinfo
echo "== limits"; cat /proc/self/limits
echo "== oom_score_adj"; cat /proc/self/oom_score_adj
echo "== cgroup"; cat /proc/self/cgroup
echo "== descriptors"; ls -1 /proc/self/fd
echo "== dev"; find /dev ! -path '/dev/pts/*' ! -path '/dev/mqueue/*' -exec stat -c '%n %F %a %u:%g %t:%T' {} \;
echo "== links"; for link in fd stdin stdout stderr ptmx core; do echo $link $(readlink /dev/$link); done
echo "== root"; ls -1a /
echo "== cwd"; pwd; readlink /proc/self/cwd
echo "== environment"; tr '\0' '\n' < /proc/$$/environ
echo "== session"; cut -d' ' -f 1,2,4-8 /proc/$$/stat
echo "== attributes"; cat /proc/self/attr/current
echo "== masks"; for path in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /sys/firmware; do stat -c '%n %F %t:%T' $path; ls $path | wc -l; done
echo "== writable"; for path in / /tmp /dev /dev/shm /proc/sys/vm /sys /sys/fs/cgroup /data /data/below; do touch $path/probe 2>/dev/null && echo $path; done
echo "== done"
"#;

type Report = BTreeMap<String, Vec<String>>;

fn compare(spec: &Value) {
    let native = report(&run_native(spec));
    let mut differences = String::new();
    for runtime in ["runc", "crun"] {
        let other = report(&run_oci(runtime, spec));
        assert_eq!(native.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{runtime}");
        for (name, ours) in &native {
            let theirs = &other[name];
            let only = |lines: &[String], others: &[String]| -> Vec<String> {
                let missing = lines.iter().filter(|line| !others.contains(line));
                missing.filter(|line| !explained(runtime, name, line)).cloned().collect()
            };
            for line in only(ours, theirs) {
                differences += &format!("{name}: native, not {runtime}: {line}\n");
            }
            for line in only(theirs, ours) {
                differences += &format!("{name}: {runtime}, not native: {line}\n");
            }
        }
    }
    assert!(differences.is_empty(), "\n{differences}");
}

/// A difference that is let through.
struct Explained {
    /// Who differs from us; empty for both.
    runtime: &'static str,
    section: &'static str,
    /// What the line has in it, on either side.
    text: &'static str,
    reason: &'static str,
}

const EXPLAINED: &[Explained] = &[
    Explained {
        runtime: "",
        section: "mountinfo",
        text: " /sys/fs/cgroup ",
        reason: "both leave the tmpfs above the v1 hierarchies writable where the spec says ro; crun sizes it",
    },
    Explained { runtime: "", section: "writable", text: "/sys/fs/cgroup", reason: "the same" },
    Explained {
        runtime: "crun",
        section: "mountinfo",
        text: ": /bus /proc/bus ",
        reason: "binding a path read-only, crun forgets the nosuid, nodev and noexec it had",
    },
    Explained { runtime: "crun", section: "mountinfo", text: ": /fs /proc/fs ", reason: "the same" },
    Explained { runtime: "crun", section: "mountinfo", text: ": /irq /proc/irq ", reason: "the same" },
    Explained { runtime: "crun", section: "mountinfo", text: ": /sys /proc/sys ", reason: "the same" },
    Explained {
        runtime: "crun",
        section: "mountinfo",
        text: " /proc/acpi ",
        reason: "crun masks a directory with a tmpfs of no size, we with a read-only one",
    },
    Explained { runtime: "crun", section: "mountinfo", text: " /sys/firmware ", reason: "the same" },
    Explained {
        runtime: "crun",
        section: "dev",
        text: "/dev/core symbolic link",
        reason: "crun links /dev/core to /proc/kcore, which the spec does not ask for and which is masked",
    },
    Explained { runtime: "crun", section: "links", text: "core", reason: "the same" },
    Explained {
        runtime: "crun",
        section: "dev",
        text: "/dev/null character special file 666",
        reason: "crun gives its standard input to the user even when it is /dev/null, which then belongs to the user",
    },
    Explained {
        runtime: "runc",
        section: "dev",
        text: "/dev/null character special file 666 ",
        reason: "so does runc, in a user namespace",
    },
    Explained {
        runtime: "",
        section: "mountinfo",
        text: " - devtmpfs devtmpfs ",
        reason: "in a user namespace they bind the host's devices, we make the container's own",
    },
    Explained { runtime: "", section: "mountinfo", text: "null covers /dev/null", reason: "the same" },
    Explained {
        runtime: "",
        section: "dev",
        text: "/dev/mqueue directory 1777 ",
        reason: "in a user namespace they make an ipc namespace as well, for us that is the pod's",
    },
    Explained {
        runtime: "runc",
        section: "mountinfo",
        text: ": / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ",
        reason: "of a network namespace that is new, the file system itself is read-only as well",
    },
];

fn explained(runtime: &str, section: &str, line: &str) -> bool {
    EXPLAINED.iter().any(|known| {
        debug_assert!(!known.reason.is_empty());
        (known.runtime.is_empty() || known.runtime == runtime)
            && known.section == section
            && line.contains(known.text)
    })
}

fn report(output: &str) -> Report {
    let mut report = Report::new();
    let mut section = String::new();
    for line in output.lines() {
        match line.strip_prefix("== ") {
            Some(name) => {
                name.clone_into(&mut section);
                report.entry(section.clone()).or_default();
            }
            None => report.entry(section.clone()).or_default().push(line.to_owned()),
        }
    }
    let mounts = report.get_mut("mountinfo").expect("the probe prints it");
    *mounts = normal_mounts(mounts);
    for line in report.get_mut("cgroup").expect("the probe prints it") {
        *line = without_name(line);
    }
    for line in report.get_mut("dev").expect("the probe prints it") {
        // What runc and crun bind from the host is nobody's in a user namespace.
        *line = line.replace(" character special file 666 65534:65534 ", " character special file 666 0:0 ");
    }
    for line in report.get_mut("status").expect("the probe prints it") {
        *line = normal_status(line);
    }
    report
}

/// Mount ids become mount points; what names the test, and the numbers of anonymous devices, go.
fn normal_mounts(lines: &[String]) -> Vec<String> {
    let fields: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
    let place =
        |id: &str| fields.iter().find(|mount| mount[0] == id).map_or("outside", |mount| mount[4]).to_owned();
    fields
        .iter()
        .map(|mount| {
            // Whose /dev/null covers a file, the host's or the container's, is the same to who reads it.
            if mount[3] == "/null" {
                return format!("null covers {}", mount[4]);
            }
            let root = if mount[4] == "/" { "ROOT".to_owned() } else { without_name(mount[3]) };
            let mut rest = mount[4..].to_vec();
            // The source of a cgroup mount is free text.
            if let Some(end) = rest.iter().position(|field| *field == "-")
                && rest[end + 1] == "cgroup"
            {
                rest[end + 2] = "cgroup";
            }
            format!("on {}: {root} {}", place(mount[1]), rest.join(" "))
        })
        .collect()
}

/// Each run has a cgroup of its own.
fn without_name(text: &str) -> String {
    match text.find("/berth-") {
        Some(start) => format!("{}/CGROUP", &text[..start]),
        None => text.to_owned(),
    }
}

fn normal_status(line: &str) -> String {
    // How many processes a runtime has started in the container before this one is its own business.
    if line.starts_with("NSpid") {
        return format!("NSpid of {} numbers", line.split_whitespace().count() - 1);
    }
    // glibc's own two signals: only the native launcher resets them when its parent had them ignored.
    if let Some(mask) = line.strip_prefix("SigIgn:\t") {
        let mask = u64::from_str_radix(mask, 16).unwrap() & !(3 << 31);
        return format!("SigIgn:\t{mask:016x}");
    }
    line.to_owned()
}

/// With its files' owners as the spec's container wants them.
fn root_for(spec: &Value) -> TempDir {
    match spec["linux"]["uidMappings"].is_array() {
        true => busybox_root_inside(),
        false => busybox_root(),
    }
}

fn run_native(spec: &Value) -> String {
    let mut container = Container::create_in(root_for(spec), spec, None);
    if let Err(error) = container.process.ready() {
        panic!("not ready: {error}");
    }
    let (output, status) = container.process.finish();
    assert_eq!(status, 0, "{}", container.process.streams.errors());
    output
}

fn run_oci(runtime: &str, spec: &Value) -> String {
    let bundle = TempDir::new().unwrap();
    let state = TempDir::new().unwrap();
    let root = root_for(spec);
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(root.keep(), bundle.path().join("rootfs")).unwrap();
    let id = format!("berth-differential-{}", std::process::id());
    let mut spec = spec.clone();
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    if let Some(user) = namespaces.iter_mut().find(|namespace| namespace["type"] == "user") {
        // They make it themselves, and mount sysfs and mqueue only from namespaces that belong to it.
        user.as_object_mut().unwrap().remove("path");
        namespaces.extend([json!({ "type": "network" }), json!({ "type": "ipc" })]);
    }
    spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
    // crun refuses a machine with controllers of both versions, so it gets to see those of v1 only.
    let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", runtime, "--root"])
        .arg(state.path())
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .stdin(Stdio::null())
        .output()
        .expect("runc and crun are installed");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("== done\n"), "{runtime}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn an_ordinary_container_is_the_same() {
    compare(&spec(PROBE));
}

fn a_user_without_privileges_is_the_same() {
    let mut spec = spec(PROBE);
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o077 });
    spec["process"]["cwd"] = json!("/made/for/it");
    spec["process"]["oomScoreAdj"] = json!(700);
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 },
                                        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    spec["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "mount" }]);
    compare(&spec);
}

fn a_privileged_container_is_the_same() {
    let mut spec = spec(PROBE);
    spec["process"]["noNewPrivileges"] = json!(false);
    let all: Vec<String> = ALL.split_whitespace().map(|name| format!("CAP_{name}")).collect();
    spec["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    spec["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    for mount in spec["mounts"].as_array_mut().unwrap() {
        let options = mount["options"].as_array_mut().unwrap();
        options.retain(|option| option != "ro");
    }
    spec["linux"]["devices"] = json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 11,
                                        "fileMode": 0o640, "uid": 7, "gid": 8 }]);
    compare(&spec);
}

fn a_readonly_container_with_volumes_is_the_same() {
    let volume = TempDir::new().unwrap();
    let mut spec = spec(PROBE);
    spec["root"]["readonly"] = json!(true);
    spec["linux"]["rootfsPropagation"] = json!("rslave");
    let volumes = [
        json!({ "destination": "/data", "type": "bind", "source": volume.path(),
                "options": ["rbind", "rprivate", "ro", "nosuid", "nodev"] }),
        json!({ "destination": "/data/below", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "noexec"] }),
        json!({ "destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "rslave"] }),
    ];
    fs::create_dir(volume.path().join("below")).unwrap();
    spec["mounts"].as_array_mut().unwrap().extend(volumes);
    compare(&spec);
}

fn a_user_namespace_is_the_same() {
    let mut spec = in_user_namespace(spec(PROBE));
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6] });
    spec["process"]["cwd"] = json!("/made/for/it");
    compare(&spec);
}

/// Without SYS_RESOURCE: what the host lacks, runc refuses and we leave out.
const ALL: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
    SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
    MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";
