//! The parts of an archive, and the archive itself.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufReader},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use berth_launcher::run::{self, RunError};
use berth_supervisor::crilog::Stamp;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Outside;
use crate::{Container, ContainerState};

/// CRIU's images.
pub(super) const IMAGES: &str = "checkpoint";
const CONFIG: &str = "config.dump";
const SPEC: &str = "spec.dump";
const STATUS: &str = "status.dump";
const OUTSIDE: &str = "berth.dump";
const FILES: &str = "rootfs-diff.tar";
/// CRIU's own words, in its working directory.
const LOG: &str = "dump.log";
const STATS: &str = "stats-dump";

/// For packing what a container has written, which may be gigabytes.
const PACKING: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("tar")]
    Tar(#[from] RunError),
    #[error("{}", path.display())]
    Content { path: PathBuf, source: serde_json::Error },
    /// It says with which rights its processes run: whoever can change it has them all.
    #[error("{} must be root's, and nobody else may write to it", path.display())]
    Untrusted { path: PathBuf },
    #[error("{}: {why}", path.display())]
    Unpack { path: PathBuf, why: String },
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, ArchiveError> {
    result.map_err(|source| ArchiveError::File { path: path.to_owned(), source })
}

/// `config.dump`, as containerd, CRI-O and podman write it (checkpointctl, `ContainerConfig`).
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    id: String,
    name: String,
    #[serde(default)]
    rootfs_image: String,
    #[serde(default)]
    rootfs_image_ref: String,
    #[serde(default)]
    rootfs_image_name: String,
    #[serde(default)]
    runtime: String,
    created_time: String,
    checkpointed_time: String,
    restored_time: String,
    restored: bool,
}

impl Config {
    /// Names of the image that the container was made from, the surest first.
    pub(super) fn images(&self) -> impl Iterator<Item = &str> {
        let names = [&self.rootfs_image, &self.rootfs_image_ref, &self.rootfs_image_name];
        names.into_iter().map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// `status.dump`, as containerd writes it and checkpointctl reads it. Times in nanoseconds since the epoch.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    pid: i32,
    reason: &'static str,
    message: &'static str,
}

/// Writes down which container this is.
pub(super) fn describe(
    folder: &Path,
    container: &Container,
    spec: &Spec,
    outside: &Outside,
) -> Result<(), ArchiveError> {
    let time = |nanos| format!("{:?}", Stamp::from_nanos(nanos));
    let (name, _) = container.name_and_attempt();
    let (pid, started_at) = match container.state {
        ContainerState::Running { pid, started_at } => (pid, started_at),
        _ => (0, 0),
    };
    let config = Config {
        id: container.id.to_string(),
        name: name.to_owned(),
        rootfs_image: container.image.id.clone(),
        rootfs_image_ref: container.image.reference.clone(),
        rootfs_image_name: container.image.name.clone(),
        runtime: "berth".to_owned(),
        created_time: time(container.created_at),
        checkpointed_time: time(crate::now()),
        restored_time: "0001-01-01T00:00:00Z".to_owned(),
        restored: false,
    };
    let status = Status {
        created_at: container.created_at,
        started_at,
        finished_at: 0,
        exit_code: 0,
        pid,
        reason: "",
        message: "",
    };
    put(folder, CONFIG, &config)?;
    put(folder, SPEC, spec)?;
    put(folder, STATUS, &status)?;
    put(folder, OUTSIDE, outside)?;
    put(&folder.join(IMAGES), "descriptors.json", &outside.streams)
}

fn put(folder: &Path, name: &str, content: &impl Serialize) -> Result<(), ArchiveError> {
    let path = folder.join(name);
    let json =
        serde_json::to_vec(content).map_err(|source| ArchiveError::Content { path: path.clone(), source })?;
    at(&path, fs::write(&path, json))
}

pub(super) fn config(folder: &Path) -> Result<Config, ArchiveError> {
    get(&folder.join(CONFIG))
}

pub(super) fn outside(folder: &Path) -> Result<Outside, ArchiveError> {
    get(&folder.join(OUTSIDE))
}

fn get<T: DeserializeOwned>(path: &Path) -> Result<T, ArchiveError> {
    serde_json::from_slice(&at(path, fs::read(path))?)
        .map_err(|source| ArchiveError::Content { path: path.to_owned(), source })
}

/// Paths below a container's own layer, relative to it.
#[derive(Default)]
struct Layer {
    kept: Vec<PathBuf>,
    /// What the container has removed, as an OCI layer says it.
    whiteouts: Vec<PathBuf>,
}

impl Layer {
    /// Overlay's marks become those of OCI layers (image-spec, layer.md, "Whiteouts").
    fn walk(&mut self, top: &Path, below: &Path) -> io::Result<()> {
        for entry in fs::read_dir(top.join(below))? {
            let entry = entry?;
            let (path, meta) = (below.join(entry.file_name()), entry.metadata()?);
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                let mut name = OsString::from(".wh.");
                name.push(entry.file_name());
                self.whiteouts.push(below.join(name));
                continue;
            }
            self.kept.push(path.clone());
            if meta.is_dir() {
                if is_opaque(&entry.path())? {
                    self.whiteouts.push(path.join(".wh..wh..opq"));
                }
                self.walk(top, &path)?;
            }
        }
        Ok(())
    }
}

fn is_opaque(path: &Path) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value) {
        Ok(length) => Ok(length == 1 && value[0] == b'y'),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What a container that stands still has written, as an OCI layer.
pub(super) fn save_files(folder: &Path, upper: &Path) -> Result<(), ArchiveError> {
    let mut layer = Layer { kept: vec![".".into()], ..Layer::default() };
    at(upper, layer.walk(upper, Path::new("")))?;
    let tar = folder.join(FILES);
    let mut create = tar_command("--create", &tar, upper);
    create.args(["--xattrs", "--xattrs-include=*", "--xattrs-exclude=trusted.overlay.*"]);
    run::run(from_list(create), &list(&layer.kept), PACKING)?;
    if layer.whiteouts.is_empty() {
        return Ok(());
    }
    let marks = folder.join("whiteouts");
    for mark in &layer.whiteouts {
        let path = marks.join(mark);
        at(&path, fs::create_dir_all(path.parent().unwrap_or(&marks)))?;
        at(&path, fs::write(&path, ""))?;
    }
    run::run(from_list(tar_command("--append", &tar, &marks)), &list(&layer.whiteouts), PACKING)?;
    at(&marks, fs::remove_dir_all(&marks))
}

fn tar_command(verb: &str, tar: &Path, folder: &Path) -> Command {
    let mut command = Command::new("tar");
    command.arg(verb).arg("--file").arg(tar).arg("--directory").arg(folder).arg("--numeric-owner");
    command
}

fn from_list(mut command: Command) -> Command {
    command.args(["--no-recursion", "--null", "--verbatim-files-from", "--files-from=-"]);
    command
}

fn list(paths: &[PathBuf]) -> Vec<u8> {
    paths.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect()
}

/// Makes the archive: whole at its place, or not there.
pub(super) fn pack(folder: &Path, location: &Path) -> Result<(), ArchiveError> {
    let mut name = OsString::from(".");
    name.push(location.file_name().unwrap_or_default());
    name.push(".partial");
    let temporary = location.with_file_name(name);
    let written = write(folder, &temporary).and_then(|()| at(location, fs::rename(&temporary, location)));
    if written.is_err() {
        // The error says more than that this cannot be removed.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    let parent = location.parent().unwrap_or(Path::new("/"));
    at(parent, File::open(parent).and_then(|folder| folder.sync_all()))
}

fn write(folder: &Path, temporary: &Path) -> Result<(), ArchiveError> {
    // The memory of processes is in it: for root alone.
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary);
    let file = at(temporary, opened)?;
    let mut command = tar_command("--create", temporary, folder);
    let parts = [IMAGES, CONFIG, SPEC, STATUS, OUTSIDE, FILES, LOG, STATS];
    command.arg("--").args(parts.into_iter().filter(|part| folder.join(part).exists()));
    run::run(command, b"", PACKING)?;
    at(temporary, file.sync_all())
}

/// Unpacks an archive of root's into an empty folder. Nothing in it leads out of that.
pub(super) fn unpack(archive: &Path, folder: &Path) -> Result<(), ArchiveError> {
    let file = at(archive, File::open(archive))?;
    let meta = at(archive, file.metadata())?;
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 || !meta.is_file() {
        return Err(ArchiveError::Untrusted { path: archive.to_owned() });
    }
    unpack_file(file, archive, folder)
}

fn unpack_file(file: File, archive: &Path, folder: &Path) -> Result<(), ArchiveError> {
    let into = at(folder, File::open(folder))?;
    berth_image::unpack_tar(BufReader::with_capacity(1 << 20, file), into.into())
        .map_err(|why| ArchiveError::Unpack { path: archive.to_owned(), why })
}

/// Gives a new container's layer what the old one had written.
pub(super) fn load_files(folder: &Path, upper: &Path) -> Result<(), ArchiveError> {
    let tar = folder.join(FILES);
    match File::open(&tar) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => unpack_file(at(&tar, opened)?, &tar, upper),
    }
}
