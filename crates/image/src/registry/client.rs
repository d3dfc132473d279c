//! Requests to a registry: endpoints in turn, challenges answered, redirects followed by our own rules.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::auth::{Challenge, Credentials, MalformedAuth, Secret, basic, challenges, fetch_token};
use super::{RegistryError, RegistryErrorKind};
use crate::digest::Digest;
use crate::hosts::{Endpoint, Endpoints, Tls, authority};
use crate::manifest::MANIFEST_TYPES;
use crate::reference::{Reference, is_loopback};

/// A manifest, index or config larger than this is an attack.
pub(crate) const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
const MAX_ERROR_BODY: usize = 16 * 1024;
const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a small answer as a whole.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// HTTP clients by how they connect. Building one reads the system's certificates, so they are kept.
#[derive(Default)]
pub(crate) struct Clients {
    built: StdMutex<HashMap<(Tls, bool), Client>>,
}

impl Clients {
    /// The client for an endpoint.
    ///
    /// # Errors
    ///
    /// Why its certificates cannot be used.
    fn get(&self, endpoint: &Endpoint) -> Result<Client, RegistryError> {
        let key = (endpoint.tls.clone(), is_loopback(&authority(&endpoint.url)));
        let mut built = self.built.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(client) = built.get(&key) {
            return Ok(client.clone());
        }
        let client = build(&key.0, key.1).map_err(|error| RegistryError {
            endpoint: endpoint.url.origin().ascii_serialization(),
            step: "set up TLS".to_owned(),
            kind: RegistryErrorKind::Protocol("the certificates cannot be used".to_owned()),
            source: Some(error),
        })?;
        built.insert(key, client.clone());
        Ok(client)
    }
}

fn build(tls: &Tls, loopback: bool) -> Result<Client, reqwest::Error> {
    // Another part of the process may have installed the same provider first; either is fine.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(tls.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
        .pool_idle_timeout(Duration::from_secs(30));
    for pem in &tls.roots {
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    if let Some(pem) = &tls.identity {
        builder = builder.identity(reqwest::Identity::from_pem(pem)?);
    }
    if tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if loopback {
        // A proxy configured for the node is not for talking to the node itself.
        builder = builder.no_proxy();
    }
    builder.build()
}

/// One endpoint with what this pull may show it.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    client: Client,
    pub(crate) secret: Secret,
    /// The `Authorization` value that last worked, shared by the parallel requests of one pull.
    authorization: Mutex<Option<HeaderValue>>,
}

/// One pull's view of a registry.
pub(crate) struct Session {
    reference: Reference,
    /// The `hosts.toml` that names the hosts.
    pub(crate) file: Option<PathBuf>,
    /// In the order they are asked.
    pub(crate) hosts: Vec<Host>,
    scope: String,
}

/// What a manifest request found.
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Auth(#[from] MalformedAuth),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Session {
    pub(crate) fn new(
        clients: &Clients,
        endpoints: Endpoints,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Session, SessionError> {
        let Endpoints { file, list } = endpoints;
        let hosts = list
            .into_iter()
            .map(|endpoint| {
                let secret = match credentials {
                    Some(credentials) => credentials.secret_for(&endpoint.url, reference.host())?,
                    None => Secret::Anonymous,
                };
                let client = clients.get(&endpoint)?;
                Ok(Host { endpoint, client, secret, authorization: Mutex::new(None) })
            })
            .collect::<Result<_, SessionError>>()?;
        let scope = format!("repository:{}:pull", reference.repository());
        Ok(Session { reference: reference.clone(), file, hosts, scope })
    }

    /// The digest that the reference stands for now, when the registry tells it without sending the manifest.
    ///
    /// # Errors
    ///
    /// Only those that a full request would meet as well: not authorised, not found at the host itself.
    pub(crate) async fn resolve(&self) -> Result<Option<Digest>, RegistryError> {
        let mut asked = self.ask(|host| host.may_have_manifest(self.reference.digest()));
        loop {
            let host = asked.next()?;
            match self.look_up(host).await {
                Ok(digest) => return Ok(digest),
                Err(error) => asked.failed(host, error),
            }
        }
    }

    /// What one endpoint says the reference stands for, when it says so.
    pub(crate) async fn look_up(&self, host: &Host) -> Result<Option<Digest>, RegistryError> {
        let selector = self.reference.selector();
        let step = format!("look up {selector}");
        let path = format!("manifests/{selector}");
        let answer = self.answer(host, Method::HEAD, &path, &manifest_headers(), &step).await?;
        let digest = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(digest.and_then(|digest| digest.parse().ok()))
    }

    /// Fetches a manifest or index, by the reference's own selector or by digest, and checks its digest.
    pub(crate) async fn manifest(&self, digest: Option<&Digest>) -> Result<Document, RegistryError> {
        let digest = digest.or(self.reference.digest());
        let selector = digest.map_or(self.reference.selector(), Digest::as_str);
        let step = format!("fetch manifest {selector}");
        let path = format!("manifests/{selector}");
        let mut asked = self.ask(|host| host.may_have_manifest(digest));
        loop {
            let host = asked.next()?;
            match self.manifest_at(host, &path, &step, digest).await {
                Ok(document) => return Ok(document),
                Err(error) => asked.failed(host, error),
            }
        }
    }

    async fn manifest_at(
        &self,
        host: &Host,
        path: &str,
        step: &str,
        digest: Option<&Digest>,
    ) -> Result<Document, RegistryError> {
        let answer = self.answer(host, Method::GET, path, &manifest_headers(), step).await?;
        let header = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (media_type, announced) = (header("content-type"), header("docker-content-digest"));
        let bytes = bounded_body(answer, MAX_DOCUMENT, ANSWER_TIMEOUT)
            .await
            .map_err(|(kind, source)| host.error(step, kind, source))?;
        let found = Digest::of(&bytes);
        match digest.cloned().or_else(|| announced.parse().ok()) {
            Some(wanted) if wanted != found => {
                let why = format!("{WRONG_DIGEST} {found}, not {wanted}");
                Err(host.error(step, RegistryErrorKind::Protocol(why), None))
            }
            _ => Ok(Document { bytes, media_type, digest: found }),
        }
    }

    /// Fetches a small blob, unchecked.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        let step = format!("fetch config {digest}");
        let path = format!("blobs/{digest}");
        let mut asked = self.ask(|host| host.endpoint.pull);
        loop {
            let host = asked.next()?;
            let body = match self.answer(host, Method::GET, &path, &HeaderMap::new(), &step).await {
                Ok(answer) => bounded_body(answer, MAX_DOCUMENT, ANSWER_TIMEOUT)
                    .await
                    .map_err(|(kind, source)| host.error(&step, kind, source)),
                Err(error) => Err(error),
            };
            match body {
                Ok(body) => return Ok(body),
                Err(error) => asked.failed(host, error),
            }
        }
    }

    /// Begins a blob at the first endpoint that has it. `headers` may ask for a range.
    pub(crate) async fn open_blob(
        &self,
        digest: &Digest,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<(Response, Origin<'_>), RegistryError> {
        let step = format!("fetch layer {digest}");
        let path = format!("blobs/{digest}");
        let mut asked = self.ask(|host| host.endpoint.pull);
        loop {
            let host = asked.next()?;
            let answer = self.request(host, Method::GET, &path, headers, &step);
            let answer = match tokio::time::timeout(patience, answer).await {
                Ok(Ok(answer)) => success(host, &step, answer).await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(host.error(&step, RegistryErrorKind::Timeout(patience), None)),
            };
            match answer {
                Ok(answer) => return Ok((answer, Origin { host, step })),
                Err(error) => asked.failed(host, error),
            }
        }
    }

    /// The endpoints that `can`, in order.
    fn ask(&self, can: impl Fn(&Host) -> bool) -> Asked<'_> {
        let mut hosts: Vec<&Host> = self.hosts.iter().filter(|host| can(host)).collect();
        hosts.reverse();
        Asked { reference: &self.reference, left: hosts, failed: None }
    }

    /// The head of a successful answer, within a bounded time.
    async fn answer(
        &self,
        host: &Host,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        step: &str,
    ) -> Result<Response, RegistryError> {
        let answer = self.request(host, method, path, headers, step);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| host.error(step, RegistryErrorKind::Timeout(ANSWER_TIMEOUT), None))??;
        success(host, step, answer).await
    }

    /// One request, answering at most one challenge.
    async fn request(
        &self,
        host: &Host,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        step: &str,
    ) -> Result<Response, RegistryError> {
        let mut url = host.endpoint.url.clone();
        url.set_path(&format!("{}/{}/{path}", host.endpoint.url.path(), self.reference.repository()));
        if !host.endpoint.upstream {
            // A mirror of several registries learns whose image is wanted.
            let namespace = self.reference.host();
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let shown = host.authorization.lock().await.clone();
        let answer = self.follow(host, method.clone(), url.clone(), headers, shown.clone(), step).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let Some(authorization) = self.authorize(host, shown, &answer, step).await? else {
            return Ok(answer);
        };
        self.follow(host, method, url, headers, Some(authorization), step).await
    }

    /// Follows redirects. Credentials and configured headers are for the endpoint, and stay there.
    async fn follow(
        &self,
        host: &Host,
        method: Method,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
        step: &str,
    ) -> Result<Response, RegistryError> {
        for _ in 0..MAX_REDIRECTS {
            let mut request = host.client.request(method.clone(), url.clone()).headers(headers.clone());
            if url.origin() == host.endpoint.url.origin() {
                request = request.headers(host.endpoint.headers.clone());
                if let Some(value) = &authorization {
                    request = request.header(AUTHORIZATION, value.clone());
                }
            }
            let answer = request.send().await.map_err(|error| {
                let why = if error.is_timeout() { "the connection timed out" } else { "cannot connect" };
                host.error(step, RegistryErrorKind::Unavailable(why.to_owned()), Some(error.without_url()))
            })?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let protocol = |why: &str| host.error(step, RegistryErrorKind::Protocol(why.to_owned()), None);
            let target = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = target
                .and_then(|target| url.join(target).ok())
                .ok_or_else(|| protocol("a redirect without a usable target"))?;
            match (url.scheme(), next.scheme()) {
                ("https", "https") | ("http", "http" | "https") => url = next,
                _ => return Err(protocol("a redirect away from TLS")),
            }
        }
        Err(host.error(step, RegistryErrorKind::Protocol("too many redirects".to_owned()), None))
    }

    /// What to send instead of `shown`, which was answered 401. `None` when there is nothing better.
    async fn authorize(
        &self,
        host: &Host,
        shown: Option<HeaderValue>,
        answer: &Response,
        step: &str,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut current = host.authorization.lock().await;
        if *current != shown {
            return Ok(current.clone()); // a parallel request has been here meanwhile
        }
        let offered = answer.headers().get_all(WWW_AUTHENTICATE);
        let mut value = None;
        for challenge in challenges(offered.iter().filter_map(|value| value.to_str().ok())) {
            value = match (challenge, &host.secret) {
                (Challenge::Bearer { .. }, Secret::Registry(token)) => Some(format!("Bearer {token}")),
                (Challenge::Bearer { realm, service, scope }, secret) => {
                    let scope = scope.as_deref().unwrap_or(&self.scope);
                    let token = fetch_token(
                        &host.client,
                        &host.endpoint.url,
                        &realm,
                        service.as_deref(),
                        scope,
                        secret,
                    )
                    .await?;
                    Some(format!("Bearer {token}"))
                }
                (Challenge::Basic, Secret::Basic { username, password }) => Some(basic(username, password)),
                (Challenge::Basic, _) => None,
            };
            if value.is_some() {
                break;
            }
        }
        let Some(value) = value else { return Ok(None) };
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            let why = "the credentials have characters that no header may have";
            host.error(step, RegistryErrorKind::Unauthenticated(why.to_owned()), None)
        })?;
        value.set_sensitive(true);
        if Some(&value) == shown.as_ref() {
            return Ok(None);
        }
        *current = Some(value.clone());
        Ok(Some(value))
    }
}

/// Endpoints asked one after another until one succeeds. When none does, the last one's failure is the
/// answer and the others' are logged: the host itself comes last, and decides whether a thing exists.
struct Asked<'a> {
    reference: &'a Reference,
    /// The next one last.
    left: Vec<&'a Host>,
    failed: Option<(RegistryError, &'a Host)>,
}

impl<'a> Asked<'a> {
    fn next(&mut self) -> Result<&'a Host, RegistryError> {
        while let Some(host) = self.left.pop() {
            match &self.failed {
                // The server on this port speaks plain HTTP and has given its answer.
                Some((error, before)) if before.is_same_in_tls(host) && !may_be_tls(error) => {}
                _ => return Ok(host),
            }
        }
        Err(self.failed.take().map(|(error, _)| error).unwrap_or_else(|| RegistryError {
            endpoint: self.reference.host().to_owned(),
            step: format!("fetch {}", self.reference),
            kind: RegistryErrorKind::Protocol("no configured host has the capability for it".to_owned()),
            source: None,
        }))
    }

    fn failed(&mut self, host: &'a Host, error: RegistryError) {
        tracing::debug!(image.r#ref = %self.reference, %error, "registry endpoint failed");
        // A loopback port that speaks no TLS either is better described by the first attempt.
        let keep = self
            .failed
            .as_ref()
            .is_some_and(|(_, before)| before.is_same_in_tls(host) && error.source.is_some());
        if !keep {
            self.failed = Some((error, host));
        }
    }
}

/// Begins the text of an error about content that is not what its digest says.
pub(crate) const WRONG_DIGEST: &str = "the content has digest";

/// Which endpoint a blob comes from, for errors met while it is read.
pub(crate) struct Origin<'a> {
    host: &'a Host,
    step: String,
}

impl Origin<'_> {
    pub(crate) fn error(&self, kind: RegistryErrorKind, source: Option<reqwest::Error>) -> RegistryError {
        self.host.error(&self.step, kind, source)
    }
}

impl Host {
    fn error(&self, step: &str, kind: RegistryErrorKind, source: Option<reqwest::Error>) -> RegistryError {
        let endpoint = self.endpoint.url.origin().ascii_serialization();
        RegistryError { endpoint, step: step.to_owned(), kind, source }
    }

    /// Whether it may be asked for a manifest: by its digest, or by a tag where there is none.
    pub(crate) fn may_have_manifest(&self, digest: Option<&Digest>) -> bool {
        if digest.is_none() { self.endpoint.resolve } else { self.endpoint.pull }
    }

    /// Whether `other` is this plain HTTP server, asked in TLS.
    fn is_same_in_tls(&self, other: &Host) -> bool {
        let (plain, tls) = (&self.endpoint.url, &other.endpoint.url);
        plain.scheme() == "http" && tls.scheme() == "https" && authority(plain) == authority(tls)
    }
}

/// Whether a plain HTTP request failed as it does when the server wants TLS: it hangs up, or answers 400.
fn may_be_tls(error: &RegistryError) -> bool {
    error.source.is_some()
        || matches!(&error.kind, RegistryErrorKind::Protocol(why) if why.contains(StatusCode::BAD_REQUEST.as_str()))
}

fn manifest_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for media_type in MANIFEST_TYPES {
        headers.append(ACCEPT, HeaderValue::from_static(media_type));
    }
    headers
}

/// Turns every status but success into the error it means.
async fn success(host: &Host, step: &str, answer: Response) -> Result<Response, RegistryError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let retry_after = answer
        .headers()
        .get(HeaderName::from_static("retry-after"))
        .and_then(|value| value.to_str().ok())
        .map(|value| format!(" (retry after {value})"))
        .unwrap_or_default();
    // The message is a courtesy; its absence changes nothing.
    let body = bounded_body(answer, MAX_ERROR_BODY, Duration::from_secs(5)).await.unwrap_or_default();
    let detail = format!("{}{retry_after}", error_detail(&body));
    Err(host.error(step, RegistryErrorKind::of_status(status, &detail), None))
}

/// The whole body when it is no longer than `most` and comes within `patience`.
pub(super) async fn bounded_body(
    mut answer: Response,
    most: usize,
    patience: Duration,
) -> Result<Bytes, (RegistryErrorKind, Option<reqwest::Error>)> {
    let read = async {
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| {
            (RegistryErrorKind::Unavailable("the answer broke off".to_owned()), Some(error.without_url()))
        })? {
            if body.len() + piece.len() > most {
                return Err((
                    RegistryErrorKind::Protocol(format!("the answer is longer than {most} bytes")),
                    None,
                ));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Bytes::from(body))
    };
    tokio::time::timeout(patience, read).await.map_err(|_| (RegistryErrorKind::Timeout(patience), None))?
}

/// The message in a registry's or token server's error body, kept to one short line.
pub(super) fn error_detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<OneError>,
        #[serde(alias = "details", alias = "error_description", alias = "error")]
        message: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct OneError {
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(found) => {
            let mut texts: Vec<String> = found.errors.into_iter().map(|error| error.message).collect();
            texts.extend(found.message);
            texts.join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect::<String>().trim().to_owned()
}
