//! Synchronize: a new plugin is told of everything there is, and belongs to the others from then on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prost::Message as _;

use crate::{
    CallError, Container, Everything, PodSandbox, SynchronizeRequest, SynchronizeResponse,
    merge::Updates,
    plugin::{Plugin, RegisterError},
    shared::Shared,
    wire::message::MAX_PAYLOAD,
};

/// What an entry of a list takes beside itself: a tag and a length.
const PER_ENTRY: usize = 8;

impl Shared {
    /// Tells a plugin everything and does what it answers. It holds the turn: nothing happens to pods and containers in
    /// between that the plugin would not hear of.
    pub(crate) async fn synchronize(&self, plugin: &Arc<Plugin>) -> Result<(), RegisterError> {
        let _turn = self.turn.lock().await;
        let _counted = Counted::new(&self.synchronising);
        let inflight = self.inflight.now();
        let Everything { pods, containers } = inflight.put_right(self.runtime().state().await);
        tracing::info!(
            plugin = plugin.name,
            pods = pods.len(),
            containers = containers.len(),
            "synchronising an NRI plugin"
        );
        let mut wanted = Vec::new();
        for piece in pieces(pods, containers, MAX_PAYLOAD) {
            let answer: SynchronizeResponse = plugin
                .connection
                .call("Synchronize", &piece, self.config.request_timeout)
                .await
                .map_err(RegisterError::Synchronize)?;
            if piece.more && (!answer.more || !answer.update.is_empty()) {
                return Err(RegisterError::Pieces);
            }
            wanted = answer.update;
        }
        let mut updates = Updates::default();
        let added = updates.add(&plugin.name, wanted, None, None);
        added.map_err(|error| RegisterError::Synchronize(CallError::Closed(error.to_string())))?;
        self.plugins.add(Arc::clone(plugin));
        if let Err(error) = self.apply(updates.into_parts().0).await {
            tracing::warn!(plugin = plugin.name, %error, "an update that an NRI plugin wants at its start failed");
        }
        Ok(())
    }
}

/// One plugin in a count of them.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// As few requests as it takes with none longer than `most`.
fn pieces(pods: Vec<PodSandbox>, containers: Vec<Container>, most: usize) -> Vec<SynchronizeRequest> {
    let mut pieces = vec![SynchronizeRequest::default()];
    let mut size = 0;
    let mut room = |pieces: &mut Vec<SynchronizeRequest>, entry: usize| {
        if size + entry > most && size > 0 {
            pieces.push(SynchronizeRequest::default());
            size = 0;
        }
        size += entry;
        pieces.len() - 1
    };
    for pod in pods {
        let last = room(&mut pieces, pod.encoded_len() + PER_ENTRY);
        pieces[last].pods.push(pod);
    }
    for container in containers {
        let last = room(&mut pieces, container.encoded_len() + PER_ENTRY);
        pieces[last].containers.push(container);
    }
    let count = pieces.len();
    for piece in pieces.iter_mut().take(count - 1) {
        piece.more = true;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_at_all_is_one_piece() {
        assert_eq!(pieces(vec![], vec![], 100), [SynchronizeRequest::default()]);
    }

    #[test]
    fn everything_is_in_some_piece_and_no_piece_is_too_long() {
        let pods: Vec<_> =
            (0..50).map(|number| PodSandbox { id: format!("{number}"), ..Default::default() }).collect();
        let containers: Vec<_> = (0..100)
            .map(|number| Container {
                id: format!("{number}"),
                name: "x".repeat(number),
                ..Default::default()
            })
            .collect();
        let pieces = pieces(pods.clone(), containers.clone(), 300);
        assert!(pieces.iter().all(|piece| piece.encoded_len() <= 300));
        let (last, others) = pieces.split_last().unwrap();
        assert!(!last.more && others.iter().all(|piece| piece.more));
        assert_eq!(pieces.iter().flat_map(|piece| piece.pods.clone()).collect::<Vec<_>>(), pods);
        let all: Vec<_> = pieces.into_iter().flat_map(|piece| piece.containers).collect();
        assert_eq!(all, containers);
    }
}
