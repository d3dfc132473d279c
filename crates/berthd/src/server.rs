//! The gRPC server: its services, layers and limits.

use std::io;

use berth_cri::berth::v1::images_server::ImagesServer;
use berth_cri::berth::v1::pods_server::PodsServer;
use berth_cri::runtime::v1::image_service_server::ImageServiceServer;
use berth_cri::runtime::v1::runtime_service_server::RuntimeServiceServer;
use futures::Stream;
use tokio::net::UnixStream;
use tonic::transport::{self, Server};
use tower::ServiceBuilder;

use crate::config::Limits;
pub use crate::config::MESSAGE_BYTES;
use crate::metrics::Calls;
use crate::rpc::{Admission, AroundLayer, Deadline, Trace};
use crate::services::Handlers;

/// Calls in flight on one connection. kubelet uses two connections for everything, so this is not the limit that
/// counts (`limits.max_rpcs` is); it bounds what h2 buffers for a client that opens streams and sends nothing.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// kubelet's and crictl's headers are below 1 kB.
const HEADER_BYTES: u32 = 16 << 10;

/// Streams that a client made us reset; a client that gets there is broken (CVE-2023-44487 and its kin).
const RESETS_PER_CONNECTION: usize = 1024;

/// Serves until `stop` resolves, then until the calls in flight have ended: without a deadline, that is the caller's.
///
/// # Errors
/// The transport's; a single connection's error is not one.
pub(crate) async fn serve(
    handlers: Handlers,
    calls: Calls,
    limits: &Limits,
    incoming: impl Stream<Item = io::Result<UnixStream>>,
    stop: impl Future<Output = ()>,
) -> Result<(), transport::Error> {
    // What is sent has no limit here: it is the caller who knows what it takes (kubelet: 16 MiB), and an ExecSync with
    // two full streams is above that by CRI's own rule.
    let Handlers { runtime, images, pods, more_images } = handlers;
    let runtime = RuntimeServiceServer::new(runtime).max_decoding_message_size(MESSAGE_BYTES);
    let images = ImageServiceServer::new(images).max_decoding_message_size(MESSAGE_BYTES);
    let pods = PodsServer::new(pods).max_decoding_message_size(MESSAGE_BYTES);
    let more_images = ImagesServer::new(more_images).max_decoding_message_size(MESSAGE_BYTES);
    let layers = ServiceBuilder::new() // the top line sees the call first
        .layer(AroundLayer(Trace(calls)))
        .layer(AroundLayer(Deadline)) // inside the log, which is to tell an expired deadline from a caller that went away
        .layer(AroundLayer(Admission::new(limits.max_rpcs)));
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_local_error_reset_streams(Some(RESETS_PER_CONNECTION))
        .layer(layers)
        .add_service(runtime)
        .add_service(images)
        .add_service(pods)
        .add_service(more_images)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
}
