//! What the tests share: a pod with a real `berth-pod`, containers of busybox in it, and a check that nothing is left.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this module")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::{ContainerExited, CreateProcess, ExecProcess, ExternalRuntime, Failure, PodSetup};
use berth_launcher::cgroup::{Cgroup, Cgroups};
use berth_launcher::compile::{CapSet, CompileInput, compile, compile_exec};
use berth_supervisor::client::{CallError, Event, Events, Exec, NativeFds, Supervisor, SupervisorBinary};
use oci_spec::runtime::Spec;
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing here takes longer on a machine that works.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Fails the test instead of hanging it.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing for {PATIENCE:?}"))
}

/// A pod, its folder, and what its containers are made of.
pub struct TestPod {
    pub supervisor: Supervisor,
    pub events: Events,
    pub home: TempDir,
    name: String,
    cgroups: Vec<Cgroup>,
    exits: Vec<ContainerExited>,
}

impl TestPod {
    pub async fn new() -> Self {
        Self::with(PodSetup { hostname: "pod".into(), ..PodSetup::default() }).await
    }

    pub async fn with(setup: PodSetup) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("berth-sv-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let home = TempDir::new().unwrap();
        make_rootfs(&home.path().join("rootfs"));
        let pod_dir = home.path().join("pod");
        fs::create_dir(&pod_dir).unwrap();
        fs::create_dir(home.path().join("logs")).unwrap();
        // BERTH_POD: measure another build of it.
        let program =
            std::env::var_os("BERTH_POD").map_or(env!("CARGO_BIN_EXE_berth-pod").into(), PathBuf::from);
        let binary = SupervisorBinary::install(&program, &home.path().join("bin")).unwrap();
        let (supervisor, events) = Supervisor::spawn(&binary, &pod_dir, &name).await.unwrap();
        // First of all somebody who ends it if that fails.
        let pod = Self { supervisor, events, home, name, cgroups: Vec::new(), exits: Vec::new() };
        pod.supervisor.setup(setup, None).await.unwrap();
        pod
    }

    pub fn dir(&self) -> PathBuf {
        self.home.path().join("pod")
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.home.path().join("logs").join(format!("{id}.log"))
    }

    pub fn rootfs(&self) -> PathBuf {
        self.home.path().join("rootfs")
    }

    pub fn supervisor_log(&self) -> String {
        fs::read_to_string(self.dir().join("supervisor.log")).unwrap_or_default()
    }

    /// A cgroup that is removed with the pod.
    pub fn new_cgroup(&mut self, id: &str) -> Cgroup {
        let cgroup = Cgroups::detect().unwrap().create(&format!("/{}/{id}", self.name)).unwrap();
        self.cgroups.push(cgroup.clone());
        cgroup
    }

    pub fn request(&self, id: &str, cgroup: &Cgroup) -> CreateProcess {
        CreateProcess {
            container_id: id.into(),
            log_path: self.log(id).to_str().unwrap().into(),
            cgroup_dirs: cgroup.dirs().map(|dir| dir.to_str().unwrap().to_owned()).collect(),
            ..CreateProcess::default()
        }
    }

    /// Creates a container by the native launcher; `change` may alter request and spec.
    pub async fn create_with(
        &mut self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut CreateProcess, &mut Value),
    ) -> Result<Container, CallError> {
        let cgroup = self.new_cgroup(id);
        let mut request = self.request(id, &cgroup);
        let mut spec = spec(args);
        change(&mut request, &mut spec);
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let plan = compile(&spec, input(&cgroup)).unwrap().plan;
        let fds = NativeFds { plan, rootfs: detached(&self.rootfs()) };
        let pid = self.supervisor.create(request, Some(fds), Duration::ZERO).await?.pid;
        Ok(Container { id: id.into(), pid, spec, cgroup })
    }

    pub async fn create(&mut self, id: &str, args: &[&str]) -> Container {
        let created = self.create_with(id, args, |_, _| {}).await;
        created.unwrap_or_else(|error| panic!("{error}: {}", self.supervisor_log()))
    }

    pub async fn run(&mut self, id: &str, args: &[&str]) -> Container {
        let container = self.create(id, args).await;
        self.supervisor.start(id, Duration::ZERO).await.unwrap();
        container
    }

    /// Creates a container by an external runtime. Its bundle names the pod's rootfs.
    pub async fn create_external(
        &mut self,
        runtime: &str,
        id: &str,
        args: &[&str],
        tty: bool,
    ) -> Result<Container, CallError> {
        let path = format!("/{}/{id}", self.name);
        let cgroup = Cgroups::detect().unwrap().at(&path).unwrap();
        self.cgroups.push(cgroup.clone());
        let mut spec = spec(args);
        spec["root"] = json!({ "path": self.rootfs() });
        spec["process"]["terminal"] = json!(tty);
        spec["linux"]["cgroupsPath"] = json!(path);
        let bundle = self.home.path().join(format!("bundle-{id}"));
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let mut request = self.request(id, &cgroup);
        request.tty = tty;
        request.external = Some(ExternalRuntime {
            path: runtime.into(),
            bundle: bundle.to_str().unwrap().into(),
            root: self.home.path().join("runtime").to_str().unwrap().into(),
            timeout_seconds: 10,
        });
        let pid = self.supervisor.create(request, None, Duration::ZERO).await?.pid;
        Ok(Container { id: id.into(), pid, spec: serde_json::from_value(spec).unwrap(), cgroup })
    }

    /// The exit of a container, now or later.
    pub async fn exit_of(&mut self, id: &str) -> ContainerExited {
        loop {
            if let Some(at) = self.exits.iter().position(|exited| exited.container_id == id) {
                return self.exits.remove(at);
            }
            match soon("an exit", self.events.recv()).await {
                Some(Event::Exited(exited)) => self.exits.push(exited),
                other => panic!("waiting for {id} to exit: {other:?}; {}", self.supervisor_log()),
            }
        }
    }

    /// Contents of a container's log by stream, records glued together as kubelet does.
    pub fn output(&self, id: &str) -> (String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        for (stream, tag, content) in self.records(id) {
            let text = if stream == "stdout" { &mut stdout } else { &mut stderr };
            text.push_str(&content);
            if tag == "F" {
                text.push('\n');
            }
        }
        (stdout, stderr)
    }

    pub fn records(&self, id: &str) -> Vec<(String, String, String)> {
        let log = fs::read_to_string(self.log(id)).unwrap();
        assert!(log.is_empty() || log.ends_with('\n'), "a record without its end");
        let record = |line: &str| {
            let mut fields = line.splitn(4, ' ').skip(1).map(str::to_owned);
            let mut field = || fields.next().unwrap_or_else(|| panic!("malformed: {line:?}"));
            (field(), field(), field())
        };
        log.split_terminator('\n').map(record).collect()
    }

    pub async fn exec(
        &self,
        container: &Container,
        id: &str,
        args: &[&str],
        stdio: [OwnedFd; 3],
    ) -> Result<Exec, CallError> {
        self.supervisor.exec(exec_request(container, id), native_exec(container, args, false), stdio).await
    }

    /// Ends everything in an orderly way, and fails when something is left.
    pub async fn finish(self) {
        let state = self.supervisor.state().await.unwrap();
        for container in state.containers {
            let id = &container.container_id;
            let _ = self.supervisor.signal(id, libc::SIGKILL, true).await;
            soon("a container's end", async {
                while let Err(CallError::Failed(Failure { kind, .. })) = self.supervisor.delete(id).await {
                    assert_eq!(kind, Kind::WrongState as i32);
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        self.supervisor.shutdown().await.unwrap();
        let mut left: Vec<_> =
            fs::read_dir(self.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.retain(|name| name != "supervisor.log");
        assert!(left.is_empty(), "left in the pod's folder: {left:?}");
        assert_eq!(self.supervisor_log(), "", "complaints of berth-pod");
        for cgroup in &self.cgroups {
            // What was killed beside a first process may take a moment to be gone.
            until("no process is left", || cgroup.pids().unwrap().is_empty()).await;
        }
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("supervisor.log: {}", self.supervisor_log());
            if let Some(pid) = rustix::process::Pid::from_raw(self.supervisor.pid()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let mut left = Vec::new();
        for cgroup in &self.cgroups {
            let _ = cgroup.kill_all();
            left.extend(cgroup.remove().err());
        }
        left.extend(
            Cgroups::detect().and_then(|cgroups| cgroups.remove_path(&format!("/{}", self.name))).err(),
        );
        // A second panic would end the tests beside this one before they can clean up.
        assert!(left.is_empty() || std::thread::panicking(), "{left:?}");
    }
}

pub struct Container {
    pub id: String,
    pub pid: i32,
    pub spec: Spec,
    pub cgroup: Cgroup,
}

pub fn exec_request(container: &Container, id: &str) -> ExecProcess {
    ExecProcess { container_id: container.id.clone(), exec_id: id.into(), ..ExecProcess::default() }
}

/// The container's process with other arguments.
pub fn exec_process(container: &Container, args: &[&str], tty: bool) -> oci_spec::runtime::Process {
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
    process.set_terminal(Some(tty));
    process
}

pub fn native_exec(container: &Container, args: &[&str], tty: bool) -> Vec<u8> {
    let process = exec_process(container, args, tty);
    compile_exec(&process, &container.spec, input(&container.cgroup)).unwrap().plan
}

fn input(cgroup: &Cgroup) -> CompileInput<'_> {
    CompileInput {
        cgroup,
        seccomp_bpf: None,
        hook_state: None,
        host_caps: CapSet::of_this_process().unwrap(),
    }
}

fn detached(folder: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, folder, flags).unwrap()
}

fn make_rootfs(root: &Path) {
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let applets =
        "sh cat ls sleep echo dd true false head tail yes tty stty kill setsid hostname ps printf seq";
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// A spec such as a CRI runtime makes.
pub fn spec(args: &[&str]) -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }
        ],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] }
    })
}

/// Pipes for a process's streams: its ends, and a thread that reads all of its output.
pub fn pipes() -> ([OwnedFd; 3], tokio::task::JoinHandle<(String, String)>) {
    let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let (read_out, stdout) = std::io::pipe().unwrap();
    let (read_err, stderr) = std::io::pipe().unwrap();
    let reader = tokio::task::spawn_blocking(move || {
        (std::io::read_to_string(read_out).unwrap(), std::io::read_to_string(read_err).unwrap())
    });
    ([null, stdout.into(), stderr.into()], reader)
}

pub fn failure(error: CallError) -> Failure {
    match error {
        CallError::Failed(failure) => failure,
        other => panic!("not a failure of the supervisor: {other}"),
    }
}

/// A field of /proc/PID/status.
pub fn status(pid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

pub fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for a level of the world that nothing announces.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
