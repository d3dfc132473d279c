//! A list as a stream of messages, for lists that do not fit one message.

use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Response, Status};

/// Messages of a streaming answer.
pub(crate) type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Items in a message: far below kubelet's 16 MiB, however many labels they have.
const ITEMS: usize = 64;

/// Each item once, none in an empty message, then the end.
pub(crate) fn in_pieces<T, R>(items: Vec<T>, message: fn(Vec<T>) -> R) -> Response<Messages<R>>
where
    T: Send + 'static,
    R: Send + 'static,
{
    Response::new(stream::iter(items).chunks(ITEMS).map(move |items| Ok(message(items))).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_item_comes_once_and_no_message_is_empty() {
        for count in [0, 1, ITEMS, ITEMS + 1, 5 * ITEMS] {
            let items: Vec<usize> = (0..count).collect();
            let pieces: Vec<Vec<usize>> =
                in_pieces(items.clone(), |items| items).into_inner().map(Result::unwrap).collect().await;
            assert!(pieces.iter().all(|piece| !piece.is_empty()));
            assert_eq!(pieces.concat(), items);
        }
    }
}
