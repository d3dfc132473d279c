//! The part that every layer around the handlers has in common.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// What a service gives for a request, at last.
pub(super) type Answer<E> = BoxFuture<'static, Result<Response<Body>, E>>;

/// Something to do around each call. [`AroundLayer`] makes a layer of it.
pub trait Around: Clone {
    /// Answers the request, by `next` or by itself. Runs before the first poll of the answer.
    fn around<S>(&self, request: Request<Body>, next: &mut S) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
        S::Error: Send + 'static;
}

/// A layer that does its `Around` around each call.
#[derive(Clone, Copy, Debug)]
pub struct AroundLayer<A>(pub A);

impl<A: Around, S> Layer<S> for AroundLayer<A> {
    type Service = AroundService<A, S>;

    fn layer(&self, inner: S) -> AroundService<A, S> {
        AroundService { around: self.0.clone(), inner }
    }
}

/// A service with something around it.
#[derive(Clone, Debug)]
pub struct AroundService<A, S> {
    around: A,
    inner: S,
}

impl<A, S> Service<Request<Body>> for AroundService<A, S>
where
    A: Around,
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Error> {
        self.around.around(request, &mut self.inner)
    }
}
