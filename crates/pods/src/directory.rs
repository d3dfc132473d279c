//! All pods as they are now, and those who watch them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_cri::berth::v1::{Pod, PodEvent, PodRef};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use crate::record::{History, Plan};
use crate::task::Message;
use crate::{Error, clock};

/// Namespace and name.
pub type Key = (String, String);

/// Changes that a watcher may be behind; one that is further behind is told what there is.
const CHANGES: usize = 256;

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
    pub(crate) history: Arc<History>,
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
    changes: VecDeque<(u64, Change)>,
    /// Of changes up to this generation nothing is known any more.
    forgotten: u64,
}

/// What became of a pod.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    State(Arc<Pod>),
    Removed(Key),
    /// The states before this are all that there is: of other pods nothing is known any more.
    Synced,
}

impl Default for Directory {
    fn default() -> Self {
        // Greater than any of an earlier daemon's, which changed less often than every microsecond.
        let generation = u64::try_from(clock::unix() / 1000).unwrap_or(1);
        Self {
            inner: Mutex::new(Inner {
                pods: BTreeMap::new(),
                generation,
                changes: VecDeque::new(),
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

    /// Whether this very pod is there still.
    pub(crate) fn has(&self, key: &Key, uid: &str) -> bool {
        self.lock().pods.get(key).is_some_and(|entry| entry.state.uid == uid)
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().pods.values().cloned().collect()
    }

    /// Rings the bell of a pod, or of all.
    pub(crate) fn ring(&self, uid: Option<&str>) {
        let inner = self.lock();
        let rung = inner.pods.values().filter(|entry| uid.is_none_or(|uid| entry.state.uid == uid));
        rung.for_each(|entry| entry.bell.notify_one());
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
        let generation = inner.generation + 1;
        if let Some(entry) = inner.pods.get_mut(key) {
            change(entry, generation);
            let state = Change::State(Arc::clone(&entry.state));
            self.changed(&mut inner, state);
        }
    }

    pub(crate) fn remove(&self, key: &Key) {
        let mut inner = self.lock();
        if inner.pods.remove(key).is_some() {
            self.changed(&mut inner, Change::Removed(key.clone()));
        }
    }

    /// Notes what happened as the next generation, and tells everybody.
    fn changed(&self, inner: &mut Inner, change: Change) {
        inner.generation += 1;
        inner.changes.push_back((inner.generation, change));
        if inner.changes.len() > CHANGES
            && let Some((forgotten, _)) = inner.changes.pop_front()
        {
            inner.forgotten = forgotten;
        }
        self.generation.send_replace(inner.generation);
    }

    /// What a watcher has not seen yet, in order, each with the generation to go on from.
    pub(crate) fn since(&self, seen: u64) -> Vec<(u64, Change)> {
        let inner = self.lock();
        // One that counts on from another daemon's number may have missed anything.
        if seen < inner.forgotten {
            // Whoever stops before the end does not know yet what is gone, and has to begin anew.
            let pods = inner.pods.values().map(|entry| (seen, Change::State(Arc::clone(&entry.state))));
            return pods.chain([(inner.generation, Change::Synced)]).collect();
        }
        let first = inner.changes.partition_point(|(generation, _)| *generation <= seen);
        inner.changes.range(first..).cloned().collect()
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
