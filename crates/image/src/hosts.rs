//! `hosts.toml`: where a registry's images are really fetched from, in containerd's format.
//!
//! `DIR/<host>/hosts.toml`, where a port may also be written `host_5000_`, or `DIR/_default/hosts.toml`
//! for every other host. Mirrors are asked in the order written, then `server` (the host itself when absent).
//! One rule about credentials stands elsewhere (`registry::auth`): they go to the host they are for, never
//! to a mirror.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::reference::{DOCKER_HUB, DOCKER_HUB_REGISTRY, is_loopback, split_port};

/// Why a host's configuration cannot be used. A faulty file fails the pull: falling back to the public
/// registry would be what its writer wanted least.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file, or one it names, cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not TOML, or not of the known form.
    #[error("{} is not a valid hosts file", .path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line and reason.
        source: Box<toml::de::Error>,
    },
    /// A value that means nothing.
    #[error("{}: {key}: {why}", .path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// The key at fault.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// One server that may have a host's images.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// With the API's path (`/v2`, or the mirror's own), no trailing slash.
    pub(crate) url: Url,
    /// May be asked what a tag means.
    pub(crate) resolve: bool,
    /// May be asked for content.
    pub(crate) pull: bool,
    /// The host named in the reference, not a mirror of it.
    pub(crate) upstream: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
}

/// How an endpoint is connected to and its certificate checked. Contents, not paths: they key a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// PEM bundles trusted beside the system's.
    pub(crate) roots: Vec<Vec<u8>>,
    /// PEM certificate and key, concatenated.
    pub(crate) identity: Option<Vec<u8>>,
    pub(crate) skip_verify: bool,
    /// Longest wait for a connection.
    pub(crate) dial_timeout: Option<Duration>,
}

/// What a host's table may say; the file's top level says the same about `server`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostSection {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<ClientCerts>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn values(&self) -> &[String] {
        match self {
            OneOrMany::One(value) => std::slice::from_ref(value),
            OneOrMany::Many(values) => values,
        }
    }
}

/// One file, several files, or pairs of certificate and key.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ClientCerts {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<[String; 2]>),
}

/// Where to ask for images of a host.
pub(crate) struct Endpoints {
    /// The file that says so; none: it is the host itself.
    pub(crate) file: Option<PathBuf>,
    /// Best first.
    pub(crate) list: Vec<Endpoint>,
}

/// Where to ask for images of `host`. Reads files; never the network.
pub(crate) fn endpoints(dir: &Path, host: &str) -> Result<Endpoints, HostsError> {
    for folder in folders(host) {
        let path = dir.join(folder).join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let list = parse(&path, &text, host)?;
                return Ok(Endpoints { file: Some(path), list });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(Endpoints { file: None, list: upstream(host) })
}

/// Names of the folder that may configure `host`. A reference's host has no slash and is not `..`.
fn folders(host: &str) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    if let (name, Some(port)) = split_port(host) {
        names.push(format!("{name}_{port}_"));
    }
    names.push("_default".to_owned());
    names
}

/// The host itself. A loopback host is asked in plain HTTP first, as container engines do.
fn upstream(host: &str) -> Vec<Endpoint> {
    let server = if host == DOCKER_HUB { DOCKER_HUB_REGISTRY } else { host };
    let schemes: &[&str] = match is_loopback(host) && split_port(host).1 != Some("443") {
        true => &["http", "https"],
        false => &["https"],
    };
    schemes
        .iter()
        .filter_map(|scheme| Url::parse(&format!("{scheme}://{server}/v2")).ok())
        .map(|url| Endpoint {
            url,
            resolve: true,
            pull: true,
            upstream: true,
            tls: Tls::default(),
            headers: HeaderMap::new(),
        })
        .collect()
}

fn parse(path: &Path, text: &str, host: &str) -> Result<Vec<Endpoint>, HostsError> {
    let syntax = |source| HostsError::Syntax { path: path.to_owned(), source: Box::new(source) };
    let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
    // The order of the tables is the order of preference.
    let hosts: toml::Table =
        table.remove("host").unwrap_or_else(|| toml::Table::new().into()).try_into().map_err(syntax)?;
    let server: Option<String> =
        table.remove("server").map(toml::Value::try_into).transpose().map_err(syntax)?;
    let base: HostSection = table.try_into().map_err(syntax)?;
    let mut endpoints = Vec::new();
    for (name, section) in hosts {
        let section: HostSection = section.try_into().map_err(syntax)?;
        endpoints.push(section.endpoint(path, &name, host)?);
    }
    match server {
        Some(server) => endpoints.push(base.endpoint(path, &server, host)?),
        None => {
            let tls = base.tls(path)?;
            let headers = base.headers(path)?;
            endpoints.extend(upstream(host).into_iter().map(|endpoint| Endpoint {
                tls: tls.clone(),
                headers: headers.clone(),
                ..endpoint
            }));
        }
    }
    Ok(endpoints)
}

impl HostSection {
    fn endpoint(&self, path: &Path, server: &str, host: &str) -> Result<Endpoint, HostsError> {
        let fault =
            |key: &str, why: String| HostsError::Value { path: path.to_owned(), key: key.to_owned(), why };
        let spelled = if server.contains("://") {
            server.to_owned()
        } else if is_loopback(server.split('/').next().unwrap_or(server)) {
            format!("http://{server}")
        } else {
            format!("https://{server}")
        };
        let mut url = Url::parse(&spelled).map_err(|error| fault(server, format!("not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(fault(server, "only http and https URLs name a registry".to_owned()));
        }
        let mut base = url.path().trim_end_matches('/').to_owned();
        if !self.override_path && !base.ends_with("/v2") {
            base.push_str("/v2");
        }
        url.set_path(&base);
        let (mut resolve, mut pull) = (self.capabilities.is_none(), self.capabilities.is_none());
        for capability in self.capabilities.iter().flatten() {
            match capability.as_str() {
                "pull" => pull = true,
                "resolve" => resolve = true,
                "push" | "referrers" => {}
                other => return Err(fault("capabilities", format!("unknown capability {other:?}"))),
            }
        }
        let named = authority(&url);
        let upstream = named == host || (host == DOCKER_HUB && named == DOCKER_HUB_REGISTRY);
        Ok(Endpoint { url, resolve, pull, upstream, tls: self.tls(path)?, headers: self.headers(path)? })
    }

    fn tls(&self, path: &Path) -> Result<Tls, HostsError> {
        let beside = path.parent().unwrap_or(Path::new("/"));
        let read = |file: &String| {
            let path = beside.join(file); // an absolute name replaces the folder
            fs::read(&path).map_err(|source| HostsError::Read { path, source })
        };
        let roots = match &self.ca {
            Some(files) => files.values().iter().map(read).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let identity: Option<Vec<&String>> = match &self.client {
            None => None,
            Some(ClientCerts::One(file)) => Some(vec![file]),
            Some(ClientCerts::Many(files)) => Some(files.iter().collect()),
            Some(ClientCerts::Pairs(pairs)) => pairs.first().map(|pair| pair.iter().collect()),
        };
        let identity = match identity {
            Some(files) => {
                let mut pem = Vec::new();
                for file in files.into_iter().filter(|file| !file.is_empty()) {
                    pem.extend(read(file)?);
                    pem.push(b'\n');
                }
                Some(pem)
            }
            None => None,
        };
        let dial_timeout = match &self.dial_timeout {
            Some(text) => Some(go_duration(text).ok_or_else(|| HostsError::Value {
                path: path.to_owned(),
                key: "dial_timeout".to_owned(),
                why: format!("{text:?} is not a duration such as \"30s\""),
            })?),
            None => None,
        };
        Ok(Tls { roots, identity, skip_verify: self.skip_verify, dial_timeout })
    }

    fn headers(&self, path: &Path) -> Result<HeaderMap, HostsError> {
        let fault =
            |key: &str, why: String| HostsError::Value { path: path.to_owned(), key: key.to_owned(), why };
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| fault(name, "not a header name".to_owned()))?;
            for value in values.values() {
                let value =
                    HeaderValue::from_str(value).map_err(|_| fault(name, "not a header value".to_owned()))?;
                headers.append(header.clone(), value);
            }
        }
        Ok(headers)
    }
}

/// A duration as Go writes it, with one unit: `500ms`, `30s`, `2m`.
fn go_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// `host` or `host:port` of a URL, the scheme's own port left out.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, host: &str) -> Result<Vec<Endpoint>, HostsError> {
        parse(Path::new("/nowhere/hosts.toml"), text, host)
    }

    #[test]
    fn hosts_are_asked_in_the_order_written_then_the_server() {
        let endpoints = read(
            r#"
            server = "https://up.example"
            [host."https://z.example"]
              capabilities = ["pull"]
            [host."http://a.example:5000/cache/v2"]
              capabilities = ["pull", "resolve"]
              override_path = true
              [host."http://a.example:5000/cache/v2".header]
                x-team = ["a", "b"]
            [host."https://m.example/prefix"]
              skip_verify = true
            "#,
            "up.example",
        )
        .unwrap();
        let urls: Vec<_> = endpoints.iter().map(|e| e.url.as_str()).collect();
        assert_eq!(
            urls,
            [
                "https://z.example/v2",
                "http://a.example:5000/cache/v2",
                "https://m.example/prefix/v2",
                "https://up.example/v2"
            ]
        );
        assert!(endpoints[0].pull && !endpoints[0].resolve);
        assert_eq!(endpoints[1].headers.get_all("x-team").iter().count(), 2);
        assert!(endpoints[2].tls.skip_verify && endpoints[2].resolve);
        assert_eq!(endpoints.iter().map(|e| e.upstream).collect::<Vec<_>>(), [false, false, false, true]);
    }

    #[test]
    fn without_a_file_the_host_itself_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let urls = |host| -> Vec<String> {
            endpoints(dir.path(), host).unwrap().list.iter().map(|e| e.url.to_string()).collect()
        };
        assert_eq!(urls("docker.io"), ["https://registry-1.docker.io/v2"]);
        assert_eq!(urls("r.example:5000"), ["https://r.example:5000/v2"]);
        assert_eq!(urls("localhost:5000"), ["http://localhost:5000/v2", "https://localhost:5000/v2"]);
        assert_eq!(urls("[::1]:5000")[0], "http://[::1]:5000/v2");
    }

    #[test]
    fn the_default_folder_serves_hosts_without_their_own() {
        let dir = tempfile::tempdir().unwrap();
        for (folder, server) in
            [("_default", "https://any.example"), ("r.example_5000_", "https://port.example")]
        {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("hosts.toml"), format!("server = {server:?}")).unwrap();
        }
        assert_eq!(
            endpoints(dir.path(), "q.example").unwrap().list[0].url.as_str(),
            "https://any.example/v2"
        );
        assert_eq!(
            endpoints(dir.path(), "r.example:5000").unwrap().list[0].url.as_str(),
            "https://port.example/v2"
        );
    }

    #[test]
    fn faults_in_a_file_are_named_and_never_ignored() {
        for text in [
            "servr = 'x'",
            "[host.'https://a'] \n capabilites = []",
            "[host.'https://a'] \n capabilities = ['fly']",
            "[host.'ftp://a']",
            "[host.'https://a'] \n ca = 'missing.pem'",
            "not toml",
        ] {
            assert!(read(text, "up.example").is_err(), "{text}");
        }
    }
}
