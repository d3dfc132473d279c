//! `berth events`.

use berth_cri::berth::v1::{EventsRequest, PodEvent};
use serde_json::json;

use crate::args::{Events, Format};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Colour, coloured, rfc3339};

pub(crate) async fn events(client: Client, args: Events) -> Result<u8, Error> {
    let pod = args.pod.reference();
    let request = EventsRequest { pod, follow: args.follow };
    let mut events = client.pods().events(request).await.map_err(client.failed())?.into_inner();
    while let Some(event) = events.message().await.map_err(client.failed())? {
        match args.output.output {
            Format::Table => println!("{}", line(&event)),
            // One object a line: a stream has no end to close a list at.
            Format::Json | Format::Yaml => println!("{}", value(&event)),
        }
    }
    Ok(0)
}

fn line(event: &PodEvent) -> String {
    let pod = event.pod.clone().unwrap_or_default();
    let about = match (pod.name.as_str(), event.container.as_str()) {
        ("", _) => "-".to_owned(),
        (name, "") => format!("{}/{name}", pod.namespace),
        (name, container) => format!("{}/{name}[{container}]", pod.namespace),
    };
    let reason = match event.warning {
        true => coloured(&event.reason, Colour::Yellow),
        false => event.reason.clone(),
    };
    format!("{}  {about}  {reason}  {}", rfc3339(event.at), event.message)
}

fn value(event: &PodEvent) -> serde_json::Value {
    let pod = event.pod.clone().unwrap_or_default();
    json!({
        "time": rfc3339(event.at),
        "namespace": pod.namespace,
        "pod": pod.name,
        "container": event.container,
        "type": if event.warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "message": event.message,
    })
}
