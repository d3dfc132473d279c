//! Pods, containers and images through CRI, with just enough convenience that a test reads as what it checks.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1::{
    AuthConfig, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, Image, ImageSpec, ImageStatusRequest,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    ListPodSandboxRequest, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, ReopenContainerLogRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};

use crate::{Node, PATIENCE, host, node::BUSYBOX, wait_until};

/// CRI's namespace modes, by name.
pub use k8s_cri::v1::NamespaceMode;

/// A container that runs `command` in the busybox image and logs to `<name>/0.log`.
pub fn container(name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(BUSYBOX)),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}/0.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            // kubelet's default: each container has a pid namespace of its own. Zero would mean the pod's.
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

/// A container that runs a shell script.
pub fn script(name: &str, script: &str) -> ContainerConfig {
    container(name, &["sh", "-c", script])
}

/// A container that waits to be stopped and does so at once when asked.
pub fn sleeper(name: &str) -> ContainerConfig {
    script(name, "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
}

/// The security context of a config made here.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// The resources of a config made here.
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default()
}

/// The pod's Linux settings.
pub fn pod_linux(config: &mut PodSandboxConfig) -> &mut LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

/// The pod's namespace options.
pub fn pod_namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    pod_linux(config).security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

pub fn image_spec(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.to_owned(), ..ImageSpec::default() }
}

/// The gRPC code of a failed call, wherever it is in the chain.
pub fn code_of(error: &anyhow::Error) -> Option<tonic::Code> {
    error.chain().find_map(|cause| cause.downcast_ref::<tonic::Status>()).map(tonic::Status::code)
}

impl Node {
    /// A pod's config as kubelet sends it for an ordinary pod.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{}-{name}", self.tag()),
                namespace: "tests".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.new_log_folder(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..PodSandboxConfig::default()
        }
    }

    /// A log folder that no pod before had: logs outlive their containers.
    fn new_log_folder(&self, name: &str) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        self.dir().join("logs").join(format!("{name}-{number}"))
    }

    /// Runs a pod with the default handler.
    pub async fn run_pod(&self, config: PodSandboxConfig) -> Result<Pod<'_>> {
        self.run_pod_with(config, "").await
    }

    /// Runs a pod with a handler by name.
    pub async fn run_pod_with(&self, config: PodSandboxConfig, handler: &str) -> Result<Pod<'_>> {
        std::fs::create_dir_all(&config.log_directory)
            .context("making the log directory, as kubelet does")?;
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let answer = self.runtime().run_pod_sandbox(request).await.context("RunPodSandbox")?;
        Ok(Pod { node: self, id: answer.into_inner().pod_sandbox_id, config })
    }

    /// Pulls without credentials; the image reference of the answer.
    pub async fn pull(&self, reference: &str) -> Result<String> {
        self.pull_as(reference, None).await
    }

    /// Pulls with credentials.
    pub async fn pull_as(&self, reference: &str, auth: Option<AuthConfig>) -> Result<String> {
        let request =
            PullImageRequest { image: Some(image_spec(reference)), auth, ..PullImageRequest::default() };
        let answer =
            self.images().pull_image(request).await.with_context(|| format!("pulling {reference}"))?;
        Ok(answer.into_inner().image_ref)
    }

    /// ImageStatus; `None` when there is no such image.
    pub async fn image(&self, reference: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        Ok(self.images().image_status(request).await.context("ImageStatus")?.into_inner().image)
    }

    /// The ids of all images.
    pub async fn image_list(&self) -> Result<Vec<Image>> {
        Ok(self.images().list_images(k8s_cri::v1::ListImagesRequest::default()).await?.into_inner().images)
    }

    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(image_spec(reference)) };
        self.images().remove_image(request).await.with_context(|| format!("removing {reference}"))?;
        Ok(())
    }

    /// Stops and removes every pod and removes every image.
    pub(crate) async fn remove_everything(&self) -> Result<()> {
        let mut runtime = self.runtime();
        let pods = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
        for pod in pods {
            let id = || pod.id.clone();
            runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await?;
            runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await?;
        }
        self.remove_manifest_pods().await?;
        for image in self.image_list().await? {
            self.remove_image(&image.id).await?;
        }
        Ok(())
    }
}

/// A sandbox that was run.
#[derive(Debug)]
pub struct Pod<'n> {
    pub node: &'n Node,
    pub id: String,
    pub config: PodSandboxConfig,
}

impl<'n> Pod<'n> {
    pub async fn create(&self, config: ContainerConfig) -> Result<Container<'n>> {
        if let Some((folder, _)) = config.log_path.rsplit_once('/') {
            let folder = PathBuf::from(&self.config.log_directory).join(folder);
            std::fs::create_dir_all(folder).context("making the log's folder, as kubelet does")?;
        }
        let log_path = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let answer = self.node.runtime().create_container(request).await.context("CreateContainer")?;
        Ok(Container { node: self.node, id: answer.into_inner().container_id, log_path })
    }

    /// Creates and starts.
    pub async fn run(&self, config: ContainerConfig) -> Result<Container<'n>> {
        let container = self.create(config).await?;
        container.start().await?;
        Ok(container)
    }

    /// Runs a shell script to its end in a container of its own and returns what it wrote to standard output.
    pub async fn output_of(&self, config: ContainerConfig) -> Result<String> {
        let container = self.run(config).await?;
        let status = container.wait_exited().await?;
        let text = container.log_text()?;
        ensure!(status.exit_code == 0, "exit code {} after {text:?}", status.exit_code);
        Ok(text)
    }

    pub async fn status(&self) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer = self.node.runtime().pod_sandbox_status(request).await.context("PodSandboxStatus")?;
        answer.into_inner().status.context("PodSandboxStatus without a status")
    }

    /// The pod's addresses, the primary one first.
    pub async fn ips(&self) -> Result<Vec<String>> {
        let network = self.status().await?.network.unwrap_or_default();
        Ok([network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
    }

    /// UpdatePodSandboxResources with limits of the pod, and no overhead.
    pub async fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        /// runtime.v1.UpdatePodSandboxResourcesRequest.
        #[derive(Clone, PartialEq, prost::Message)]
        struct Update {
            #[prost(string, tag = "1")]
            pod_sandbox_id: String,
            #[prost(message, optional, tag = "3")]
            resources: Option<LinuxContainerResources>,
        }
        let request = Update { pod_sandbox_id: self.id.clone(), resources: Some(resources) };
        self.node.call("/runtime.v1.RuntimeService/UpdatePodSandboxResources", request).await
    }

    pub async fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.runtime().stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        Ok(())
    }

    pub async fn remove(&self) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.runtime().remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }
}

/// What an ExecSync gave.
#[derive(Debug)]
pub struct Executed {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// A container that was created.
#[derive(Debug)]
pub struct Container<'n> {
    pub node: &'n Node,
    pub id: String,
    pub log_path: PathBuf,
}

impl Container<'_> {
    pub async fn start(&self) -> Result<()> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.node.runtime().start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// `grace` in whole seconds, as CRI has it.
    pub async fn stop(&self, grace: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        self.node.runtime().stop_container(request).await.context("StopContainer")?;
        Ok(())
    }

    pub async fn remove(&self) -> Result<()> {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.node.runtime().remove_container(request).await.context("RemoveContainer")?;
        Ok(())
    }

    pub async fn reopen_log(&self) -> Result<()> {
        let request = ReopenContainerLogRequest { container_id: self.id.clone() };
        self.node.runtime().reopen_container_log(request).await.context("ReopenContainerLog")?;
        Ok(())
    }

    pub async fn status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = self.node.runtime().container_status(request).await.context("ContainerStatus")?;
        answer.into_inner().status.context("ContainerStatus without a status")
    }

    /// The status once the container has ended.
    pub async fn wait_exited(&self) -> Result<ContainerStatus> {
        wait_until("the container to end", PATIENCE, async || {
            let status = self.status().await?;
            ensure!(status.state() == ContainerState::ContainerExited, "it is {:?}", status.state());
            Ok(status)
        })
        .await
    }

    /// ExecSync as it is; `timeout` in whole seconds, 0 for none.
    pub async fn exec_raw(&self, command: &[&str], timeout: i64) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        Ok(self.node.runtime().exec_sync(request).await.context("ExecSync")?.into_inner())
    }

    pub async fn exec(&self, command: &[&str]) -> Result<Executed> {
        let answer = self.exec_raw(command, 20).await?;
        Ok(Executed {
            stdout: String::from_utf8(answer.stdout)?,
            stderr: String::from_utf8(answer.stderr)?,
            code: answer.exit_code,
        })
    }

    /// Runs a shell script in the container; what it wrote to standard output. Fails unless it ends with 0.
    pub async fn sh(&self, script: &str) -> Result<String> {
        let done = self.exec(&["sh", "-c", script]).await?;
        ensure!(done.code == 0, "{script:?} ended with {}: {}{}", done.code, done.stdout, done.stderr);
        Ok(done.stdout)
    }

    /// Ids, in the host's pid namespace, of the container's processes; found by cgroup, without asking berth.
    pub fn pids(&self) -> Result<Vec<i32>> {
        host::processes_in_cgroup(&self.id)
    }

    /// The ids of a [`sleeper`]'s processes once it sleeps: the shell's and, which it starts a moment after the
    /// container's start, that of `sleep`.
    pub async fn wait_asleep(&self) -> Result<Vec<i32>> {
        wait_until("the sleeper to sleep", PATIENCE, async || {
            let pids = self.pids()?;
            ensure!(pids.len() == 2, "its processes: {pids:?}");
            Ok(pids)
        })
        .await
    }

    /// The id of the container's first process in the host's pid namespace.
    pub fn pid(&self) -> Result<i32> {
        self.pids()?.into_iter().min().context("the container has no process")
    }

    /// The log, parsed.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        let text = std::fs::read(&self.log_path)
            .with_context(|| format!("reading the log {}", self.log_path.display()))?;
        LogLine::parse_all(&String::from_utf8(text)?)
    }

    /// What the container wrote to standard output, put together from its log.
    pub fn log_text(&self) -> Result<String> {
        let mut text = String::new();
        for line in self.log()?.iter().filter(|line| line.stream == "stdout") {
            text.push_str(&line.content);
            if line.full {
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// Waits until the log has `count` entries.
    pub async fn wait_log(&self, count: usize) -> Result<Vec<LogLine>> {
        wait_until("the log to grow", PATIENCE, async || {
            let lines = self.log()?;
            ensure!(lines.len() >= count, "{} of {count} entries", lines.len());
            Ok(lines)
        })
        .await
    }

    /// Waits until a file exists in the container, which tells that its script has come that far.
    pub async fn wait_file(&self, path: &str) -> Result<()> {
        wait_until(&format!("{path} in the container"), Duration::from_secs(20), async || {
            let done = self.exec(&["test", "-e", path]).await?;
            ensure!(done.code == 0, "not there");
            Ok(())
        })
        .await
    }
}

/// One entry of a CRI log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub time: String,
    pub stream: String,
    /// Ends with a newline that isn't part of `content`.
    pub full: bool,
    pub content: String,
}

impl LogLine {
    /// A log file's content.
    pub fn parse_all(text: &str) -> Result<Vec<LogLine>> {
        text.split_terminator('\n').map(LogLine::parse).collect()
    }

    /// `<timestamp> <stdout|stderr> <F|P> <content>`.
    fn parse(line: &str) -> Result<LogLine> {
        let mut fields = line.splitn(4, ' ');
        let (Some(time), Some(stream), Some(tag), Some(content)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            bail!("log line with too few fields: {line:?}");
        };
        ensure!(time.contains('T') && time.len() >= 20, "log line without a time: {line:?}");
        ensure!(stream == "stdout" || stream == "stderr", "log line of no stream: {line:?}");
        ensure!(tag == "F" || tag == "P", "log line with tag {tag:?}: {line:?}");
        Ok(LogLine {
            time: time.to_owned(),
            stream: stream.to_owned(),
            full: tag == "F",
            content: content.to_owned(),
        })
    }
}
