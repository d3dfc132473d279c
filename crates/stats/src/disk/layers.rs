//! The size of every container's writable layer, measured in the background.
//!
//! Walking a large layer takes seconds, and kubelet asks for all of them every ten. So an answer is what was measured
//! last, at once; asking starts a measurement if the last one is old. Nobody asks, nothing is walked.
//!
//! ```text
//! usage(id, folder) ──▶ last value, or none yet
//!        └ due? ──▶ queue ──▶ at most `workers` threads ──▶ last value
//! ```
//!
//! The threads end when the queue is empty, and leave off in the middle when the [`LayerUsage`] is dropped.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{DiskUsage, measure};
use crate::Clock;

/// A layer rests this many times as long as measuring it took, so that one with millions of files costs a tenth of a
/// disk's time at most.
const REST: u32 = 10;

/// How layers are measured.
#[derive(Clone, Copy, Debug)]
pub struct LayerSettings {
    /// From the end of one measurement of a layer to the beginning of the next, at least.
    pub interval: Duration,
    /// Layers that are measured at the same time, at most; at least 1.
    pub workers: usize,
}

impl Default for LayerSettings {
    /// As often as kubelet asks, and so that a big layer does not hold up all the others.
    fn default() -> Self {
        LayerSettings { interval: Duration::from_secs(10), workers: 2 }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    pub usage: DiskUsage,
    /// When it ended: nanoseconds since 1970.
    pub at: i64,
}

/// The last measurement of each layer. Clones share them.
#[derive(Clone, Debug)]
pub struct LayerUsage(Arc<Owner>);

/// Ends the threads when the last clone goes; they themselves hold only what is inside.
#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shared {
    settings: LayerSettings,
    clock: Arc<dyn Clock>,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: HashMap<String, Layer>,
    queue: VecDeque<Job>,
    workers: usize,
    /// Tells a layer from another of the same id that came after it was forgotten.
    generation: u64,
}

#[derive(Debug)]
struct Layer {
    generation: u64,
    last: Option<Measured>,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// Not before this time.
    Due(Duration),
    Under,
}

#[derive(Debug)]
struct Job {
    id: String,
    generation: u64,
    folder: PathBuf,
}

impl LayerUsage {
    pub fn new(settings: LayerSettings, clock: Arc<dyn Clock>) -> LayerUsage {
        LayerUsage(Arc::new(Owner(Arc::new(Shared {
            settings,
            clock,
            stop: AtomicBool::new(false),
            state: Mutex::default(),
        }))))
    }

    /// The last measurement of the layer of container `id`, which is `folder`; `None` before the first has ended.
    /// Never waits.
    ///
    /// Asking once when the container starts, while its layer is small, makes sure of a first value.
    pub fn usage(&self, id: &str, folder: &Path) -> Option<Measured> {
        let shared = &self.0.0;
        let now = shared.clock.monotonic();
        let mut guard = shared.lock();
        let state = &mut *guard;
        if !state.layers.contains_key(id) {
            state.generation += 1;
            let layer = Layer { generation: state.generation, last: None, next: Next::Due(now) };
            state.layers.insert(id.to_owned(), layer);
        }
        let layer = state.layers.get_mut(id)?;
        let last = layer.last;
        if matches!(layer.next, Next::Due(due) if due <= now) {
            layer.next = Next::Under;
            let job = Job { id: id.to_owned(), generation: layer.generation, folder: folder.to_owned() };
            state.queue.push_back(job);
            if state.workers < shared.settings.workers.max(1) {
                state.workers += 1;
                drop(guard);
                Shared::start_worker(shared);
            }
        }
        last
    }

    /// The container is gone.
    pub fn forget(&self, id: &str) {
        let mut state = self.0.0.lock();
        state.layers.remove(id);
        state.queue.retain(|job| job.id != id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_worker(shared: &Arc<Shared>) {
        let worker = shared.clone();
        let started = thread::Builder::new().name("layer-usage".to_owned()).spawn(move || {
            // Counting is never urgent. A thread's own niceness is not inherited by what the daemon starts.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
            while let Some(job) = worker.next_job() {
                worker.run(&job);
            }
        });
        if let Err(error) = started {
            // What is queued waits for the next one who asks.
            warn!(%error, "no thread to measure layers with");
            let mut state = shared.lock();
            state.workers -= 1;
            if state.workers == 0 {
                let now = shared.clock.monotonic();
                for job in std::mem::take(&mut state.queue) {
                    if let Some(layer) = state.layers.get_mut(&job.id) {
                        layer.next = Next::Due(now);
                    }
                }
            }
        }
    }

    /// `None` ends the worker. Under one lock with the queue, so that a job that comes in this moment finds either a
    /// worker that will see it or a place for a new one.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        let job = if self.stop.load(Ordering::Relaxed) { None } else { state.queue.pop_front() };
        if job.is_none() {
            state.workers -= 1;
        }
        job
    }

    fn run(&self, job: &Job) {
        let begun = Instant::now();
        let measured = measure(&job.folder, &self.stop);
        let took = begun.elapsed();
        if let Err(error) = &measured {
            // As a rule the container has just been removed.
            debug!(container.id = %job.id, folder = %job.folder.display(), %error, "cannot measure a layer");
        }
        let at = self.clock.unix_nanos();
        let due = self.clock.monotonic() + self.settings.interval.max(took.saturating_mul(REST));
        let mut state = self.lock();
        if let Some(layer) = state.layers.get_mut(&job.id).filter(|layer| layer.generation == job.generation)
        {
            layer.next = Next::Due(due);
            if let Ok(usage) = measured {
                layer.last = Some(Measured { usage, at });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::clock::fake::Hand;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn layers(workers: usize) -> (Arc<Hand>, LayerUsage) {
        let clock = Arc::new(Hand::new());
        let settings = LayerSettings { interval: Duration::from_secs(10), workers };
        (clock.clone(), LayerUsage::new(settings, clock))
    }

    fn measured(layers: &LayerUsage, id: &str, folder: &Path) -> Measured {
        eventually("a first value", || layers.usage(id, folder).is_some());
        layers.usage(id, folder).unwrap()
    }

    fn eventually(what: &str, mut check: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !check() {
            assert!(Instant::now() < until, "never: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_last_value_is_answered_until_the_interval_is_over() {
        let (clock, layers) = layers(1);
        let folder = tempfile::tempdir().unwrap();
        let first = measured(&layers, "a", folder.path());
        assert_eq!((first.usage.inodes, first.at), (1, clock.unix_nanos()));
        fs::write(folder.path().join("file"), "text").unwrap();
        clock.pass(Duration::from_secs(9));
        assert_eq!(layers.usage("a", folder.path()), Some(first));
        assert!(layers.0.0.lock().queue.is_empty(), "not due");
        // Measuring an empty folder may have taken more than a second on a busy machine; then it rests for longer.
        clock.pass(Duration::from_secs(1000));
        assert_eq!(layers.usage("a", folder.path()), Some(first), "what is measured now comes later");
        eventually("the new value", || {
            layers.usage("a", folder.path()).is_some_and(|found| found.usage.inodes == 2)
        });
    }

    #[test]
    fn all_are_measured_by_few_threads_which_then_end() {
        let (_clock, layers) = layers(2);
        let folder = tempfile::tempdir().unwrap();
        for id in 0..50 {
            layers.usage(&id.to_string(), folder.path());
            assert!(layers.0.0.lock().workers <= 2);
        }
        for id in 0..50 {
            measured(&layers, &id.to_string(), folder.path());
        }
        eventually("idle threads", || layers.0.0.lock().workers == 0);
    }

    #[test]
    fn what_is_forgotten_leaves_nothing_even_while_it_is_measured() {
        let (_clock, layers) = layers(1);
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..100 {
            layers.usage("a", folder.path());
            layers.forget("a");
        }
        eventually("idle threads", || layers.0.0.lock().workers == 0);
        let state = layers.0.0.lock();
        assert!(state.layers.is_empty() && state.queue.is_empty(), "{state:?}");
    }

    #[test]
    fn a_layer_that_is_not_there_has_no_value() {
        let (_clock, layers) = layers(1);
        let folder = Path::new("/nonexistent/layer");
        assert_eq!(layers.usage("a", folder), None);
        eventually("the look at it", || layers.0.0.lock().workers == 0);
        assert_eq!(layers.usage("a", folder), None);
    }

    #[test]
    fn dropping_ends_the_threads() {
        let (_clock, layers) = layers(1);
        let shared = layers.0.0.clone();
        layers.usage("a", Path::new("/usr"));
        drop(layers.clone());
        assert!(!shared.stop.load(Ordering::Relaxed), "a clone is left");
        drop(layers);
        eventually("the thread's end", || shared.lock().workers == 0);
    }
}
