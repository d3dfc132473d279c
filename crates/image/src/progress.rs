//! How far a pull is, for whoever waits for it.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::images::lock;
use crate::unpack::LayerSpec;

/// Given to a pull, and read while it goes on; clones read the same. Reading costs the pull nothing, so it may be done as
/// often as a screen is drawn.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Vec<Followed>>>);

#[derive(Debug)]
struct Followed {
    spec: LayerSpec,
    meter: Arc<Meter>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the blob in the registry.
    pub digest: String,
    /// Bytes, compressed.
    pub size: u64,
    /// Of these.
    pub fetched: u64,
    /// Where it is.
    pub state: LayerState,
    /// Nanoseconds since the epoch; 0: not yet, or it was here before.
    pub began: i64,
    /// As `began`.
    pub ended: i64,
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// For other downloads to end.
    Waiting,
    /// Bytes come, and are unpacked as they do.
    Fetching,
    /// The last byte is here, or all were before.
    Unpacking,
    /// It is here.
    Done,
}

impl Progress {
    /// The layers, from the lowest; empty until the image's manifest is here, and for an image that is here already.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerProgress> {
        lock(&self.0).iter().map(|one| one.meter.read(&one.spec)).collect()
    }

    pub(crate) fn expect(&self, specs: &[LayerSpec]) {
        let followed = specs.iter().map(|spec| Followed { spec: spec.clone(), meter: Arc::default() });
        *lock(&self.0) = followed.collect();
    }

    /// A layer is brought by a job that has this meter, its own or another pull's.
    pub(crate) fn follow(&self, spec: &LayerSpec, meter: &Arc<Meter>) {
        for one in lock(&self.0).iter_mut().filter(|one| one.spec.blob == spec.blob) {
            one.meter = Arc::clone(meter);
        }
    }

    /// A layer is here already.
    pub(crate) fn present(&self, spec: &LayerSpec) {
        let meter = Meter { fetched: AtomicU64::new(spec.size), ..Meter::default() };
        meter.state.store(DONE, Ordering::Relaxed);
        self.follow(spec, &Arc::new(meter));
    }
}

/// What the job of a layer writes down. Each value by itself; together they are as good as a picture is.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    fetched: AtomicU64,
    state: AtomicU8,
    began: AtomicI64,
    ended: AtomicI64,
}

const FETCHING: u8 = 1;
const UNPACKING: u8 = 2;
const DONE: u8 = 3;

impl Meter {
    pub(crate) fn add(&self, bytes: usize) {
        self.fetched.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self) {
        self.began.store(now(), Ordering::Relaxed);
        self.state.store(FETCHING, Ordering::Relaxed);
    }

    pub(crate) fn all_is_here(&self) {
        self.state.store(UNPACKING, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.ended.store(now(), Ordering::Relaxed);
        self.state.store(DONE, Ordering::Relaxed);
    }

    fn read(&self, spec: &LayerSpec) -> LayerProgress {
        LayerProgress {
            digest: spec.blob.to_string(),
            size: spec.size,
            fetched: self.fetched.load(Ordering::Relaxed),
            state: match self.state.load(Ordering::Relaxed) {
                FETCHING => LayerState::Fetching,
                UNPACKING => LayerState::Unpacking,
                DONE => LayerState::Done,
                _ => LayerState::Waiting,
            },
            began: self.began.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
