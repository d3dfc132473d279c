//! All pods as they are now, and those who watch them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_cri::berth::v1::{Pod, PodEvent, PodRef};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use crate::record::Plan;
use crate::task::Message;
use crate::timeline::Span;
use crate::{Error, clock};

/// Namespace and name.
pub type Key = (String, String);

/// Removals that a watcher may be behind; one that is further behind is told what there is.
const REMOVALS: usize = 1024;

/// Events that are kept of a pod.
const EVENTS: usize = 128;

/// Events that a follower may be behind.
const EVENTS_BEHIND: usize = 1024;

/// A pod, to those who do not own it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) plan: Arc<Plan>,
    pub(crate) mailbox: mpsc::Sender<Message>,
    /// Rung when something may have happened to its sandbox.
    pub(crate) bell: Arc<Notify>,
    pub(crate) state: Arc<Pod>,
    pub(crate) spans: Arc<Vec<Span>>,
    pub(crate) ready_at: i64,
    pub(crate) events: VecDeque<PodEvent>,
}

#[derive(Debug)]
pub(crate) struct Directory {
    inner: Mutex<Inner>,
    generation: watch::Sender<u64>,
    events: broadcast::Sender<PodEvent>,
}

#[derive(Debug)]
struct Inner {
    pods: BTreeMap<Key, Entry>,
    generation: u64,
    /// Newest last.
    removed: VecDeque<(u64, Key)>,
    /// Of all removals up to this generation nothing is known any more.
    forgotten: u64,
}

/// What changed since a generation.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) generation: u64,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) removed: Vec<(u64, PodRef)>,
    /// `pods` is all there is.
    pub(crate) is_everything: bool,
}

impl Default for Directory {
    fn default() -> Self {
        // Greater than any of an earlier daemon's, which changed less often than every microsecond.
        let generation = u64::try_from(clock::unix() / 1000).unwrap_or(1);
        Self {
            inner: Mutex::new(Inner {
                pods: BTreeMap::new(),
                generation,
                removed: VecDeque::new(),
                forgotten: generation,
            }),
            generation: watch::Sender::new(generation),
            events: broadcast::Sender::new(EVENTS_BEHIND),
        }
    }
}

impl Directory {
    /// Adds a pod; its present entry when there is one of the name.
    pub(crate) fn add(&self, key: Key, entry: Entry) -> Result<(), Box<Entry>> {
        let mut inner = self.lock();
        if let Some(present) = inner.pods.get(&key) {
            return Err(Box::new(present.clone()));
        }
        inner.pods.insert(key, entry);
        Ok(())
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Entry, Error> {
        let inner = self.lock();
        inner.pods.get(key).cloned().ok_or_else(|| Error::NotFound {
            namespace: key.0.clone(),
            name: key.1.clone(),
            others: inner.pods.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect(),
        })
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().pods.values().cloned().collect()
    }

    /// All of a namespace, or of all, and from where to watch on.
    pub(crate) fn list(&self, namespace: &str) -> (Vec<Arc<Pod>>, u64) {
        let inner = self.lock();
        let pods = inner.pods.iter().filter(|((of, _), _)| namespace.is_empty() || of == namespace);
        (pods.map(|(_, entry)| Arc::clone(&entry.state)).collect(), inner.generation)
    }

    /// Changes what is known of a pod, and tells everybody.
    pub(crate) fn publish(&self, key: &Key, change: impl FnOnce(&mut Entry, u64)) {
        let mut inner = self.lock();
        inner.generation += 1;
        let generation = inner.generation;
        if let Some(entry) = inner.pods.get_mut(key) {
            change(entry, generation);
        }
        self.generation.send_replace(generation);
    }

    pub(crate) fn remove(&self, key: &Key) {
        let mut inner = self.lock();
        if inner.pods.remove(key).is_none() {
            return;
        }
        inner.generation += 1;
        let generation = inner.generation;
        inner.removed.push_back((generation, key.clone()));
        if inner.removed.len() > REMOVALS
            && let Some((forgotten, _)) = inner.removed.pop_front()
        {
            inner.forgotten = forgotten;
        }
        self.generation.send_replace(generation);
    }

    /// What is different from what a watcher has seen.
    pub(crate) fn since(&self, seen: u64) -> Changes {
        let inner = self.lock();
        // One that counts on from another daemon's number may have missed removals as well.
        let is_everything = seen < inner.forgotten;
        let seen = if is_everything { 0 } else { seen };
        let changed = inner.pods.values().filter(|entry| entry.state.generation > seen);
        let mut pods: Vec<_> = changed.map(|entry| Arc::clone(&entry.state)).collect();
        pods.sort_by_key(|pod| pod.generation);
        let removed = inner.removed.iter().filter(|(at, _)| *at > seen && !is_everything);
        // What was removed and made anew is there.
        let removed = removed.filter(|(_, key)| !inner.pods.contains_key(key));
        Changes {
            generation: inner.generation,
            pods,
            removed: removed.map(|(at, key)| (*at, reference(key))).collect(),
            is_everything,
        }
    }

    /// Changes when anything does.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Notes an event.
    pub(crate) fn note(&self, key: &Key, event: PodEvent) {
        let mut inner = self.lock();
        if let Some(entry) = inner.pods.get_mut(key) {
            if entry.events.len() >= EVENTS {
                entry.events.pop_front();
            }
            entry.events.push_back(event.clone());
        }
        // Nobody following is the usual case.
        drop(self.events.send(event));
    }

    /// The events that are kept, of one pod or of all, and those to come.
    pub(crate) fn events(&self, key: Option<&Key>) -> (Vec<PodEvent>, broadcast::Receiver<PodEvent>) {
        let inner = self.lock();
        let of = match key {
            Some(key) => (Bound::Included(key), Bound::Included(key)),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let kept = inner.pods.range::<Key, _>(of).flat_map(|(_, entry)| entry.events.iter().cloned());
        let mut kept: Vec<_> = kept.collect();
        kept.sort_by_key(|event| event.at);
        (kept, self.events.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn reference(key: &Key) -> PodRef {
    PodRef { namespace: key.0.clone(), name: key.1.clone() }
}
