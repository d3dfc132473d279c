//! The images present: finding, removing, and keeping what is still needed.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use berth_store::{Batch, Store, StoreError};
use tokio::time::Instant;

use crate::content::Content;
use crate::digest::Digest;
use crate::errors::Cause;
use crate::layers::Layers;
use crate::layout::{DiskError, Layout, Temp};
use crate::pull::Jobs;
use crate::records::{Image, ImageId, ImageRecord};
use crate::reference::{Reference, ReferenceError};
use crate::registry::client::Clients;
use crate::snapshots::{FirstIds, MountError, Snapshot, SnapshotError, Snapshots};
use crate::tree::Size;

/// How old the measure of containers' own layers may be: walking them costs disk reads.
const MEASURE_AGE: Duration = Duration::from_secs(10);

/// What the image store needs to know.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// The folder all of it lives in; one file system.
    pub root: PathBuf,
    /// Folder of `<host>/hosts.toml`.
    pub registry_config_dir: PathBuf,
    /// Layers of one pull that are downloaded and unpacked at a time; at least 1.
    pub max_parallel_downloads: usize,
    /// A pull without any progress for this long is given up.
    pub progress_timeout: Duration,
}

/// Why the image store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder or file of ours.
    #[error("cannot open the image store")]
    Disk(#[from] DiskError),
    /// The records.
    #[error("cannot read the images' records")]
    Store(#[from] StoreError),
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The text names no image, or more than one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The record is still there.
    #[error("cannot remove the record of image {id}")]
    Record {
        /// Which image.
        id: ImageId,
        /// The store's reason.
        source: StoreError,
    },
    /// The record is gone; some files wait for the next removal or start.
    #[error("the files of removed images are still there")]
    Disk(#[from] DiskError),
    /// The task was lost.
    #[error("the removal was interrupted")]
    Task(#[from] tokio::task::JoinError),
}

/// What images and containers' own layers take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The root folder: a path on the file system concerned.
    pub mountpoint: PathBuf,
    /// Bytes of blobs, unpacked layers and containers' own layers.
    pub used_bytes: u64,
    /// Inodes of the same.
    pub inodes_used: u64,
}

/// The image store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: ImageConfig,
    pub(crate) layout: Arc<Layout>,
    pub(crate) content: Content,
    pub(crate) layers: Layers,
    snapshots: Snapshots,
    pub(crate) clients: Clients,
    pub(crate) jobs: Jobs,
    store: Store,
    images: RwLock<HashMap<ImageId, Arc<Image>>>,
    /// Held while records change or unneeded files are looked for, so that neither sees half of the other.
    change: Mutex<()>,
    /// Folder and blob names that must stay though no record names them yet, with the number of holders.
    pins: Mutex<HashMap<String, usize>>,
    /// Held while a damaged layer is made again, so that it is done once.
    mending: Mutex<()>,
    /// What containers' own layers took when they were last walked.
    uppers: Mutex<Option<(Instant, Size)>>,
    /// Held by who walks them.
    walking: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the store: reads the records, removes what a crash left half-made and what nothing needs any
    /// more. Damaged layers are made again from their blobs when a container first needs them. Blocks.
    ///
    /// `store` must be [`berth_store::Durability::Flushed`]: a pulled image is still there after a power loss.
    ///
    /// # Errors
    ///
    /// The root folder or the records cannot be used.
    pub fn open(config: ImageConfig, store: Store) -> Result<Images, OpenError> {
        let layout = Arc::new(Layout::open(&config.root)?);
        let mut images = HashMap::new();
        for (key, record) in store.load::<ImageRecord>()? {
            let image = key
                .parse::<Digest>()
                .map_err(|error| error.to_string())
                .and_then(|id| Image::new(ImageId(id), record).map_err(|error| error.to_string()));
            match image {
                Ok(image) => {
                    images.insert(image.id.clone(), Arc::new(image));
                }
                Err(error) => {
                    tracing::warn!(image.id = %key, error, "unusable image record removed; pull the image again");
                    store.delete::<ImageRecord>(&key)?;
                }
            }
        }
        let inner = Inner {
            content: Content::open(&layout)?,
            layers: Layers::open(&layout)?,
            snapshots: Snapshots::open(&layout)?,
            clients: Clients::default(),
            jobs: Jobs::default(),
            store,
            images: RwLock::new(images),
            change: Mutex::new(()),
            pins: Mutex::new(HashMap::new()),
            mending: Mutex::new(()),
            uppers: Mutex::new(None),
            walking: Arc::default(),
            config,
            layout,
        };
        inner.sweep()?;
        Ok(Images(Arc::new(inner)))
    }

    /// All images, in no order.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.0.images().values().cloned().collect()
    }

    /// Finds an image by id (with or without `sha256:`), by reference, or by an unambiguous prefix of its id.
    ///
    /// # Errors
    ///
    /// The text can name no image at all, or the prefix is of more than one.
    pub fn find(&self, reference_or_id: &str) -> Result<Option<Arc<Image>>, ReferenceError> {
        self.0.find(reference_or_id)
    }

    /// Removes an image with all its names, whichever of them is given. Unknown is fine; so is a container
    /// that uses it: its layers stay until it is gone.
    ///
    /// # Errors
    ///
    /// The record could not be removed, or files are left that the next removal or start will take.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), RemoveError> {
        let Some(image) = self.find(reference_or_id)? else { return Ok(()) };
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            inner.forget(&image.id).map_err(|source| RemoveError::Record { id: image.id.clone(), source })?;
            Ok(inner.sweep()?)
        })
        .await?
    }

    /// Marks an image as wanted even when nothing uses it, or takes the mark away. Blocks for a disk flush.
    ///
    /// # Errors
    ///
    /// The record was not written; nothing changed.
    pub fn set_pinned(&self, id: &ImageId, pinned: bool) -> Result<(), StoreError> {
        let _change = lock(&self.0.change);
        let Some(image) = self.0.images().get(id).cloned() else { return Ok(()) };
        let record = ImageRecord { pinned, ..image.record.clone() };
        self.0.store.put(id.as_str(), &record)?;
        self.0.images_mut().insert(id.clone(), Arc::new(Image { pinned, record, ..Image::clone(&image) }));
        Ok(())
    }

    /// Space and inodes in use. Blobs and layers are accounted as they come and go; containers' own layers
    /// are walked, at most every ten seconds, since only the kernel sees them change.
    ///
    /// # Errors
    ///
    /// A container's layer cannot be read.
    pub async fn fs_info(&self) -> Result<FsUsage, DiskError> {
        let uppers = self.measure_uppers().await?;
        let parts = [self.0.content.size(), self.0.layers.size(), uppers];
        Ok(FsUsage {
            mountpoint: self.0.layout.root().to_owned(),
            used_bytes: parts.iter().map(|part| part.bytes).sum(),
            inodes_used: parts.iter().map(|part| part.inodes).sum(),
        })
    }

    async fn measure_uppers(&self) -> Result<Size, DiskError> {
        // A walk goes on when its caller has given up, and who comes meanwhile makes none of his own: he gets what is
        // known, or waits.
        let last = *lock(&self.0.uppers);
        let walking = match (Arc::clone(&self.0.walking).try_lock_owned(), last) {
            (Ok(walking), _) => walking,
            (Err(_), Some((_, size))) => return Ok(size),
            (Err(_), None) => Arc::clone(&self.0.walking).lock_owned().await,
        };
        if let Some((at, size)) = *lock(&self.0.uppers)
            && at.elapsed() < MEASURE_AGE
        {
            return Ok(size);
        }
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let _walking = walking;
            let measured = inner.snapshots.all().iter().try_fold(Size::default(), |sum, snapshot| {
                match snapshot.measure() {
                    Ok(size) => Ok(Size { bytes: sum.bytes + size.bytes, inodes: sum.inodes + size.inodes }),
                    // Removed meanwhile.
                    Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(sum),
                    Err(error) => Err(error),
                }
            })?;
            *lock(&inner.uppers) = Some((Instant::now(), measured));
            Ok(measured)
        })
        .await
        .map_err(|error| DiskError::new("measure", self.0.layout.snapshots())(error.into()))?
    }

    /// Makes a container's own layer over `image`. Its record holds the image's layers until
    /// [`Images::remove_snapshot`], even when the image is removed. `ids` are those of the container's user namespace.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Exists`]; [`SnapshotError::LayerGone`] when the image was removed meanwhile or is damaged
    /// beyond what its blobs can mend.
    pub async fn create_snapshot(
        &self,
        id: &str,
        image: &Image,
        ids: Option<FirstIds>,
    ) -> Result<Snapshot, SnapshotError> {
        let (inner, id, specs) = (Arc::clone(&self.0), id.to_owned(), image.specs());
        let name = id.clone();
        let made = tokio::task::spawn_blocking(move || inner.create_snapshot(&id, &specs, ids)).await;
        made.map_err(|error| SnapshotError::Disk {
            id: name,
            source: DiskError::new("make", self.0.layout.snapshots())(error.into()),
        })?
    }

    /// Whether this kernel can show layers with other owners, on the file system that they lie on, by doing it once. Blocks.
    ///
    /// # Errors
    ///
    /// What a container in a user namespace would fail with.
    pub fn can_map_ids(&self, user_namespace: BorrowedFd<'_>) -> Result<(), MountError> {
        crate::snapshots::try_mapping_ids(&self.0.layout, user_namespace)
    }

    /// The snapshot of that id.
    pub fn snapshot(&self, id: &str) -> Option<Snapshot> {
        self.0.snapshots.get(id)
    }

    /// Ids of the snapshots that begin so.
    pub fn snapshots_named(&self, beginning: &str) -> Vec<String> {
        let all = self.0.snapshots.all();
        let ids = all.iter().map(|snapshot| snapshot.id().to_owned());
        ids.filter(|id| id.starts_with(beginning)).collect()
    }

    /// Removes a container's own layer. Nothing may use a mount of it any more. Absent is fine.
    ///
    /// # Errors
    ///
    /// It could not be taken out of its place; it is still there.
    pub async fn remove_snapshot(&self, id: &str) -> Result<(), SnapshotError> {
        let (inner, id) = (Arc::clone(&self.0), id.to_owned());
        let name = id.clone();
        let removed = tokio::task::spawn_blocking(move || -> Result<(), DiskError> {
            // Its layers stay if an image has them; if not, this was what held them.
            let removed = inner.snapshots.remove(&inner.layout, &id)?;
            let orphaned = removed.is_some() && inner.has_orphans();
            drop(removed);
            if orphaned { inner.sweep() } else { Ok(()) }
        })
        .await;
        removed
            .unwrap_or_else(|error| Err(DiskError::new("remove", self.0.layout.snapshots())(error.into())))
            .map_err(|source| SnapshotError::Disk { id: name, source })
    }

    /// Removes every snapshot that is not `known`, at start, when the containers' records have been read.
    ///
    /// # Errors
    ///
    /// The first snapshot that could not be removed.
    pub async fn sweep_snapshots(&self, known: &HashSet<String>) -> Result<(), SnapshotError> {
        for id in self.0.snapshots.others_than(known) {
            tracing::info!(snapshot = %id, "removing a snapshot that no container has");
            self.remove_snapshot(&id).await?;
        }
        Ok(())
    }
}

impl Inner {
    fn images(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ImageId, Arc<Image>>> {
        self.images.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn images_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<ImageId, Arc<Image>>> {
        self.images.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn find(&self, text: &str) -> Result<Option<Arc<Image>>, ReferenceError> {
        let images = self.images();
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        let is_prefix = !bare.is_empty()
            && bare.len() <= 64
            && bare.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if bare.len() == 64 && is_prefix {
            return Ok(images.values().find(|image| image.id.digest().hex() == bare).cloned());
        }
        let parsed = text.parse::<Reference>();
        if let Ok(reference) = &parsed {
            let named = match reference.tagged() {
                Some(tagged) => images.values().find(|image| image.record.tags.contains(&tagged)),
                None => reference.digest().and_then(|digest| {
                    let digested = reference.digested(digest);
                    images.values().find(|image| image.record.digests.contains(&digested))
                }),
            };
            if let Some(image) = named {
                return Ok(Some(Arc::clone(image)));
            }
        }
        if is_prefix {
            let mut matching = images.values().filter(|image| image.id.digest().hex().starts_with(bare));
            let first = matching.next().cloned();
            return match matching.next() {
                Some(_) => Err(ReferenceError::Ambiguous(text.to_owned())),
                None => Ok(first),
            };
        }
        parsed.map(|_| None)
    }

    /// The image that a manifest or index digest leads to, when all of it is here.
    pub(crate) fn whole_image_of(&self, manifest: &Digest) -> Option<Arc<Image>> {
        let images = self.images();
        let image = images.values().find(|image| image.record.manifests.contains(manifest))?;
        image.layers.iter().all(|layer| self.layers.get(layer.hex()).is_some()).then(|| Arc::clone(image))
    }

    /// Whether anything of this repository was pulled before.
    pub(crate) fn knows_repository(&self, reference: &Reference) -> bool {
        let prefix = format!("{}@", reference.name());
        self.images()
            .values()
            .any(|image| image.record.digests.iter().any(|digest| digest.starts_with(&prefix)))
    }

    /// Records an image: durable and visible when this returns. A tag moves here from whichever image had it.
    pub(crate) fn record(&self, id: &ImageId, mut record: ImageRecord) -> Result<(), StoreError> {
        let _change = lock(&self.change);
        let mut changed = Vec::new();
        for image in self.images().values().filter(|image| image.id != *id) {
            if !image.record.tags.is_disjoint(&record.tags) {
                let mut other = image.record.clone();
                other.tags.retain(|tag| !record.tags.contains(tag));
                changed.push((image.id.clone(), other));
            }
        }
        if let Some(known) = self.images().get(id) {
            record.tags.extend(known.record.tags.iter().cloned());
            record.digests.extend(known.record.digests.iter().cloned());
            record.manifests.extend(known.record.manifests.iter().cloned());
            record.pinned = known.pinned;
            if record == known.record && changed.is_empty() {
                return Ok(());
            }
        }
        changed.push((id.clone(), record));
        let mut batch = Batch::new();
        let mut images = Vec::new();
        for (id, record) in changed {
            batch = batch.put(id.as_str(), &record);
            // Both configs were parsed before: one at its pull, the others when they were read.
            let image = Image::new(id, record).expect("a config that was parsed before");
            images.push(Arc::new(image));
        }
        self.store.write(batch)?;
        self.images_mut().extend(images.into_iter().map(|image| (image.id.clone(), image)));
        Ok(())
    }

    fn forget(&self, id: &ImageId) -> Result<(), StoreError> {
        let _change = lock(&self.change);
        // A second caller finds nothing left to do.
        if !self.images().contains_key(id) {
            return Ok(());
        }
        self.store.delete::<ImageRecord>(id.as_str())?;
        self.images_mut().remove(id);
        Ok(())
    }

    /// Removes every layer and blob that no image, no snapshot and no pull needs. Blocks.
    pub(crate) fn sweep(&self) -> Result<(), DiskError> {
        let mut garbage: Vec<Temp> = Vec::new();
        {
            let _change = lock(&self.change);
            // Held throughout: whoever pins a name afterwards sees that the thing is gone.
            let pins = lock(&self.pins);
            let (layers, blobs) = self.orphans(&pins);
            for name in layers {
                garbage.extend(self.layers.remove(&self.layout, &name)?);
            }
            for digest in blobs {
                garbage.extend(self.content.remove(&self.layout, &digest)?);
            }
        }
        drop(garbage); // the slow part, with no lock held
        Ok(())
    }

    fn has_orphans(&self) -> bool {
        let _change = lock(&self.change);
        let (layers, _) = self.orphans(&lock(&self.pins));
        !layers.is_empty()
    }

    fn orphans(&self, pins: &HashMap<String, usize>) -> (Vec<String>, Vec<Digest>) {
        let mut layers: HashSet<String> = HashSet::new();
        let mut blobs: HashSet<Digest> = HashSet::new();
        for image in self.images().values() {
            layers.extend(crate::parents::folder_names(&image.layers));
            blobs.extend(image.record.layers.iter().map(|layer| layer.blob.clone()));
            blobs.extend(image.record.manifests.iter().cloned());
            blobs.insert(image.id.digest().clone());
        }
        for snapshot in self.snapshots.all() {
            layers.extend(snapshot.layers().iter().cloned());
        }
        let pinned = |name: &str| pins.contains_key(name);
        let layers = self.layers.names().into_iter().filter(|name| !layers.contains(name) && !pinned(name));
        let blobs =
            self.content.all().into_iter().filter(|digest| !blobs.contains(digest) && !pinned(digest.hex()));
        (layers.collect(), blobs.collect())
    }

    /// Keeps the named layers and blobs from being swept until the guard is dropped.
    pub(crate) fn pin(self: &Arc<Self>, names: Vec<String>) -> Pins {
        let mut pins = lock(&self.pins);
        for name in &names {
            *pins.entry(name.clone()).or_default() += 1;
        }
        Pins { inner: Arc::clone(self), names }
    }

    fn create_snapshot(
        self: &Arc<Self>,
        id: &str,
        specs: &[crate::unpack::LayerSpec],
        ids: Option<FirstIds>,
    ) -> Result<Snapshot, SnapshotError> {
        let diff_ids: Vec<Digest> = specs.iter().map(|spec| spec.diff_id.clone()).collect();
        let mut names = crate::parents::folder_names(&diff_ids);
        names.extend(specs.iter().map(|spec| spec.blob.hex().to_owned()));
        let _pins = self.pin(names);
        for spec in specs {
            self.mend(spec).map_err(|source| SnapshotError::LayerGone {
                id: id.to_owned(),
                layer: spec.diff_id.to_string(),
                source: source.map(Arc::new),
            })?;
        }
        let disk = |source| SnapshotError::Disk { id: id.to_owned(), source };
        let stack = crate::parents::stack(&self.layout, &self.layers, &diff_ids).map_err(disk)?;
        let (mode, uid, gid) = diff_ids
            .iter()
            .rev()
            .find_map(|diff_id| self.layers.get(diff_id.hex()).and_then(|info| info.footprint.root))
            .unwrap_or((0o755, 0, 0));
        let first = ids.unwrap_or(FirstIds { uid: 0, gid: 0 });
        let root = (mode, first.uid.saturating_add(uid), first.gid.saturating_add(gid));
        self.snapshots.create(&self.layout, id, stack, root)
    }

    /// Makes a missing layer again from its blob.
    fn mend(&self, spec: &crate::unpack::LayerSpec) -> Result<(), Option<Cause>> {
        // The description is in memory; a look at the folder notices what was removed behind our back.
        let is_whole = || {
            self.layers.get(spec.diff_id.hex()).is_some()
                && self.layout.layer_fs(spec.diff_id.hex()).symlink_metadata().is_ok()
        };
        if is_whole() {
            return Ok(());
        }
        let _mending = lock(&self.mending);
        if is_whole() {
            return Ok(());
        }
        if !self.content.has(&spec.blob) {
            return Err(None);
        }
        tracing::warn!(layer = %spec.diff_id, "unpacking a damaged layer again");
        let fault = |error: crate::layers::LayerError| Some(Cause::layer(&spec.diff_id, error));
        drop(self.layers.remove(&self.layout, spec.diff_id.hex()).map_err(|error| fault(error.into()))?);
        let blob = self.content.read(&self.layout, &spec.blob).map_err(|error| fault(error.into()))?;
        self.layers
            .unpack(&self.layout, &self.content, spec, crate::unpack::Input::File(blob))
            .map(drop)
            .map_err(fault)
    }
}

/// Names kept from being swept.
#[derive(Debug)]
pub(crate) struct Pins {
    inner: Arc<Inner>,
    names: Vec<String>,
}

impl Pins {
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = lock(&self.inner.pins);
        for name in &self.names {
            if let Some(count) = pins.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(name);
                }
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
