//! What a pull tells of itself while it goes on.

use std::convert::Infallible;
use std::time::Duration;

use berth_cri::berth::v1::{ImagePull, LayerPull, layer_pull::State};
use berth_image::{LayerProgress, LayerState, Progress};
use tokio::sync::mpsc;
use tokio::time::interval;

/// To the pod's task.
#[derive(Clone, Debug)]
pub(crate) struct Telling(mpsc::Sender<(String, ImagePull)>);

/// Tellings that wait to be read; more of them would be old news.
const WAITING: usize = 16;

/// How often a pull is told of: a person's eye needs no more.
pub const PERIOD: Duration = Duration::from_millis(200);

impl Telling {
    pub(crate) fn new() -> (Self, mpsc::Receiver<(String, ImagePull)>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Tells of the pull of a container's image, until it is dropped.
    pub(crate) async fn follow(&self, container: &str, image: &str, progress: &Progress) -> Infallible {
        let mut told = None;
        let mut interval = interval(PERIOD);
        loop {
            interval.tick().await;
            let pull = image_pull(image, progress);
            if told.as_ref() != Some(&pull) {
                // Whoever is busy will hear the next one.
                let _ = self.0.try_send((container.to_owned(), pull.clone()));
                told = Some(pull);
            }
        }
    }
}

/// How far a pull is, as the services tell it.
#[must_use]
pub fn image_pull(image: &str, progress: &Progress) -> ImagePull {
    ImagePull { image: image.to_owned(), layers: progress.layers().into_iter().map(layer).collect() }
}

fn layer(layer: LayerProgress) -> LayerPull {
    LayerPull {
        digest: layer.digest,
        size: layer.size,
        fetched: layer.fetched,
        state: match layer.state {
            LayerState::Waiting => State::Waiting,
            LayerState::Fetching => State::Fetching,
            LayerState::Unpacking => State::Unpacking,
            LayerState::Done => State::Done,
        }
        .into(),
    }
}
