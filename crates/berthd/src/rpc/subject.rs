//! Whom a request is about, for the call's span: known only once the message has been decoded, that is in the handler.

use berth_cri::berth::v1::{
    AddEphemeralRequest, AttachToPodRequest, EventsRequest, ExecInPodRequest, ExplainRequest, GetPodRequest,
    GetTimelineRequest, ListPodsRequest, LogsRequest, PortForwardToPodRequest, PruneRequest, PullRequest,
    RemovePodRequest, RunRequest, SaveRequest, StopPodRequest, UsageRequest, WatchPodsRequest,
};
use berth_cri::runtime::v1::*;
use tonic::Request;
use tracing::Span;

/// A request message that names a pod, a container or an image.
pub trait Subject {
    /// Puts the names into the span of the call (`pod.id`, `container.id`, ...).
    fn record(&self, span: &Span);
}

/// Opens a request: its subject goes into the call's span, the message to the handler.
pub fn received<T: Subject>(request: Request<T>) -> T {
    let message = request.into_inner();
    message.record(&Span::current());
    message
}

/// A name as it goes into the log: nobody's is this long, but a caller can send megabytes.
fn shown(name: &str) -> &str {
    const LONGEST: usize = 512;
    &name[..name.floor_char_boundary(LONGEST)]
}

macro_rules! subject {
    ($field:literal from $member:ident: $($message:ty),+ $(,)?) => {$(
        impl Subject for $message {
            fn record(&self, span: &Span) {
                span.record($field, shown(&self.$member));
            }
        }
    )+};
    (none: $($message:ty),+ $(,)?) => {$(
        impl Subject for $message {
            fn record(&self, _: &Span) {}
        }
    )+};
}

subject!("pod.id" from pod_sandbox_id:
    StopPodSandboxRequest, RemovePodSandboxRequest, PodSandboxStatusRequest, PortForwardRequest,
    PodSandboxStatsRequest, UpdatePodSandboxResourcesRequest, CheckpointPodRequest,
);
subject!("container.id" from container_id:
    StartContainerRequest, StopContainerRequest, RemoveContainerRequest, ContainerStatusRequest,
    UpdateContainerResourcesRequest, ReopenContainerLogRequest, ExecSyncRequest, ExecRequest, AttachRequest,
    ContainerStatsRequest, CheckpointContainerRequest,
);
subject!(none:
    VersionRequest, StatusRequest, RuntimeConfigRequest, UpdateRuntimeConfigRequest, ListPodSandboxRequest,
    StreamPodSandboxesRequest, ListContainersRequest, StreamContainersRequest, ListContainerStatsRequest,
    StreamContainerStatsRequest, ListPodSandboxStatsRequest, StreamPodSandboxStatsRequest, GetEventsRequest,
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, StreamPodSandboxMetricsRequest, ListImagesRequest,
    StreamImagesRequest, ImageFsInfoRequest,
);

macro_rules! of_a_pod {
    ($($message:ty),+ $(,)?) => {$(
        impl Subject for $message {
            fn record(&self, span: &Span) {
                if let Some(pod) = &self.pod {
                    span.record("pod.namespace", shown(&pod.namespace));
                    span.record("pod.name", shown(&pod.name));
                }
            }
        }
    )+};
}

of_a_pod!(
    GetPodRequest,
    WatchPodsRequest,
    StopPodRequest,
    RemovePodRequest,
    AddEphemeralRequest,
    LogsRequest,
    EventsRequest,
    GetTimelineRequest,
    UsageRequest,
    ExecInPodRequest,
    AttachToPodRequest,
    PortForwardToPodRequest,
);
subject!("image.ref" from reference: PullRequest, ExplainRequest);
subject!(none: RunRequest, ListPodsRequest, PruneRequest, SaveRequest);

impl Subject for RunPodSandboxRequest {
    fn record(&self, span: &Span) {
        record_pod(self.config.as_ref(), span);
    }
}

impl Subject for RestorePodRequest {
    fn record(&self, span: &Span) {
        record_pod(self.config.as_ref(), span);
    }
}

impl Subject for CreateContainerRequest {
    fn record(&self, span: &Span) {
        span.record("pod.id", shown(&self.pod_sandbox_id));
        let metadata = self.config.as_ref().and_then(|config| config.metadata.as_ref());
        if let Some(metadata) = metadata {
            span.record("container.name", shown(&metadata.name));
        }
    }
}

impl Subject for PullImageRequest {
    fn record(&self, span: &Span) {
        record_image(self.image.as_ref(), span);
        record_pod(self.sandbox_config.as_ref(), span);
    }
}

impl Subject for ImageStatusRequest {
    fn record(&self, span: &Span) {
        record_image(self.image.as_ref(), span);
    }
}

impl Subject for RemoveImageRequest {
    fn record(&self, span: &Span) {
        record_image(self.image.as_ref(), span);
    }
}

fn record_pod(config: Option<&PodSandboxConfig>, span: &Span) {
    if let Some(metadata) = config.and_then(|config| config.metadata.as_ref()) {
        span.record("pod.namespace", shown(&metadata.namespace));
        span.record("pod.name", shown(&metadata.name));
    }
}

fn record_image(image: Option<&ImageSpec>, span: &Span) {
    if let Some(image) = image {
        span.record("image.ref", shown(&image.image));
    }
}
