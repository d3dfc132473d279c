//! CRI's RuntimeService: translates requests, delegates, translates answers.

use std::sync::Arc;
use std::time::Duration;

use berth_cri::runtime::v1::runtime_service_server::RuntimeService;
use berth_cri::runtime::v1::*;
use berth_network::Network;
use berth_nri::Nri;
use berth_sandbox_manager::SandboxManager;
use berth_streaming::{StreamOptions, Streaming};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::code::Coded;
use crate::config::Config;
use crate::reply::{node, pods as reply};
use crate::rpc::{Messages, in_pieces, received, unbuilt};
use crate::streams;
use crate::usage::Usage;

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct RuntimeHandlers {
    pub(crate) config: Arc<Config>,
    pub(crate) manager: SandboxManager,
    pub(crate) network: Network,
    pub(crate) usage: Usage,
    pub(crate) streaming: Streaming,
    /// Cancelled when the daemon ends.
    pub(crate) stopping: CancellationToken,
    /// Absent when plugins are not wanted.
    pub(crate) nri: Option<Nri>,
}

impl RuntimeHandlers {
    fn list_sandboxes(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let views = self.manager.sandboxes();
        let fitting = views.iter().filter(|view| reply::sandbox_fits(&view.sandbox, &filter));
        fitting.map(|view| reply::sandbox(&view.sandbox)).collect()
    }

    fn list_all_containers(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let filter = filter.unwrap_or_default();
        let views = self.manager.sandboxes();
        let all = views.iter().flat_map(|view| view.containers.values());
        all.filter(|container| reply::container_fits(container, &filter))
            .map(|container| reply::container(container))
            .collect()
    }
}

impl RuntimeHandlers {
    async fn all_container_stats(&self, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
        let filter = filter.unwrap_or_default();
        let filter = ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: None,
        };
        self.usage.containers(move |container| reply::container_fits(container, &filter)).await
    }

    async fn all_pod_stats(&self, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let filter = PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state: None };
        self.usage.pods(move |pod| reply::sandbox_fits(&pod.sandbox, &filter)).await
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeHandlers {
    type StreamPodSandboxesStream = Messages<StreamPodSandboxesResponse>;
    type StreamContainersStream = Messages<StreamContainersResponse>;
    type StreamContainerStatsStream = Messages<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Messages<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Messages<StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Messages<ContainerEventResponse>;

    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        received(request);
        Ok(Response::new(node::version()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let verbose = received(request).verbose;
        let network = self.network.status();
        let mut status = node::status(&self.manager, &network);
        if verbose {
            status.info = node::status_info(&self.config, &network, self.nri.as_ref());
        }
        Ok(Response::new(status))
    }

    async fn runtime_config(
        &self,
        request: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        received(request);
        Ok(Response::new(node::runtime_config(&self.config)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        let network = received(request).runtime_config.and_then(|config| config.network_config);
        let cidr = network.unwrap_or_default().pod_cidr;
        self.network.set_pod_cidr(&cidr).await.map_err(Coded::into_status)?;
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn get_container_events(
        &self,
        request: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        received(request);
        let events = futures::stream::unfold(Some(self.manager.listen()), async |listener| {
            let mut listener = listener?;
            match listener.next().await? {
                Ok(event) => Some((Ok(reply::event(&event)), Some(listener))),
                // Whoever missed something has to look at everything anew; the end of the stream makes it do so.
                Err(lost) => Some((Err(lost.into_status()), None)),
            }
        });
        Ok(Response::new(events.take_until(self.stopping.clone().cancelled_owned()).boxed()))
    }

    // --- Sandboxes

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let request = received(request);
        let config = request.config.unwrap_or_default();
        let id =
            self.manager.run_sandbox(config, &request.runtime_handler).await.map_err(Coded::into_status)?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let id = received(request).pod_sandbox_id;
        self.manager.stop_sandbox(&id).await.map_err(Coded::into_status)?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let id = received(request).pod_sandbox_id;
        self.manager.remove_sandbox(&id).await.map_err(Coded::into_status)?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let request = received(request);
        let view = self.manager.sandbox(&request.pod_sandbox_id).map_err(Coded::into_status)?;
        let mut status = reply::sandbox_status(&view);
        if request.verbose {
            status.info = reply::sandbox_info(&view);
        }
        Ok(Response::new(status))
    }

    /// The pod's cgroup is kubelet's, who writes the new limits itself once no plugin objects.
    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        let request = received(request);
        let updated =
            self.manager.update_sandbox(&request.pod_sandbox_id, request.overhead, request.resources).await;
        updated.map_err(Coded::into_status)?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let sandboxes = self.list_sandboxes(received(request).filter);
        Ok(in_pieces(sandboxes, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let containers = self.list_all_containers(received(request).filter);
        Ok(in_pieces(containers, |containers| StreamContainersResponse { containers }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let items = self.list_sandboxes(received(request).filter);
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    // --- Containers

    /// The sandbox's config is known since RunPodSandbox; what the request repeats of it may have changed and is not
    /// looked at.
    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let request = received(request);
        let config = request.config.unwrap_or_default();
        let created = self.manager.create_container(&request.pod_sandbox_id, config).await;
        let id = created.map_err(Coded::into_status)?;
        Ok(Response::new(CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let id = received(request).container_id;
        self.manager.start_container(&id).await.map_err(Coded::into_status)?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let request = received(request);
        let grace = seconds(request.timeout);
        self.manager.stop_container(&request.container_id, grace).await.map_err(Coded::into_status)?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let id = received(request).container_id;
        self.manager.remove_container(&id).await.map_err(Coded::into_status)?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = self.list_all_containers(received(request).filter);
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let request = received(request);
        let (_, container) = self.manager.container(&request.container_id).map_err(Coded::into_status)?;
        let info = match request.verbose {
            false => Default::default(),
            true => {
                let spec = self.manager.oci_spec(&container).await.map_err(Coded::into_status)?;
                reply::container_info(&container, spec.as_deref())
            }
        };
        let status = Some(reply::container_status(&container));
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let request = received(request);
        let limits = request.linux.unwrap_or_default();
        self.manager.update_container(&request.container_id, limits).await.map_err(Coded::into_status)?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    // --- Use

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        let id = received(request).container_id;
        let (pod, container) = self.manager.container(&id).map_err(Coded::into_status)?;
        let stats = Some(self.usage.container(pod, container).await);
        Ok(Response::new(ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let stats = self.all_container_stats(received(request).filter).await;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let stats = self.all_container_stats(received(request).filter).await;
        Ok(in_pieces(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        let id = received(request).pod_sandbox_id;
        let pod = self.manager.sandbox(&id).map_err(Coded::into_status)?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(self.usage.pod(pod).await) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let stats = self.all_pod_stats(received(request).filter).await;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let stats = self.all_pod_stats(received(request).filter).await;
        Ok(in_pieces(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        received(request);
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: berth_stats::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        received(request);
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics: self.usage.metrics().await }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        received(request);
        let metrics = self.usage.metrics().await;
        Ok(in_pieces(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    // --- Inside containers

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        let request = received(request);
        let limit = Some(seconds(request.timeout)).filter(|limit| !limit.is_zero());
        let done = self.manager.exec_sync(&request.container_id, &request.cmd, limit).await;
        let output = done.map_err(Coded::into_status)?;
        Ok(Response::new(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        }))
    }

    /// The command runs once the client has come to the URL. What is wrong already is said now: there the client has
    /// upgraded its connection and gets no status code any more.
    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = received(request);
        if cmd.is_empty() {
            return Err(Status::invalid_argument("cmd must not be empty"));
        }
        let container = self.manager.check_running(&container_id).map_err(Coded::into_status)?;
        let (manager, id) = (self.manager.clone(), container.id.to_string());
        let options = StreamOptions { stdin, stdout, stderr, tty };
        let handler = move |client| streams::exec(manager, id, cmd, options, client);
        let url = self.streaming.exec(options, handler).map_err(Coded::into_status)?;
        Ok(Response::new(ExecResponse { url }))
    }

    /// Whether there is a terminal is the container's affair: a caller that says otherwise is told so.
    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let AttachRequest { container_id, stdin, tty, stdout, stderr } = received(request);
        let container = self.manager.check_running(&container_id).map_err(Coded::into_status)?;
        if tty != container.config.tty {
            let has = if container.config.tty { "has" } else { "has not" };
            return Err(Status::invalid_argument(format!(
                "tty is {tty}, but the container {has} a terminal"
            )));
        }
        let (manager, id) = (self.manager.clone(), container.id.to_string());
        let options = StreamOptions { stdin, stdout, stderr, tty };
        let handler = move |client| streams::attach(manager, id, options, client);
        let url = self.streaming.attach(options, handler).map_err(Coded::into_status)?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let request = received(request);
        let dialer = self.manager.dialer(&request.pod_sandbox_id).map_err(Coded::into_status)?;
        let ports = request.port.iter().map(|port| u16::try_from(*port)).collect::<Result<_, _>>();
        let ports = ports.map_err(|_| Status::invalid_argument("port must be 0 to 65535"))?;
        let connect = move |port| {
            let dialer = dialer.clone();
            async move { dialer.connect(port).await }
        };
        let url = self.streaming.port_forward(ports, connect).map_err(Coded::into_status)?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        let id = received(request).container_id;
        self.manager.reopen_log(&id).await.map_err(Coded::into_status)?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        let CheckpointContainerRequest { container_id, location, timeout } = received(request);
        let limit = Some(seconds(timeout)).filter(|limit| !limit.is_zero());
        let taken = self.manager.checkpoint(&container_id, location.into(), limit).await;
        taken.map_err(Coded::into_status)?;
        Ok(Response::new(CheckpointContainerResponse {}))
    }

    unbuilt! {
        CheckpointPod: checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        RestorePod: restore_pod(RestorePodRequest) -> RestorePodResponse;
    }
}

/// CRI's whole seconds; zero or less means none.
fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
