//! How long calls take, by method and how they end.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

/// Seconds. Most calls take one to ten milliseconds; a pull takes minutes, a stop as long as its grace period.
const BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0];

/// The times of all calls since the daemon's start. Clones are the same.
#[derive(Clone, Debug)]
pub struct Calls(Family<Ended, Histogram>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    method: String,
    code: String,
}

impl Default for Calls {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BUCKETS)))
    }
}

impl Calls {
    /// Counts a call that has ended.
    pub(crate) fn ended(&self, method: &str, code: Code, latency: Duration) {
        // Anybody can call methods that are not there by any number of names.
        let method = if code == Code::Unimplemented { "unknown" } else { method };
        let ended = Ended { method: method.to_owned(), code: format!("{code:?}") };
        self.0.get_or_create(&ended).observe(latency.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "From a call's arrival to its end; of streams, to their last message";
        registry.register_with_unit("rpc_duration", help, Unit::Seconds, self.0.clone());
    }
}
