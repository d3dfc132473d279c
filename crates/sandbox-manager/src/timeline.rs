//! What a pod waited for while it started: the steps, when each began, how long it took.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Steps of a pod's start-up, in the order they began. Clones share one list.
#[derive(Clone, Debug)]
pub struct Timeline {
    started: Instant,
    steps: Arc<Mutex<Vec<TimelineStep>>>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineStep {
    /// What was done, e.g. `network` or `container web: snapshot`.
    pub name: String,
    /// Counted from the arrival of RunPodSandbox.
    pub began: Duration,
    /// `None` while it runs.
    pub took: Option<Duration>,
}

/// More than a pod's start needs; restarts of containers drop the oldest beyond it, so a crash loop costs no memory.
const MAX_STEPS: usize = 128;

impl Timeline {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), steps: Arc::default() }
    }

    /// Runs a step and writes down how long it took, also when it fails.
    pub(crate) async fn step<T>(&self, name: impl Into<String>, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let name = name.into();
        {
            let mut steps = self.lock();
            if steps.len() >= MAX_STEPS {
                steps.remove(0);
            }
            steps.push(TimelineStep { name: name.clone(), began: began - self.started, took: None });
        }
        let result = work.await;
        let mut steps = self.lock();
        if let Some(step) = steps.iter_mut().rev().find(|step| step.name == name && step.took.is_none()) {
            step.took = Some(began.elapsed());
        }
        result
    }

    /// The steps so far.
    #[must_use]
    pub fn steps(&self) -> Vec<TimelineStep> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<TimelineStep>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
