//! CRI's ImageService: translates requests, delegates, translates answers.

use berth_cri::runtime::v1::image_service_server::ImageService;
use berth_cri::runtime::v1::*;
use berth_image::{Images, Progress};
use tonic::{Request, Response, Status};

use crate::clock::unix_nanos;
use crate::code::Coded;
use crate::reply::images as reply;
use crate::rpc::{Messages, in_pieces, received};

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct ImageHandlers {
    pub(crate) images: Images,
}

impl ImageHandlers {
    fn list(&self, filter: Option<ImageFilter>) -> Result<Vec<Image>, Status> {
        let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let images = match wanted.as_str() {
            "" => self.images.list(),
            name => self.images.find(name).map_err(Coded::into_status)?.into_iter().collect(),
        };
        Ok(images.iter().map(|image| reply::image(image)).collect())
    }
}

#[tonic::async_trait]
impl ImageService for ImageHandlers {
    type StreamImagesStream = Messages<StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.list(received(request).filter)?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    /// An unknown image is no error: the answer is empty.
    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = received(request);
        let found = self.images.find(&named(request.image)?).map_err(Coded::into_status)?;
        let info = found.as_deref().filter(|_| request.verbose).map(reply::image_info).unwrap_or_default();
        Ok(Response::new(ImageStatusResponse { image: found.as_deref().map(reply::image), info }))
    }

    /// The work is dropped with the call, as kubelet's deadline wants it; other pulls of the same layers keep theirs.
    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = received(request);
        let credentials = reply::credentials(request.auth);
        let name = named(request.image)?;
        let pulled = self.images.pull(&name, credentials, &Progress::default()).await;
        let id = pulled.map_err(Coded::into_status)?;
        Ok(Response::new(PullImageResponse { image_ref: id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        self.images.remove(&named(received(request).image)?).await.map_err(Coded::into_status)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    /// Images and containers' own layers share one file system.
    async fn image_fs_info(
        &self,
        request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        received(request);
        let usage = self.images.fs_info().await.map_err(Coded::into_status)?;
        let filesystem = reply::filesystem(&usage, unix_nanos());
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![filesystem.clone()],
            container_filesystems: vec![filesystem],
        }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(received(request).filter)?;
        Ok(in_pieces(images, |images| StreamImagesResponse { images }))
    }
}

/// The name in an image spec, which must have one.
fn named(spec: Option<ImageSpec>) -> Result<String, Status> {
    let name = spec.unwrap_or_default().image;
    match name.is_empty() {
        true => Err(Status::invalid_argument("image.image must be set")),
        false => Ok(name),
    }
}
