//! The Images service: how far a pull is, which images nobody needs, images in files.

use std::collections::HashSet;
use std::sync::Arc;

use berth_cri::berth::v1::images_server::Images as ImagesService;
use berth_cri::berth::v1::{
    ExplainRequest, ExplainResponse, LoadRequest, LoadResponse, LoadedImage, SaveRequest, SaveResponse,
};
use berth_cri::berth::v1::{
    PruneRequest, PruneResponse, PrunedImage, PullRequest, PullResponse, pull_response::What,
};
use berth_image::{Credentials, Image, Images, Progress};
use berth_pods::{PULL_PERIOD, Pods, image_pull};
use berth_sandbox_manager::SandboxManager;
use futures::StreamExt;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::code::Coded;
use crate::reply;
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
    type SaveStream = Messages<SaveResponse>;

    /// Dropped with its stream, like CRI's.
    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let PullRequest { reference, username, password } = received(request);
        let credentials = credentials(username, password);
        let (messages, answers) = mpsc::channel(1);
        tokio::spawn(pull(self.images.clone(), reference, credentials, messages));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let ExplainRequest { reference, username, password } = received(request);
        let explained = self.images.explain(&reference, credentials(username, password)).await;
        Ok(Response::new(reply::images::explanation(explained.map_err(Coded::into_status)?)))
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

    /// The archive is spooled to the disk, since what is at its end says what is at its beginning.
    async fn load(&self, request: Request<Streaming<LoadRequest>>) -> Result<Response<LoadResponse>, Status> {
        let (archive, name) = spool(&self.images, request.into_inner()).await?;
        let loaded = self.images.load(archive, name.as_deref()).await.map_err(Coded::into_status)?;
        let images = loaded.into_iter().map(|one| LoadedImage { id: one.id.to_string(), names: one.names });
        Ok(Response::new(LoadResponse { images: images.collect() }))
    }

    async fn save(&self, request: Request<SaveRequest>) -> Result<Response<Self::SaveStream>, Status> {
        let pieces = self.images.save(&received(request).images).map_err(Coded::into_status)?;
        let pieces = ReceiverStream::new(pieces).map(|piece| match piece {
            Ok(piece) => Ok(SaveResponse { piece: piece.to_vec() }),
            Err(error) => Err(error.into_status()),
        });
        Ok(Response::new(pieces.boxed()))
    }
}

fn credentials(username: String, password: String) -> Option<Credentials> {
    (!username.is_empty()).then(|| Credentials { username, password, ..Credentials::default() })
}

/// The archive on the disk, and the name for an image without one.
async fn spool(
    images: &Images,
    mut pieces: Streaming<LoadRequest>,
) -> Result<(std::fs::File, Option<String>), Status> {
    let disk = |error: std::io::Error| Status::internal(format!("cannot spool the archive: {error}"));
    let images = images.clone();
    let file = tokio::task::spawn_blocking(move || images.spool()).await;
    let file = file.map_err(|error| Status::internal(error.to_string()))?.map_err(disk)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut name = None;
    while let Some(LoadRequest { piece, name: given }) = pieces.message().await? {
        name = name.or(Some(given).filter(|name| !name.is_empty()));
        file.write_all(&piece).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)?;
    Ok((file.into_std().await, name))
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
