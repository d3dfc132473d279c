//! Where values go: it adds the labels, and lets nothing through that kubelet would drop.

use berth_cri::runtime::v1 as cri;

use super::{BASE_LABELS, Kind, Metric};

/// The metrics of one container, or of one pod as a whole.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    base: [&'a str; BASE_LABELS.len()],
    metrics: Vec<cri::Metric>,
}

impl<'a> Sink<'a> {
    /// `base` in the order of [`BASE_LABELS`].
    pub(crate) fn new(base: [&'a str; BASE_LABELS.len()]) -> Sink<'a> {
        Sink { base, metrics: Vec::with_capacity(Metric::ALL.len()) }
    }

    pub(crate) fn put(&mut self, metric: Metric, value: u64) {
        self.put_with(metric, &[], value);
    }

    /// `own`: the values of the metric's own labels.
    pub(crate) fn put_with(&mut self, metric: Metric, own: &[&str], value: u64) {
        debug_assert_eq!(own.len(), metric.own_labels().len(), "labels of {}", metric.name());
        self.metrics.push(cri::Metric {
            name: metric.name().to_owned(),
            // 0: now. A time of its own would keep Prometheus from noticing that a series has ended.
            timestamp: 0,
            metric_type: match metric.kind() {
                Kind::Counter => cri::MetricType::Counter.into(),
                Kind::Gauge => cri::MetricType::Gauge.into(),
            },
            label_values: self.base.iter().chain(own).map(|value| (*value).to_owned()).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    pub(crate) fn into_metrics(self) -> Vec<cri::Metric> {
        self.metrics
    }
}
