//! How long to wait before something is tried again.

use serde::{Deserialize, Serialize};

use super::Time;

const FIRST: Time = Time::from_secs(10);
const LONGEST: Time = Time::from_secs(300);

/// A container that ran for so long has recovered.
pub(super) const RECOVERED: Time = Time::from_secs(600);

/// Kubernetes' delays: none before the first retry, then 10 s, doubling to 300 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Backoff {
    next: Time,
}

impl Backoff {
    /// The delay after one more end.
    pub(super) fn after_end(&mut self) -> Time {
        let delay = self.next;
        self.next = (self.next * 2).clamp(FIRST, LONGEST);
        delay
    }

    /// The delay after one more failure to get anywhere: never none.
    pub(super) fn after_failure(&mut self) -> Time {
        self.next = self.next.max(FIRST);
        self.after_end()
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..8).map(|_| backoff.after_end().as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.after_failure(), FIRST);
    }
}
