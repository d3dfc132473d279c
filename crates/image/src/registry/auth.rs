//! Credentials, challenges and tokens.
//!
//! The one rule: credentials go to the host they are for. That is `server_address` when the caller says so,
//! else the host in the reference. A mirror, or a server that a registry redirects to, gets none.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::{RegistryError, RegistryErrorKind};
use crate::hosts::authority;
use crate::reference::canonical_host;

/// Who we say we are to a token server.
const CLIENT_ID: &str = "berth";
/// A token answer is a few kilobytes.
const MAX_TOKEN_ANSWER: usize = 1024 * 1024;
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What a caller may prove itself with; CRI's `AuthConfig`. Empty texts count as absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// For basic authentication and token requests.
    pub username: String,
    /// Goes with `username`.
    pub password: String,
    /// base64 of `username:password`; decides over the two.
    pub auth: String,
    /// The host these are for, bare or as a URL. Empty: the host in the reference.
    pub server_address: String,
    /// A refresh token for the token server.
    pub identity_token: String,
    /// A bearer token for the registry itself.
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets never reach a log.
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Credentials in the form they are used.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Anonymous,
    Basic { username: String, password: String },
    Identity(String),
    Registry(String),
}

/// The `auth` field is not base64 of `username:password`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credentials' auth field is not base64 of username:password")]
pub struct MalformedAuth;

impl Credentials {
    /// What to show `endpoint`, which serves images of `host`.
    pub(crate) fn secret_for(&self, endpoint: &Url, host: &str) -> Result<Secret, MalformedAuth> {
        let meant = match self.server_address.as_str() {
            "" => host.to_owned(),
            address => address_host(address),
        };
        if canonical_host(&meant) != canonical_host(&authority(endpoint)) {
            return Ok(Secret::Anonymous);
        }
        if !self.registry_token.is_empty() {
            return Ok(Secret::Registry(self.registry_token.clone()));
        }
        if !self.identity_token.is_empty() {
            return Ok(Secret::Identity(self.identity_token.clone()));
        }
        let (username, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            decode_auth(&self.auth)?
        };
        if username.is_empty() && password.is_empty() {
            return Ok(Secret::Anonymous);
        }
        Ok(Secret::Basic { username, password })
    }
}

fn decode_auth(auth: &str) -> Result<(String, String), MalformedAuth> {
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| MalformedAuth)?;
    let text = String::from_utf8(bytes).map_err(|_| MalformedAuth)?;
    let (username, password) = text.split_once(':').ok_or(MalformedAuth)?;
    // docker pads the password with NULs.
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Host and port of a server address as users write it: `r.example`, `r.example:5000`, `https://r.example/v1/`.
fn address_host(address: &str) -> String {
    let spelled = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    match Url::parse(&spelled) {
        Ok(url) => authority(&url),
        Err(_) => address.to_owned(),
    }
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges we can answer in a header's values, bearer before basic.
pub(crate) fn challenges<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for header in headers {
        for (scheme, parameters) in split_challenges(header) {
            let parameter = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                found.push(Challenge::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                let (service, scope) = (parameter("service"), parameter("scope"));
                found.insert(0, Challenge::Bearer { realm, service, scope });
            }
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// Takes `Scheme a="b", c=d, Scheme2 …` apart: a word followed by a space and not by `=` begins a challenge.
fn split_challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',', '\t']).unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        let after = rest[end..].trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let (value, left) = parameter_value(value.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word, value));
            }
            rest = left;
        } else {
            if word.is_empty() {
                break; // a stray separator: nothing after it can be trusted
            }
            found.push((word, Vec::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// A quoted or bare value, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// The `Authorization` value for basic authentication.
pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Asks the token server named by a challenge for a bearer token.
pub(crate) async fn fetch_token(
    client: &reqwest::Client,
    registry: &Url,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    secret: &Secret,
) -> Result<String, RegistryError> {
    let fault = |kind, source| RegistryError {
        endpoint: realm.to_owned(),
        step: format!("get a token for {scope}"),
        kind,
        source,
    };
    let protocol = |why: &str| fault(RegistryErrorKind::Protocol(why.to_owned()), None);
    let mut url =
        Url::parse(realm).map_err(|_| protocol("the registry names a token server that is no URL"))?;
    if registry.scheme() == "https" && url.scheme() != "https" && *secret != Secret::Anonymous {
        return Err(protocol("refusing to send credentials to a token server in plain HTTP"));
    }
    let request = match secret {
        Secret::Identity(token) => {
            let mut form = url::form(&[
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("scope", scope),
                ("refresh_token", token),
            ]);
            if let Some(service) = service {
                form = format!("{form}&{}", url::form(&[("service", service)]));
            }
            client
                .post(url)
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form)
        }
        other => {
            {
                let mut query = url.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                query.append_pair("scope", scope);
            }
            match other {
                Secret::Basic { username, password } => {
                    client.get(url).header(reqwest::header::AUTHORIZATION, basic(username, password))
                }
                _ => client.get(url),
            }
        }
    };
    let answer = request.timeout(TOKEN_TIMEOUT).send().await.map_err(|error| {
        fault(
            RegistryErrorKind::Unavailable("the token server cannot be reached".to_owned()),
            Some(error.without_url()),
        )
    })?;
    let status = answer.status();
    let body = super::client::bounded_body(answer, MAX_TOKEN_ANSWER, TOKEN_TIMEOUT)
        .await
        .map_err(|(kind, source)| fault(kind, source))?;
    if !status.is_success() {
        let detail = super::client::error_detail(&body);
        // A token server answers 400 to credentials it does not like, as OAuth asks.
        let kind = match status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
                RegistryErrorKind::Unauthenticated(format!("{status}: {detail}"))
            }
            status => RegistryErrorKind::of_status(status, &detail),
        };
        return Err(fault(kind, None));
    }
    let answer: TokenAnswer =
        serde_json::from_slice(&body).map_err(|_| protocol("the token server's answer has no token"))?;
    [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or_else(|| protocol("the token server's answer has no token"))
}

/// Form encoding by the URL type's own rules.
mod url {
    use reqwest::Url;

    pub(super) fn form(pairs: &[(&str, &str)]) -> String {
        let mut url = Url::parse("http://form").expect("a constant URL");
        url.query_pairs_mut().extend_pairs(pairs);
        url.query().unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let all = challenges(
            [
                r#"Basic realm="x", Bearer realm="https://a/token",service="a b, c",scope="repository:x:pull""#,
                "Negotiate",
            ]
            .into_iter(),
        );
        assert_eq!(
            all,
            [
                Challenge::Bearer {
                    realm: "https://a/token".into(),
                    service: Some("a b, c".into()),
                    scope: Some("repository:x:pull".into())
                },
                Challenge::Basic
            ]
        );
        for odd in ["", ",,,", "=", "Bearer", "Bearer realm", "Bearer realm=\"", "Bearer =,=", "\"", " = = "]
        {
            challenges([odd].into_iter());
        }
    }

    #[test]
    fn credentials_go_only_to_the_host_they_are_for() {
        let mut credentials =
            Credentials { username: "u".into(), password: "p".into(), ..Default::default() };
        let own: Url = "https://r.example/v2".parse().unwrap();
        let mirror: Url = "https://mirror.example/v2".parse().unwrap();
        let hub: Url = "https://registry-1.docker.io/v2".parse().unwrap();
        let basic = Secret::Basic { username: "u".into(), password: "p".into() };
        assert!(credentials.secret_for(&own, "r.example").unwrap() == basic);
        assert!(credentials.secret_for(&mirror, "r.example").unwrap() == Secret::Anonymous);
        assert!(credentials.secret_for(&hub, "docker.io").unwrap() == basic);
        credentials.server_address = "https://index.docker.io/v1/".into();
        assert!(credentials.secret_for(&hub, "docker.io").unwrap() == basic);
        assert!(credentials.secret_for(&own, "r.example").unwrap() == Secret::Anonymous);
        credentials.server_address = "mirror.example".into();
        assert!(credentials.secret_for(&mirror, "r.example").unwrap() == basic);
    }

    #[test]
    fn auth_field_is_decoded() {
        let own: Url = "https://r.example/v2".parse().unwrap();
        let with = |auth: &str| Credentials { auth: auth.into(), ..Default::default() };
        let secret = with(&STANDARD.encode("u:p:q")).secret_for(&own, "r.example").unwrap();
        assert!(secret == Secret::Basic { username: "u".into(), password: "p:q".into() });
        assert!(with("%%%").secret_for(&own, "r.example").is_err());
        assert!(with(&STANDARD.encode("nocolon")).secret_for(&own, "r.example").is_err());
        assert!(with("").secret_for(&own, "r.example").unwrap() == Secret::Anonymous);
    }
}
