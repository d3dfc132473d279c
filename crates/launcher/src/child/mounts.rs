//! The mounts of the plan, each made whole before it is attached: attributes and content first, place last.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::{Bind, Filesystem, IdMapping, MountPlan, mount_plan::What};
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::rootfs::{Root, file_type};
use super::user::UserNamespace;
use crate::error::{AtStep, StepError};
use crate::mount_table::MountTable;
use crate::sys::{self, MountAttributes};
use crate::user_namespace;

/// `PROC_SUPER_MAGIC`, statfs(2).
const PROC_MAGIC: i64 = 0x9fa0;

/// Clones the source of every bind mount, in the plan's order; `None` for the others.
pub(super) fn clone_sources(
    mounts: &[MountPlan],
    user: Option<&UserNamespace>,
) -> Result<Vec<Option<OwnedFd>>, StepError> {
    mounts
        .iter()
        .map(|mount| match &mount.what {
            Some(What::Bind(Bind { source, recursive, id_mapping })) => {
                let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                if *recursive {
                    flags |= OpenTreeFlags::AT_RECURSIVE;
                }
                let tree = rustix::mount::open_tree(CWD, source.as_str(), flags)
                    .step_with(|| format!("mount {}: source {source}", mount.destination))?;
                if let Some(mapping) = id_mapping {
                    map_ids(&tree, mapping, user).map_err(|error| {
                        let below = if mapping.recursive { ", or one below it," } else { "" };
                        let step = format!(
                            "mount {}: map the ids of {source}: its file system{below} may not be able to \
                             ({}); idmapped mounts",
                            mount.destination,
                            file_system(source),
                        );
                        StepError::new(step, error)
                    })?;
                }
                Ok(Some(tree))
            }
            _ => Ok(None),
        })
        .collect()
}

fn map_ids(tree: &OwnedFd, mapping: &IdMapping, user: Option<&UserNamespace>) -> std::io::Result<()> {
    match (&mapping.own, user) {
        (Some(ids), _) => sys::id_map_mount(tree, user_namespace::create(ids)?.as_fd(), mapping.recursive),
        (None, Some(user)) => sys::id_map_mount(tree, user.for_mounts(), mapping.recursive),
        (None, None) => Err(std::io::Error::other("the pod has no user namespace")),
    }
}

/// The type of the file system that `path` lies on, as proc_pid_mountinfo(5) names it, for messages.
fn file_system(path: &str) -> String {
    let device = rustix::fs::stat(path).map(|stat| stat.st_dev);
    let (Ok(device), Ok(table)) = (device, MountTable::of_this_process()) else {
        return "of unknown type".to_owned();
    };
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let found = table.mounts().find(|mount| mount.device == number);
    found.map_or_else(|| "of unknown type".to_owned(), |mount| format!("of type {}", mount.kind))
}

/// Mounts everything, in order.
pub(super) fn mount_all(
    root: &Root,
    mounts: &[MountPlan],
    sources: Vec<Option<OwnedFd>>,
    user: Option<&UserNamespace>,
) -> Result<(), StepError> {
    for (mount, source) in mounts.iter().zip(sources) {
        let step = || format!("mount {}", mount.destination);
        let tree = match (&mount.what, source) {
            (_, Some(source)) => source,
            (Some(What::Filesystem(filesystem)), None) => {
                make_filesystem(filesystem, user).map_err(|error| StepError { step: step(), ..error })?
            }
            _ => return Err(StepError::refused(step(), "the plan does not say what to mount")),
        };
        let wanted = file_type(&tree).step_with(step)?;
        let target = if wanted == FileType::Directory {
            root.ensure_directory(&mount.destination)
        } else {
            root.ensure_file(&mount.destination)
        }
        .step_with(step)?;
        refuse_procfs(mount, target.as_fd())?;
        set_attributes(mount, &tree).step_with(step)?;
        attach(&tree, &target).step_with(step)?;
    }
    Ok(())
}

/// A mount that is not meant for /proc but would land in it has been led there by a link that somebody else can
/// change: it could hide from us what we write to or mask later.
fn refuse_procfs(mount: &MountPlan, target: BorrowedFd<'_>) -> Result<(), StepError> {
    let meant = mount.destination == "/proc" || mount.destination.starts_with("/proc/");
    let step = || format!("mount {}", mount.destination);
    if !meant && rustix::fs::fstatfs(target).step_with(step)?.f_type as i64 == PROC_MAGIC {
        return Err(StepError::refused(step(), "a link in the container leads this mount into /proc"));
    }
    Ok(())
}

fn set_attributes(mount: &MountPlan, tree: &OwnedFd) -> std::io::Result<()> {
    if mount.attr_set_recursive | mount.attr_clear_recursive != 0 {
        let attributes = MountAttributes {
            set: mount.attr_set_recursive,
            clear: mount.attr_clear_recursive,
            propagation: 0,
            recursive: true,
        };
        sys::mount_setattr(tree, attributes)?;
    }
    if mount.attr_set | mount.attr_clear != 0 {
        let attributes = MountAttributes {
            set: mount.attr_set,
            clear: mount.attr_clear,
            propagation: 0,
            recursive: false,
        };
        sys::mount_setattr(tree, attributes)?;
    }
    if mount.propagation != 0 {
        let attributes = MountAttributes {
            propagation: mount.propagation.into(),
            recursive: mount.propagation_recursive,
            ..MountAttributes::default()
        };
        sys::mount_setattr(tree, attributes)?;
    }
    Ok(())
}

pub(super) fn attach(tree: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags)
}

/// A new filesystem as a detached mount, with the folders and links that the plan wants in it.
fn make_filesystem(plan: &Filesystem, user: Option<&UserNamespace>) -> Result<OwnedFd, StepError> {
    let context = rustix::mount::fsopen(plan.r#type.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)
        .step_with(|| format!("filesystem type {}", plan.r#type))?;
    let made = (|| {
        if !plan.source.is_empty() {
            rustix::mount::fsconfig_set_string(&context, c"source", plan.source.as_str())?;
        }
        for option in &plan.options {
            match &option.value {
                Some(value) => {
                    rustix::mount::fsconfig_set_string(&context, option.key.as_str(), value.as_str())?;
                }
                None => rustix::mount::fsconfig_set_flag(&context, option.key.as_str())?,
            }
        }
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    })();
    let mount = made.map_err(|error| explain(&plan.r#type, error, &context))?;
    if let Some(user) = user.filter(|_| plan.r#type == "devpts") {
        // What the kernel puts there by itself is not made as the container's root.
        for name in ["", "ptmx"] {
            user.own(&mount, name).step("give the terminals away")?;
        }
    }
    for name in &plan.directories {
        rustix::fs::mkdirat(&mount, name.as_str(), Mode::from_raw_mode(0o755))
            .step_with(|| format!("directory {name}"))?;
    }
    for link in &plan.links {
        rustix::fs::symlinkat(link.target.as_str(), &mount, link.name.as_str())
            .step_with(|| format!("link {}", link.name))?;
    }
    Ok(mount)
}

/// The errno, and what the kernel has to say about it: a filesystem context keeps its complaints for its reader.
fn explain(kind: &str, error: Errno, context: &OwnedFd) -> StepError {
    let mut failure = StepError::new(kind, error);
    let mut line = [0_u8; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line[..]) {
        // "e tmpfs: Bad value for 'size'"; the letter is the severity.
        let text = String::from_utf8_lossy(&line[..length]);
        failure.message = format!("{} ({})", failure.message, text.get(2..).unwrap_or_default().trim());
    }
    failure
}

/// Binds each of these paths read-only onto itself. One that is not there needs none.
pub(super) fn make_readonly(root: &Root, paths: &[String]) -> Result<(), StepError> {
    for path in paths {
        let step = || format!("make {path} read-only");
        let Some(target) = existing(root, path).step_with(step)? else { continue };
        let tree = clone_tree(&target, true).step_with(step)?;
        let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
        sys::mount_setattr(&tree, attributes).step_with(step)?;
        attach(&tree, &target).step_with(step)?;
    }
    Ok(())
}

/// Covers each of these paths: a directory with an empty read-only one, anything else with /dev/null.
pub(super) fn mask(root: &Root, paths: &[String], null: BorrowedFd<'_>) -> Result<(), StepError> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let step = || format!("mask {path}");
        let Some(target) = existing(root, path).step_with(step)? else { continue };
        if file_type(&target).step_with(step)? == FileType::Directory {
            // One filesystem for all: the first is cloned where it is mounted (a detached one cannot be, before
            // Linux 6.15).
            let cover = match &empty {
                Some(first) => clone_tree(first, false).step_with(step)?,
                None => empty_directory().step_with(step)?,
            };
            attach(&cover, &target).step_with(step)?;
            empty.get_or_insert(cover);
        } else {
            let cover = clone_tree(null, false).step_with(step)?;
            attach(&cover, &target).step_with(step)?;
        }
    }
    Ok(())
}

fn existing(root: &Root, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match root.open(path) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", c"tmpfs")?;
    rustix::mount::fsconfig_set_flag(&context, c"ro")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

pub(super) fn clone_tree(tree: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags |= OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(tree, c"", flags)
}
