//! The caller's deadline.
//!
//! tonic watches `grpc-timeout` as well, outside of our layers, but answers CANCELLED, and kubelet and critest look
//! for DEADLINE_EXCEEDED. Here the same clock starts a moment earlier, and tonic asks us before it looks at its own.

use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::around::{Answer, Around};

/// Gives up a handler whose caller has given up. A handler's work that must not be given up runs on a task of its own.
#[derive(Clone, Copy, Debug)]
pub struct Deadline;

impl Around for Deadline {
    fn around<S>(&self, request: Request<Body>, next: &mut S) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
    {
        let Some(patience) = patience(request.headers()) else {
            return Box::pin(next.call(request));
        };
        // Before the handler: the clock must not start after tonic's.
        let answer = timeout(patience, next.call(request));
        Box::pin(async move {
            answer.await.unwrap_or_else(|_| {
                Ok(Status::deadline_exceeded(format!("not done within the caller's {patience:?}"))
                    .into_http())
            })
        })
    }
}

/// `grpc-timeout`: up to eight digits and a unit. One that does not parse is no deadline, as for tonic.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Code;
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::rpc::AroundLayer;

    fn parsed(text: &str) -> Option<Duration> {
        patience(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]))
    }

    #[test]
    fn every_unit_of_the_protocol_is_read_and_nonsense_is_no_deadline() {
        assert_eq!(parsed("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parsed("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parsed("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "5", "123456789S", "-1S", "1x", "+1S"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn an_expired_deadline_is_deadline_exceeded() {
        let never = service_fn(|_| std::future::pending::<Result<Response<Body>, Infallible>>());
        let request = Request::builder().header("grpc-timeout", "1m").body(Body::default()).unwrap();
        let answer = AroundLayer(Deadline).layer(never).oneshot(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}
