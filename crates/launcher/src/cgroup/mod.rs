//! Cgroups, v1 and v2 behind one face: make, limit, read, freeze, empty, remove.
//!
//! A [`Cgroup`] is one place in the tree, which on v1 is a folder in each hierarchy and on v2 a single one. The
//! hierarchies are found once ([`Cgroups::detect`]); a machine with v1 controllers and an empty v2 mount beside them
//! ("hybrid") counts as v1. What the host lacks (a controller, a limit's file) is left out with a warning.
//!
//! These calls block, some for as long as processes need to die: not for an async thread.

mod apply;
mod device_filter;
mod resources;
mod teardown;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::mount_table::MountTable;

pub use resources::{DeviceAccess, DeviceKind, DeviceRule, HugepageLimit, Resources};

/// Where cgroup v2 is mounted when it is the only version.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Something that was asked for and that this host cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

/// A cgroup operation that failed, and on which file.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup file system is mounted")]
    NotMounted,
    #[error("{0:?} is no absolute cgroup path without \"..\"")]
    BadPath(String),
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("writing {value:?} to {}", path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("making {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("removing {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("device filter for {}", path.display())]
    DeviceFilter { path: PathBuf, source: io::Error },
    #[error("signalling the processes in {}", path.display())]
    Kill { path: PathBuf, source: io::Error },
    #[error("the processes in {} do not come to rest", path.display())]
    NotFrozen { path: PathBuf },
    #[error("{} still holds processes: {}", path.display(), list(pids))]
    NotEmpty { path: PathBuf, pids: Vec<i32> },
}

fn list(pids: &[i32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Which interface the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug)]
struct Hierarchy {
    mount_point: PathBuf,
    /// v1: "cpu", "memory", "name=systemd"; empty on v2.
    controllers: Vec<String>,
}

/// The hierarchies of this host.
#[derive(Clone, Debug)]
pub struct Cgroups {
    version: Version,
    hierarchies: Vec<Hierarchy>,
    /// Hybrid only: the v2 mount beside the v1 controllers. Nothing is limited there, but runc makes folders in it.
    beside: Option<PathBuf>,
}

impl Cgroups {
    /// Finds the mounted hierarchies in /proc/self/mountinfo.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] when there is none.
    pub fn detect() -> Result<Cgroups, CgroupError> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let table = MountTable::of_this_process().map_err(|source| CgroupError::Read { path, source })?;
        Cgroups::mounted(&table).ok_or(CgroupError::NotMounted)
    }

    fn mounted(table: &MountTable) -> Option<Cgroups> {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut v2 = None;
        for mount in table.mounts() {
            match mount.kind {
                "cgroup2" => v2 = v2.or_else(|| Some(mount.point())),
                "cgroup" => {
                    let controllers: Vec<String> = mount
                        .options
                        .split(',')
                        .filter(|option| is_controller(option))
                        .map(str::to_owned)
                        .collect();
                    if !v1.iter().any(|known| known.controllers == controllers) {
                        v1.push(Hierarchy { mount_point: mount.point(), controllers });
                    }
                }
                _ => {}
            }
        }
        // Somebody may have mounted one of version 1 beside it (`mount -t cgroup -o net_cls`), which makes nobody's limits.
        let unified = v2.as_deref() == Some(Path::new(MOUNT_POINT));
        if !v1.is_empty() && !unified {
            return Some(Cgroups { version: Version::V1, hierarchies: v1, beside: v2 });
        }
        let mount_point = v2?;
        let hierarchies = vec![Hierarchy { mount_point, controllers: Vec::new() }];
        Some(Cgroups { version: Version::V2, hierarchies, beside: None })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Makes the cgroup at `relative`, such as `/kubepods/burstable/podX/ID`, with all above it that is missing.
    /// One that exists already is taken as it is.
    ///
    /// # Errors
    /// [`CgroupError`], naming the folder or file.
    pub fn create(&self, relative: &str) -> Result<Cgroup, CgroupError> {
        let cgroup = self.at(relative)?;
        for hierarchy in &self.hierarchies {
            let mut folder = hierarchy.mount_point.clone();
            for name in names(relative)? {
                if self.version == Version::V2 {
                    enable_controllers(&folder)?;
                }
                folder.push(name);
                match fs::create_dir(&folder) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(CgroupError::Make { path: folder, source }),
                }
                if hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
                    inherit_cpuset(&folder)?;
                }
            }
        }
        Ok(cgroup)
    }

    /// The cgroup at `relative`, whether it exists or not.
    ///
    /// # Errors
    /// [`CgroupError::BadPath`] for a path that is not absolute, is the root or goes up.
    pub fn at(&self, relative: &str) -> Result<Cgroup, CgroupError> {
        let mut below = PathBuf::new();
        below.extend(names(relative)?);
        Ok(Cgroup {
            version: self.version,
            places: self
                .hierarchies
                .iter()
                .map(|hierarchy| Place {
                    folder: hierarchy.mount_point.join(&below),
                    controllers: hierarchy.controllers.clone(),
                })
                .collect(),
        })
    }

    /// Kills what runs in the cgroup at `relative` and removes it with everything below, also where an external
    /// runtime made it on its own. Nothing to do is no fault.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`] when a process outlives SIGKILL for longer than ten seconds.
    pub fn remove_path(&self, relative: &str) -> Result<(), CgroupError> {
        let mut cgroup = self.at(relative)?;
        if let Some(mount_point) = &self.beside {
            let folder = names(relative)?.iter().fold(mount_point.clone(), |path, name| path.join(name));
            cgroup.places.push(Place { folder, controllers: Vec::new() });
        }
        cgroup.remove()
    }
}

/// A folder of a cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    folder: PathBuf,
    controllers: Vec<String>,
}

/// One cgroup, in all hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    places: Vec<Place>,
}

impl Cgroup {
    /// A cgroup known by its folders only, as the supervisor gets it: good for [`Cgroup::oom_kills`] and
    /// [`Cgroup::pids`].
    pub fn from_dirs(dirs: impl IntoIterator<Item = PathBuf>) -> Cgroup {
        let places: Vec<Place> =
            dirs.into_iter().map(|folder| Place { folder, controllers: Vec::new() }).collect();
        let unified = places.iter().any(|place| place.folder.join("cgroup.controllers").exists());
        Cgroup { version: if unified { Version::V2 } else { Version::V1 }, places }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Its folder in each hierarchy; one on v2.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|place| place.folder.as_path())
    }

    /// Folder and controllers ("cpu", "name=systemd") of each hierarchy; none of the latter on v2.
    pub fn hierarchies(&self) -> impl Iterator<Item = (&Path, &[String])> {
        self.places.iter().map(|place| (place.folder.as_path(), place.controllers.as_slice()))
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.dirs().any(Path::exists)
    }

    /// How many processes the kernel has killed here for want of memory, below included on v2.
    ///
    /// # Errors
    /// [`CgroupError::Read`]. A host without a memory controller counts none.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        for folder in self.dirs() {
            if let Some(text) = read_if_there(&folder.join(name))? {
                return Ok(text
                    .lines()
                    .find_map(|line| line.strip_prefix("oom_kill "))
                    .and_then(|count| count.trim().parse().ok())
                    .unwrap_or(0));
            }
        }
        Ok(0)
    }

    /// The processes in it and below, as this pid namespace numbers them, each once. Empty when it is gone.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for folder in self.dirs() {
            for folder in teardown::tree(folder)? {
                match read_if_there(&folder.join("cgroup.procs")) {
                    Ok(text) => {
                        let text = text.unwrap_or_default();
                        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
                    }
                    // cgroup v2, "Threads": a threaded cgroup lists none, whoever is in it; the one above lists them.
                    Err(CgroupError::Read { source, .. })
                        if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Where its processes are frozen; `None` on a host without the means.
    pub fn freezer(&self) -> Option<&Path> {
        self.place_of("freezer")
    }

    fn place_of(&self, controller: &str) -> Option<&Path> {
        match self.version {
            Version::V2 => self.dirs().next(),
            Version::V1 => self
                .places
                .iter()
                .find(|place| place.controllers.iter().any(|known| known == controller))
                .map(|place| place.folder.as_path()),
        }
    }
}

/// Every option of a v1 mount that is not a controller, cgroups(7) and the kernel's cgroup-v1 guide.
fn is_controller(option: &str) -> bool {
    let other = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"];
    !other.contains(&option) && !option.starts_with("release_agent=") && !option.starts_with("seclabel")
}

fn names(relative: &str) -> Result<Vec<&str>, CgroupError> {
    let path = Path::new(relative);
    let names: Option<Vec<&str>> = path
        .components()
        .filter(|component| *component != Component::RootDir)
        .map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    match names {
        Some(names) if path.is_absolute() && !names.is_empty() => Ok(names),
        _ => Err(CgroupError::BadPath(relative.to_owned())),
    }
}

/// v1's cpuset starts with no CPU and no memory node, and takes no process until it has some.
fn inherit_cpuset(folder: &Path) -> Result<(), CgroupError> {
    let Some(parent) = folder.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = read(&folder.join(file))?;
        if own.trim().is_empty() {
            let inherited = read(&parent.join(file))?;
            write(&folder.join(file), inherited.trim())?;
        }
    }
    Ok(())
}

/// v2: what a folder's children can be limited by is what its `cgroup.subtree_control` passes on.
fn enable_controllers(folder: &Path) -> Result<(), CgroupError> {
    let available = read(&folder.join("cgroup.controllers"))?;
    let enabled = read(&folder.join("cgroup.subtree_control"))?;
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|controller| !enabled.split_whitespace().any(|known| known == *controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    let control = folder.join("cgroup.subtree_control");
    if missing.is_empty() || write(&control, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // All or none in one write. One may be refused for a reason of its own (cpu: realtime processes with
    // CONFIG_RT_GROUP_SCHED); the others are worth having without it.
    for controller in missing {
        match write(&control, &controller) {
            Ok(()) => {}
            // Who asks for such a limit is warned when it is applied.
            Err(CgroupError::Write { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EBUSY | libc::ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

/// `None` for a file, or a cgroup, that is not there (any more).
fn read_if_there(path: &Path) -> Result<Option<String>, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(source) => Err(CgroupError::Read { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Opened, never created: a file that the kernel does not offer is an error, not a file on a tmpfs.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

/// The cgroup has been removed: before the file was opened, or while it was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_beside_an_empty_v2_mount_are_v1() {
        let table = "\
24 1 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
27 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
28 24 0:23 / /other/cpu rw - cgroup cgroup rw,cpu,cpuacct
";
        let cgroups = Cgroups::mounted(&table.into()).unwrap();
        assert_eq!(cgroups.version(), Version::V1);
        let at = cgroups.at("/berth/x").unwrap();
        let dirs: Vec<_> = at.dirs().collect();
        assert_eq!(
            dirs,
            [Path::new("/sys/fs/cgroup/cpu,cpuacct/berth/x"), Path::new("/sys/fs/cgroup/systemd/berth/x")]
        );
        assert_eq!(at.places[1].controllers, ["name=systemd"]);
    }

    #[test]
    fn a_lone_v2_mount_is_v2() {
        let cgroups =
            Cgroups::mounted(&"25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n".into())
                .unwrap();
        assert_eq!(cgroups.version(), Version::V2);
        let stray = "25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n\
            99 24 0:40 / /mnt/net rw - cgroup none rw,net_cls\n";
        let cgroups = Cgroups::mounted(&stray.into()).unwrap();
        assert_eq!((cgroups.version(), cgroups.hierarchies.len()), (Version::V2, 1));
        assert!(Cgroups::mounted(&"1 0 8:1 / / rw - ext4 /dev/sda rw\n".into()).is_none());
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        let cgroups = Cgroups::detect().unwrap();
        for path in ["", "/", "relative/x", "/a/../../x", "/.."] {
            assert!(matches!(cgroups.at(path), Err(CgroupError::BadPath(_))), "{path:?}");
        }
    }
}
