//! Answering requests.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpListener,
};

use super::{Fault, Logged, Shared};
use crate::image::{Blob, Content};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes sent at once, so that faults can strike inside a blob and a large one needs no memory.
const CHUNK: u64 = 256 * 1024;

/// Accepts connections until dropped.
pub(super) async fn accept(listener: TcpListener, address: SocketAddr, shared: Shared) {
    loop {
        // A failed accept is the client's trouble; there is nobody here to tell.
        let Ok((connection, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(request, address, &shared).await) }
            });
            // Faults end connections on purpose, clients leave when they like.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, address: SocketAddr, shared: &Shared) -> Response<Body> {
    let (head, body) = request.into_parts();
    let header = |name: header::HeaderName| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let mut entry = Logged {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        range: header(header::RANGE),
        authorization: header(header::AUTHORIZATION),
        status: 0,
    };
    let response = if entry.path == "/token" {
        let form = if head.method == Method::POST {
            let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        } else {
            entry.query.clone()
        };
        match shared.lock().access.token(entry.authorization.as_deref(), &form) {
            Some(token) => text(StatusCode::OK, token),
            None => error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong credentials"),
        }
    } else {
        route(&entry, address, shared)
    };
    entry.status = response.status().as_u16();
    shared.lock().log.push(entry);
    response
}

fn route(request: &Logged, address: SocketAddr, shared: &Shared) -> Response<Body> {
    if request.method != "GET" && request.method != "HEAD" {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only");
    }
    let mut state = shared.lock();
    let target = Target::parse(&request.path);
    let host = address.to_string();
    if let Some(challenge) =
        state.access.challenge(target.repository(), request.authorization.as_deref(), &host)
    {
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        let challenge = challenge.parse().expect("challenges are plain ASCII");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    }
    let fault = state.faults.take(&request.path);
    if let Some(Fault::Status(code)) = fault {
        let status = StatusCode::from_u16(code).expect("tests inject real statuses");
        let mut response = error(status, "FAULT", "ordered by the test");
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("0"));
        return response;
    }
    let found = match &target {
        Target::Root => return text(StatusCode::OK, "{}".to_owned()),
        Target::Manifest { repository, reference } => {
            let separator = if reference.contains(':') { '@' } else { ':' };
            state.manifests.get(&format!("{repository}{separator}{reference}"))
        }
        Target::Blob { digest, .. } => state.blobs.get(*digest),
        Target::Other => None,
    };
    match found {
        Some(blob) => send(blob, request, fault),
        None => error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "no such object here"),
    }
}

/// What a path names.
enum Target<'a> {
    Root,
    Manifest { repository: &'a str, reference: &'a str },
    Blob { repository: &'a str, digest: &'a str },
    Other,
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Target<'a> {
        let Some(rest) = path.strip_prefix("/v2/") else { return Target::Other };
        if rest.is_empty() {
            Target::Root
        } else if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            Target::Manifest { repository, reference }
        } else if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
            Target::Blob { repository, digest }
        } else {
            Target::Other
        }
    }

    fn repository(&self) -> &str {
        match self {
            Target::Manifest { repository, .. } | Target::Blob { repository, .. } => repository,
            Target::Root | Target::Other => "",
        }
    }
}

fn send(blob: &Blob, request: &Logged, fault: Option<Fault>) -> Response<Body> {
    let asked = request.range.as_deref().and_then(|range| parse_range(range, blob.size));
    let (start, end) = asked.unwrap_or((0, blob.size));
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, &blob.media_type)
        .header(header::CONTENT_LENGTH, end - start)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{}\"", blob.digest))
        .header("Docker-Content-Digest", &blob.digest);
    if asked.is_some() {
        let content_range = format!("bytes {start}-{}/{}", end - 1, blob.size);
        response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range);
    }
    let body = if request.method == "HEAD" {
        Full::default().map_err(never).boxed_unsync()
    } else {
        pieces(blob.content.clone(), start, end, fault)
    };
    response.body(body).expect("the headers above are valid")
}

/// `bytes=N-` and `bytes=N-M` as a half-open range; anything else is no range.
fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse().ok()?;
    let end = if end.is_empty() { size } else { end.parse::<u64>().ok()? + 1 };
    (start < end && end <= size).then_some((start, end))
}

/// The bytes from `start` to `end`, with the fault woven in.
fn pieces(content: Content, start: u64, end: u64, fault: Option<Fault>) -> Body {
    let limit = match fault {
        Some(Fault::DropAfter(bytes) | Fault::StallAfter(bytes)) => end.min(start + bytes),
        _ => end,
    };
    let reader = Reader { content, at: start, limit, fault };
    let stream = stream::try_unfold(reader, async |mut reader| {
        Ok(reader.next().await?.map(|piece| (Frame::data(piece), reader)))
    });
    StreamBody::new(stream).boxed_unsync()
}

struct Reader {
    content: Content,
    at: u64,
    limit: u64,
    fault: Option<Fault>,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.at == self.limit {
            return match self.fault {
                Some(Fault::DropAfter(_)) => {
                    // hyper throws away what it has not written yet when a body fails; it writes while it waits.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(io::Error::other("dropped on purpose"))
                }
                Some(Fault::StallAfter(_)) => std::future::pending().await,
                _ => Ok(None),
            };
        }
        let length = CHUNK.min(self.limit - self.at);
        let mut piece = read(&self.content, self.at, length).await?;
        if self.fault == Some(Fault::Corrupt) {
            let mut wrong = piece.to_vec();
            wrong[0] ^= 0xff;
            piece = wrong.into();
            self.fault = None;
        }
        self.at += length;
        Ok(Some(piece))
    }
}

async fn read(content: &Content, at: u64, length: u64) -> io::Result<Bytes> {
    match content {
        Content::Memory(bytes) => {
            let (from, to) = (at as usize, (at + length) as usize);
            Ok(bytes.slice(from..to))
        }
        Content::File(path) => read_file(path, at, length).await,
    }
}

async fn read_file(path: &PathBuf, at: u64, length: u64) -> io::Result<Bytes> {
    let mut file = File::open(path).await?;
    file.seek(io::SeekFrom::Start(at)).await?;
    let mut piece = vec![0; length as usize];
    file.read_exact(&mut piece).await?;
    Ok(piece.into())
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(never).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// An error in the distribution specification's format.
fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    text(status, serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string())
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        image::{Image, Layer},
        registry::{Access, Registry},
    };

    /// The whole answer, as far as it comes.
    fn get(registry: &Registry, path: &str, headers: &str) -> (String, Vec<u8>) {
        let mut connection = TcpStream::connect(registry.address()).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n{headers}\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A dropped connection may show as a reset.
        let _ = connection.read_to_end(&mut answer);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let body = answer.split_off(end + 4);
        (String::from_utf8(answer).unwrap(), body)
    }

    fn registry_with_an_image() -> (Registry, Blob) {
        let registry = Registry::start().unwrap();
        let image = Image::new(vec![Layer::new().file("a", 0o644, "content")]).build().unwrap();
        registry.push("team/app", "1.0", &image);
        (registry, image.layers[0].clone())
    }

    #[test]
    fn a_dropped_blob_can_be_resumed_with_a_range() {
        let (registry, blob) = registry_with_an_image();
        let path = format!("/v2/team/app/blobs/{}", blob.digest);
        registry.inject("/blobs/", Fault::DropAfter(10));
        let (_, mut bytes) = get(&registry, &path, "");
        assert_eq!(bytes.len(), 10);
        let (head, rest) = get(&registry, &path, "Range: bytes=10-\r\n");
        assert!(head.starts_with("HTTP/1.1 206"), "{head}");
        bytes.extend(rest);
        assert_eq!(crate::image::digest_of(&bytes), blob.digest);
        assert_eq!(registry.count("GET", "/blobs/"), 2);
    }

    #[test]
    fn a_manifest_is_found_by_tag_and_by_digest_and_unknown_ones_are_404() {
        let (registry, _) = registry_with_an_image();
        let (_, by_tag) = get(&registry, "/v2/team/app/manifests/1.0", "");
        let digest = crate::image::digest_of(&by_tag);
        let (_, by_digest) = get(&registry, &format!("/v2/team/app/manifests/{digest}"), "");
        assert_eq!(by_tag, by_digest);
        let (head, _) = get(&registry, "/v2/team/app/manifests/2.0", "");
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    }

    #[test]
    fn an_injected_status_is_answered_once() {
        let (registry, _) = registry_with_an_image();
        registry.inject("/manifests/", Fault::Status(503));
        let (head, _) = get(&registry, "/v2/team/app/manifests/1.0", "");
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 0"), "{head}");
        let (head, _) = get(&registry, "/v2/team/app/manifests/1.0", "");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }

    #[test]
    fn basic_access_wants_the_right_password() {
        let (registry, _) = registry_with_an_image();
        registry.require(Access::basic("ann", "secret"));
        let path = "/v2/team/app/manifests/1.0";
        let (head, _) = get(&registry, path, "");
        assert!(head.starts_with("HTTP/1.1 401") && head.contains("www-authenticate: Basic"), "{head}");
        let (head, _) = get(&registry, path, "Authorization: Basic YW5uOnNlY3JldA==\r\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
}
