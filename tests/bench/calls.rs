//! CRI's calls, as kubelet makes them, each with its time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cri;
use k8s_cri::v1::{
    ContainerConfig, ContainerState, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};

use crate::{samples::Samples, timeline::Step, under_test::Runtime};

/// Run, Create and Start together: what stands between kubelet's decision and a running container.
const POD_START: &str = "pod start (Run+Create+Start)";

/// A command that does nothing: what a probe costs.
pub(crate) const EXEC: &str = "ExecSync of true";

/// The calls of a pod's life, in the order they are made, and how long each took.
#[derive(Debug, Clone)]
pub(crate) struct Calls(Vec<(&'static str, Samples)>);

impl Calls {
    pub(crate) fn new() -> Calls {
        Calls(Vec::new())
    }

    pub(crate) fn add(&mut self, call: &'static str, took: Duration) {
        match self.0.iter_mut().find(|(known, _)| *known == call) {
            Some((_, samples)) => samples.add(took),
            None => self.0.push((call, Samples::from_iter([took]))),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Samples)> {
        self.0.iter().map(|(call, samples)| (*call, samples))
    }

    pub(crate) fn of(&self, call: &str) -> Option<&Samples> {
        self.iter().find(|(known, _)| *known == call).map(|(_, samples)| samples)
    }

    /// Waits for a call and writes its time down.
    async fn timed<T>(
        &mut self,
        call: &'static str,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        let started = Instant::now();
        let answer = answer.await.context(call)?;
        self.add(call, started.elapsed());
        Ok(answer.into_inner())
    }
}

/// A pod with one container, which waits to be stopped.
pub(crate) struct Pod<'r> {
    runtime: &'r dyn Runtime,
    config: PodSandboxConfig,
    container: ContainerConfig,
    id: String,
    container_id: String,
}

impl<'r> Pod<'r> {
    pub(crate) fn new(runtime: &'r dyn Runtime, name: &str) -> Result<Pod<'r>> {
        let logs = runtime.dir().join("logs").join(name);
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: logs.display().to_string(),
            ..PodSandboxConfig::default()
        };
        cri::pod_linux(&mut config).cgroup_parent = runtime.cgroup_parent();
        let container = cri::sleeper("main");
        std::fs::create_dir_all(logs.join("main")).context("making the log folder, as kubelet does")?;
        Ok(Pod { runtime, config, container, id: String::new(), container_id: String::new() })
    }

    /// Up to the running container.
    pub(crate) async fn start(&mut self, calls: &mut Calls) -> Result<()> {
        let mut cri = self.runtime.runtime();
        let started = Instant::now();
        let run = RunPodSandboxRequest { config: Some(self.config.clone()), ..Default::default() };
        self.id = calls.timed("RunPodSandbox", cri.run_pod_sandbox(run)).await?.pod_sandbox_id;
        let create = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(self.container.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        self.container_id = calls.timed("CreateContainer", cri.create_container(create)).await?.container_id;
        let start = StartContainerRequest { container_id: self.container_id.clone() };
        calls.timed("StartContainer", cri.start_container(start)).await?;
        calls.add(POD_START, started.elapsed());
        Ok(())
    }

    /// What kubelet asks all the time, and a probe.
    pub(crate) async fn look(&self, calls: &mut Calls) -> Result<()> {
        let mut cri = self.runtime.runtime();
        let container_id = || self.container_id.clone();
        let status = ContainerStatusRequest { container_id: container_id(), verbose: false };
        let status = calls.timed("ContainerStatus", cri.container_status(status)).await?;
        let state = status.status.context("ContainerStatus without a status")?.state();
        ensure!(state == ContainerState::ContainerRunning, "the container is {state:?}");
        let all = ListContainersRequest::default();
        calls.timed("ListContainers", cri.list_containers(all)).await?;
        let all = ListPodSandboxRequest::default();
        calls.timed("ListPodSandbox", cri.list_pod_sandbox(all)).await?;
        let exec =
            ExecSyncRequest { container_id: container_id(), cmd: vec!["true".to_owned()], timeout: 10 };
        let done = calls.timed(EXEC, cri.exec_sync(exec)).await?;
        ensure!(done.exit_code == 0, "true ended with {}", done.exit_code);
        Ok(())
    }

    /// From the running container to nothing.
    pub(crate) async fn end(&self, calls: &mut Calls) -> Result<()> {
        let mut cri = self.runtime.runtime();
        let (pod_sandbox_id, container_id) = (|| self.id.clone(), || self.container_id.clone());
        let stop = StopContainerRequest { container_id: container_id(), timeout: 10 };
        calls.timed("StopContainer", cri.stop_container(stop)).await?;
        let remove = RemoveContainerRequest { container_id: container_id() };
        calls.timed("RemoveContainer", cri.remove_container(remove)).await?;
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id() };
        calls.timed("StopPodSandbox", cri.stop_pod_sandbox(stop)).await?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id() };
        calls.timed("RemovePodSandbox", cri.remove_pod_sandbox(remove)).await?;
        Ok(())
    }

    /// What the runtime says about the start; nothing when it keeps no timeline.
    pub(crate) async fn timeline(&self) -> Result<Vec<Step>> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        let answer = self.runtime.runtime().pod_sandbox_status(request).await.context("PodSandboxStatus")?;
        match answer.into_inner().info.get("timeline") {
            None => Ok(Vec::new()),
            Some(json) => Step::parse_all(json).context("reading a pod's timeline"),
        }
    }
}
