//! The way to the daemon.

use std::path::PathBuf;

use berth_cri::berth::v1::images_client::ImagesClient;
use berth_cri::berth::v1::pods_client::PodsClient;
use berth_cri::berth::v1::{PodRef, WatchPodsRequest, WatchPodsResponse};
use berth_cri::runtime::v1::image_service_client::ImageServiceClient;
use berth_cri::runtime::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::error::Error;

/// berthd's own default.
pub(crate) const DEFAULT_ADDRESS: &str = "unix:///run/berth/berth.sock";

/// More than all pods of a node take.
const MAX_MESSAGE: usize = 64 << 20;

/// Dials when it is first used.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: String,
    channel: Channel,
}

impl Client {
    pub(crate) fn new(address: &str) -> Result<Self, Error> {
        let path = address.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = PathBuf::from(path.ok_or_else(|| {
            Error::Usage(format!("--address {address}: must be unix:// and an absolute path"))
        })?);
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name stands in a header and nowhere else.
        let channel = Endpoint::from_static("http://berth").connect_with_connector_lazy(connect);
        Ok(Self { address: address.to_owned(), channel })
    }

    pub(crate) fn pods(&self) -> PodsClient<Channel> {
        PodsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// CRI's RuntimeService.
    pub(crate) fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// CRI's ImageService.
    pub(crate) fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What CRI has no words for.
    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What to make of a call's error.
    pub(crate) fn failed(&self) -> impl Fn(Status) -> Error + '_ {
        |status| Error::of(&self.address, status)
    }

    /// A pod as it is and as it becomes.
    pub(crate) async fn watch(&self, pod: Option<PodRef>) -> Result<Changes, Error> {
        let request = WatchPodsRequest { since: 0, pod };
        let stream = self.pods().watch(request).await.map_err(self.failed())?.into_inner();
        Ok(Changes { stream, address: self.address.clone() })
    }
}

/// A watch.
pub(crate) struct Changes {
    stream: tonic::Streaming<WatchPodsResponse>,
    address: String,
}

impl Changes {
    pub(crate) async fn next(&mut self) -> Result<WatchPodsResponse, Error> {
        match self.stream.message().await {
            Ok(Some(change)) => Ok(change),
            Ok(None) => Err(Error::Failed("the daemon is ending; its pods run on".to_owned())),
            Err(status) => Err(Error::of(&self.address, status)),
        }
    }
}
