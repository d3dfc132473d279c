//! emptyDir: on the disk, in memory, in huge pages.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use berth_manifest::cri::Facts;
use berth_manifest::{Container, EmptyDir, Medium, Pod, Quantity, Startup, VolumeSource};
use rustix::fs::{Gid, Mode, OFlags};

use super::mounts;

/// What it lies on.
#[derive(Debug)]
pub(super) enum Kind {
    Disk,
    /// At most so many bytes; None: the kernel's default.
    Memory(Option<u64>),
    /// Of this size in bytes; None: the host's default.
    HugePages {
        page: Option<u64>,
        limit: Option<u64>,
    },
}

impl Kind {
    pub(super) fn of(wanted: &EmptyDir, pod: &Pod, facts: &Facts<'_>) -> Self {
        let limit = limit(wanted);
        match wanted.medium {
            Medium::Disk => Self::Disk,
            Medium::Memory => {
                // More than the containers may use together nobody can put in.
                let most = [limit, memory_of(pod), u64::try_from(facts.memory).ok()];
                Self::Memory(most.into_iter().flatten().min())
            }
            Medium::HugePages(page) => {
                Self::HugePages { page: page.and_then(bytes).or_else(|| page_of(pod)), limit }
            }
        }
    }
}

/// Bytes that one on the disk may hold. A limit of zero is none, as kubelet has it.
pub(super) fn limit_on_disk(source: &VolumeSource) -> Option<u64> {
    match source {
        VolumeSource::EmptyDir(wanted) if wanted.medium == Medium::Disk => limit(wanted),
        _ => None,
    }
}

fn limit(wanted: &EmptyDir) -> Option<u64> {
    wanted.size_limit.and_then(bytes)
}

fn bytes(quantity: Quantity) -> Option<u64> {
    u64::try_from(quantity.value()).ok().filter(|bytes| *bytes > 0)
}

/// What the pod's containers may use together; None when one of them may use what it likes.
fn memory_of(pod: &Pod) -> Option<u64> {
    let limit = |container: &Container| container.resources.limits.get("memory").copied().and_then(bytes);
    let (mut init, mut lasting) = (0, 0);
    for step in &pod.startup {
        match step {
            Startup::Init(container) => init = init.max(lasting + limit(container)?),
            Startup::Sidecar(container) => lasting += limit(container)?,
        }
    }
    for container in &pod.standard {
        lasting += limit(container)?;
    }
    Some(init.max(lasting))
}

/// The one size of pages that the pod's containers ask for.
fn page_of(pod: &Pod) -> Option<u64> {
    let containers = pod.startup.iter().map(Startup::container).chain(&pod.standard);
    let names = containers.flat_map(|container| container.resources.requests.keys());
    let mut sizes: Vec<&str> = names.filter_map(|name| name.strip_prefix("hugepages-")).collect();
    sizes.sort_unstable();
    sizes.dedup();
    match sizes[..] {
        [size] => size.parse().ok().and_then(bytes),
        _ => None,
    }
}

/// Makes one that is not there. Everybody may write, as in kubelet's, and the pod's group has what is written.
pub(super) fn make(at: &Path, kind: &Kind, group: Option<u32>) -> io::Result<()> {
    match kind {
        Kind::Disk => on_disk(at, group),
        Kind::Memory(limit) => mounted(at, "tmpfs", &[("size", *limit)], group),
        Kind::HugePages { page, limit } => {
            mounted(at, "hugetlbfs", &[("pagesize", *page), ("size", *limit)], group)
        }
    }
}

/// What has the right name is whole: it gets it at the end. No volume's name begins with a dot.
fn on_disk(at: &Path, group: Option<u32>) -> io::Result<()> {
    if fs::exists(at)? {
        return Ok(());
    }
    let unfinished = at.with_file_name(format!(".{}", at.file_name().unwrap_or_default().display()));
    match fs::create_dir(&unfinished) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    for_all(File::open(&unfinished)?, group)?;
    fs::rename(unfinished, at)
}

fn mounted(at: &Path, kind: &str, options: &[(&str, Option<u64>)], group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(at)?;
    if mounts::is_mount_point(at)? {
        return Ok(());
    }
    let mount = mounts::new(kind, options)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for_all(rustix::fs::openat(&mount, ".", flags, Mode::empty())?, group)?;
    mounts::attach(&mount, at)
}

fn for_all(folder: impl AsFd, group: Option<u32>) -> io::Result<()> {
    let mut mode = Mode::RWXU | Mode::RWXG | Mode::RWXO;
    if let Some(group) = group {
        rustix::fs::fchown(&folder, None, Some(Gid::from_raw(group)))?;
        mode |= Mode::SGID;
    }
    Ok(rustix::fs::fchmod(&folder, mode)?)
}
