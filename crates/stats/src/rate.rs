//! The rate of CPU use, from two samples of a counter.
//!
//! kubelet trusts a rate that it is given and else takes the difference of two of its own samples, so a rate is given
//! only when it says something about now. Several callers (kubelet, a scrape, a person) share the samples: one that
//! asks again at once gets the last rate, not one over a few microseconds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::Clock;

/// Below this a counter that moves in ticks of 10 ms gives a rate that is mostly noise.
const SHORTEST: Duration = Duration::from_secs(1);

/// Beyond this, what was is not what is.
const LONGEST: Duration = Duration::from_secs(5 * 60);

/// Nanoseconds since 1970.
type UnixNanos = i64;

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    usage_nanos: u64,
    rate: Option<u64>,
}

/// The last sample of each container and pod.
#[derive(Debug)]
pub struct CpuRates {
    clock: Arc<dyn Clock>,
    last: Mutex<HashMap<String, Sample>>,
}

impl CpuRates {
    pub fn new(clock: Arc<dyn Clock>) -> CpuRates {
        CpuRates { clock, last: Mutex::default() }
    }

    /// Takes note of a total and answers the rate since the last one, in nanoseconds of CPU time a second.
    ///
    /// The first time there is no rate, but when it is known that the counter began at `started_at`, a little while
    /// ago: then it is the rate since. `None` again after a gap of more than five minutes, and when the counter went
    /// back (another cgroup under the same name).
    pub fn observe(&self, id: &str, usage_nanos: u64, started_at: Option<UnixNanos>) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = last.get_mut(id) {
            let gap = now.saturating_sub(known.at);
            if gap < SHORTEST && usage_nanos >= known.usage_nanos {
                return known.rate;
            }
            let rate = usage_nanos.checked_sub(known.usage_nanos).and_then(|used| rate(used, gap));
            *known = Sample { at: now, usage_nanos, rate };
            return rate;
        }
        let age = started_at.map(|started| self.clock.unix_nanos().saturating_sub(started));
        let age = age.and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
        let rate = age.and_then(|age| rate(usage_nanos, age));
        last.insert(id.to_owned(), Sample { at: now, usage_nanos, rate });
        rate
    }

    /// The container or pod is gone.
    pub fn forget(&self, id: &str) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn rate(used: u64, time: Duration) -> Option<u64> {
    if !(SHORTEST..=LONGEST).contains(&time) {
        return None;
    }
    u64::try_from(u128::from(used) * 1_000_000_000 / time.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::fake::Hand;

    fn rates() -> (Arc<Hand>, CpuRates) {
        let clock = Arc::new(Hand::new());
        (clock.clone(), CpuRates::new(clock))
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn two_samples_make_a_rate() {
        let (clock, rates) = rates();
        assert_eq!(rates.observe("a", 5 * SECOND, None), None);
        clock.pass(Duration::from_secs(10));
        assert_eq!(rates.observe("a", 10 * SECOND, None), Some(SECOND / 2), "half a core");
        clock.pass(Duration::from_secs(10));
        assert_eq!(rates.observe("a", 10 * SECOND, None), Some(0));
        assert_eq!(rates.observe("b", 10 * SECOND, None), None, "each by itself");
    }

    #[test]
    fn the_first_sample_of_a_young_container_counts_from_its_start() {
        let (clock, rates) = rates();
        let started = clock.unix_nanos();
        clock.pass(Duration::from_millis(500));
        assert_eq!(rates.observe("younger", SECOND / 4, Some(started)), None, "too early to say");
        clock.pass(Duration::from_millis(3500));
        assert_eq!(rates.observe("young", SECOND, Some(started)), Some(SECOND / 4));
        clock.pass(LONGEST);
        assert_eq!(rates.observe("old", SECOND, Some(started)), None, "its average says nothing about now");
        assert_eq!(
            rates.observe("unborn", 0, Some(clock.unix_nanos() + 5)),
            None,
            "a wall clock may step back"
        );
    }

    #[test]
    fn whoever_asks_again_at_once_gets_the_last_rate_and_does_not_spoil_the_next() {
        let (clock, rates) = rates();
        rates.observe("a", 0, None);
        clock.pass(Duration::from_secs(2));
        assert_eq!(rates.observe("a", SECOND, None), Some(SECOND / 2));
        clock.pass(Duration::from_millis(1));
        assert_eq!(rates.observe("a", SECOND, None), Some(SECOND / 2));
        clock.pass(Duration::from_millis(1999));
        assert_eq!(rates.observe("a", 2 * SECOND, None), Some(SECOND / 2), "over the whole 2 s");
    }

    #[test]
    fn a_counter_that_goes_back_a_long_gap_and_a_forgotten_name_start_afresh() {
        let (clock, rates) = rates();
        rates.observe("a", 9 * SECOND, None);
        clock.pass(Duration::from_secs(2));
        assert_eq!(rates.observe("a", SECOND, None), None);
        clock.pass(Duration::from_secs(2));
        assert_eq!(rates.observe("a", 3 * SECOND, None), Some(SECOND));
        clock.pass(LONGEST + Duration::from_secs(1));
        assert_eq!(rates.observe("a", 4 * SECOND, None), None);
        rates.forget("a");
        clock.pass(Duration::from_secs(2));
        assert_eq!(rates.observe("a", 5 * SECOND, None), None);
    }

    #[test]
    fn the_largest_numbers_fit() {
        let (clock, rates) = rates();
        rates.observe("a", 0, None);
        clock.pass(Duration::from_secs(1));
        assert_eq!(rates.observe("a", u64::MAX, None), Some(u64::MAX));
    }
}
