//! What a pull tells of itself while it goes on.

use berth_cri::berth::v1::ImagePull;
use tokio::sync::mpsc;

/// To the pod's task.
#[derive(Clone, Debug)]
pub(crate) struct Telling(mpsc::Sender<(String, ImagePull)>);

/// Tellings that wait to be read; more of them would be old news.
const WAITING: usize = 16;

impl Telling {
    pub(crate) fn new() -> (Self, mpsc::Receiver<(String, ImagePull)>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// A container's image is on its way.
    pub(crate) fn pulling(&self, container: &str, image: &str) {
        let pull = ImagePull { image: image.to_owned(), layers: Vec::new() };
        // Whoever is busy will hear the next one.
        drop(self.0.try_send((container.to_owned(), pull)));
    }
}
