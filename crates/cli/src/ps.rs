//! `berth ps`.

use berth_cri::berth::v1::{ListPodsRequest, Pod, pod_container::Kind};
use serde_json::Value;

use crate::args::{Format, Ps};
use crate::client::Client;
use crate::error::Error;
use crate::get;
use crate::output::{age, name, print, status, table};

pub(crate) async fn ps(client: Client, args: Ps) -> Result<u8, Error> {
    let request = ListPodsRequest { namespace: args.namespace.unwrap_or_default() };
    let pods = client.pods().list(request).await.map_err(client.failed())?.into_inner().pods;
    match args.output.output {
        Format::Table => {
            let heads = ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"];
            print!("{}", table(&heads, &pods.iter().map(row).collect::<Vec<_>>()));
        }
        format => {
            let items: Vec<Value> = pods.iter().map(get::document).collect::<Result<_, _>>()?;
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
            print(&list, format)?;
        }
    }
    Ok(0)
}

fn row(pod: &Pod) -> Vec<String> {
    let (namespace, name) = name(pod);
    // Init containers are done by then and debuggers do not count.
    let counted = pod.containers.iter().filter(|one| matches!(one.kind(), Kind::Sidecar | Kind::Standard));
    let ready = counted.clone().filter(|one| one.ready).count();
    vec![
        namespace,
        name,
        format!("{ready}/{}", counted.count()),
        status(pod),
        pod.containers.iter().map(|one| one.restarts).sum::<u32>().to_string(),
        age(pod.created_at),
        pod.ips.first().cloned().unwrap_or_default(),
    ]
}
