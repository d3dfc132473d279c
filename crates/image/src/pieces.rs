//! The queue between a layer's download and its unpacking, bounded by bytes: a fast registry fills it, since inflating
//! is slower than a network, and pieces can be anything from a few bytes to half a megabyte.

use std::sync::Arc;

use crate::progress::Meter;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes waiting to be unpacked: enough that neither side waits for the other's every step.
const BYTES: usize = 1 << 20;
/// Pieces waiting: with small ones there are fewer bytes.
const PIECES: usize = 64;

/// A queue's two ends.
pub(crate) fn queue(meter: &Arc<Meter>) -> (Pieces, Waiting) {
    let (queue, waiting) = mpsc::channel(PIECES);
    let room = Arc::new(Semaphore::new(BYTES));
    (Pieces { queue, room, meter: Arc::clone(meter) }, Waiting(waiting))
}

/// The end of the download.
#[derive(Debug)]
pub(crate) struct Pieces {
    queue: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    meter: Arc<Meter>,
}

/// The other end is gone: nobody wants any more.
#[derive(Debug)]
pub(crate) struct Unwanted;

impl Pieces {
    /// Waits for room. A piece larger than the whole queue is taken when it is empty.
    pub(crate) async fn send(&self, piece: Bytes) -> Result<(), Unwanted> {
        let size = u32::try_from(piece.len().min(BYTES)).expect("the queue's size fits");
        self.meter.add(piece.len());
        // What is queued gives its room back also when the other end goes.
        let room = Arc::clone(&self.room).acquire_many_owned(size).await.map_err(|_| Unwanted)?;
        self.queue.send((piece, room)).await.map_err(|_| Unwanted)
    }
}

/// The end of the unpacking.
#[derive(Debug)]
pub(crate) struct Waiting(mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>);

impl Waiting {
    /// Waits for the next piece; `None` at the end. Blocks the thread.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        self.0.blocking_recv().map(|(piece, _room)| piece)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_queue_holds_its_bytes_and_no_more() {
        let (pieces, mut waiting) = queue(&Arc::default());
        let half = Bytes::from(vec![0; BYTES / 2]);
        pieces.send(half.clone()).await.unwrap();
        pieces.send(half.clone()).await.unwrap();
        let third = pieces.send(half.clone());
        assert!(tokio::time::timeout(Duration::from_millis(50), third).await.is_err());
        let (taken, mut waiting) =
            tokio::task::spawn_blocking(move || (waiting.next(), waiting)).await.unwrap();
        assert_eq!(taken.unwrap().len(), BYTES / 2);
        pieces.send(half).await.unwrap();
        drop(pieces);
        let rest = tokio::task::spawn_blocking(move || std::iter::from_fn(|| waiting.next()).count());
        assert_eq!(rest.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_piece_of_any_size_gets_through_and_a_closed_queue_says_so() {
        let (pieces, mut waiting) = queue(&Arc::default());
        let large = Bytes::from(vec![0; 3 * BYTES]);
        pieces.send(large.clone()).await.unwrap();
        let waiting =
            tokio::task::spawn_blocking(move || waiting.next().map(|piece| (piece, waiting))).await.unwrap();
        assert_eq!(waiting.as_ref().unwrap().0.len(), large.len());
        pieces.send(large.clone()).await.unwrap();
        // A sender that waits for room learns of the end as well.
        let (sent, ()) = tokio::join!(pieces.send(large), async { drop(waiting) });
        assert!(sent.is_err());
    }
}
