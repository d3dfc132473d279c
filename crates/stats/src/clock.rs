//! Time, as a value that tests can hold still.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What time it is.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Time that only moves forward, from any start: for intervals.
    fn monotonic(&self) -> Duration;
    /// Nanoseconds since 1970: for what is reported.
    fn unix_nanos(&self) -> i64;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix_nanos(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::{sync::Mutex, time::Duration};

    use super::Clock;

    /// Both clocks in step, moved by hand; 1970 plus 1000 s at first.
    #[derive(Debug)]
    pub(crate) struct Hand(Mutex<Duration>);

    impl Hand {
        pub(crate) fn new() -> Hand {
            Hand(Mutex::new(Duration::from_secs(1000)))
        }

        pub(crate) fn pass(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    impl Clock for Hand {
        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn unix_nanos(&self) -> i64 {
            i64::try_from(self.monotonic().as_nanos()).unwrap()
        }
    }
}
