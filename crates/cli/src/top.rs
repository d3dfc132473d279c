//! `berth top`.

use std::time::Duration;

use berth_cri::berth::v1::{PodUsage, UsageRequest};
use serde_json::{Value, json};

use crate::args::{Format, Top};
use crate::client::Client;
use crate::error::Error;
use crate::output::{bytes, has_colours, print, table};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) async fn top(client: Client, args: Top) -> Result<u8, Error> {
    let pod = args.pod.reference();
    loop {
        let request = UsageRequest { pod: pod.clone() };
        let pods = client.pods().usage(request).await.map_err(client.failed())?.into_inner().pods;
        match args.output.output {
            Format::Table => {
                if args.watch && has_colours() {
                    // Home, and clear what is below (ECMA-48).
                    print!("\x1b[H\x1b[J");
                }
                print!("{}", page(&pods));
            }
            format => print(&Value::Array(pods.iter().map(value).collect()), format)?,
        }
        if !args.watch {
            return Ok(0);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn page(pods: &[PodUsage]) -> String {
    let rows: Vec<_> = pods.iter().flat_map(rows).collect();
    let heads = ["POD", "CONTAINER", "CPU", "MEMORY", "LIMIT", "LAYER", "PROCESSES", "RECEIVED", "SENT"];
    table(&heads, &rows)
}

fn rows(pod: &PodUsage) -> Vec<Vec<String>> {
    let reference = pod.pod.clone().unwrap_or_default();
    let name = format!("{}/{}", reference.namespace, reference.name);
    let none = String::new;
    let mut rows = vec![vec![
        name,
        none(),
        none(),
        none(),
        none(),
        none(),
        pod.processes.to_string(),
        bytes(pod.received_bytes),
        bytes(pod.sent_bytes),
    ]];
    rows.extend(pod.containers.iter().map(|one| {
        // Thousandths of a processor, as kubectl has them; of a container that was never measured before nothing is known.
        let cpu = one.cpu_nano_cores.map_or_else(none, |cores| format!("{}m", cores / 1_000_000));
        let limit = if one.memory_limit_bytes == 0 { none() } else { bytes(one.memory_limit_bytes) };
        vec![none(), one.name.clone(), cpu, bytes(one.memory_bytes), limit, bytes(one.layer_bytes)]
    }));
    rows
}

fn value(pod: &PodUsage) -> Value {
    let reference = pod.pod.clone().unwrap_or_default();
    let containers = pod.containers.iter().map(|one| {
        json!({
            "name": one.name,
            "cpuNanos": one.cpu_nanos,
            "cpuNanoCores": one.cpu_nano_cores,
            "memoryBytes": one.memory_bytes,
            "memoryLimitBytes": one.memory_limit_bytes,
            "layerBytes": one.layer_bytes,
        })
    });
    json!({
        "namespace": reference.namespace,
        "name": reference.name,
        "processes": pod.processes,
        "receivedBytes": pod.received_bytes,
        "sentBytes": pod.sent_bytes,
        "containers": containers.collect::<Vec<_>>(),
    })
}
