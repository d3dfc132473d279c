//! httpGet: a request, and whether its answer is a good one.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use berth_manifest::HttpGet;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT as USER_AGENT_HEADER};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::{Position, Url};

use super::{Target, connect};

pub(super) const USER_AGENT: &str = concat!("berth-probe/", env!("CARGO_PKG_VERSION"));

/// Redirects that are followed, as in kubelet.
const REDIRECTS: usize = 10;

/// Where a request goes, on the probe's host.
struct Place {
    https: bool,
    port: u16,
    path: String,
}

/// The answer's status. A redirect to the same host is followed; one to elsewhere is an answer.
pub(super) async fn get(target: &Target, get: &HttpGet, port: u16) -> Result<StatusCode, String> {
    let host = match (get.host.as_str(), target.ip()) {
        ("", IpAddr::V6(ip)) => format!("[{ip}]"),
        ("", IpAddr::V4(ip)) => ip.to_string(),
        (host, _) => host.to_owned(),
    };
    let mut place = Place { https: get.https, port, path: get.path.clone() };
    for _ in 0..=REDIRECTS {
        let answer = once(target, get, &host, &place).await?;
        let status = answer.status();
        match answer.headers().get(LOCATION).and_then(|location| location.to_str().ok()) {
            Some(location) if status.is_redirection() => match same_host(location, &host, &place) {
                Some(next) => place = next,
                None => return Ok(status),
            },
            _ => return Ok(status),
        }
    }
    Err(format!("more than {REDIRECTS} redirects"))
}

/// Good is from 200 to 399.
pub(super) fn judge(status: StatusCode) -> Result<(), String> {
    match status.as_u16() {
        200..400 => Ok(()),
        _ => Err(format!("the answer is {status}")),
    }
}

/// Where a redirect leads that stays on the host, be it to another port; None when it leads elsewhere.
fn same_host(location: &str, host: &str, place: &Place) -> Option<Place> {
    let Place { https, port, path } = place;
    let scheme = if *https { "https" } else { "http" };
    let here = Url::parse(&format!("{scheme}://{host}:{port}{path}")).ok()?;
    let next = here.join(location).ok().filter(|next| next.host_str() == here.host_str())?;
    Some(Place {
        https: next.scheme() == "https",
        port: next.port_or_known_default()?,
        path: next[Position::BeforePath..Position::AfterQuery].to_owned(),
    })
}

async fn once(
    target: &Target,
    get: &HttpGet,
    host: &str,
    place: &Place,
) -> Result<Response<hyper::body::Incoming>, String> {
    let request = request(get, &format!("{host}:{}", place.port), &place.path)?;
    let stream = connect(target, &get.host, place.port).await?;
    if !place.https {
        return send(stream, request).await;
    }
    let name = match ServerName::try_from(host.trim_matches(['[', ']']).to_owned()) {
        Ok(name) => name,
        Err(error) => return Err(format!("{host}: {error}")),
    };
    let stream = TlsConnector::from(tls()?).connect(name, stream).await;
    send(stream.map_err(|error| format!("TLS with {host}: {error}"))?, request).await
}

fn request(get: &HttpGet, authority: &str, path: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT_HEADER, USER_AGENT)
        .header(ACCEPT, "*/*")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| format!("{path}: {error}"))?;
    // The manifest's own are put in place of these; one that it gives twice is sent twice.
    let mut replaced = Vec::new();
    for (name, value) in &get.headers {
        let bad = |error: &dyn std::fmt::Display| format!("header {name}: {error}");
        let name_ = HeaderName::try_from(name.as_str()).map_err(|error| bad(&error))?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|error| bad(&error))?;
        if replaced.contains(&name_) {
            request.headers_mut().append(name_, value);
        } else {
            request.headers_mut().insert(name_.clone(), value);
            replaced.push(name_);
        }
    }
    Ok(request)
}

/// The head of the answer is all that counts; the connection ends with it.
async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<hyper::body::Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driven = async {
        // Its end is told to the request, with whatever came before.
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = sender.send_request(request) => answer.map_err(crate::work::text),
        never = driven => match never {},
    }
}

fn tls() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let known = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(known)));
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Takes any certificate: the question is whether it answers, and to whom it belongs nobody on the node knows (Kubernetes,
/// "HTTP probes").
#[derive(Debug)]
struct Anyone(rustls::crypto::WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use berth_manifest::PortRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection after another, each with what stands at its place; gives the requests.
    async fn served(answers: &[&str], headers: &[(&str, &str)]) -> (Result<(), String>, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers: Vec<String> =
            answers.iter().map(|answer| answer.replace("@PORT@", &port.to_string())).collect();
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece).await.unwrap();
                requests.push(String::from_utf8_lossy(&piece[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        let wanted = HttpGet {
            host: String::new(),
            port: PortRef::Number(port),
            path: "/healthz?full".to_owned(),
            https: false,
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let target = Target { container_id: String::new(), ip: None, ports: Vec::new() };
        let result = get(&target, &wanted, port).await.and_then(judge);
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn good_is_from_200_to_399() {
        for (status, good) in
            [("200 OK", true), ("204 No", true), ("304 Not", true), ("404 Not", false), ("500 Oh", false)]
        {
            let (result, _) =
                served(&[&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")], &[]).await;
            assert_eq!(result.is_ok(), good, "{status}: {result:?}");
        }
        let (result, _) = served(&[""], &[]).await;
        assert!(result.is_err(), "no answer is none");
    }

    #[tokio::test]
    async fn the_request_is_the_manifests() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (result, requests) = served(&[ok], &[("Host", "web.example"), ("X-A", "1"), ("X-A", "2")]).await;
        result.unwrap();
        let request = requests[0].to_lowercase();
        assert!(request.starts_with("get /healthz?full http/1.1\r\n"), "{request}");
        assert!(
            request.contains("host: web.example\r\n") && request.matches("host:").count() == 1,
            "{request}"
        );
        assert!(request.contains("x-a: 1\r\n") && request.contains("x-a: 2\r\n"), "{request}");
        assert!(request.contains("user-agent: berth-probe/"), "{request}");
    }

    #[tokio::test]
    async fn a_redirect_is_followed_on_the_same_host_only() {
        let here = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:@PORT@/b\r\nContent-Length: 0\r\n\r\n";
        let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        let (result, requests) = served(&[here, gone], &[]).await;
        assert!(result.is_err() && requests[1].starts_with("GET /b "), "{result:?} {requests:?}");
        let beside = here.replace("http://127.0.0.1:@PORT@/b", "login?next=1");
        let (result, requests) = served(&[&beside, gone], &[]).await;
        assert!(result.is_err() && requests[1].starts_with("GET /login?next=1 "), "{result:?} {requests:?}");
        let away = "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n";
        served(&[away], &[]).await.0.unwrap();
    }

    #[test]
    fn a_redirect_may_lead_to_another_port_of_the_host() {
        let place = Place { https: false, port: 8080, path: "/a/b".to_owned() };
        let to = |location| {
            let next = same_host(location, "[fd00::1]", &place)?;
            Some((next.https, next.port, next.path))
        };
        assert_eq!(to("https://[fd00::1]:8443/health#x"), Some((true, 8443, "/health".to_owned())));
        assert_eq!(to("https://[fd00::1]"), Some((true, 443, "/".to_owned())));
        assert_eq!(to("../c"), Some((false, 8080, "/c".to_owned())));
        assert_eq!(to("//elsewhere.example/"), None);
    }
}
