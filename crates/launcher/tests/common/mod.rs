//! What the launcher's tests share: a busybox root, a spec to start from, a container that cleans up after itself.
//!
//! These tests have no harness threads, because the launcher forks.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries that each use a part"
)]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use berth_cri::berth::v1::{IdMaps, IdRange};
use berth_launcher::StepError;
use berth_launcher::cgroup::{Cgroup, Cgroups};
use berth_launcher::compile::{CapSet, CompileInput, Compiled, compile, compile_exec};
use berth_launcher::container::{self, Console, Gate, Launched, PidEntry, Progress, Stdio};
use berth_launcher::user_namespace;
use oci_spec::runtime::{LinuxIdMapping, Spec};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, MemfdFlags};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing here takes longer on a machine that works.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Test = (&'static str, fn());

/// Waits for the end of a process and forgets it.
pub fn reap(pidfd: &OwnedFd) {
    readable(pidfd.as_fd(), PATIENCE);
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
}

/// Leaves the host's mount table: tests mount, and the host need not know.
pub fn own_mount_table() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("these tests run as root");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Runs the tests whose names contain an argument (all without one), one after another.
pub fn run(tests: &[Test]) -> ExitCode {
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    own_mount_table();
    let mut failed = Vec::new();
    let mut count = 0;
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        count += 1;
        let before = left_over();
        let passed = catch_unwind(AssertUnwindSafe(|| {
            test();
            assert_eq!(left_over(), before, "mounts, descriptors or children are left over");
        }))
        .is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(*name);
        }
    }
    println!("\ntest result: {} passed; {} failed", count - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a test must leave as it found it: mounts, open descriptors, children.
fn left_over() -> (usize, usize, String) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    let pid = std::process::id();
    let children = fs::read_to_string(format!("/proc/self/task/{pid}/children")).unwrap_or_default();
    (mounts, descriptors, children)
}

/// A root with busybox in it.
pub fn busybox_root() -> TempDir {
    let root = TempDir::new().unwrap();
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir(root.path().join(folder)).unwrap();
    }
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox-static is installed");
    for applet in
        "sh cat ls stat id sleep echo mount umount touch mkdir chmod hostname readlink sort grep dd true \
                   false env pwd ionice test tty stty kill mknod head tail wc find awk ps"
            .split_whitespace()
    {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    root
}

/// A detached mount of a folder, as the image crate would hand over.
pub fn detached(folder: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, folder, flags).unwrap()
}

/// A spec such as CRI runtimes generate for an unprivileged container, running `script` in a shell.
pub fn spec(script: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0, "additionalGids": [0, 10] },
            "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "GREETING=hello there"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": false },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "cgroup" }],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                            "/sys/firmware", "/proc/no-such-thing"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// A cgroup that goes away with its owner.
pub struct OwnCgroup(pub Cgroup);

impl OwnCgroup {
    pub fn new() -> OwnCgroup {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/berth-launcher-test-{}-{number}", std::process::id());
        OwnCgroup(Cgroups::detect().unwrap().create(&path).unwrap())
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let removed = self.0.remove();
        // A second panic would end the other tests as well.
        if !std::thread::panicking() {
            removed.expect("the cgroup can be removed");
            assert!(!self.0.exists());
        }
    }
}

pub fn parse(spec: &Value) -> Spec {
    serde_json::from_value(spec.clone()).unwrap()
}

pub fn input(cgroup: &Cgroup) -> CompileInput<'_> {
    CompileInput {
        cgroup,
        seccomp_bpf: None,
        hook_state: None,
        host_caps: CapSet::of_this_process().unwrap(),
    }
}

/// A file in memory with these bytes.
pub fn memfd(bytes: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC).unwrap();
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::write(&fd, &bytes[written..]).unwrap();
    }
    fd
}

/// The other ends of a process's streams.
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: fs::File,
    pub stderr: fs::File,
}

impl Streams {
    pub fn output(&mut self) -> String {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        text
    }

    pub fn errors(&mut self) -> String {
        let mut text = String::new();
        self.stderr.read_to_string(&mut text).unwrap();
        text
    }
}

pub fn streams() -> (Stdio, Streams) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (stdin, write_in) = pipe();
    let (read_out, stdout) = pipe();
    let (read_err, stderr) = pipe();
    let ours = Streams { stdin: Some(write_in), stdout: read_out.into(), stderr: read_err.into() };
    (Stdio { stdin, stdout, stderr }, ours)
}

/// The next thing a gate says.
pub fn next(gate: &mut Gate) -> Progress {
    loop {
        if let Some(progress) = gate.read().unwrap() {
            return progress;
        }
        readable(gate.as_fd(), PATIENCE);
    }
}

pub fn readable(fd: std::os::fd::BorrowedFd<'_>, patience: Duration) {
    let timeout = Timespec::try_from(patience).unwrap();
    let count = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_ne!(count, 0, "nothing happened in {patience:?}");
}

/// A process that is killed and waited for when it goes out of scope.
pub struct Running {
    pub launched: Launched,
    pub streams: Streams,
    waited: bool,
}

impl Running {
    pub fn new(launched: Launched, streams: Streams) -> Running {
        Running { launched, streams, waited: false }
    }

    /// Waits for Ready; the warnings it came with.
    pub fn ready(&mut self) -> Result<Vec<String>, StepError> {
        match next(&mut self.launched.gate) {
            Progress::Ready { warnings, .. } => Ok(warnings),
            Progress::Failed(error) => Err(error),
            Progress::Held | Progress::Executed => panic!("held, or executed before it was ready"),
        }
    }

    pub fn executed(&mut self) -> Result<(), StepError> {
        match next(&mut self.launched.gate) {
            Progress::Executed => Ok(()),
            Progress::Failed(error) => Err(error),
            Progress::Held | Progress::Ready { .. } => panic!("ready twice"),
        }
    }

    /// Lets a ready process go on, to the end of its output and itself.
    pub fn finish(&mut self) -> (String, i32) {
        self.launched.gate.open().unwrap();
        self.executed().expect("the program can be executed");
        self.result()
    }

    pub fn result(&mut self) -> (String, i32) {
        self.streams.stdin = None;
        let output = self.streams.output();
        (output, self.wait())
    }

    /// The exit status, or 128 + signal.
    pub fn wait(&mut self) -> i32 {
        readable(self.launched.pidfd.as_fd(), PATIENCE);
        let id = WaitId::PidFd(self.launched.pidfd.as_fd());
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED).unwrap().expect("a status");
        self.waited = true;
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
            .expect("an exit or a signal")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.waited {
            let _ = rustix::process::pidfd_send_signal(&self.launched.pidfd, Signal::KILL);
            self.wait();
        }
    }
}

/// A container made from a spec.
pub struct Container {
    // Fields are dropped in this order: the process, its cgroup, its root.
    pub process: Running,
    pub spec: Spec,
    pub cgroup: OwnCgroup,
    pub root: TempDir,
}

impl Container {
    pub fn create(spec: &Value) -> Container {
        Container::create_in(busybox_root(), spec, None)
    }

    pub fn create_in(root: TempDir, spec: &Value, seccomp: Option<&[u8]>) -> Container {
        let spec = parse(spec);
        let cgroup = OwnCgroup::new();
        let compiled = compile(&spec, CompileInput { seccomp_bpf: seccomp, ..input(&cgroup.0) }).unwrap();
        let process = launch_for(&spec, &compiled, root.path(), PidEntry::New);
        Container { process, spec, cgroup, root }
    }

    /// Creates it, waits until it is ready, and fails the test when it is not.
    pub fn ready(spec: &Value) -> Container {
        let mut container = Container::create(spec);
        if let Err(error) = container.process.ready() {
            panic!("not ready: {error} ({})", container.process.streams.errors());
        }
        container
    }

    pub fn started(spec: &Value) -> Container {
        let mut container = Container::ready(spec);
        container.process.launched.gate.open().unwrap();
        container.process.executed().unwrap();
        container
    }

    pub fn exec(&self, script: &str) -> Running {
        let mut process = self.spec.process().clone().unwrap();
        process.set_args(Some(vec!["sh".into(), "-c".into(), script.into()]));
        process.set_terminal(Some(false));
        self.exec_process(&process, None)
    }

    pub fn exec_process(&self, process: &oci_spec::runtime::Process, seccomp: Option<&[u8]>) -> Running {
        let input = CompileInput { seccomp_bpf: seccomp, ..input(&self.cgroup.0) };
        let compiled = compile_exec(process, &self.spec, input).unwrap();
        let plan = memfd(&compiled.plan);
        let (stdio, streams) = streams();
        let launched =
            container::exec(plan.as_fd(), self.process.launched.pidfd.as_fd(), Console::Pipes(stdio))
                .unwrap();
        Running::new(launched, streams)
    }
}

pub fn launch(compiled: &Compiled, root: &Path, pid: PidEntry<'_>) -> Running {
    let (stdio, streams) = streams();
    Running::new(launch_on(Console::Pipes(stdio), None, compiled, root, pid), streams)
}

/// As [`launch`], in the user namespace that the spec describes, if any.
pub fn launch_for(spec: &Spec, compiled: &Compiled, root: &Path, pid: PidEntry<'_>) -> Running {
    let user = user_namespace_of(spec);
    let (stdio, streams) = streams();
    Running::new(launch_on(Console::Pipes(stdio), user, compiled, root, pid), streams)
}

pub fn launch_on(
    console: Console,
    user: Option<OwnedFd>,
    compiled: &Compiled,
    root: &Path,
    pid: PidEntry<'_>,
) -> Launched {
    let plan = memfd(&compiled.plan);
    let rootfs = detached(root);
    let user = user.as_ref().map(AsFd::as_fd);
    container::create(plan.as_fd(), rootfs.as_fd(), user, console, pid).unwrap()
}

/// A user namespace with the ids of the spec.
pub fn user_namespace_of(spec: &Spec) -> Option<OwnedFd> {
    let linux = spec.linux().as_ref().unwrap();
    let ranges = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let range = |mapping: &LinuxIdMapping| IdRange {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            length: mapping.size(),
        };
        mappings.iter().flatten().map(range).collect::<Vec<_>>()
    };
    let ids = IdMaps { uids: ranges(linux.uid_mappings()), gids: ranges(linux.gid_mappings()) };
    (!ids.uids.is_empty()).then(|| user_namespace::create(&ids).unwrap())
}

/// Where the ids of a container in a user namespace begin on the host.
pub const FIRST_ID: u32 = 300_000;

/// The same spec in a user namespace, which a runtime makes, or the native launcher is given.
pub fn in_user_namespace(mut spec: Value) -> Value {
    let range = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": 65536 }]);
    spec["linux"]["uidMappings"] = range.clone();
    spec["linux"]["gidMappings"] = range;
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user", "path": "/proc/self/ns/user" }));
    spec
}

/// A busybox root whose files belong to the root of such a container.
pub fn busybox_root_inside() -> TempDir {
    let root = busybox_root();
    give_away(root.path());
    root
}

fn give_away(path: &Path) {
    std::os::unix::fs::lchown(path, Some(FIRST_ID), Some(FIRST_ID)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    }
}

/// Creates, starts and ends a container; what it printed, and its status.
pub fn run_container(spec: &Value) -> (String, i32) {
    Container::ready(spec).process.finish()
}

/// Why a container with this spec does not become ready.
pub fn setup_failure(spec: &Value) -> StepError {
    let mut container = Container::create(spec);
    let error = container.process.ready().expect_err("it cannot be set up");
    assert_eq!(container.process.wait(), 255);
    error
}

/// Why the program of a container that is ready cannot run.
pub fn exec_failure(spec: &Value) -> StepError {
    let mut container = Container::ready(spec);
    container.process.launched.gate.open().unwrap();
    let error = container.process.executed().expect_err("it cannot be executed");
    assert_eq!(container.process.wait(), 255);
    error
}
