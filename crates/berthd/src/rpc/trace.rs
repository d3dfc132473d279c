//! A span around every call, and one line at its end: who asked what about whom, how long it took, how it ended. The
//! last two are counted as well.
//!
//! An error is logged here and nowhere else: its status carries the whole chain of causes, and this is where the daemon
//! stops passing it on.

use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status};
use tower::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, error, error_span, info, warn};

use super::Method;
use super::around::{Answer, Around};
use crate::metrics::Calls;

/// Logs and counts calls.
#[derive(Clone, Debug)]
pub struct Trace(pub Calls);

impl Around for Trace {
    fn around<S>(&self, request: Request<Body>, next: &mut S) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
    {
        let method = Method::of(request.uri().path());
        let span = rpc_span(method, &request);
        let mut outcome = Outcome::new(method, span.clone(), self.0.clone());
        let answer = span.in_scope(|| next.call(request)).instrument(span);
        Box::pin(async move {
            let response = answer.await?;
            // An error without a message ends in the head; everything else in the trailers, after the last message.
            if outcome.settle(response.headers()) {
                return Ok(response);
            }
            Ok(response.map(|body| {
                Body::new(body.inspect_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        outcome.settle(trailers);
                    }
                }))
            }))
        })
    }
}

/// On the level of errors, because a span below the configured level would not name the call of an error either.
fn rpc_span(method: Method<'_>, request: &Request<Body>) -> Span {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|peer| peer.peer_cred?.pid());
    error_span!(
        "rpc",
        method = method.name(),
        peer.pid = peer,
        pod.id = Empty,
        pod.namespace = Empty,
        pod.name = Empty,
        container.id = Empty,
        container.name = Empty,
        image.ref = Empty,
    )
}

/// The line at the end, written once; by `drop` when the caller went away before.
#[derive(Debug)]
struct Outcome {
    span: Span,
    calls: Calls,
    method: String,
    began: Instant,
    settled: bool,
}

impl Outcome {
    fn new(method: Method<'_>, span: Span, calls: Calls) -> Self {
        Self { span, calls, method: method.name().to_owned(), began: Instant::now(), settled: false }
    }

    /// Writes the line when these headers or trailers say how the call ended. True when they do.
    fn settle(&mut self, headers: &HeaderMap) -> bool {
        let Some(status) = Status::from_header_map(headers) else { return false };
        if !self.settled {
            self.settled = true;
            let latency = self.began.elapsed();
            self.calls.ended(&self.method, status.code(), latency);
            let _in_span = self.span.enter();
            log(status.code(), status.message(), Method::of(&self.method).is_read(), latency);
        }
        true
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if !self.settled {
            let latency = self.began.elapsed();
            self.calls.ended(&self.method, Code::Cancelled, latency);
            let _in_span = self.span.enter();
            debug!(latency_ms = millis(latency), "the caller went away");
        }
    }
}

fn log(code: Code, message: &str, is_read: bool, latency: Duration) {
    let latency_ms = millis(latency);
    match code {
        Code::Ok if is_read => debug!(latency_ms, ?code, "done"),
        Code::Ok => info!(latency_ms, ?code, "done"),
        // A race with removal, and the caller's own doing: nothing for the node's owner.
        Code::NotFound if is_read => debug!(latency_ms, ?code, message, "failed"),
        Code::Unimplemented | Code::Cancelled => debug!(latency_ms, ?code, message, "failed"),
        Code::Internal | Code::Unknown | Code::DataLoss => error!(latency_ms, ?code, message, "failed"),
        _ => warn!(latency_ms, ?code, message, "failed"),
    }
}

/// With microseconds behind the point.
fn millis(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e6).round() / 1e3
}
