//! Image references: how people and kubelet name images, normalised as Docker does.
//!
//! `[host[:port]/]path[:tag][@digest]`. A first component is a host only when it has a dot, a colon, or
//! is `localhost`; otherwise the image lives on Docker Hub, where a one-component path means `library/…`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// The name of Docker Hub in references.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// Docker Hub's older name in references and credentials.
const DOCKER_HUB_INDEX: &str = "index.docker.io";
/// Where Docker Hub serves the registry protocol.
pub(crate) const DOCKER_HUB_REGISTRY: &str = "registry-1.docker.io";

const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text has no form a reference may have.
    #[error("invalid image reference {text:?}: {why}")]
    Invalid {
        /// What was asked for.
        text: String,
        /// The part at fault.
        why: &'static str,
    },
    /// A prefix of more than one image's id.
    #[error("image id prefix {0:?} is ambiguous")]
    Ambiguous(String),
}

impl Reference {
    /// Host and port as written in references, `docker.io` for Docker Hub.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path on that host, such as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The digest asked for, if any; it decides over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest, or the tag.
    pub(crate) fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// `name:tag` as listed in an image's tags; `None` when a digest was asked for: a digest pull invents no tag.
    pub fn tagged(&self) -> Option<String> {
        self.digest.is_none().then(|| format!("{}:{}", self.name(), self.selector()))
    }

    /// `name@digest` as listed in an image's digests.
    pub(crate) fn digested(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let fault = |why| ReferenceError::Invalid { text: text.to_owned(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse::<Digest>().map_err(|_| fault("the digest is not a sha256 digest"))?),
            ),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; an earlier one starts the host's port.
        let (name, tag) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fault("the tag is malformed"));
        }
        if name.is_empty() {
            return Err(fault("the name is empty"));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if first == "localhost" || first.contains(['.', ':']) => (first, path),
            _ => (DOCKER_HUB, name),
        };
        let host = if host == DOCKER_HUB_INDEX { DOCKER_HUB } else { host };
        if !is_host(host) {
            return Err(fault("the host is malformed"));
        }
        let repository = match host {
            DOCKER_HUB if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fault("the repository name must be lower case"));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(fault("the repository name is malformed"));
        }
        if host.len() + 1 + repository.len() > MAX_NAME {
            return Err(fault("the name is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Reference { host: host.to_owned(), repository, tag, digest })
    }
}

/// Up to 128 word characters, dots and dashes; the first is a word character.
fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && tag.bytes().next().is_some_and(|b| !matches!(b, b'.' | b'-'))
}

/// Runs of lower-case letters and digits, joined by one dot, one or two underscores, or dashes.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(*first)
        && alphanumeric(*last)
        && bytes.iter().all(|b| alphanumeric(*b) || matches!(b, b'.' | b'_' | b'-'))
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address, with an optional port.
fn is_host(host: &str) -> bool {
    let (name, port) = split_port(host);
    let port_ok = port.is_none_or(|p| !p.is_empty() && p.parse::<u16>().is_ok());
    let name_ok = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    port_ok && name_ok
}

/// Splits `host:port`, leaving a bracketed IPv6 address whole.
pub(crate) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    }
}

/// Whether a host (with or without port) is this machine, where plain HTTP is allowed unasked.
pub(crate) fn is_loopback(host: &str) -> bool {
    let (name, _) = split_port(host);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// All of Docker Hub's names are one host when credentials are matched.
pub(crate) fn canonical_host(host: &str) -> &str {
    match host {
        DOCKER_HUB_INDEX | DOCKER_HUB_REGISTRY => DOCKER_HUB,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_normalise_as_docker_does() {
        let digest = format!("@sha256:{HEX}");
        for (given, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("registry.example/a/b/c:v1.2-x", "registry.example/a/b/c:v1.2-x"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("a__b/c-d.e---f", "docker.io/a__b/c-d.e---f:latest"),
            (&format!("busybox{digest}"), &format!("docker.io/library/busybox{digest}")),
            (&format!("busybox:1{digest}"), &format!("docker.io/library/busybox:1{digest}")),
        ] {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), want, "{given}");
        }
    }

    #[test]
    fn malformed_references_are_refused_by_name() {
        for bad in [
            "",
            ":x",
            "a:",
            "A",
            "a/B",
            "a//b",
            "-a",
            "a..b",
            "a___b",
            "a@sha256:1",
            "host.x:99999/a",
            "host.x:/a",
            "a b",
            "../a",
            "a/../b",
            "[::g]:1/x",
            "-x.y/a",
            "ünï/x",
            "a:b:c",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        assert!(format!("a/{}", "b".repeat(255)).parse::<Reference>().is_err());
    }

    #[test]
    fn digest_decides_over_tag_and_gives_no_tag() {
        let reference: Reference = format!("busybox:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.selector(), format!("sha256:{HEX}"));
        assert_eq!(reference.tagged(), None);
        assert_eq!(
            "busybox".parse::<Reference>().unwrap().tagged().unwrap(),
            "docker.io/library/busybox:latest"
        );
    }

    #[test]
    fn loopback_is_by_name_or_address() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1", "127.3.2.1:80", "[::1]", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["localhost.example:1", "10.0.0.1", "[::2]:1", "128.0.0.1"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
