//! The Pods service: translates requests, delegates, translates answers.

use std::time::Duration;

use berth_cri::berth::v1::pods_server::Pods as PodsService;
use berth_cri::berth::v1::*;
use berth_manifest::{Source, Strictness};
use berth_pods::{Key, Pods};
use berth_sandbox_manager::SandboxManager;
use berth_streaming::{StreamOptions, Streaming};
use futures::{StreamExt, stream};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::code::Coded;
use crate::reply::manifest as reply;
use crate::rpc::{Messages, received};
use crate::streams;
use crate::usage::Usage;

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct PodsHandlers {
    pub(crate) pods: Pods,
    /// Shows pods from manifests alone.
    pub(crate) manager: SandboxManager,
    pub(crate) usage: Usage,
    pub(crate) streaming: Streaming,
    /// Cancelled when the daemon ends.
    pub(crate) stopping: CancellationToken,
}

impl PodsHandlers {
    fn stream_url(&self, url: String, tty: bool) -> StreamUrl {
        StreamUrl { url, tty, certificate: self.streaming.certificate().unwrap_or_default().to_vec() }
    }
}

/// A request's pod.
fn key(pod: Option<PodRef>) -> Result<Key, Status> {
    let PodRef { namespace, name } = pod.unwrap_or_default();
    match name.is_empty() {
        true => Err(Status::invalid_argument("pod.name must be set")),
        false if namespace.is_empty() => Ok(("default".to_owned(), name)),
        false => Ok((namespace, name)),
    }
}

fn key_or_all(pod: Option<PodRef>) -> Result<Option<Key>, Status> {
    pod.map(|pod| key(Some(pod))).transpose()
}

#[tonic::async_trait]
impl PodsService for PodsHandlers {
    type WatchStream = Messages<WatchPodsResponse>;
    type LogsStream = Messages<LogLine>;
    type EventsStream = Messages<PodEvent>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<RunResponse>, Status> {
        let RunRequest { manifests, lenient, dry_run } = received(request);
        let sources: Vec<_> =
            manifests.iter().map(|one| Source { name: &one.name, text: &one.text }).collect();
        let strictness = if lenient { Strictness::Lenient } else { Strictness::Strict };
        let manifests = Pods::check(&sources, strictness).map_err(Coded::into_status)?;
        let taken = match dry_run {
            true => Pods::would_take(&manifests),
            false => self.pods.run(manifests, None).await.map_err(Coded::into_status)?,
        };
        Ok(Response::new(RunResponse { pods: taken.pods, warnings: taken.warnings }))
    }

    async fn get(&self, request: Request<GetPodRequest>) -> Result<Response<Pod>, Status> {
        let pod = self.pods.get(&key(received(request).pod)?).map_err(Coded::into_status)?;
        Ok(Response::new(Pod::clone(&pod)))
    }

    async fn list(&self, request: Request<ListPodsRequest>) -> Result<Response<ListPodsResponse>, Status> {
        let (pods, generation) = self.pods.list(&received(request).namespace);
        let pods = pods.iter().map(|pod| Pod::clone(pod)).collect();
        Ok(Response::new(ListPodsResponse { pods, generation }))
    }

    async fn watch(&self, request: Request<WatchPodsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchPodsRequest { since, pod } = received(request);
        let watch = self.pods.watch(since, key_or_all(pod)?);
        let changes =
            stream::unfold(watch, async |mut watch| Some((stream::iter(watch.next().await), watch)));
        let changes = changes.flatten().map(Ok);
        Ok(Response::new(changes.take_until(self.stopping.clone().cancelled_owned()).boxed()))
    }

    async fn stop(&self, request: Request<StopPodRequest>) -> Result<Response<StopPodResponse>, Status> {
        let StopPodRequest { pod, grace_seconds } = received(request);
        let grace = grace_seconds.map(|seconds| Duration::from_secs(seconds.into()));
        self.pods.stop(&key(pod)?, grace).await.map_err(Coded::into_status)?;
        Ok(Response::new(StopPodResponse {}))
    }

    async fn remove(
        &self,
        request: Request<RemovePodRequest>,
    ) -> Result<Response<RemovePodResponse>, Status> {
        let RemovePodRequest { pod, stop } = received(request);
        self.pods.remove(&key(pod)?, stop).await.map_err(Coded::into_status)?;
        Ok(Response::new(RemovePodResponse {}))
    }

    async fn add_ephemeral(&self, request: Request<AddEphemeralRequest>) -> Result<Response<Pod>, Status> {
        let AddEphemeralRequest { pod, manifest } = received(request);
        let manifest = manifest.unwrap_or_default();
        let source = Source { name: &manifest.name, text: &manifest.text };
        let pod = self.pods.add_ephemeral(key_or_all(pod)?.as_ref(), source).await;
        Ok(Response::new(Pod::clone(&*pod.map_err(Coded::into_status)?)))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = received(request);
        let lines = self.pods.logs(&key(request.pod.clone())?, &request).await.map_err(Coded::into_status)?;
        let lines = stream::unfold(lines, async |mut lines| {
            let line = lines.next().await?;
            Some((line.map_err(Coded::into_status), lines))
        });
        Ok(Response::new(lines.take_until(self.stopping.clone().cancelled_owned()).boxed()))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let EventsRequest { pod, follow } = received(request);
        let pod = key_or_all(pod)?;
        let (kept, coming) = self.pods.events(pod.as_ref()).map_err(Coded::into_status)?;
        let kept = stream::iter(kept).map(Ok);
        if !follow {
            return Ok(Response::new(kept.boxed()));
        }
        let coming = stream::unfold(coming, async |mut coming| match coming.recv().await {
            Ok(event) => Some((Ok(event), coming)),
            Err(RecvError::Lagged(lost)) => Some((Err(reply::too_slow(lost)), coming)),
            Err(RecvError::Closed) => None,
        });
        let coming = coming.filter(move |event| {
            let of_it =
                event.as_ref().is_err() || event.as_ref().is_ok_and(|event| reply::is_of(event, &pod));
            std::future::ready(of_it)
        });
        let all = kept.chain(coming);
        Ok(Response::new(all.take_until(self.stopping.clone().cancelled_owned()).boxed()))
    }

    async fn get_timeline(
        &self,
        request: Request<GetTimelineRequest>,
    ) -> Result<Response<PodTimeline>, Status> {
        let timeline = self.pods.timeline(&key(received(request).pod)?).map_err(Coded::into_status)?;
        Ok(Response::new(timeline))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let pod = key_or_all(received(request).pod)?;
        let mut pods = Vec::new();
        for (pod, view) in self.pods.sandboxes(pod.as_ref()).map_err(Coded::into_status)? {
            pods.push(reply::usage(pod, self.usage.pod(view).await));
        }
        Ok(Response::new(UsageResponse { pods }))
    }

    /// As CRI's Exec; the container is one of the pod's, by name.
    async fn exec(&self, request: Request<ExecInPodRequest>) -> Result<Response<StreamUrl>, Status> {
        let ExecInPodRequest { pod, container, command, stdin, tty } = received(request);
        if command.is_empty() {
            return Err(Status::invalid_argument("command must not be empty"));
        }
        let container = self.pods.running(&key(pod)?, &container, "run a command in");
        let id = container.map_err(Coded::into_status)?.id.to_string();
        let manager = self.manager.clone();
        let options = StreamOptions { stdin, stdout: true, stderr: !tty, tty };
        let handler = move |client| streams::exec(manager, id, command, options, client);
        let url = self.streaming.exec(options, handler).map_err(Coded::into_status)?;
        Ok(Response::new(self.stream_url(url, tty)))
    }

    async fn attach(&self, request: Request<AttachToPodRequest>) -> Result<Response<StreamUrl>, Status> {
        let AttachToPodRequest { pod, container, stdin } = received(request);
        let container = self.pods.running(&key(pod)?, &container, "attach to").map_err(Coded::into_status)?;
        let (manager, id, tty) = (self.manager.clone(), container.id.to_string(), container.config.tty);
        let options = StreamOptions { stdin, stdout: true, stderr: !tty, tty };
        let handler = move |client| streams::attach(manager, id, options, client);
        let url = self.streaming.attach(options, handler).map_err(Coded::into_status)?;
        Ok(Response::new(self.stream_url(url, tty)))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardToPodRequest>,
    ) -> Result<Response<StreamUrl>, Status> {
        let PortForwardToPodRequest { pod, ports } = received(request);
        let ports = reply::ports(&ports)?;
        let id = self.pods.sandbox_id(&key(pod)?, "forward ports to");
        let dialer = self.manager.dialer(&id.map_err(Coded::into_status)?).map_err(Coded::into_status)?;
        let connect = move |port| {
            let dialer = dialer.clone();
            async move { dialer.connect(port).await }
        };
        let url = self.streaming.port_forward(ports, connect).map_err(Coded::into_status)?;
        Ok(Response::new(self.stream_url(url, false)))
    }
}
