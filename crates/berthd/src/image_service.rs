//! CRI's ImageService: translates requests, delegates, translates answers.

use berth_cri::runtime::v1::image_service_server::ImageService;
use berth_cri::runtime::v1::*;
use futures::stream::BoxStream;
use tonic::Status;

use crate::rpc::unbuilt;

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct ImageHandlers;

#[tonic::async_trait]
impl ImageService for ImageHandlers {
    type StreamImagesStream = BoxStream<'static, Result<StreamImagesResponse, Status>>;

    unbuilt! {
        ListImages: list_images(ListImagesRequest) -> ListImagesResponse;
        StreamImages: stream_images(StreamImagesRequest) -> Self::StreamImagesStream;
        ImageStatus: image_status(ImageStatusRequest) -> ImageStatusResponse;
        PullImage: pull_image(PullImageRequest) -> PullImageResponse;
        RemoveImage: remove_image(RemoveImageRequest) -> RemoveImageResponse;
        ImageFsInfo: image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }
}
