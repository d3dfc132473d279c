//! All devices of a node: which file describes which, and who wins.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use super::edits::Edits;
use super::file::{self, Content, FileError};
use super::name::DeviceName;

/// A file of a spec folder, as the caller found it.
#[derive(Debug)]
pub struct SpecFile {
    pub path: PathBuf,
    /// The place of its folder among the spec folders: a later one wins.
    pub priority: usize,
    /// Its text, or why there is none.
    pub text: Result<String, String>,
}

/// A device that cannot be had, and what was found instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CDI device {device} {why}")]
pub struct UnresolvedDevice {
    device: String,
    why: String,
}

/// The devices of all spec folders.
#[derive(Debug, Default)]
pub struct Registry {
    files: Vec<(PathBuf, Content)>,
    devices: BTreeMap<DeviceName, Place>,
    faulty: Vec<(PathBuf, FileError)>,
}

/// Where a device is described. More than one file of the highest priority is a conflict: none of them counts.
#[derive(Debug)]
struct Place {
    priority: usize,
    /// Indices into [`Registry::files`].
    files: Vec<usize>,
}

impl Registry {
    /// Reads the files. A faulty one takes only its own devices with it.
    pub fn new(files: impl IntoIterator<Item = SpecFile>) -> Self {
        let mut registry = Self::default();
        for SpecFile { path, priority, text } in files {
            match text.map_err(FileError::Unreadable).and_then(|text| file::read(&path, &text)) {
                Ok(content) => registry.add(path, priority, content),
                Err(error) => registry.faulty.push((path, error)),
            }
        }
        registry
    }

    fn add(&mut self, path: PathBuf, priority: usize, content: Content) {
        let file = self.files.len();
        for device in &content.devices {
            let name = DeviceName { kind: content.kind.clone(), device: device.name.clone() };
            let place = self.devices.entry(name).or_insert_with(|| Place { priority, files: Vec::new() });
            if priority > place.priority {
                *place = Place { priority, files: vec![file] };
            } else if priority == place.priority {
                place.files.push(file);
            }
        }
        self.files.push((path, content));
    }

    /// The edits of these devices, in this order; before the first device of a file, what the file has for all of its
    /// devices.
    ///
    /// # Errors
    /// [`UnresolvedDevice`] for the first device that no file describes, or more than one.
    pub fn resolve(&self, names: &[DeviceName]) -> Result<Edits, UnresolvedDevice> {
        let mut edits = Edits::default();
        let mut used = BTreeSet::new();
        for name in names {
            let file = self.find(name).map_err(|why| UnresolvedDevice { device: name.to_string(), why })?;
            let (_, content) = &self.files[file];
            if used.insert(file) {
                edits.append(content.container_edits.clone());
            }
            let device = content.devices.iter().find(|device| device.name == name.device);
            edits.append(device.map(|device| device.container_edits.clone()).unwrap_or_default());
        }
        Ok(edits)
    }

    fn find(&self, name: &DeviceName) -> Result<usize, String> {
        match self.devices.get(name).map(|place| place.files.as_slice()) {
            Some([file]) => Ok(*file),
            Some(several) => {
                let paths: Vec<_> =
                    several.iter().map(|file| self.files[*file].0.display().to_string()).collect();
                Err(format!("is described in {}: remove it from all but one", paths.join(" and in ")))
            }
            None => Err(self.what_there_is(name)),
        }
    }

    /// For an error: the devices of the same kind, and the files that were no help.
    fn what_there_is(&self, name: &DeviceName) -> String {
        /// Names in an error.
        const SHOWN: usize = 16;
        let mut text = "is in no spec file".to_owned();
        let same_kind = self.devices.keys().filter(|known| known.kind == name.kind);
        let known: Vec<&str> = same_kind.map(|known| known.device.as_str()).take(SHOWN).collect();
        if !known.is_empty() {
            text += &format!("; of {} there is {}", name.kind, known.join(", "));
        }
        for (path, error) in self.faulty.iter().take(SHOWN) {
            text += &format!("; {} was passed over: {}", path.display(), Chain(error));
        }
        text
    }

    /// Files that describe no devices, each with its fault.
    pub fn faulty(&self) -> impl Iterator<Item = (&PathBuf, &FileError)> {
        self.faulty.iter().map(|(path, error)| (path, error))
    }
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
