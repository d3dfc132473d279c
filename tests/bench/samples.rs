//! How long something took, many times.

use std::time::Duration;

/// Samples of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The smallest sample that at least `percent` of all do not exceed; zero when there are none.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Samples {
        Samples(samples.into_iter().collect())
    }
}

/// Milliseconds with their fraction, for printing.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Samples = (1..=30).rev().map(Duration::from_millis).collect();
        assert_eq!(samples.median(), Duration::from_millis(15));
        assert_eq!(samples.percentile(99), Duration::from_millis(30));
        assert_eq!(Samples::default().median(), Duration::ZERO);
    }
}
