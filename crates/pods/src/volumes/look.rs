//! Looks at what is the node's and may not answer: a network file system whose server is gone holds whoever touches it, and
//! no signal ends that. The pod is told so; it can be stopped and removed all the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::VolumeError;
use crate::node::blocking;

/// Longer than any file system that works takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Places whose look has not come back. Each holds a thread, so none is looked at twice at once.
static LOOKING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A look under way.
struct Look(PathBuf);

impl Look {
    fn begin(place: &Path) -> Option<Self> {
        let mut looking = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
        looking.insert(place.to_owned()).then(|| Self(place.to_owned()))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        LOOKING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Does the work of a place in a pod's folder. `volumes`: those it has to look at, for the error.
///
/// # Errors
/// [`VolumeError::Hangs`] when the work, or that of an earlier call, does not come back; the work's own.
pub(super) async fn look<T: Send + 'static>(
    place: &Path,
    volumes: String,
    patience: Duration,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let Some(under_way) = Look::begin(place) else { return Err(VolumeError::Hangs { volumes }) };
    let done = blocking(move || {
        let _under_way = under_way;
        work()
    });
    timeout(patience, done).await.unwrap_or(Err(VolumeError::Hangs { volumes }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_given_up_and_not_touched_again_until_it_answers() {
        let (answer, answered) = mpsc::channel::<()>();
        let place = Path::new("/a/pod/that/hangs");
        let hangs = look(place, "data".to_owned(), Duration::from_millis(20), move || {
            answered.recv().ok();
            Ok(())
        });
        assert!(matches!(hangs.await, Err(VolumeError::Hangs { volumes }) if volumes == "data"));
        let again = || look(place, "data".to_owned(), PATIENCE, || Ok(7));
        assert!(matches!(again().await, Err(VolumeError::Hangs { .. })));
        answer.send(()).unwrap();
        let mut now = again().await;
        while now.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            now = again().await;
        }
        assert_eq!(now.unwrap(), 7);
    }
}
