//! Stands in for Kubernetes' agnhost, as far as manifests here use it: `grpc-health-checking`, the standard health service
//! on port 5000.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};
use tonic::transport::Server;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("grpc-health-checking") => {}
        other => bail!("{other:?} is not known here: grpc-health-checking"),
    }
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 5000));
    Server::builder().add_service(service).serve(address).await?;
    Ok(())
}
