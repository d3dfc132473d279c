//! The metrics as Prometheus reads them where no kubelet passes them on: OpenMetrics text, under the same names.

use std::collections::HashMap;
use std::fmt;

use berth_cri::runtime::v1 as cri;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{BASE_LABELS, Kind, Metric};

/// What ListPodSandboxMetrics answers, for a registry of `prometheus_client`.
#[derive(Debug)]
pub struct Exposition(pub Vec<cri::PodSandboxMetrics>);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut samples: HashMap<&str, Vec<&cri::Metric>> = HashMap::new();
        let of_pods = self.0.iter().flat_map(|pod| &pod.metrics);
        let of_containers = self.0.iter().flat_map(|pod| &pod.container_metrics).flat_map(|one| &one.metrics);
        for sample in of_pods.chain(of_containers) {
            samples.entry(&sample.name).or_default().push(sample);
        }
        for metric in Metric::ALL {
            let Some(samples) = samples.get(metric.name()) else { continue };
            let (name, kind) = named(*metric);
            let mut family = encoder.encode_descriptor(name, metric.help(), None, kind)?;
            for sample in samples {
                let keys = BASE_LABELS.iter().chain(metric.own_labels()).copied();
                let labels: Vec<_> = keys.zip(sample.label_values.iter().map(String::as_str)).collect();
                put(family.encode_family(&labels)?, kind, sample.value.unwrap_or_default().value)?;
            }
        }
        Ok(())
    }
}

/// OpenMetrics has counters end in `_total`, and adds that itself; cAdvisor has one that does not.
fn named(metric: Metric) -> (&'static str, MetricType) {
    match (metric.kind(), metric.name().strip_suffix("_total")) {
        (Kind::Counter, Some(name)) => (name, MetricType::Counter),
        (Kind::Counter, None) => (metric.name(), MetricType::Unknown),
        (Kind::Gauge, _) => (metric.name(), MetricType::Gauge),
    }
}

fn put(mut sample: MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => sample.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    fn sample(metric: Metric, labels: &[&str], value: u64) -> cri::Metric {
        cri::Metric {
            name: metric.name().to_owned(),
            label_values: labels.iter().map(|label| (*label).to_owned()).collect(),
            value: Some(cri::UInt64Value { value }),
            ..Default::default()
        }
    }

    #[test]
    fn a_family_stands_in_one_piece_and_labels_are_quoted() {
        let container = |name: &str, value| cri::ContainerMetrics {
            container_id: name.to_owned(),
            metrics: vec![
                sample(Metric::MemoryFailcnt, &["web", "default", name, "1", "i"], 0),
                sample(Metric::CpuUsage, &["web", "default", name, "1", "i", "total"], value),
            ],
        };
        let pod = cri::PodSandboxMetrics {
            container_metrics: vec![container("a", 1), container("b\"\n", 2)],
            ..Default::default()
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exposition(vec![pod])));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE container_cpu_usage_seconds counter",
                r#"container_cpu_usage_seconds_total{pod="web",namespace="default",container="a",id="1",image="i",cpu="total"} 1"#,
                r#"container_cpu_usage_seconds_total{pod="web",namespace="default",container="b\"\n",id="1",image="i",cpu="total"} 2"#,
                "# TYPE container_memory_failcnt unknown",
                r#"container_memory_failcnt{pod="web",namespace="default",container="a",id="1",image="i"} 0"#,
                r#"container_memory_failcnt{pod="web",namespace="default",container="b\"\n",id="1",image="i"} 0"#,
                "# EOF",
            ]
        );
    }
}
