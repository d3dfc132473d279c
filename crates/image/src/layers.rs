//! Unpacked layers, each a folder that is whole or absent.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::layout::{DiskError, Layout, Temp, names, open_dir, sync_dir};
use crate::tree::Size;
use crate::unpack::{self, Footprint, Input, LayerSpec, UnpackError};

const DESCRIPTION: &str = "layer.json";

/// What is known about a layer, kept beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerInfo {
    pub(crate) footprint: Footprint,
}

/// Why a layer did not come to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The layers present, by folder name.
#[derive(Debug)]
pub(crate) struct Layers {
    known: Mutex<HashMap<String, Arc<LayerInfo>>>,
    /// Names of added layers (see `parents`) found not to be needed.
    plain: Mutex<HashSet<String>>,
}

impl Layers {
    /// Lists what is there. A folder without a readable description is damaged and removed: it is made
    /// again from its blob when it is needed.
    pub(crate) fn open(layout: &Layout) -> Result<Layers, DiskError> {
        let mut known = HashMap::new();
        for name in names(&layout.layers())? {
            let dir = layout.layers().join(&name);
            match describe(&dir) {
                Ok(info) => {
                    known.insert(name, Arc::new(info));
                }
                Err(error) => {
                    tracing::warn!(layer = %name, %error, "damaged layer removed; it is made again when needed");
                    drop(layout.take_out(&dir)?);
                }
            }
        }
        Ok(Layers { known: Mutex::new(known), plain: Mutex::new(HashSet::new()) })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<LayerInfo>> {
        self.lock().get(name).cloned()
    }

    pub(crate) fn is_known_plain(&self, name: &str) -> bool {
        crate::images::lock(&self.plain).contains(name)
    }

    pub(crate) fn set_known_plain(&self, name: String) {
        crate::images::lock(&self.plain).insert(name);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    pub(crate) fn size(&self) -> Size {
        self.lock().values().fold(Size::default(), |sum, info| Size {
            bytes: sum.bytes + info.footprint.bytes,
            // The folder and its description.
            inodes: sum.inodes + info.footprint.inodes + 2,
        })
    }

    /// Unpacks a layer and puts it in its place, and its blob in `content` when it comes from the network.
    /// Blocks. Nothing is left when it fails.
    pub(crate) fn unpack(
        &self,
        layout: &Layout,
        content: &Content,
        spec: &LayerSpec,
        input: Input,
    ) -> Result<Arc<LayerInfo>, LayerError> {
        let building = Building::begin(layout)?;
        let blob = matches!(input, Input::Stream(_)).then(|| layout.temp());
        let store = match &blob {
            Some(temp) => Some(File::create_new(temp.path()).map_err(DiskError::new("create", temp.path()))?),
            None => None,
        };
        let footprint = unpack::layer(spec, input, store, open_dir(&building.fs())?)?;
        building.describe(&LayerInfo { footprint })?;
        // One flush for the thousands of files of a layer and for its blob, instead of one for each: after a
        // power loss the layer is in its place with every byte, or it is not there.
        building.sync()?;
        if let Some(temp) = blob {
            content.commit(layout, temp, &spec.blob, spec.size)?;
            sync_dir(&layout.content())?;
        }
        Ok(self.commit(layout, building, spec.diff_id.hex())?)
    }

    /// Puts a finished folder in its place. When the place is taken, an equal one was faster and stays.
    pub(crate) fn commit(
        &self,
        layout: &Layout,
        building: Building,
        name: &str,
    ) -> Result<Arc<LayerInfo>, DiskError> {
        let dir = layout.layers().join(name);
        let info = Arc::new(building.info()?);
        match building.temp.commit(&dir) {
            Err(error)
                if matches!(
                    error.source.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) => {}
            other => other?,
        }
        sync_dir(&layout.layers())?;
        self.lock().insert(name.to_owned(), Arc::clone(&info));
        Ok(info)
    }

    /// Takes a layer out of its place. Absent is fine.
    pub(crate) fn remove(&self, layout: &Layout, name: &str) -> Result<Option<Temp>, DiskError> {
        self.lock().remove(name);
        layout.take_out(&layout.layers().join(name))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<LayerInfo>>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A layer's folder being made.
pub(crate) struct Building {
    temp: Temp,
}

impl Building {
    pub(crate) fn begin(layout: &Layout) -> Result<Building, DiskError> {
        let building = Building { temp: layout.temp() };
        let fs = building.fs();
        DirBuilder::new().recursive(true).mode(0o755).create(&fs).map_err(DiskError::new("make", &fs))?;
        // Whatever the umask: this is the image's root directory when no layer describes it.
        fs::set_permissions(&fs, Permissions::from_mode(0o755))
            .map_err(DiskError::new("set the mode of", &fs))?;
        Ok(building)
    }

    pub(crate) fn fs(&self) -> std::path::PathBuf {
        self.temp.path().join("fs")
    }

    pub(crate) fn describe(&self, info: &LayerInfo) -> Result<(), DiskError> {
        let path = self.temp.path().join(DESCRIPTION);
        let text =
            serde_json::to_vec(info).map_err(|error| DiskError::new("describe", &path)(error.into()))?;
        fs::write(&path, text).map_err(DiskError::new("write", path))
    }

    fn info(&self) -> Result<LayerInfo, DiskError> {
        let dir = self.temp.path();
        describe(dir).map_err(DiskError::new("read the description of", dir))
    }

    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        let dir = open_dir(self.temp.path())?;
        rustix::fs::syncfs(&dir).map_err(|errno| DiskError::new("sync", self.temp.path())(errno.into()))
    }
}

fn describe(dir: &Path) -> io::Result<LayerInfo> {
    let info = serde_json::from_slice(&fs::read(dir.join(DESCRIPTION))?)?;
    if !fs::symlink_metadata(dir.join("fs"))?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(info)
}
