//! Images and the file system they lie on.

use berth_cri::berth::v1::{
    ExplainResponse, ExplainedEndpoint,
    explained_endpoint::{Answer as WireAnswer, NotAsked},
};
use berth_cri::runtime::v1::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, Image, ImageSpec, Int64Value, UInt64Value,
};
use berth_image::{Answer, Credentials, Explanation, FsUsage, RegistryError};
use serde_json::{Value, json};

use super::{Info, topic};
use crate::error::Chain;

pub(crate) fn image(image: &berth_image::Image) -> Image {
    Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: image.uid().map(|value| Int64Value { value }),
        username: image.username().unwrap_or_default().to_owned(),
        spec: Some(ImageSpec { image: image.id.to_string(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

/// `imageSpec` is the config as the registry has it; tools of the field look for that name.
pub(crate) fn image_info(image: &berth_image::Image) -> Info {
    let config: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let layers: Vec<String> = image.layers.iter().map(ToString::to_string).collect();
    Info::from([topic("info", &json!({ "imageSpec": config, "layers": layers }))])
}

/// `None` for a message that holds nothing: kubelet and crictl send those too.
pub(crate) fn credentials(auth: Option<AuthConfig>) -> Option<Credentials> {
    let auth = auth?;
    let credentials = Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    };
    (credentials != Credentials::default()).then_some(credentials)
}

/// `timestamp` in nanoseconds since the epoch.
pub(crate) fn filesystem(usage: &FsUsage, timestamp: i64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes_used }),
    }
}

/// How an image is pulled, as the Images service says it.
pub(crate) fn explanation(explained: Explanation) -> ExplainResponse {
    let Explanation { reference, host, file, endpoints, present } = explained;
    ExplainResponse {
        reference,
        host,
        config_file: file.map(|file| file.display().to_string()).unwrap_or_default(),
        endpoints: endpoints.into_iter().map(explained_endpoint).collect(),
        present: present.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn explained_endpoint(endpoint: berth_image::ExplainedEndpoint) -> ExplainedEndpoint {
    ExplainedEndpoint {
        url: endpoint.url,
        upstream: endpoint.upstream,
        resolve: endpoint.resolve,
        pull: endpoint.pull,
        authorities: u32::try_from(endpoint.authorities).unwrap_or(u32::MAX),
        client_certificate: endpoint.client_certificate,
        skip_verify: endpoint.skip_verify,
        headers: endpoint.headers,
        shown: endpoint.shown,
        answer: Some(match endpoint.answer {
            Answer::NotAsked => WireAnswer::NotAsked(NotAsked {}),
            Answer::Has(digest) => {
                WireAnswer::Digest(digest.map(|digest| digest.to_string()).unwrap_or_default())
            }
            // The endpoint stands beside it, and what was asked of it.
            Answer::Failed(RegistryError { kind, source: None, .. }) => WireAnswer::Failure(kind.to_string()),
            Answer::Failed(RegistryError { kind, source: Some(source), .. }) => {
                WireAnswer::Failure(format!("{kind}: {}", Chain(&source)))
            }
        }),
    }
}
