//! The Images service: how far a pull is, and which images nobody needs.

use std::collections::HashSet;
use std::sync::Arc;

use berth_cri::berth::v1::images_server::Images as ImagesService;
use berth_cri::berth::v1::{
    PruneRequest, PruneResponse, PrunedImage, PullRequest, PullResponse, pull_response::What,
};
use berth_image::{Credentials, Image, Images, Progress};
use berth_pods::{PULL_PERIOD, Pods, image_pull};
use berth_sandbox_manager::SandboxManager;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::code::Coded;
use crate::rpc::{Messages, received};

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct ImagesHandlers {
    pub(crate) images: Images,
    pub(crate) pods: Pods,
    /// Shows the pods of everybody.
    pub(crate) manager: SandboxManager,
}

impl ImagesHandlers {
    /// Images that nothing here needs.
    fn unused(&self) -> Vec<Arc<Image>> {
        let views = self.manager.sandboxes();
        let containers = views.iter().flat_map(|view| view.containers.values());
        let mut used: HashSet<String> = containers.map(|container| container.image.id.clone()).collect();
        let named = self.pods.images();
        // A name that can name no image is used by nobody.
        let named = named.iter().filter_map(|name| self.images.find(name).ok().flatten());
        used.extend(named.map(|image| image.id.to_string()));
        let mut unused = self.images.list();
        unused.retain(|image| !image.pinned && !used.contains(image.id.as_str()));
        unused
    }
}

#[tonic::async_trait]
impl ImagesService for ImagesHandlers {
    type PullStream = Messages<PullResponse>;

    /// Dropped with its stream, like CRI's.
    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let PullRequest { reference, username, password } = received(request);
        let credentials =
            (!username.is_empty()).then(|| Credentials { username, password, ..Credentials::default() });
        let (messages, answers) = mpsc::channel(1);
        tokio::spawn(pull(self.images.clone(), reference, credentials, messages));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<PruneResponse>, Status> {
        let dry_run = received(request).dry_run;
        let mut images = Vec::new();
        for image in self.unused() {
            if !dry_run {
                self.images.remove(image.id.as_str()).await.map_err(Coded::into_status)?;
            }
            images.push(PrunedImage {
                id: image.id.to_string(),
                names: image.repo_tags.iter().chain(&image.repo_digests).cloned().collect(),
                size: image.size,
            });
        }
        Ok(Response::new(PruneResponse { images }))
    }
}

async fn pull(
    images: Images,
    reference: String,
    credentials: Option<Credentials>,
    messages: mpsc::Sender<Result<PullResponse, Status>>,
) {
    let progress = Progress::default();
    let message = |what| Ok(PullResponse { what: Some(what) });
    let tell = async {
        let mut interval = interval(PULL_PERIOD);
        loop {
            interval.tick().await;
            let what = What::Progress(image_pull(&reference, &progress));
            if messages.send(message(what)).await.is_err() {
                return;
            }
        }
    };
    let pulled = tokio::select! {
        pulled = images.pull(&reference, credentials, &progress) => pulled,
        () = tell => return,
    };
    let last = [
        message(What::Progress(image_pull(&reference, &progress))),
        pulled.map_err(Coded::into_status).and_then(|id| message(What::Id(id.to_string()))),
    ];
    for answer in last {
        // Whoever asked may have gone.
        if messages.send(answer).await.is_err() {
            return;
        }
    }
}
