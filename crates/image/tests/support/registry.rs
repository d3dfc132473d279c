//! The pull half of a registry, on a port of its own, with faults on demand.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use berth_image::Digest;
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LOCATION, RANGE,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

type Body = BoxBody<Bytes, std::io::Error>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    Open,
    Basic(&'static str, &'static str),
    /// A token server on the same port; anonymous tokens only when no user is named.
    Bearer(Option<(&'static str, &'static str)>),
    /// Only a refresh token is taken, by POST.
    Identity(&'static str),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
}

pub struct State {
    pub auth: Auth,
    pub blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, (String, Bytes)>,
    pub seen: Vec<Seen>,
    /// Blob answers that break off: after how many bytes, for how many more answers.
    pub break_after: Option<(usize, usize)>,
    pub ranges: bool,
    /// Blobs are answered with a redirect to this authority.
    pub redirect_blobs: Option<String>,
    /// Status for everything.
    pub broken: Option<StatusCode>,
    /// Blob answers wait here.
    pub gate: Option<Arc<Semaphore>>,
}

pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    pub async fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            auth: Auth::Open,
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            seen: Vec::new(),
            break_after: None,
            ranges: true,
            redirect_blobs: None,
            broken: None,
            gate: None,
        }));
        let served = Arc::clone(&state);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), address, request));
                    // A broken connection is what some tests are about.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Registry { address, state, server }
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.set(|state| {
            state.blobs.insert(digest.to_string(), Bytes::copy_from_slice(bytes));
        });
        digest
    }

    pub fn put_manifest(
        &self,
        repository: &str,
        names: &[&str],
        kind: &str,
        json: &serde_json::Value,
    ) -> Digest {
        let bytes = Bytes::from(serde_json::to_vec(json).unwrap());
        let digest = Digest::of(&bytes);
        self.set(|state| {
            for name in names.iter().copied().chain([digest.as_str()]) {
                state.manifests.insert(format!("{repository}:{name}"), (kind.to_owned(), bytes.clone()));
            }
        });
        digest
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn forget_seen(&self) {
        self.set(|state| state.seen.clear());
    }

    pub fn count(&self, method: Method, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
    }
}

fn full(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

fn status(status: StatusCode) -> Response<Body> {
    let message =
        format!(r#"{{"errors":[{{"code":"X","message":"the test registry says {}"}}]}}"#, status.as_u16());
    Response::builder().status(status).body(full(message.into())).unwrap()
}

async fn answer(
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let form = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let (auth, broken, gate) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen {
            method: parts.method.clone(),
            path: path.clone(),
            query: query.clone(),
            headers: parts.headers.clone(),
        });
        (state.auth.clone(), state.broken, state.gate.clone())
    };
    if let Some(broken) = broken {
        return Ok(status(broken));
    }
    let shown = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let basic = |user: &str, password: &str| {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
    };
    if path == "/token" {
        let granted = match &auth {
            Auth::Bearer(None) => shown.is_empty(),
            Auth::Bearer(Some((user, password))) => shown == basic(user, password),
            Auth::Identity(token) => {
                parts.method == Method::POST
                    && form.contains("grant_type=refresh_token")
                    && form.contains(&format!("refresh_token={token}"))
            }
            _ => false,
        };
        return Ok(match granted {
            true => Response::new(full(r#"{"token":"good"}"#.into())),
            false => status(StatusCode::UNAUTHORIZED),
        });
    }
    let (allowed, challenge) = match &auth {
        Auth::Open => (true, String::new()),
        Auth::Basic(user, password) => (shown == basic(user, password), "Basic realm=\"test\"".to_owned()),
        Auth::Bearer(_) | Auth::Identity(_) => (
            shown == "Bearer good",
            format!("Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"repository:x:pull\""),
        ),
    };
    if !allowed {
        let mut refused = status(StatusCode::UNAUTHORIZED);
        refused.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().unwrap());
        return Ok(refused);
    }
    if let Some((repository, reference)) = path.trim_start_matches("/v2/").split_once("/manifests/") {
        let found = state.lock().unwrap().manifests.get(&format!("{repository}:{reference}")).cloned();
        let Some((kind, bytes)) = found else { return Ok(status(StatusCode::NOT_FOUND)) };
        let answer = Response::builder()
            .header(CONTENT_TYPE, kind)
            .header("docker-content-digest", Digest::of(&bytes).as_str());
        return Ok(match parts.method {
            Method::HEAD => answer.header(CONTENT_LENGTH, bytes.len()).body(full(Bytes::new())).unwrap(),
            _ => answer.body(full(bytes)).unwrap(),
        });
    }
    let Some((_, digest)) = path.split_once("/blobs/") else { return Ok(status(StatusCode::NOT_FOUND)) };
    let redirect = state.lock().unwrap().redirect_blobs.clone();
    if let Some(authority) = redirect {
        let mut moved = status(StatusCode::TEMPORARY_REDIRECT);
        moved.headers_mut().insert(LOCATION, format!("http://{authority}{path}").parse().unwrap());
        return Ok(moved);
    }
    if let Some(gate) = gate {
        gate.acquire().await.unwrap().forget();
    }
    Ok(blob(&mut state.lock().unwrap(), digest, &parts.headers))
}

fn blob(state: &mut State, digest: &str, headers: &HeaderMap) -> Response<Body> {
    let Some(bytes) = state.blobs.get(digest).cloned() else { return status(StatusCode::NOT_FOUND) };
    let total = bytes.len();
    let start = headers.get(RANGE).filter(|_| state.ranges).and_then(|value| {
        value.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
    });
    let mut answer = Response::builder().header(ETAG, format!("\"{digest}\""));
    let rest = match start {
        Some(start) => {
            answer = answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {start}-{}/{total}", total - 1));
            bytes.slice(start..)
        }
        None => bytes,
    };
    answer = answer.header(CONTENT_LENGTH, rest.len()).header(ACCEPT_RANGES, "bytes");
    match &mut state.break_after {
        Some((after, times)) if *times > 0 && *after < rest.len() => {
            *times -= 1;
            let pieces = [
                Ok(Frame::data(rest.slice(..*after))),
                Err(std::io::Error::other("the test breaks the connection")),
            ];
            // The pieces go out one by one, so that the first arrives before the break.
            let stream = futures::stream::unfold(pieces.into_iter(), |mut pieces| async {
                let piece = pieces.next()?;
                if piece.is_err() {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                Some((piece, pieces))
            });
            answer.body(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(stream))))).unwrap()
        }
        _ => answer.body(full(rest)).unwrap(),
    }
}

/// hyper's boxed body wants `Sync`, which an async block is not; nobody polls it from two threads.
struct SyncStream(
    std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + Sync>>,
);

impl futures::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, std::io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}
