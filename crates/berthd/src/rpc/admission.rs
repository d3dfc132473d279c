//! How many calls are worked on at once.
//!
//! A call over the limit is refused at once instead of waiting: kubelet repeats it, and a queue would only turn an
//! overload into deadlines that all expire. A place is held up to the head of the response, so a stream of events
//! holds none.

use std::num::NonZeroUsize;
use std::sync::Arc;

use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::Method;
use super::around::{Answer, Around};

/// Refuses calls over the limit, except those that are vital. Clones share the limit.
#[derive(Clone, Debug)]
pub struct Admission {
    most: NonZeroUsize,
    places: Arc<Semaphore>,
}

impl Admission {
    /// For at most `most` calls over all connections.
    pub fn new(most: NonZeroUsize) -> Self {
        Self { most, places: Arc::new(Semaphore::new(most.get())) }
    }
}

impl Around for Admission {
    fn around<S>(&self, request: Request<Body>, next: &mut S) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
    {
        if Method::of(request.uri().path()).is_vital() {
            return Box::pin(next.call(request));
        }
        match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                let answer = next.call(request);
                Box::pin(async move {
                    let answer = answer.await;
                    drop(place);
                    answer
                })
            }
            Err(_) => {
                let most = self.most;
                let refused = Status::resource_exhausted(format!(
                    "{most} calls are being worked on, which is the limit (limits.max_rpcs); repeat it later"
                ));
                Box::pin(async move { Ok(refused.into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Code;
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::rpc::AroundLayer;

    fn call(method: &str) -> Request<Body> {
        Request::builder().uri(format!("/runtime.v1.RuntimeService/{method}")).body(Body::default()).unwrap()
    }

    fn code(response: &Response<Body>) -> Option<Code> {
        Status::from_header_map(response.headers()).map(|status| status.code())
    }

    #[tokio::test]
    async fn a_call_over_the_limit_is_refused_while_version_and_status_pass() {
        let layer = AroundLayer(Admission::new(NonZeroUsize::MIN));
        let slow = layer.layer(service_fn(|_| std::future::pending::<Result<Response<Body>, Infallible>>()));
        let quick =
            layer.layer(service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::default())) }));

        let mut held = slow.oneshot(call("RunPodSandbox"));
        assert!(futures::poll!(&mut held).is_pending());

        let refused = quick.clone().oneshot(call("ListContainers")).await.unwrap();
        assert_eq!(code(&refused), Some(Code::ResourceExhausted));
        for vital in ["Version", "Status"] {
            let passed = quick.clone().oneshot(call(vital)).await.unwrap();
            assert_eq!(code(&passed), None);
        }

        drop(held);
        let passed = quick.oneshot(call("ListContainers")).await.unwrap();
        assert_eq!(code(&passed), None, "a cancelled call gives its place back");
    }
}
