//! What a pull would do and why: which endpoints it asks, on whose word, what it shows them, and what they answer.

use std::path::PathBuf;

use futures::future::join_all;

use crate::digest::Digest;
use crate::errors::PullError;
use crate::images::Images;
use crate::records::ImageId;
use crate::reference::Reference;
use crate::registry::client::Host;
use crate::registry::{Credentials, RegistryError, auth::Secret};

/// How a reference is pulled.
#[derive(Debug)]
pub struct Explanation {
    /// Normalised.
    pub reference: String,
    /// Whose images these are.
    pub host: String,
    /// The `hosts.toml` that says where they are fetched from; none: from the host itself.
    pub file: Option<PathBuf>,
    /// In the order they are asked: the first that answers well is the one.
    pub endpoints: Vec<ExplainedEndpoint>,
    /// What is here under that name.
    pub present: Option<ImageId>,
}

/// A server that may have the image.
#[derive(Debug)]
pub struct ExplainedEndpoint {
    /// With the API's path.
    pub url: String,
    /// The host itself, not a mirror of it.
    pub upstream: bool,
    /// Whether it may be asked what a tag means.
    pub resolve: bool,
    /// Whether it may be asked for content.
    pub pull: bool,
    /// Files of authorities trusted beside the system's.
    pub authorities: usize,
    /// Whether it is shown a client's certificate.
    pub client_certificate: bool,
    /// Whether anybody's certificate is taken for its own.
    pub skip_verify: bool,
    /// Names of headers that are sent along.
    pub headers: Vec<String>,
    /// What it is told of who asks, should it want to know.
    pub shown: String,
    /// The digest of the reference's manifest there, where it says so.
    pub answer: Answer,
}

/// What an endpoint said of the reference.
#[derive(Debug)]
pub enum Answer {
    /// It may not be asked, for want of the capability.
    NotAsked,
    /// It has it.
    Has(Option<Digest>),
    /// It has not, or there was no answer.
    Failed(RegistryError),
}

impl Images {
    /// Asks every endpoint for the reference's manifest, as a pull would ask them one after another. Fetches nothing.
    ///
    /// # Errors
    /// A reference, a `hosts.toml` or credentials that a pull would refuse; what endpoints say is part of the answer.
    pub async fn explain(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<Explanation, PullError> {
        let reference: Reference = reference.parse()?;
        let session = self.session(&reference, credentials).await?;
        let endpoints = session.hosts.iter().map(async |host| {
            let answer = match host.may_have_manifest(reference.digest()) {
                false => Answer::NotAsked,
                true => session.look_up(host).await.map_or_else(Answer::Failed, Answer::Has),
            };
            explained(host, answer)
        });
        let endpoints = join_all(endpoints).await;
        Ok(Explanation {
            reference: reference.to_string(),
            host: reference.host().to_owned(),
            file: session.file.clone(),
            endpoints,
            present: self.find(&reference.to_string())?.map(|image| image.id.clone()),
        })
    }
}

fn explained(host: &Host, answer: Answer) -> ExplainedEndpoint {
    let endpoint = &host.endpoint;
    ExplainedEndpoint {
        url: endpoint.url.to_string(),
        upstream: endpoint.upstream,
        resolve: endpoint.resolve,
        pull: endpoint.pull,
        authorities: endpoint.tls.roots.len(),
        client_certificate: endpoint.tls.identity.is_some(),
        skip_verify: endpoint.tls.skip_verify,
        headers: endpoint.headers.keys().map(ToString::to_string).collect(),
        shown: match &host.secret {
            Secret::Anonymous => "nothing".to_owned(),
            Secret::Basic { username, .. } => format!("user {username}"),
            Secret::Identity(_) => "an identity token".to_owned(),
            Secret::Registry(_) => "a registry token".to_owned(),
        },
        answer,
    }
}
