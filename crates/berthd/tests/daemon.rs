//! The real binary on temporary folders: its socket, its locks, its exit codes, its answers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use berth_cri::runtime::v1::image_service_client::ImageServiceClient;
use berth_cri::runtime::v1::runtime_service_client::RuntimeServiceClient;
use berth_cri::runtime::v1::{
    CheckpointContainerRequest, CheckpointPodRequest, ImageSpec, ImageStatusRequest, StreamContainersRequest,
    StreamImagesRequest, StreamPodSandboxesRequest,
};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Everything here takes milliseconds; a machine under load gets this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon with folders of its own, killed when dropped.
struct Daemon {
    child: Option<Child>,
    folder: TempDir,
}

impl Daemon {
    /// Returns when it has said READY=1.
    fn start(extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = command(folder.path())
            .args(extra)
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut buffer = [0; 64];
        let length = notify.recv(&mut buffer).expect("the daemon says that it is ready");
        assert_eq!(&buffer[..length], b"READY=1");
        Self { child: Some(child), folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("state/berth.sock")
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Ends it by a signal and returns how it ended, with its log.
    fn end(&mut self, signal: Signal) -> Output {
        let child = self.child.take().expect("ended once");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        child.wait_with_output().unwrap()
    }

    async fn channel(&self) -> Channel {
        let path = self.socket();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// berthd with root and state in `folder` and nothing of the machine's configuration.
fn command(folder: &Path) -> Command {
    let config = folder.join("berth.toml");
    fs::OpenOptions::new().create(true).append(true).open(&config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthd"));
    command.arg("--config").arg(config);
    command.arg("--root").arg(folder.join("root")).arg("--state").arg(folder.join("state"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_socket_is_roots_and_closed_to_others_and_so_is_the_root_folder() {
    let daemon = Daemon::start(&[]);
    let socket = fs::metadata(daemon.socket()).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
    assert_eq!((socket.uid(), socket.gid()), (0, 0));
    let root = fs::metadata(daemon.folder.path().join("root")).unwrap();
    assert_eq!(root.permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_second_daemon_on_the_same_root_or_state_or_socket_is_refused_and_told_who_is_there() {
    let daemon = Daemon::start(&[]);
    let folder = daemon.folder.path();
    let other = tempfile::tempdir().unwrap();
    let listen = format!("unix://{}", daemon.socket().display());
    let cases: [(&str, &[&str]); 3] = [
        ("root", &["--state", other.path().to_str().unwrap()]),
        ("state", &["--root", other.path().to_str().unwrap()]),
        ("socket", &["--listen", &listen]),
    ];
    for (shared, flags) in cases {
        let mut second = Command::new(env!("CARGO_BIN_EXE_berthd"));
        second.env_clear().arg("--config").arg(folder.join("berth.toml"));
        let own = other.path().join(shared);
        match shared {
            "root" => second.arg("--root").arg(folder.join("root")),
            "state" => second.arg("--state").arg(folder.join("state")),
            _ => second.arg("--root").arg(own.join("root")).arg("--state").arg(own.join("state")),
        };
        let output = second.args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(70), "{shared}");
        let said = stderr(&output);
        assert!(said.contains(&format!("process {} (", daemon.pid())), "{shared}: {said}");
        assert!(said.contains("--root"), "{shared}: the holder's command line is missing: {said}");
    }
    assert!(daemon.socket().exists(), "the refused ones left the first one's socket alone");
}

#[test]
fn a_killed_daemons_folders_and_socket_are_taken_over() {
    let mut daemon = Daemon::start(&[]);
    daemon.end(Signal::SIGKILL);
    assert!(daemon.socket().exists(), "a killed daemon leaves its socket");
    let notify = UnixDatagram::bind(daemon.folder.path().join("again")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut again = command(daemon.folder.path());
    again.env("NOTIFY_SOCKET", daemon.folder.path().join("again")).stderr(Stdio::null());
    daemon.child = Some(again.spawn().unwrap());
    notify.recv(&mut [0; 64]).expect("the second one becomes ready");
}

#[test]
fn sigterm_and_sigint_end_with_zero_and_take_the_socket_away() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start(&[]);
        let output = daemon.end(signal);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(!daemon.socket().exists());
    }
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let mut daemon = Daemon::start(&[]);
    let channel = daemon.channel().await;
    let mut client = RuntimeServiceClient::new(channel);
    client.checkpoint_container(CheckpointContainerRequest::default()).await.unwrap_err();
    let output = tokio::task::spawn_blocking(move || daemon.end(Signal::SIGTERM)).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!stderr(&output).contains("still in flight"), "{}", stderr(&output));
}

#[tokio::test]
async fn an_rpc_that_is_not_built_is_unimplemented_with_its_name() {
    let daemon = Daemon::start(&[]);
    let channel = daemon.channel().await;
    let status =
        RuntimeServiceClient::new(channel).checkpoint_pod(CheckpointPodRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "CheckpointPod is not implemented"));
}

#[tokio::test]
async fn a_streamed_list_of_nothing_is_its_end() {
    let daemon = Daemon::start(&[]);
    let channel = daemon.channel().await;
    let images = ImageServiceClient::new(channel.clone()).stream_images(StreamImagesRequest::default()).await;
    assert!(images.unwrap().into_inner().message().await.unwrap().is_none());
    let mut runtime = RuntimeServiceClient::new(channel);
    let pods = runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await;
    assert!(pods.unwrap().into_inner().message().await.unwrap().is_none());
    let containers = runtime.stream_containers(StreamContainersRequest::default()).await;
    assert!(containers.unwrap().into_inner().message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_one_below_it_is_read() {
    let daemon = Daemon::start(&[]);
    let mut client = ImageServiceClient::new(daemon.channel().await);
    let mut ask = async |bytes: usize| {
        let image = ImageSpec { image: "x".repeat(bytes), ..ImageSpec::default() };
        let request = ImageStatusRequest { image: Some(image), verbose: false };
        client.image_status(request).await.map_err(|status| status.code())
    };
    assert_ne!(ask(15 << 20).await.err(), Some(Code::OutOfRange));
    assert_eq!(ask(17 << 20).await.err(), Some(Code::OutOfRange));
}

#[tokio::test]
async fn every_call_is_logged_with_its_method_its_caller_and_its_subject() {
    let mut daemon = Daemon::start(&["--log-level", "debug"]);
    fs::write(daemon.folder.path().join("berth.toml"), "").unwrap();
    let request = CheckpointContainerRequest { container_id: "c0ffee".into(), ..Default::default() };
    let mut client = RuntimeServiceClient::new(daemon.channel().await);
    client.checkpoint_container(request).await.unwrap_err();
    let output = tokio::task::spawn_blocking(move || daemon.end(Signal::SIGTERM)).await.unwrap();
    let log = stderr(&output);
    let line =
        log.lines().find(|line| line.contains("CheckpointContainer")).unwrap_or_else(|| panic!("{log}"));
    for part in [
        format!("peer.pid={}", std::process::id()),
        "container.id=\"c0ffee\"".to_owned(),
        "code=NotFound".to_owned(),
        "latency_ms=".to_owned(),
    ] {
        assert!(line.contains(&part), "{part} is missing: {line}");
    }
}

#[test]
fn the_log_can_be_json() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("berth.toml"), "log_format = \"json\"\n").unwrap();
    let mut daemon = Daemon { child: None, folder };
    let notify = UnixDatagram::bind(daemon.folder.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = command(daemon.folder.path());
    command.env("NOTIFY_SOCKET", daemon.folder.path().join("notify")).stderr(Stdio::piped());
    daemon.child = Some(command.spawn().unwrap());
    notify.recv(&mut [0; 64]).unwrap();
    let log = stderr(&daemon.end(Signal::SIGTERM));
    let serving = log.lines().find(|line| line.contains("\"serving\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(serving.starts_with('{') && serving.ends_with('}'), "{serving}");
}

#[test]
fn faults_of_the_file_end_with_78_and_all_are_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("berth.toml"), "log_format = \"xml\"\nrot = 1\n[network]\nmtu = 3\n")
        .unwrap();
    let output = command(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    for part in ["3 faults", "line 1: log_format", "line 2: rot: unknown key", "line 4: network.mtu"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    assert!(!folder.path().join("root").exists(), "nothing was touched");
}

#[test]
fn a_named_file_that_is_missing_ends_with_78_and_a_wrong_flag_with_64() {
    let berthd = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_berthd")).args(args).output().unwrap();
    let missing = berthd(&["--config", "/nonexistent/berth.toml", "config"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(stderr(&missing).contains("/nonexistent/berth.toml"));
    assert_eq!(berthd(&["--no-such-flag"]).status.code(), Some(64));
    assert_eq!(berthd(&["--version"]).status.code(), Some(0));
}

#[test]
fn config_prints_what_is_in_force_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("berth.toml"), "[network]\nbridge = \"mine0\"\n").unwrap();
    let output = command(folder.path()).args(["config", "--log-level", "warn"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("bridge = \"mine0\""), "of the file");
    assert!(printed.contains("log_level = \"warn\""), "of a flag");
    assert!(printed.contains("ipv4_subnet = \"10.83.0.0/16\""), "a default");
    assert!(!folder.path().join("root").exists());
}
