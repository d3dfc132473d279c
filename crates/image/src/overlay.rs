//! Overlay mounts that belong to nobody's mount table: made detached, handed over as a descriptor.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_launcher::sys::id_map_mount;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// The kernel takes no longer string in one `fsconfig` call.
const MAX_VALUE: usize = 255;

/// No index: it forbids using a lower layer twice. No redirects and no metacopy: what layers say about them
/// is never believed, and renaming a directory answers EXDEV as with other engines.
const OPTIONS: [(&str, &str); 3] = [("index", "off"), ("redirect_dir", "nofollow"), ("metacopy", "off")];

/// What to put together.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// An upper directory of before that lies over the lower ones and is only looked at.
    pub(crate) over: Option<&'a Path>,
    /// Lower directories, topmost first; at least two when nothing lies over them.
    pub(crate) lower: &'a [PathBuf],
    /// Upper and work directory, on one file system. `None`: nothing can be written.
    pub(crate) upper: Option<(&'a Path, &'a Path)>,
    /// No flush reaches the upper directory's disk: not when the container asks, not at unmount.
    pub(crate) volatile: bool,
    /// The lower directories' files have the owners that this user namespace maps theirs to. What is written has its owners
    /// as they are: the layers are everybody's, the upper directory is of one user namespace.
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}{said}")]
pub(crate) struct OverlayError {
    pub(crate) step: &'static str,
    /// What the kernel wrote into the context's log, with a leading colon; mostly empty.
    said: String,
    pub(crate) source: io::Error,
}

impl OverlayError {
    fn new(step: &'static str) -> impl FnOnce(Errno) -> OverlayError {
        move |errno| OverlayError { step, said: String::new(), source: errno.into() }
    }
}

impl Overlay<'_> {
    /// Mounts, detached.
    ///
    /// Kernels before 6.5 know no `lowerdir+`, and their overlayfs takes no string long enough for the
    /// layers of an image; there the older call is used.
    pub(crate) fn mount(&self) -> Result<OwnedFd, OverlayError> {
        match self.user_namespace {
            None => self.new_or(Self::mount_old),
            // overlayfs takes an idmapped layer only where it is mounted; detached ones since Linux 6.15.
            Some(user) => in_own_namespace(|| {
                self.map_layers(user)?;
                self.new_or(Self::mount_old_here)
            }),
        }
    }

    fn new_or(
        &self,
        older: impl FnOnce(&Self) -> Result<OwnedFd, OverlayError>,
    ) -> Result<OwnedFd, OverlayError> {
        match self.mount_new() {
            Err(error) if error.source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                // Of two errors the first is about what is really wrong, unless the kernel is that old.
                older(self).map_err(|old| {
                    if old.source.raw_os_error() == error.source.raw_os_error() { error } else { old }
                })
            }
            other => other,
        }
    }

    /// Covers each lower directory with an idmapped mount of itself, in the mount namespace of this thread alone.
    fn map_layers(&self, user: BorrowedFd<'_>) -> Result<(), OverlayError> {
        for path in self.lower {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let layer =
                open_tree(rustix::fs::CWD, path, flags).map_err(OverlayError::new("copy a layer's mount"))?;
            id_map_mount(&layer, user, false).map_err(|source| OverlayError {
                step: "map the ids of a layer's mount",
                said: String::new(),
                source,
            })?;
            move_mount(&layer, "", rustix::fs::CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(OverlayError::new("mount a layer"))?;
        }
        Ok(())
    }

    fn mount_new(&self) -> Result<OwnedFd, OverlayError> {
        let context =
            fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(OverlayError::new("open overlayfs"))?;
        let mut held = Vec::new();
        let mut set = |key: &str, path: &Path| -> Result<(), OverlayError> {
            let value = if path.as_os_str().len() <= MAX_VALUE {
                path.to_owned()
            } else {
                // A handle's name in /proc is short, however long the path.
                let handle = open_path(path)?;
                let name = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
                held.push(handle);
                name
            };
            fsconfig_set_string(&context, key, value).map_err(OverlayError::new("set a layer"))
        };
        for lower in self.all_lower() {
            set("lowerdir+", lower)?;
        }
        if let Some((upper, work)) = self.upper {
            set("upperdir", upper)?;
            set("workdir", work)?;
        }
        for (key, value) in OPTIONS {
            fsconfig_set_string(&context, key, value).map_err(OverlayError::new("set an option"))?;
        }
        fsconfig_set_string(&context, "source", "overlay").map_err(OverlayError::new("set the source"))?;
        if self.volatile {
            fsconfig_set_flag(&context, "volatile").map_err(OverlayError::new("set volatile"))?;
        }
        fsconfig_create(&context).map_err(|errno| OverlayError {
            step: "create the overlay",
            said: log(&context),
            source: errno.into(),
        })?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, self.attributes())
            .map_err(OverlayError::new("mount the overlay"))
    }

    fn all_lower(&self) -> impl Iterator<Item = &Path> {
        self.over.into_iter().chain(self.lower.iter().map(PathBuf::as_path))
    }

    fn attributes(&self) -> MountAttrFlags {
        match self.upper {
            None => MountAttrFlags::MOUNT_ATTR_RDONLY,
            Some(_) => MountAttrFlags::empty(),
        }
    }

    /// `mount(2)` in a mount namespace of its own, taken out of it as a detached copy:
    /// the host's mount table shows nothing, and nothing stays when we die half-way.
    pub(crate) fn mount_old(&self) -> Result<OwnedFd, OverlayError> {
        in_own_namespace(|| self.mount_old_here())
    }

    fn mount_old_here(&self) -> Result<OwnedFd, OverlayError> {
        // From here on, since overlayfs takes no folder by way of another namespace's mount.
        // One page holds all options of the old call; names in a folder of handles are a few bytes each.
        let mut held = Vec::new();
        let mut handle = |path: &Path| -> Result<String, OverlayError> {
            let handle = open_path(path)?;
            let name = handle.as_raw_fd().to_string();
            held.push(handle);
            Ok(name)
        };
        let lower: Vec<String> = self.all_lower().map(&mut handle).collect::<Result<_, _>>()?;
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = self.upper {
            let (upper, work) = (handle(upper)?, handle(work)?);
            write!(options, ",upperdir={upper},workdir={work}").expect("a String takes all");
        }
        for (key, value) in OPTIONS {
            write!(options, ",{key}={value}").expect("a String takes all");
        }
        if self.volatile {
            options.push_str(",volatile");
        }
        nix::unistd::chdir("/proc/self/fd").map_err(errno("enter the folder of handles"))?;
        // Any folder will do as a place: nobody else sees this namespace. /proc is one that is there for sure,
        // and the current folder keeps the proc below it.
        let flags = if self.upper.is_none() { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        nix::mount::mount(Some("overlay"), "/proc", Some("overlay"), flags, Some(options.as_str()))
            .map_err(errno("mount the overlay"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(rustix::fs::CWD, "/proc", flags).map_err(OverlayError::new("take the overlay out"))
    }
}

/// Runs `work` on a thread with a mount namespace of its own, which ends with it.
fn in_own_namespace<F>(work: F) -> Result<OwnedFd, OverlayError>
where
    F: FnOnce() -> Result<OwnedFd, OverlayError> + Send,
{
    let alone = || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
            .map_err(errno("leave the mount namespace"))?;
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(errno("make mounts private"))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay".to_owned())
            .spawn_scoped(scope, alone)
            .map_err(|source| OverlayError { step: "start a thread", said: String::new(), source })?;
        match thread.join() {
            Ok(mounted) => mounted,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn errno(step: &'static str) -> impl Fn(nix::Error) -> OverlayError {
    move |errno| OverlayError { step, said: String::new(), source: errno.into() }
}

fn open_path(path: &Path) -> Result<OwnedFd, OverlayError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(OverlayError::new("open a layer"))
}

/// What the kernel has to say about a failed context: lines such as `e overlay: …`.
fn log(context: &OwnedFd) -> String {
    let mut said = String::new();
    let mut buffer = [0u8; 1024];
    while let Ok(count) = rustix::io::read(context, &mut buffer) {
        if count == 0 || said.len() > 2048 {
            break;
        }
        write!(said, ": {}", String::from_utf8_lossy(&buffer[..count]).trim_end())
            .expect("a String takes all");
    }
    said
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command};

    use rustix::fs::AtFlags;

    use super::*;

    /// A user namespace in which root is `FIRST` outside, for as long as its process lives.
    struct UserNamespace(Child);

    const FIRST: u32 = 300_000;

    impl UserNamespace {
        fn new() -> UserNamespace {
            let child = Command::new("unshare").args(["--user", "sleep", "100"]).spawn().unwrap();
            let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/user")).unwrap();
            while namespace(&child.id().to_string()) == namespace("self") {
                std::thread::yield_now();
            }
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {FIRST} 65536\n")).unwrap();
            }
            UserNamespace(child)
        }

        fn open(&self) -> OwnedFd {
            File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap().into()
        }
    }

    impl Drop for UserNamespace {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn layers_have_other_owners_in_a_user_namespace_with_either_way_of_mounting() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, upper, work] = ["one", "two", "upper", "work"].map(|name| dir.path().join(name));
        for path in [&one, &two, &upper, &work] {
            fs::create_dir(path).unwrap();
        }
        fs::write(one.join("file"), "").unwrap();
        let lower = [one.clone(), two];
        let namespace = UserNamespace::new();
        let user = namespace.open();
        let overlay = Overlay {
            over: None,
            lower: &lower,
            upper: Some((&upper, &work)),
            volatile: false,
            user_namespace: Some(user.as_fd()),
        };
        let older = || {
            in_own_namespace(|| {
                overlay.map_layers(user.as_fd())?;
                overlay.mount_old_here()
            })
        };
        for mount in [overlay.mount().unwrap(), older().unwrap()] {
            let stat = rustix::fs::statat(&mount, "file", AtFlags::empty()).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (FIRST, FIRST));
        }
        assert_eq!(fs::metadata(one.join("file")).unwrap().uid(), 0, "on disk it is as it was");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*dir.path().to_string_lossy()), "{mounts}");
    }
}
