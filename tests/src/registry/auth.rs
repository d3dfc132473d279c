//! Who may read: the two schemes registries use, and the token endpoint of the second.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

/// The registry's door.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    #[default]
    Open,
    /// Every request carries this name and password.
    Basic { username: String, password: String },
    /// Every request carries a token, which `/token` gives out for this name and password, or for this refresh token.
    Bearer { username: String, password: String, refresh_token: String },
}

/// What `/token` gives out, per scope, so that a token for one repository is worth nothing at another.
fn token_for(scope: &str) -> String {
    format!("token-{}", hex::encode(scope))
}

impl Access {
    pub fn basic(username: &str, password: &str) -> Access {
        Access::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    pub fn bearer(username: &str, password: &str) -> Access {
        Access::Bearer {
            username: username.to_owned(),
            password: password.to_owned(),
            refresh_token: format!("refresh-{username}"),
        }
    }

    /// `None` lets the request for `repository` in; otherwise the `WWW-Authenticate` header of the 401.
    pub(super) fn challenge(
        &self,
        repository: &str,
        authorization: Option<&str>,
        host: &str,
    ) -> Option<String> {
        match self {
            Access::Open => None,
            Access::Basic { username, password } => {
                let admitted = authorization == Some(basic_header(username, password).as_str());
                (!admitted).then(|| "Basic realm=\"berth tests\"".to_owned())
            }
            Access::Bearer { .. } => {
                let scope = format!("repository:{repository}:pull");
                let admitted = authorization == Some(format!("Bearer {}", token_for(&scope)).as_str());
                (!admitted).then(|| {
                    format!("Bearer realm=\"http://{host}/token\",service=\"berth-tests\",scope=\"{scope}\"")
                })
            }
        }
    }

    /// The token endpoint: the JSON answer, or `None` for a 401. `form` is the POST body (OAuth2) or the query (GET).
    pub(super) fn token(&self, authorization: Option<&str>, form: &str) -> Option<String> {
        let Access::Bearer { username, password, refresh_token } = self else { return None };
        let fields: Vec<(String, String)> = form
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (decode(key), decode(value)))
            .collect();
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let by_password = authorization == Some(basic_header(username, password).as_str());
        let by_refresh = field("grant_type") == Some("refresh_token")
            && field("refresh_token") == Some(refresh_token.as_str());
        if !by_password && !by_refresh {
            return None;
        }
        let token = token_for(field("scope")?);
        Some(json!({ "token": token, "access_token": token, "expires_in": 300 }).to_string())
    }
}

fn basic_header(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}

/// Undoes percent and plus encoding of a form field.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let pair: Vec<u8> = bytes.by_ref().take(2).collect();
                out.extend(hex::decode(pair).unwrap_or_default());
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_admits_to_the_repository_it_was_given_for_and_no_other() {
        let access = Access::bearer("ann", "secret");
        let challenge = access.challenge("team/app", None, "localhost:5000").unwrap();
        assert!(challenge.contains("scope=\"repository:team/app:pull\""), "{challenge}");
        let login = basic_header("ann", "secret");
        let form = "service=berth-tests&scope=repository%3Ateam%2Fapp%3Apull";
        let answer: serde_json::Value =
            serde_json::from_str(&access.token(Some(&login), form).unwrap()).unwrap();
        let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
        assert_eq!(access.challenge("team/app", Some(&bearer), "localhost:5000"), None);
        assert!(access.challenge("team/other", Some(&bearer), "localhost:5000").is_some());
        assert_eq!(access.token(Some(&basic_header("ann", "wrong")), form), None);
    }
}
