//! Checkpoints: what runs in a container written to an archive, and containers made from one. CRIU does the work on
//! processes.
//!
//! ```text
//!  take     freeze ─► criu dump (in the pod's namespaces, by berth-pod) ─► what the container wrote ─► thaw ─► archive
//!  restore  archive ─► image + what was written ─► criu restore (as a child of berth-pod) ─► stands still until started
//! ```
//!
//! The archive has the names that containerd, CRI-O and podman agree on, so that checkpointctl reads it: `checkpoint/`
//! with CRIU's images, `config.dump`, `spec.dump`, `status.dump`, `rootfs-diff.tar`, `dump.log`, `stats-dump`. What berth
//! needs besides is in `berth.dump`. A restored container is not started again: its command, variables, hooks and device
//! nodes are those that it had.

mod archive;
mod mounts;
mod restore;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_cri::berth::v1::Criu;
use berth_launcher::{cgroup::Cgroup, mount_table::MountTable};
use berth_supervisor::client::Supervisor;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::{
    Container, ContainerId, Error, Sandbox,
    error::cause,
    folders::absent_is_fine,
    host::{Handler, Host, blocking},
};
use mounts::External;
pub(crate) use restore::{Restored, archive_named};

/// Folder below ROOT for what is being written or read.
const FOLDER: &str = "checkpoints";
/// For a caller that names no limit.
const DEFAULT_LIMIT: Duration = Duration::from_secs(120);

/// What berth adds to an archive: where CRIU's images refer to something outside of them.
#[derive(Debug, Serialize, Deserialize)]
struct Outside {
    mounts: Vec<External>,
    /// Standard input, output and error as CRIU names them; `None` for one that is closed.
    streams: [Option<String>; 3],
}

/// A folder for the parts of one archive; gone when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new(host: &Host, id: &ContainerId) -> io::Result<Self> {
        let path = host.config.root.join(FOLDER).join(id.as_str());
        absent_is_fine(fs::remove_dir_all(&path))?;
        fs::create_dir_all(path.join(archive::IMAGES))?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            tracing::warn!(error = cause(&err), path = %self.0.display(), "cannot remove a checkpoint's parts");
        }
    }
}

/// A container that stands still; it goes on when this is dropped.
struct Frozen(Cgroup);

impl Frozen {
    fn new(cgroup: Cgroup) -> Result<Self, berth_launcher::cgroup::CgroupError> {
        // From the first write on: one process that does not stop must not keep the others standing.
        let frozen = Self(cgroup);
        frozen.0.freeze()?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(err) = self.0.thaw() {
            tracing::error!(error = cause(&err), "cannot let a container go on after its checkpoint");
        }
    }
}

/// Removes what an earlier daemon was at when it died, and makes the folder for what is to come.
pub(crate) async fn sweep(host: &Host) {
    let path = host.config.root.join(FOLDER);
    let empty = move || absent_is_fine(fs::remove_dir_all(&path)).and_then(|()| fs::create_dir(&path));
    if let Err(err) = blocking(empty).await {
        tracing::warn!(error = cause(&err), "cannot empty the folder of unfinished checkpoints");
    }
}

/// Lets a container go on that an earlier daemon had frozen for a checkpoint.
pub(crate) fn thaw(host: &Host, container: &Container, cgroup_parent: &str) {
    if let Ok(cgroup) = host.cgroups.at(&container.cgroup_path(cgroup_parent)) {
        drop(Frozen(cgroup));
    }
}

/// Writes a running container to an archive, and lets it run on.
///
/// # Errors
/// [`Error::NodeLacks`] without CRIU; [`Error::Unsupported`] for a container that cannot be written down.
pub(crate) async fn take(
    host: Arc<Host>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    supervisor: Supervisor,
    location: PathBuf,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let label = container.id.label();
    // Dumping takes the disk and both processors; and of one container there can only be one at a time.
    let _turn = host.checkpoints.lock().await;
    let (on, of) = (Arc::clone(&host), Arc::clone(&container));
    let spec = host.spec_of(&container).await.map_err(Error::step(&label, "read its OCI spec"))?;
    let (spec, location, prepared) = blocking(move || {
        let prepared =
            refuse(&on, &sandbox, &of, &location).and_then(|()| prepare(&on, &sandbox, &of, &spec));
        (spec, location, prepared)
    })
    .await;
    let Prepared { folder, cgroup, frozen, outside } = prepared?;
    let criu = dump(&host, &folder, &container, &cgroup, &outside, limit.unwrap_or(DEFAULT_LIMIT));
    let dumped = supervisor.checkpoint(container.id.as_str(), criu).await;
    dumped.map_err(Error::step(&label, "write its processes down"))?;
    let upper = host.images.snapshot(container.id.as_str()).map(|snapshot| snapshot.upper());
    let (folder, written) = blocking(move || {
        let written = upper.map_or(Ok(()), |upper| archive::save_files(&folder.0, &upper));
        (folder, written)
    })
    .await;
    drop(frozen);
    written.map_err(Error::step(&label, "save the files that it has written"))?;

    let packed = blocking(move || {
        archive::describe(&folder.0, &container, &spec, &outside)?;
        archive::pack(&folder.0, &location)
    });
    packed.await.map_err(Error::step(label, "write the archive"))
}

/// A container that stands still, and what is needed of it.
struct Prepared {
    // The container goes on before its folder is cleared away.
    frozen: Frozen,
    folder: Folder,
    cgroup: Cgroup,
    outside: Outside,
}

fn prepare(host: &Host, sandbox: &Sandbox, container: &Container, spec: &Spec) -> Result<Prepared, Error> {
    let label = container.id.label();
    let folder = Folder::new(host, &container.id);
    let folder = folder.map_err(Error::step(&label, "make a folder for its checkpoint"))?;
    let cgroup = host.cgroups.at(&container.cgroup_path(&sandbox.cgroup_parent));
    let cgroup = cgroup.map_err(Error::step(&label, "find its cgroup"))?;
    let frozen = Frozen::new(cgroup.clone()).map_err(Error::step(&label, "freeze it"))?;
    let outside = outside(container, spec).map_err(Error::step(&label, "look at its mounts and streams"))?;
    Ok(Prepared { frozen, folder, cgroup, outside })
}

fn refuse(host: &Host, sandbox: &Sandbox, container: &Container, location: &Path) -> Result<(), Error> {
    let invalid = |why: String| Err(Error::Invalid { field: "location", why });
    if !location.is_absolute() || location.file_name().is_none() {
        return invalid(format!("{location:?} is not the absolute path of a file"));
    }
    if !location.parent().is_some_and(Path::is_dir) {
        return invalid(format!("the folder of {} does not exist", location.display()));
    }
    can_use_criu(host, sandbox, container.config.tty)?;
    let pid = container.pid().unwrap_or(0);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    if pids.split_whitespace().next_back() != Some("1") {
        return Err(Error::Unsupported(
            "a checkpoint of a container without a pid namespace of its own".to_owned(),
        ));
    }
    Ok(())
}

/// What checkpoints and restores both need.
fn can_use_criu(host: &Host, sandbox: &Sandbox, tty: bool) -> Result<(), Error> {
    if let Handler::External { path } = host.handler(&sandbox.handler)? {
        return Err(Error::Unsupported(format!("a checkpoint with the runtime {}", path.display())));
    }
    if sandbox.user_ids().is_some() {
        return Err(Error::Unsupported("a checkpoint of a container in a user namespace".to_owned()));
    }
    if tty {
        return Err(Error::Unsupported("a checkpoint of a container with a terminal".to_owned()));
    }
    if !host.config.criu.is_file() {
        return Err(Error::NodeLacks(format!(
            "checkpoints need CRIU, and {} is not there: install it (Debian: criu), or set criu_path",
            host.config.criu.display()
        )));
    }
    Ok(())
}

fn outside(container: &Container, spec: &Spec) -> io::Result<Outside> {
    let pid = container.pid().unwrap_or(0);
    Ok(Outside {
        mounts: mounts::externals(&MountTable::of_process(pid)?, spec),
        streams: [stream(pid, 0)?, stream(pid, 1)?, stream(pid, 2)?],
    })
}

/// What CRIU calls a descriptor that leads out of the container (criu(8), `--external` and `--inherit-fd`).
fn stream(pid: i32, fd: i32) -> io::Result<Option<String>> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let target = match fs::read_link(&path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        target => target?.to_string_lossy().into_owned(),
    };
    if target.starts_with("pipe:[") {
        return Ok(Some(target));
    }
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u32>().ok());
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path)?);
    Ok(mount.map(|mount| format!("file[{mount:x}:{inode:x}]")))
}

fn dump(
    host: &Host,
    folder: &Folder,
    container: &Container,
    cgroup: &Cgroup,
    outside: &Outside,
    limit: Duration,
) -> Criu {
    let pid = container.pid().unwrap_or(0).to_string();
    let mut args: Vec<String> =
        ["dump", "--tree", &pid, "--leave-running", "--tcp-established", "--link-remap"]
            .map(str::to_owned)
            .into();
    if let Some(freezer) = cgroup.freezer() {
        args.extend(["--freeze-cgroup".to_owned(), freezer.display().to_string()]);
    }
    for External { point, .. } in &outside.mounts {
        args.extend(["--external".to_owned(), format!("mnt[{point}]:{point}")]);
    }
    for file in outside.streams.iter().flatten().filter(|name| name.starts_with("file[")) {
        args.extend(["--external".to_owned(), file.clone()]);
    }
    criu(host, folder, "dump.log", args, limit)
}

/// A run of CRIU on the images in `folder`.
fn criu(host: &Host, folder: &Folder, log: &str, mut args: Vec<String>, limit: Duration) -> Criu {
    let log = folder.path(log).display().to_string();
    args.extend(["--images-dir".to_owned(), folder.path(archive::IMAGES).display().to_string()]);
    args.extend(["--work-dir".to_owned(), folder.0.display().to_string()]);
    args.extend(["--log-file".to_owned(), log.clone()]);
    // Cgroups are ours to make, and sockets that lead out of the container its own affair.
    args.extend(["--manage-cgroups=ignore", "--ext-unix-sk", "--file-locks"].map(str::to_owned));
    Criu {
        path: host.config.criu.display().to_string(),
        args,
        log,
        timeout_seconds: u32::try_from(limit.as_secs().max(1)).unwrap_or(u32::MAX),
    }
}
