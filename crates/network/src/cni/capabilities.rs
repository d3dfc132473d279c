//! What plugins are told about the pod: `CNI_ARGS` and the values of `runtimeConfig` (CNI's CONVENTIONS.md).

use serde_json::{Map, Value, json};

use crate::AttachRequest;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// `CNI_ARGS`, with the names that Kubernetes plugins look for.
pub(crate) fn arguments(request: &AttachRequest) -> String {
    let pod = &request.pod;
    // A value cannot be quoted. No Kubernetes name has these two; crictl's may.
    let clean = |text: &str| text.replace([';', '='], "_");
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        clean(&pod.namespace),
        clean(&pod.name),
        clean(&request.sandbox_id),
        clean(&pod.uid),
    )
}

/// All capability values that this request has.
pub(crate) fn of_request(request: &AttachRequest) -> Map<String, Value> {
    let mut values = Map::new();
    let ports: Vec<Value> = request
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port != 0)
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol.word(),
                // portmap reads "" as any address of either family, "0.0.0.0" as any of IPv4.
                "hostIP": mapping.host_ip.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    if !ports.is_empty() {
        values.insert("portMappings".to_owned(), Value::Array(ports));
    }
    if let Some(bandwidth) = bandwidth(request) {
        values.insert("bandwidth".to_owned(), bandwidth);
    }
    if let Some(parent) = &request.cgroup_parent {
        values.insert("cgroupPath".to_owned(), Value::from(parent.as_str()));
    }
    if !request.annotations.is_empty() {
        values.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(request.annotations));
    }
    values
}

fn bandwidth(request: &AttachRequest) -> Option<Value> {
    let rate = |annotation: &str| {
        let text = request.annotations.get(annotation)?;
        let rate = bits_per_second(text);
        if rate.is_none() {
            tracing::warn!(sandbox = request.sandbox_id, annotation, text, "not a quantity; ignored");
        }
        rate
    };
    let (ingress, egress) = (rate(INGRESS), rate(EGRESS));
    if ingress.is_none() && egress.is_none() {
        return None;
    }
    // The annotations know no burst, and the plugin wants one: the largest it takes.
    let mut value = Map::new();
    for (name, rate) in [("ingress", ingress), ("egress", egress)] {
        if let Some(rate) = rate {
            value.insert(format!("{name}Rate"), Value::from(rate));
            value.insert(format!("{name}Burst"), Value::from(i32::MAX));
        }
    }
    Some(Value::Object(value))
}

/// A Kubernetes quantity, in whole bits.
fn bits_per_second(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 12] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
    ];
    let unit = UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let fraction = match fraction {
        "" => 0,
        digits => {
            let scale = 10u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
            let part = u128::from(digits.parse::<u64>().ok()?) * u128::from(unit) / scale;
            u64::try_from(part).ok()?
        }
    };
    whole.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, bits) in [
            ("10M", Some(10_000_000)),
            ("1.5Ki", Some(1536)),
            ("100", Some(100)),
            ("0.5", Some(0)),
            ("1e3", None),
            ("fast", None),
            ("-1M", None),
            ("99999999999E", None),
        ] {
            assert_eq!(bits_per_second(text), bits, "{text}");
        }
    }
}
