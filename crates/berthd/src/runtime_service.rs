//! CRI's RuntimeService: translates requests, delegates, translates answers.

use berth_cri::runtime::v1::runtime_service_server::RuntimeService;
use berth_cri::runtime::v1::*;
use futures::stream::BoxStream;
use tonic::Status;

use crate::rpc::unbuilt;

/// Messages of a streaming answer.
type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct RuntimeHandlers;

#[tonic::async_trait]
impl RuntimeService for RuntimeHandlers {
    type StreamPodSandboxesStream = Messages<StreamPodSandboxesResponse>;
    type StreamContainersStream = Messages<StreamContainersResponse>;
    type StreamContainerStatsStream = Messages<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Messages<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Messages<StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Messages<ContainerEventResponse>;

    unbuilt! {
        Version: version(VersionRequest) -> VersionResponse;
        RunPodSandbox: run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        StopPodSandbox: stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        RemovePodSandbox: remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        PodSandboxStatus: pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        ListPodSandbox: list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        StreamPodSandboxes: stream_pod_sandboxes(StreamPodSandboxesRequest) -> Self::StreamPodSandboxesStream;
        CreateContainer: create_container(CreateContainerRequest) -> CreateContainerResponse;
        StartContainer: start_container(StartContainerRequest) -> StartContainerResponse;
        StopContainer: stop_container(StopContainerRequest) -> StopContainerResponse;
        RemoveContainer: remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        ListContainers: list_containers(ListContainersRequest) -> ListContainersResponse;
        StreamContainers: stream_containers(StreamContainersRequest) -> Self::StreamContainersStream;
        ContainerStatus: container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        UpdateContainerResources: update_container_resources(UpdateContainerResourcesRequest)
            -> UpdateContainerResourcesResponse;
        ReopenContainerLog: reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        ExecSync: exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        Exec: exec(ExecRequest) -> ExecResponse;
        Attach: attach(AttachRequest) -> AttachResponse;
        PortForward: port_forward(PortForwardRequest) -> PortForwardResponse;
        ContainerStats: container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        ListContainerStats: list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        StreamContainerStats: stream_container_stats(StreamContainerStatsRequest)
            -> Self::StreamContainerStatsStream;
        PodSandboxStats: pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        ListPodSandboxStats: list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        StreamPodSandboxStats: stream_pod_sandbox_stats(StreamPodSandboxStatsRequest)
            -> Self::StreamPodSandboxStatsStream;
        UpdateRuntimeConfig: update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        Status: status(StatusRequest) -> StatusResponse;
        CheckpointContainer: checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        CheckpointPod: checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        RestorePod: restore_pod(RestorePodRequest) -> RestorePodResponse;
        GetContainerEvents: get_container_events(GetEventsRequest) -> Self::GetContainerEventsStream;
        ListMetricDescriptors: list_metric_descriptors(ListMetricDescriptorsRequest)
            -> ListMetricDescriptorsResponse;
        ListPodSandboxMetrics: list_pod_sandbox_metrics(ListPodSandboxMetricsRequest)
            -> ListPodSandboxMetricsResponse;
        StreamPodSandboxMetrics: stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest)
            -> Self::StreamPodSandboxMetricsStream;
        RuntimeConfig: runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        UpdatePodSandboxResources: update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest)
            -> UpdatePodSandboxResourcesResponse;
    }
}
