//! The standard health service (gRPC, "Health Checking Protocol"), as far as a probe needs it.

use std::net::{IpAddr, SocketAddr};

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// grpc.health.v1.HealthCheckRequest.
#[derive(Clone, PartialEq, prost::Message)]
struct Check {
    /// Empty: the server as a whole.
    #[prost(string, tag = "1")]
    service: String,
}

/// grpc.health.v1.HealthCheckResponse.
#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// HealthCheckResponse.ServingStatus.SERVING.
const SERVING: i32 = 1;

/// Asks whether a service is SERVING.
pub(super) async fn check(ip: IpAddr, port: u16, service: &str) -> Result<(), String> {
    let address = SocketAddr::new(ip, port);
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| error.to_string())?.user_agent(super::http::USER_AGENT);
    let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
    let channel = channel.map_err(|error| format!("{address}: {}", crate::work::text(error)))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| format!("{address}: {}", crate::work::text(error)))?;
    let request = Request::new(Check { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    match client.unary(request, path, ProstCodec::<Check, Health>::default()).await {
        Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
        Ok(answer) => Err(format!("service {service:?} is not serving (status {})", answer.get_ref().status)),
        Err(status) if status.code() == Code::Unimplemented => {
            Err(format!("{address} has no health service (grpc.health.v1)"))
        }
        Err(status) => Err(format!("{address}: {} ({:?})", status.message(), status.code())),
    }
}
