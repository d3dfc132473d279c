//! One pull, from a reference to a recorded image.
//!
//! ```text
//! reference ─ HEAD ─▶ known and whole? ─▶ record the name, done
//!     └─ manifest (index → this machine's) ─ config ─┬─ layer ┐
//!                                                    ├─ layer ┼─▶ record (flushed) ─▶ id
//!                                                    └─ layer ┘
//! ```
//! Layers are jobs shared by all pulls that want them at the moment: a job lives as long as one of them
//! waits, so dropping a pull ends exactly the downloads nobody else needs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures::stream::{FuturesUnordered, StreamExt};
use oci_spec::image::{ImageConfiguration, Os};
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::errors::{Cause, PullError};
use crate::hosts;
use crate::images::{Images, Inner, Pins, lock};
use crate::layers::{LayerError, LayerInfo};
use crate::manifest::{self, Descriptor, Manifest, ManifestError};
use crate::pieces;
use crate::progress::{Meter, Progress};
use crate::records::{ImageId, ImageRecord, LayerRecord};
use crate::reference::Reference;
use crate::registry::client::Session;
use crate::registry::{Credentials, RegistryError, RegistryErrorKind, source};
use crate::unpack::{Input, LayerSpec, UnpackError};

/// Indexes may list indexes, but nobody needs more steps than this.
const MAX_INDEX_DEPTH: usize = 4;
/// Attempts at a document, and the wait between the first two.
const DOCUMENT_ATTEMPTS: u32 = 3;
const DOCUMENT_BACK_OFF: Duration = Duration::from_millis(200);

type Job = BoxFuture<'static, Result<Arc<LayerInfo>, Arc<Cause>>>;

/// The layers being fetched, by blob and diff id: the same blob under two diff ids is two claims, of which
/// one is wrong.
#[derive(Default)]
pub(crate) struct Jobs {
    running: Mutex<HashMap<(Digest, Digest), Running>>,
}

/// One of them, as long as somebody waits for it, and how far it is.
type Running = (WeakShared<Job>, Arc<Meter>);

/// What a manifest led to.
pub(crate) struct Found {
    /// The digest that the reference itself stands for.
    pub(crate) resolved: Digest,
    /// Every document on the way, with its bytes.
    pub(crate) documents: Vec<(Digest, bytes::Bytes)>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What an image is called.
pub(crate) struct Named {
    /// In errors.
    pub(crate) text: String,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
}

impl Images {
    /// Pulls an image and answers its id. Present and unchanged images cost one small request, which is made
    /// all the same: the registry decides whether these credentials may have the image.
    ///
    /// Cancel safe: dropping the future leaves nothing half-made visible, and ends the downloads that no
    /// other pull waits for.
    ///
    /// # Errors
    ///
    /// See [`PullError`]; nothing of the attempt is left.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Credentials>,
        progress: &Progress,
    ) -> Result<ImageId, PullError> {
        let reference: Reference = reference.parse()?;
        let text = reference.to_string();
        let fail = |cause: Cause| PullError::of(&text, Arc::new(cause));
        let session = self.session(&reference, auth).await?;
        if let Some(id) = self.present(&session, &reference).await? {
            return Ok(id);
        }
        let found = walk(&session).await.map_err(|error| error.of(&text))?;
        let config =
            persist(|| session.small_blob(&found.config.digest)).await.map_err(|e| fail(e.into()))?;
        let (config, specs) = read_config(&found, &config).map_err(|error| error.of(&text))?;

        let attempt = Attempt::at(&self.0, &found, &specs);
        progress.expect(&specs);
        let ended = match self.layers(&session, &specs, &attempt, progress).await {
            Ok(layers) => {
                let named = Named {
                    text: text.clone(),
                    tags: reference.tagged().into_iter().collect(),
                    digests: [reference.digested(&found.resolved)].into(),
                };
                self.commit(named, found, config, specs, &layers, &attempt).await
            }
            Err(cause) => Err(PullError::of(&text, cause)),
        };
        if ended.is_err()
            && let Some(attempt) = Arc::into_inner(attempt)
        {
            // With the last holder's end its files are swept; off the runtime's threads, but before the answer.
            tokio::task::spawn_blocking(move || drop(attempt))
                .await
                .map_err(|e| fail(Cause::task("a sweep", e)))?;
        }
        ended
    }

    pub(crate) async fn session(
        &self,
        reference: &Reference,
        auth: Option<Credentials>,
    ) -> Result<Arc<Session>, PullError> {
        let (inner, reference) = (Arc::clone(&self.0), reference.clone());
        let text = reference.to_string();
        let name = text.clone();
        // Reads configuration files and, for a new client, the system's certificates.
        let opened = tokio::task::spawn_blocking(move || {
            let endpoints = hosts::endpoints(&inner.config.registry_config_dir, reference.host())
                .map_err(|source| PullError::Configuration { reference: text.clone(), source })?;
            Session::new(&inner.clients, endpoints, &reference, auth.as_ref())
                .map(Arc::new)
                .map_err(|error| PullError::of_session(&text, error))
        })
        .await;
        opened.unwrap_or_else(|error| {
            Err(PullError::of(&name, Arc::new(Cause::task("the configuration", error))))
        })
    }

    /// The short way: the registry says that the reference still means an image that is here.
    async fn present(&self, session: &Session, reference: &Reference) -> Result<Option<ImageId>, PullError> {
        if !self.0.knows_repository(reference) {
            return Ok(None);
        }
        let digest = match session.resolve().await {
            Ok(Some(digest)) => digest,
            Ok(None) => return Ok(None),
            Err(error) => {
                return match error.kind {
                    RegistryErrorKind::NotFound | RegistryErrorKind::Unauthenticated(_) => {
                        Err(PullError::of(&reference.to_string(), Arc::new(error.into())))
                    }
                    // Not every registry answers HEAD; the full way will tell what is wrong.
                    _ => Ok(None),
                };
            }
        };
        let Some(image) = self.0.whole_image_of(&digest) else { return Ok(None) };
        let layers = image.record.layers.iter().flat_map(|layer| [&layer.diff_id, &layer.blob]);
        let parts = layers.chain(&image.record.manifests).chain([image.id.digest()]);
        let attempt = Attempt::holding(&self.0, parts);
        // From here on nothing of it goes; what went before is seen now.
        let Some(image) = self.0.whole_image_of(&digest) else { return Ok(None) };
        let mut record = image.record.clone();
        record.tags = reference.tagged().into_iter().collect();
        record.digests = [reference.digested(&digest)].into();
        self.record(&reference.to_string(), image.id.clone(), record, attempt).await?;
        Ok(Some(image.id.clone()))
    }

    /// Brings all layers here, some at a time, the largest first: the last to end decides.
    async fn layers(
        &self,
        session: &Arc<Session>,
        specs: &[LayerSpec],
        attempt: &Arc<Attempt>,
        progress: &Progress,
    ) -> Result<Vec<Arc<LayerInfo>>, Arc<Cause>> {
        let permits = Arc::new(Semaphore::new(self.0.config.max_parallel_downloads.max(1)));
        let mut order: Vec<&LayerSpec> = specs.iter().collect();
        order.sort_by_key(|spec| std::cmp::Reverse(spec.size));
        let mut running: FuturesUnordered<_> = order
            .into_iter()
            .map(|spec| self.layer(session, spec.clone(), Arc::clone(&permits), attempt, progress))
            .collect();
        let mut done = Vec::with_capacity(specs.len());
        while let Some(layer) = running.next().await {
            done.push(layer?);
        }
        Ok(done)
    }

    /// Brings one layer here, or waits for whoever does already.
    async fn layer(
        &self,
        session: &Arc<Session>,
        spec: LayerSpec,
        permits: Arc<Semaphore>,
        attempt: &Arc<Attempt>,
        progress: &Progress,
    ) -> Result<Arc<LayerInfo>, Arc<Cause>> {
        let key = (spec.blob.clone(), spec.diff_id.clone());
        if let Some(layer) = self.0.layers.get(spec.diff_id.hex()) {
            progress.present(&spec);
            return Ok(layer);
        }
        let (job, meter, joined) = {
            let mut running = lock(&self.0.jobs.running);
            running.retain(|_, (job, _)| job.upgrade().is_some());
            let present =
                running.get(&key).and_then(|(job, meter)| Some((job.upgrade()?, Arc::clone(meter))));
            match present {
                Some((job, meter)) => (job, meter, true),
                None => {
                    let (job, meter) = start(&self.0, session, &spec, &permits, attempt);
                    running.extend(job.downgrade().map(|weak| (key, (weak, Arc::clone(&meter)))));
                    (job, meter, false)
                }
            }
        };
        progress.follow(&spec, &meter);
        match job.await {
            // It was fetched with another caller's credentials or from another of the host's mirrors; what
            // stopped that need not stop us.
            Err(cause) if joined => {
                tracing::debug!(layer = %spec.diff_id, %cause, "a shared download failed; trying alone");
                let (job, meter) = start(&self.0, session, &spec, &permits, attempt);
                progress.follow(&spec, &meter);
                job.await
            }
            ended => ended,
        }
    }

    /// Stores the documents and writes the record, by which the image is there.
    pub(crate) async fn commit(
        &self,
        named: Named,
        found: Found,
        config: String,
        specs: Vec<LayerSpec>,
        layers: &[Arc<LayerInfo>],
        attempt: &Arc<Attempt>,
    ) -> Result<ImageId, PullError> {
        let Named { text, tags, digests } = named;
        let id = ImageId(found.config.digest.clone());
        let unpacked: u64 = layers.iter().map(|layer| layer.footprint.bytes).sum();
        let stored: u64 = specs.iter().map(|spec| spec.size).sum();
        let documents: u64 = found.documents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let record = ImageRecord {
            tags,
            digests,
            manifests: found.documents.iter().map(|(digest, _)| digest.clone()).collect(),
            size: unpacked + stored + documents + config.len() as u64,
            config,
            layers: specs
                .into_iter()
                .map(|LayerSpec { blob, size, diff_id }| LayerRecord { diff_id, blob, size })
                .collect(),
            pinned: false,
        };
        let (inner, config) = (Arc::clone(&self.0), record.config.clone());
        let config_digest = id.digest().clone();
        let stored = tokio::task::spawn_blocking(move || -> Result<(), Cause> {
            for (digest, bytes) in &found.documents {
                inner.content.put(&inner.layout, digest, bytes)?;
            }
            Ok(inner.content.put(&inner.layout, &config_digest, config.as_bytes())?)
        })
        .await
        .unwrap_or_else(|error| Err(Cause::task("the manifests", error)));
        stored.map_err(|cause| PullError::of(&text, Arc::new(cause)))?;
        self.record(&text, id.clone(), record, Arc::clone(attempt)).await?;
        Ok(id)
    }

    /// Writes the record. It is written also when the caller has gone by then, so what holds the image's parts goes
    /// along.
    async fn record(
        &self,
        text: &str,
        id: ImageId,
        record: ImageRecord,
        attempt: Arc<Attempt>,
    ) -> Result<(), PullError> {
        let (inner, text) = (Arc::clone(&self.0), text.to_owned());
        let written = move || inner.record(&id, record).inspect(|()| attempt.succeeded());
        tokio::task::spawn_blocking(written)
            .await
            .map_err(|error| PullError::of(&text, Arc::new(Cause::task("the record", error))))?
            .map_err(|source| PullError::Record { reference: text, source })
    }
}

/// Holds a pull's parts; when it ends without an image, what nobody else needs goes.
pub(crate) struct Attempt {
    pins: Option<Pins>,
    succeeded: std::sync::atomic::AtomicBool,
}

impl Attempt {
    /// For an image that is not here yet.
    pub(crate) fn at(inner: &Arc<Inner>, found: &Found, specs: &[LayerSpec]) -> Arc<Attempt> {
        let layers = specs.iter().flat_map(|spec| [&spec.diff_id, &spec.blob]);
        let documents = found.documents.iter().map(|(digest, _)| digest);
        Attempt::holding(inner, layers.chain(documents).chain([&found.config.digest]))
    }

    fn holding<'a>(inner: &Arc<Inner>, parts: impl Iterator<Item = &'a Digest>) -> Arc<Attempt> {
        let pins = inner.pin(parts.map(|part| part.hex().to_owned()).collect());
        Arc::new(Attempt { pins: Some(pins), succeeded: false.into() })
    }

    fn succeeded(&self) {
        self.succeeded.store(true, std::sync::atomic::Ordering::Release);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(pins) = self.pins.take() else { return };
        if *self.succeeded.get_mut() {
            return;
        }
        let inner = Arc::clone(pins.inner());
        let sweep = move || {
            drop(pins);
            if let Err(error) = inner.sweep() {
                tracing::warn!(%error, source = %error.source, "what a failed pull left stays until the next removal");
            }
        };
        // Usually the last holder is a blocking thread or a sweep of its own; a dropped pull is neither.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(sweep)),
            Err(_) => sweep(),
        }
    }
}

/// A job that others can join.
fn start(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    spec: &LayerSpec,
    permits: &Arc<Semaphore>,
    attempt: &Arc<Attempt>,
) -> (Shared<Job>, Arc<Meter>) {
    let meter: Arc<Meter> = Arc::default();
    let (inner, session, spec) = (Arc::clone(inner), Arc::clone(session), spec.clone());
    let (permits, attempt) = (Arc::clone(permits), Arc::clone(attempt));
    let told = Arc::clone(&meter);
    let job = async move {
        let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        told.begin();
        let fetched = fetch_layer(inner, &session, spec, attempt, &told).await.map_err(Arc::new);
        told.end();
        fetched
    };
    (job.boxed().shared(), meter)
}

async fn fetch_layer(
    inner: Arc<Inner>,
    session: &Session,
    spec: LayerSpec,
    attempt: Arc<Attempt>,
    meter: &Arc<Meter>,
) -> Result<Arc<LayerInfo>, Cause> {
    if let Some(layer) = inner.layers.get(spec.diff_id.hex()) {
        return Ok(layer);
    }
    if let Some(layer) = from_content(&inner, &spec, &attempt).await? {
        return Ok(layer);
    }
    let (pieces, input) = pieces::queue(meter);
    let patience = inner.config.progress_timeout;
    let unpacking = unpack(inner, spec.clone(), Input::Stream(input), attempt);
    let fetching = async {
        let pieces = pieces; // dropped at the end, which is how the unpacking learns of it
        let fetched = source::fetch(session, &spec.blob, spec.size, patience, &pieces).await;
        meter.all_is_here();
        fetched
    };
    let (fetched, unpacked) = tokio::join!(fetching, unpacking);
    match (fetched, unpacked) {
        (_, Ok(layer)) => Ok(layer),
        (Err(error), Err(LayerError::Unpack(UnpackError::Cut))) => Err(error.into()),
        (_, Err(error)) => Err(Cause::layer(&spec.diff_id, error)),
    }
}

/// Unpacks from a blob that is here already; `None` when there is none, or it is damaged.
pub(crate) async fn from_content(
    inner: &Arc<Inner>,
    spec: &LayerSpec,
    attempt: &Arc<Attempt>,
) -> Result<Option<Arc<LayerInfo>>, Cause> {
    if !inner.content.has(&spec.blob) {
        return Ok(None);
    }
    let blob = match inner.content.read(&inner.layout, &spec.blob) {
        Ok(blob) => blob,
        Err(error) => {
            tracing::warn!(blob = %spec.blob, %error, "unreadable blob; fetching it again");
            drop(inner.content.remove(&inner.layout, &spec.blob)?);
            return Ok(None);
        }
    };
    match unpack(Arc::clone(inner), spec.clone(), Input::File(blob), Arc::clone(attempt)).await {
        Ok(layer) => Ok(Some(layer)),
        Err(
            error @ LayerError::Unpack(
                UnpackError::Damaged { .. } | UnpackError::Inflate(_) | UnpackError::Cut,
            ),
        ) => {
            // What a manifest says of a blob may be wrong, and the blob whole and another image's.
            let (whole, blob) = (Arc::clone(inner), spec.blob.clone());
            let checked =
                tokio::task::spawn_blocking(move || whole.content.is_whole(&whole.layout, &blob)).await;
            if checked.map_err(|panicked| Cause::task("a blob's digest", panicked))?? {
                return Err(Cause::layer(&spec.diff_id, error));
            }
            tracing::warn!(blob = %spec.blob, %error, "damaged blob; fetching it again");
            drop(inner.content.remove(&inner.layout, &spec.blob)?);
            Ok(None)
        }
        Err(error) => Err(Cause::layer(&spec.diff_id, error)),
    }
}

/// Unpacks on a blocking thread, which holds the attempt: nothing is swept under its feet, and what it
/// finishes after everybody left is swept behind it.
async fn unpack(
    inner: Arc<Inner>,
    spec: LayerSpec,
    input: Input,
    attempt: Arc<Attempt>,
) -> Result<Arc<LayerInfo>, LayerError> {
    let unpacked = tokio::task::spawn_blocking(move || {
        let unpacked = inner.layers.unpack(&inner.layout, &inner.content, &spec, input);
        drop(attempt);
        unpacked
    })
    .await;
    unpacked.unwrap_or_else(|error| Err(UnpackError::Thread(error.into()).into()))
}

/// Why a manifest did not lead to an image.
pub(crate) enum WalkError {
    Step(Cause),
    NotAnImage(String, ManifestError),
}

impl WalkError {
    pub(crate) fn of(self, reference: &str) -> PullError {
        match self {
            WalkError::Step(cause) => PullError::of(reference, Arc::new(cause)),
            WalkError::NotAnImage(digest, source) => {
                PullError::NotAnImage { reference: reference.to_owned(), digest, source }
            }
        }
    }
}

impl From<RegistryError> for WalkError {
    fn from(error: RegistryError) -> WalkError {
        WalkError::Step(error.into())
    }
}

/// From the reference through indexes to the manifest for this machine.
async fn walk(session: &Session) -> Result<Found, WalkError> {
    let mut documents: Vec<(Digest, bytes::Bytes)> = Vec::new();
    let mut next: Option<Digest> = None;
    for _ in 0..MAX_INDEX_DEPTH {
        let document = persist(|| session.manifest(next.as_ref())).await?;
        let fault = |error| WalkError::NotAnImage(document.digest.to_string(), error);
        let parsed = manifest::parse(&document.bytes, &document.media_type).map_err(fault)?;
        documents.push((document.digest.clone(), document.bytes.clone()));
        match parsed {
            Manifest::Image { config, layers } => {
                let resolved = documents[0].0.clone();
                return Ok(Found { resolved, documents, config, layers });
            }
            Manifest::Index(manifests) => {
                next = Some(manifest::choose(&manifests).map_err(fault)?.digest.clone())
            }
        }
    }
    let why = ManifestError::Inconsistent(format!("its indexes are nested more than {MAX_INDEX_DEPTH} deep"));
    Err(WalkError::NotAnImage(documents[0].0.to_string(), why))
}

/// Checks the config against its digest and its layers against the manifest's.
pub(crate) fn read_config(found: &Found, bytes: &[u8]) -> Result<(String, Vec<LayerSpec>), WalkError> {
    let wanted = &found.config.digest;
    let actual = Digest::of(bytes);
    if actual != *wanted || bytes.len() as u64 != found.config.size {
        let why = format!("it has digest {actual} and {} bytes, not {}", bytes.len(), found.config.size);
        return Err(WalkError::Step(Cause::content(format!("config {wanted}"), why)));
    }
    let fault = |error| WalkError::NotAnImage(wanted.to_string(), error);
    let text =
        String::from_utf8(bytes.to_vec()).map_err(|error| fault(ManifestError::Syntax(error.to_string())))?;
    let config: ImageConfiguration =
        serde_json::from_str(&text).map_err(|error| fault(ManifestError::Syntax(error.to_string())))?;
    if *config.os() != Os::Linux {
        return Err(fault(ManifestError::NotAnImage(format!("an image for {}", config.os()))));
    }
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|diff_id| diff_id.parse::<Digest>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(ManifestError::Inconsistent(error.to_string())))?;
    if diff_ids.len() != found.layers.len() {
        let why = format!("{} layers in the manifest, {} in the config", found.layers.len(), diff_ids.len());
        return Err(fault(ManifestError::Inconsistent(why)));
    }
    let specs = found
        .layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| LayerSpec { blob: layer.digest.clone(), size: layer.size, diff_id })
        .collect();
    Ok((text, specs))
}

/// Asks again, a few times, when the failure may pass.
async fn persist<T, F>(ask: impl Fn() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut back_off = DOCUMENT_BACK_OFF;
    for _ in 1..DOCUMENT_ATTEMPTS {
        match ask().await {
            Err(error) if error.kind.is_passing() => {
                tracing::info!(%error, ?back_off, "asking the registry again");
                tokio::time::sleep(back_off).await;
                back_off *= 4;
            }
            ended => return ended,
        }
    }
    ask().await
}
