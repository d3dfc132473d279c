//! One probe of a container that runs.

use serde::{Deserialize, Serialize};

use super::plan::PlannedProbe;
use super::{ProbeAnswer, Time};

/// What the answers so far mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    /// Too few yet.
    Unknown,
    Passing,
    Failing,
}

/// The state of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probe {
    planned: PlannedProbe,
    /// When it is to be run next.
    pub(super) due: Time,
    pub(super) in_flight: bool,
    /// Equal answers in a row.
    last: Option<bool>,
    run: u32,
    pub(super) verdict: Verdict,
}

impl Probe {
    pub(super) fn new(planned: &PlannedProbe, started: Time) -> Self {
        Self {
            due: started + planned.initial_delay,
            planned: planned.clone(),
            in_flight: false,
            last: None,
            run: 0,
            verdict: Verdict::Unknown,
        }
    }

    /// Whether it is to be run now; then it is under way.
    pub(super) fn take_due(&mut self, now: Time) -> bool {
        if self.in_flight || now < self.due {
            return false;
        }
        self.in_flight = true;
        // Not from the end of the last one: a slow probe is not to be a rare one.
        self.due = now + self.planned.period;
        true
    }

    pub(super) fn answered(&mut self, answer: ProbeAnswer) {
        self.in_flight = false;
        let success = match answer {
            ProbeAnswer::Success => true,
            ProbeAnswer::Failure => false,
            ProbeAnswer::Unknown => return,
        };
        self.run = if self.last == Some(success) { self.run + 1 } else { 1 };
        self.last = Some(success);
        let (threshold, verdict) = match success {
            true => (self.planned.success_threshold, Verdict::Passing),
            false => (self.planned.failure_threshold, Verdict::Failing),
        };
        if self.run >= threshold {
            self.verdict = verdict;
        }
    }

    pub(super) fn grace(&self) -> Option<Time> {
        self.planned.grace
    }
}
