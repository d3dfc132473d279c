//! What may be a name.

/// A label of DNS, RFC 1123: pods' containers, volumes, ports in URLs.
///
/// # Errors
/// Why not.
pub(crate) fn label(text: &str) -> Result<String, String> {
    dns(text, 63, &[])
}

/// Labels with dots between: pods, ConfigMaps, Secrets.
///
/// # Errors
/// Why not.
pub(crate) fn subdomain(text: &str) -> Result<String, String> {
    dns(text, 253, b".")
}

fn dns(text: &str, most: usize, between: &[u8]) -> Result<String, String> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || between.contains(&c);
    let outer = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|c| outer(*c)) && bytes.last().is_some_and(|c| outer(*c));
    if ends && bytes.len() <= most && bytes.iter().all(|c| inner(*c)) && !text.contains("..") {
        return Ok(text.to_owned());
    }
    let also = if between.is_empty() { "" } else { ", dots" };
    Err(format!(
        "{text:?} is no name: lowercase letters, digits, hyphens{also}; a letter or digit at both ends; at most {most}"
    ))
}

/// A name of a port, RFC 6335: at most 15 lowercase letters, digits and single hyphens, with a letter among them.
///
/// # Errors
/// Why not.
pub(crate) fn port(text: &str) -> Result<String, String> {
    let named = text.len() <= 15 && text.bytes().any(|c| c.is_ascii_lowercase()) && !text.contains("--");
    if named && label(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name of a port: at most 15 lowercase letters, digits and single hyphens"))
}

/// A variable's name, as Kubernetes has it since 1.34: printable ASCII without `=`.
///
/// # Errors
/// Why not.
pub(crate) fn variable(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of a variable: printable ASCII without =")),
    }
}

/// A key of a ConfigMap or Secret: it becomes a file's name.
///
/// # Errors
/// Why not.
pub(crate) fn config_key(text: &str) -> Result<String, String> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let whole = !text.is_empty() && text.len() <= 253 && text.bytes().all(fits);
    match whole && text != "." && !text.starts_with("..") {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no key: letters, digits, -, _ and .; not . and not .. in front")),
    }
}

/// A path that stays below where it starts.
///
/// # Errors
/// Why not.
pub(crate) fn path_below(text: &str) -> Result<String, String> {
    match text.starts_with('/') || text.split('/').any(|part| part == "..") {
        false if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} must be a path below the volume, without ..")),
    }
}

/// A path from the root.
///
/// # Errors
/// Why not.
pub(crate) fn absolute_path(text: &str) -> Result<String, String> {
    match text.starts_with('/') && !text.split('/').any(|part| part == "..") && !text.contains('\0') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} must be an absolute path without ..")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kubernetes_takes() {
        for good in ["a", "web-1", "0"] {
            assert!(label(good).is_ok() && subdomain(good).is_ok(), "{good}");
        }
        for bad in ["", "Web", "-a", "a-", "a.b", "a_b", &"a".repeat(64)] {
            assert!(label(bad).is_err(), "{bad}");
        }
        assert!(subdomain("a.b").is_ok() && subdomain("a..b").is_err() && subdomain(".a").is_err());
        assert!(port("http").is_ok() && port("80").is_err() && port("a--b").is_err());
        assert!(port("sixteen-letters-").is_err());
        assert!(variable("my.var-1 x").is_ok() && variable("a=b").is_err() && variable("").is_err());
        assert!(
            config_key("..data").is_err() && config_key("a/b").is_err() && config_key("app.conf").is_ok()
        );
    }

    #[test]
    fn paths_do_not_climb() {
        assert!(path_below("a/b").is_ok() && path_below("a/../b").is_err() && path_below("/a").is_err());
        assert!(
            absolute_path("/a").is_ok() && absolute_path("a").is_err() && absolute_path("/a/..").is_err()
        );
    }
}
