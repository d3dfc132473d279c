//! Credentials for pulling, from a pod's `imagePullSecrets`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use berth_image::{Credentials, Reference};
use berth_manifest::Configs;
use serde::Deserialize;

/// A registry's entry in docker's configuration.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

/// What the secrets hold for this image, to be tried one after another: entries for its host and for parts of its path, the
/// longest first. Secrets that are not there are left out, as kubelet does it.
///
/// # Errors
/// A secret that is none of its type, in words.
pub(crate) fn for_image(
    image: &str,
    namespace: &str,
    secrets: &[String],
    configs: &Configs,
) -> Result<Vec<Credentials>, String> {
    let Ok(reference) = image.parse::<Reference>() else { return Ok(Vec::new()) };
    let wanted = format!("{}/{}", reference.host(), reference.repository());
    let mut found: Vec<(usize, Credentials)> = Vec::new();
    for name in secrets {
        let Some(secret) = configs.secrets.get(&(namespace.to_owned(), name.clone())) else { continue };
        for (server, entry) in entries(&secret.data).map_err(|why| format!("Secret {name}: {why}"))? {
            let place = place(&server);
            let fits = wanted == place || wanted.starts_with(&format!("{place}/"));
            if fits {
                found.push((place.len(), credentials(entry, reference.host())));
            }
        }
    }
    // Of equal ones the first secret's.
    found.sort_by_key(|(length, _)| Reverse(*length));
    Ok(found.into_iter().map(|(_, credentials)| credentials).collect())
}

fn entries(data: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, Entry>, String> {
    if let Some(text) = data.get(".dockerconfigjson") {
        let config: DockerConfig = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        return Ok(config.auths);
    }
    match data.get(".dockercfg") {
        Some(text) => serde_json::from_slice(text).map_err(|error| error.to_string()),
        None => Err("has neither .dockerconfigjson nor .dockercfg".to_owned()),
    }
}

/// `https://index.docker.io/v1/` is what docker writes for its own hub; of others as well it may write the version.
fn place(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = ["/v1", "/v2"].iter().find_map(|version| bare.strip_suffix(version)).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

fn credentials(entry: Entry, host: &str) -> Credentials {
    Credentials {
        username: entry.username,
        password: entry.password,
        auth: entry.auth,
        server_address: host.to_owned(),
        identity_token: entry.identitytoken,
        registry_token: entry.registrytoken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_that_fits_comes_first() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHVi"},
            "registry.example": {"username": "a", "password": "b"},
            "registry.example/team": {"username": "c", "password": "d"},
            "https://versions.example/v2/": {"username": "e", "password": "f"}
        }}"#;
        let secret = berth_manifest::Config {
            data: [(".dockerconfigjson".to_owned(), text.as_bytes().to_vec())].into(),
            ..berth_manifest::Config::default()
        };
        let mut configs = Configs::default();
        configs.secrets.insert(("default".to_owned(), "pull".to_owned()), secret);
        let of =
            |image| for_image(image, "default", &["pull".to_owned(), "absent".to_owned()], &configs).unwrap();
        let users = |image| of(image).into_iter().map(|one| one.username).collect::<Vec<_>>();
        assert_eq!(of("nginx")[0].auth, "aHVi");
        assert_eq!(users("registry.example/x"), ["a"]);
        assert_eq!(users("registry.example/team/x:1"), ["c", "a"]);
        assert_eq!(users("registry.example/teams/x"), ["a"]);
        assert_eq!(users("versions.example/x"), ["e"]);
        assert!(of("other.example/x").is_empty());
    }
}
