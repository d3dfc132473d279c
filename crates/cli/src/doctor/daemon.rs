//! berthd itself, where it runs.

use berth_cri::runtime::v1::{StatusRequest, VersionRequest};

use super::Finding;
use crate::client::Client;

const AREA: &str = "berthd";

pub(super) async fn check(client: &Client) -> Vec<Finding> {
    let version = match client.cri().version(VersionRequest::default()).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let why = client.failed()(status);
            return vec![Finding::warn(
                AREA,
                "socket",
                why.to_string(),
                "nothing runs pods now",
                "systemctl start berth, or berthd",
            )];
        }
    };
    let found = format!("{} {} answers", version.runtime_name, version.runtime_version);
    let mut findings = vec![Finding::good(AREA, "socket", found)];
    let status = client.cri().status(StatusRequest { verbose: false }).await;
    let conditions = status.map(|answer| answer.into_inner().status.unwrap_or_default().conditions);
    for condition in conditions.unwrap_or_default().into_iter().filter(|condition| !condition.status) {
        findings.push(Finding::bad(
            AREA,
            "condition",
            format!("not {}: {}", condition.r#type, condition.reason),
            &condition.message,
            "journalctl -u berth",
        ));
    }
    findings
}
