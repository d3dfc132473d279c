//! What a request wants to become, by its headers.

use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue};

/// Repeated or comma-separated, in the client's order of preference.
pub(crate) const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// What the server would have accepted.
pub(crate) const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";
pub(crate) const SPDY: &str = "SPDY/3.1";

/// The transports a request can ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    Spdy,
    WebSocket { key: HeaderValue },
}

/// Why there is no upgrade.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("unable to upgrade: missing the headers Connection: Upgrade and Upgrade: SPDY/3.1 or websocket")]
    NoUpgrade,
    #[error("unable to upgrade: X-Stream-Protocol-Version is required")]
    NoProtocol,
    #[error("unable to upgrade: Sec-WebSocket-Key is required")]
    NoKey,
    #[error("unable to upgrade: Sec-WebSocket-Version must be 13")]
    Version,
    #[error("unable to upgrade: none of the protocols of the client is known: {theirs}")]
    Protocol { theirs: String, ours: Vec<&'static str> },
    #[error("unable to forward: {0}")]
    NoPorts(&'static str),
}

/// The ports of a query: `port`, repeated or comma-separated.
///
/// # Errors
/// None, or what is no port.
pub(crate) fn ports(query: &str) -> Result<Vec<u16>, Refused> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    // A comma may be escaped; nothing else in a list of numbers needs to be.
    let values: Vec<String> = values.map(|value| value.replace("%2C", ",").replace("%2c", ",")).collect();
    if values.is_empty() {
        return Err(Refused::NoPorts("the query parameter port is required"));
    }
    let ports = values.iter().flat_map(|value| value.split(','));
    let ports: Option<Vec<u16>> = ports.map(|port| port.parse().ok().filter(|port| *port != 0)).collect();
    ports.ok_or(Refused::NoPorts("the query parameter port must be numbers of ports"))
}

/// The transport.
///
/// # Errors
/// The request is no upgrade, or one that is incomplete.
pub(crate) fn upgrade(headers: &HeaderMap) -> Result<Upgrade, Refused> {
    if !list(headers, CONNECTION.as_str()).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(Refused::NoUpgrade);
    }
    let to = |name: &str| list(headers, UPGRADE.as_str()).any(|token| token.eq_ignore_ascii_case(name));
    if to(SPDY) {
        return Ok(Upgrade::Spdy);
    }
    if !to("websocket") {
        return Err(Refused::NoUpgrade);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refused::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Refused::NoKey)?.clone();
    Ok(Upgrade::WebSocket { key })
}

/// The first of the client's protocols over SPDY that the server has.
///
/// # Errors
/// It named none, or none of these.
pub(crate) fn spdy_protocol<T: Copy>(
    headers: &HeaderMap,
    ours: &[(&'static str, T)],
) -> Result<(&'static str, T), Refused> {
    first(headers, STREAM_PROTOCOL, ours)?.ok_or(Refused::NoProtocol)
}

/// The first of the client's subprotocols that the server has; none where it named none.
///
/// # Errors
/// It named only others.
pub(crate) fn subprotocol<T: Copy>(
    headers: &HeaderMap,
    ours: &[(&'static str, T)],
) -> Result<Option<(&'static str, T)>, Refused> {
    first(headers, SEC_WEBSOCKET_PROTOCOL.as_str(), ours)
}

fn first<T: Copy>(
    headers: &HeaderMap,
    header: &str,
    ours: &[(&'static str, T)],
) -> Result<Option<(&'static str, T)>, Refused> {
    let theirs: Vec<&str> = list(headers, header).collect();
    if theirs.is_empty() {
        return Ok(None);
    }
    theirs
        .iter()
        .find_map(|name| ours.iter().find(|(our, _)| our == name))
        .map(|found| Some(*found))
        .ok_or_else(|| {
            let ours = ours.iter().map(|(name, _)| *name).collect();
            Refused::Protocol { theirs: theirs.join(", "), ours }
        })
}

fn list<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [(&str, u8); 2] = [("v4.channel.k8s.io", 4), ("channel.k8s.io", 1)];

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_transport_is_named_twice() {
        let spdy = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "spdy/3.1")]);
        assert_eq!(upgrade(&spdy), Ok(Upgrade::Spdy));
        assert_eq!(upgrade(&headers(&[("upgrade", "SPDY/3.1")])), Err(Refused::NoUpgrade));
        assert_eq!(
            upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])),
            Err(Refused::NoUpgrade)
        );
        let mut websocket = headers(&[("connection", "Upgrade"), ("upgrade", "WebSocket")]);
        assert_eq!(upgrade(&websocket), Err(Refused::Version));
        websocket.insert("sec-websocket-version", HeaderValue::from_static("13"));
        assert_eq!(upgrade(&websocket), Err(Refused::NoKey));
        websocket.insert("sec-websocket-key", HeaderValue::from_static("eA=="));
        assert_eq!(upgrade(&websocket), Ok(Upgrade::WebSocket { key: HeaderValue::from_static("eA==") }));
    }

    #[test]
    fn the_clients_order_decides() {
        let repeated = headers(&[
            (STREAM_PROTOCOL, "v9.channel.k8s.io"),
            (STREAM_PROTOCOL, "channel.k8s.io, v4.channel.k8s.io"),
        ]);
        assert_eq!(spdy_protocol(&repeated, &OURS), Ok(("channel.k8s.io", 1)));
        assert_eq!(spdy_protocol(&headers(&[]), &OURS), Err(Refused::NoProtocol));
        let other = headers(&[(STREAM_PROTOCOL, "v9,v8")]);
        assert_eq!(
            spdy_protocol(&other, &OURS),
            Err(Refused::Protocol {
                theirs: "v9, v8".into(),
                ours: vec!["v4.channel.k8s.io", "channel.k8s.io"]
            })
        );
        assert_eq!(subprotocol(&headers(&[]), &OURS), Ok(None));
    }

    #[test]
    fn ports_may_be_repeated_or_listed() {
        assert_eq!(ports("port=80&x=1&port=81,82%2C83"), Ok(vec![80, 81, 82, 83]));
        for none in ["", "ports=80", "port=", "port=0", "port=80,", "port=65536", "port=http"] {
            assert!(matches!(ports(none), Err(Refused::NoPorts(_))), "{none}");
        }
    }
}
