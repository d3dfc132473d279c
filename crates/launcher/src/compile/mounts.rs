//! Mounts: options become attributes, propagation and file system parameters (config.md, "Mounts").

use std::path::Path;

use berth_cri::berth::v1::{
    Bind, Filesystem, FilesystemOption, IdMapping, Link, MountPlan, mount_plan::What,
};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount};

use super::CompileError;
use super::ids::{self, Ids, host_gid, host_uid};
use crate::cgroup::{Cgroup, MOUNT_POINT, Version};

/// The bits of a mount's attributes that say when access times are kept; they are one choice.
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// What an option does to one mount: bits to set and bits to clear.
type Attributes = (u64, u64);

pub(super) fn compile(
    mounts: &[Mount],
    linux: &Linux,
    cgroup: &Cgroup,
    ids: Option<&Ids>,
) -> Result<Vec<MountPlan>, CompileError> {
    let label = linux.mount_label().as_deref().filter(|label| !label.is_empty());
    let namespaces = linux.namespaces().iter().flatten();
    let has_own_cgroup_namespace =
        namespaces.map(|namespace| namespace.typ()).any(|kind| kind == LinuxNamespaceType::Cgroup);
    let mut plans = Vec::with_capacity(mounts.len());
    for mount in mounts {
        if mount.typ().as_deref() == Some("cgroup") || mount.typ().as_deref() == Some("cgroup2") {
            plans.extend(cgroup_view(mount, cgroup, has_own_cgroup_namespace)?);
        } else {
            plans.push(one(mount, label, ids)?);
        }
    }
    Ok(plans)
}

/// Whether it makes an existing file or folder appear at another place.
pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// The mode of linux.rootfsPropagation; 0 for the default.
pub(super) fn root_propagation(mode: &str) -> Result<u32, CompileError> {
    match mode {
        "" => Ok(0),
        mode => propagation(mode)
            .map(|(flag, _)| flag)
            .ok_or_else(|| CompileError::invalid("linux.rootfsPropagation", mode, "is no propagation")),
    }
}

fn one(mount: &Mount, label: Option<&str>, ids: Option<&Ids>) -> Result<MountPlan, CompileError> {
    let mut options = Options::default();
    for option in mount.options().iter().flatten() {
        options.read(option, &field(mount))?;
    }
    let what = if is_bind(mount) {
        if let Some(option) = options.parameters.first() {
            let field = format!("{}: option {:?} of a bind mount", field(mount), option.key);
            return Err(CompileError::unsupported(field));
        }
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        if !source.is_absolute() {
            let source = source.to_string_lossy();
            return Err(CompileError::invalid(field(mount), source, "is no absolute source"));
        }
        // "rbind" is what makes it recursive; the bare type, and "bind", do not.
        let recursive = options.recursive_bind;
        let id_mapping = id_mapping(mount, &options, ids)?;
        What::Bind(Bind { source: source.to_string_lossy().into_owned(), recursive, id_mapping })
    } else {
        if options.id_mapping.is_some() || ids::some(mount.uid_mappings()) || ids::some(mount.gid_mappings())
        {
            return Err(CompileError::unsupported(format!("{}: idmapped, but no bind mount", field(mount))));
        }
        let kind = mount.typ().as_deref().unwrap_or_default();
        if kind.is_empty() {
            return Err(CompileError::invalid(field(mount), kind, "is no type of file system"));
        }
        let source = mount.source().as_deref().map(|source| source.to_string_lossy().into_owned());
        let mut parameters = std::mem::take(&mut options.parameters);
        if kind == "tmpfs" || kind == "devpts" {
            own_by_host_ids(&mut parameters, ids)?;
        }
        if let Some(label) = label.filter(|_| ["tmpfs", "devpts", "mqueue"].contains(&kind)) {
            parameters.push(FilesystemOption { key: "context".to_owned(), value: Some(label.to_owned()) });
        }
        What::Filesystem(Filesystem {
            r#type: kind.to_owned(),
            source: source.unwrap_or_else(|| kind.to_owned()),
            options: parameters,
            directories: Vec::new(),
            links: Vec::new(),
        })
    };
    Ok(options.plan(destination(mount)?, what))
}

/// Options and mappings say it together (config.md, "Mounts"): mappings alone mean this mount, an option alone means the
/// mappings of the container.
fn id_mapping(
    mount: &Mount,
    options: &Options,
    pod: Option<&Ids>,
) -> Result<Option<IdMapping>, CompileError> {
    let own = ids::of_mappings(&field(mount), mount.uid_mappings(), mount.gid_mappings())?;
    let recursive = options.id_mapping == Some(Recursion::All);
    match (own, options.id_mapping, pod) {
        (None, None, _) => Ok(None),
        (None, Some(_), None) => Err(CompileError::invalid(
            field(mount),
            "idmap",
            "needs ids to map: neither mount nor container has any",
        )),
        (None, Some(_), Some(_)) => Ok(Some(IdMapping { own: None, recursive })),
        (Some(own), _, pod) if Some(&own) == pod => Ok(Some(IdMapping { own: None, recursive })),
        (Some(own), _, _) => Ok(Some(IdMapping { own: Some(own.into_maps()), recursive })),
    }
}

/// The options that name an owner: the file system is made by the host's root.
fn own_by_host_ids(parameters: &mut [FilesystemOption], ids: Option<&Ids>) -> Result<(), CompileError> {
    for FilesystemOption { key, value } in parameters {
        let Some(id) = value.as_deref().and_then(|value| value.parse().ok()) else { continue };
        match key.as_str() {
            "uid" => *value = Some(host_uid(ids, "mounts: option uid", id)?.to_string()),
            "gid" => *value = Some(host_gid(ids, "mounts: option gid", id)?.to_string()),
            _ => {}
        }
    }
    Ok(())
}

/// A container sees its own cgroup under `destination`: on v2 the folder itself, on v1 a tmpfs with a folder for each
/// hierarchy. Bound from the host's mounts, which inside the container's cgroup namespace is the same as mounting
/// anew. Without one of its own a container on v2 sees the node's whole tree, as /proc/self/cgroup names it.
fn cgroup_view(mount: &Mount, cgroup: &Cgroup, own_namespace: bool) -> Result<Vec<MountPlan>, CompileError> {
    let mut options = Options::default();
    for option in mount.options().iter().flatten() {
        options.read(option, &field(mount))?;
    }
    // Parameters of the cgroup file system would change the host's: every mount of a hierarchy is the same one.
    options.parameters.clear();
    let destination = destination(mount)?;
    let bind = |folder: &Path| {
        What::Bind(Bind { source: folder.to_string_lossy().into_owned(), recursive: false, id_mapping: None })
    };
    if cgroup.version() == Version::V2 {
        if !own_namespace {
            return Ok(vec![options.plan(destination, bind(Path::new(MOUNT_POINT)))]);
        }
        return Ok(cgroup.dirs().map(|folder| options.plan(destination.clone(), bind(folder))).collect());
    }
    let mut directories = Vec::new();
    let mut links = Vec::new();
    let mut binds = Vec::new();
    for (folder, controllers) in cgroup.hierarchies() {
        let names: Vec<&str> =
            controllers.iter().map(|name| name.strip_prefix("name=").unwrap_or(name)).collect();
        let directory = names.join(",");
        if names.len() > 1 {
            links.extend(
                names.iter().map(|name| Link { name: (*name).to_owned(), target: directory.clone() }),
            );
        }
        binds.push(options.plan(format!("{destination}/{directory}"), bind(folder)));
        directories.push(directory);
    }
    let tmpfs = What::Filesystem(Filesystem {
        r#type: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        options: vec![FilesystemOption { key: "mode".to_owned(), value: Some("755".to_owned()) }],
        directories,
        links,
    });
    let mut plans = vec![options.plan(destination, tmpfs)];
    plans.extend(binds);
    Ok(plans)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recursion {
    This,
    All,
}

#[derive(Debug, Default)]
struct Options {
    own: Attributes,
    recursive: Attributes,
    propagation: u32,
    propagation_recursive: bool,
    recursive_bind: bool,
    id_mapping: Option<Recursion>,
    parameters: Vec<FilesystemOption>,
}

impl Options {
    fn read(&mut self, option: &str, field: &str) -> Result<(), CompileError> {
        if let Some((flag, recursive)) = propagation(option) {
            self.propagation = flag;
            self.propagation_recursive = recursive;
        } else if let Some(change) = attributes(option) {
            apply(&mut self.own, change);
        } else if let Some(change) = option.strip_prefix('r').and_then(attributes) {
            apply(&mut self.recursive, change);
        } else {
            match option {
                "defaults" | "bind" => {}
                "rbind" => self.recursive_bind = true,
                "idmap" => self.id_mapping = Some(Recursion::This),
                "ridmap" => self.id_mapping = Some(Recursion::All),
                // What other tools keep in fstab for themselves, and what mount(2) takes but nobody means.
                "async" | "loud" | "silent" | "nofail" | "_netdev" => {}
                "tmpcopyup" | "remount" => {
                    return Err(CompileError::unsupported(format!("{field}: option {option:?}")));
                }
                other => {
                    let (key, value) = match other.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (other, None),
                    };
                    self.parameters.push(FilesystemOption { key: key.to_owned(), value });
                }
            }
        }
        Ok(())
    }

    fn plan(&self, destination: String, what: What) -> MountPlan {
        MountPlan {
            destination,
            what: Some(what),
            attr_set: self.own.0,
            attr_clear: self.own.1,
            attr_set_recursive: self.recursive.0,
            attr_clear_recursive: self.recursive.1,
            propagation: self.propagation,
            propagation_recursive: self.propagation_recursive,
        }
    }
}

/// A later option wins over an earlier one about the same bits.
fn apply(sum: &mut Attributes, (set, clear): Attributes) {
    // The access time bits can only be cleared as a whole, mount_setattr(2).
    sum.0 = sum.0 & !clear | set;
    sum.1 = sum.1 & !set | clear;
    if (sum.0 | sum.1) & ATIME != 0 {
        sum.1 |= ATIME;
    }
}

fn propagation(option: &str) -> Option<(u32, bool)> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let flag = match name {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((u32::try_from(flag).expect("MS_ flags have 32 bits"), recursive))
}

fn attributes(option: &str) -> Option<Attributes> {
    Some(match option {
        "ro" => (libc::MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, libc::MOUNT_ATTR_RDONLY),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, libc::MOUNT_ATTR_NOSUID),
        "nodev" => (libc::MOUNT_ATTR_NODEV, 0),
        "dev" => (0, libc::MOUNT_ATTR_NODEV),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, libc::MOUNT_ATTR_NOEXEC),
        "relatime" | "atime" | "nostrictatime" | "norelatime" => (libc::MOUNT_ATTR_RELATIME, ATIME),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, ATIME),
        "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, ATIME),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, libc::MOUNT_ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

fn field(mount: &Mount) -> String {
    format!("mounts[{}]", mount.destination().display())
}

fn destination(mount: &Mount) -> Result<String, CompileError> {
    let invalid = |reason| CompileError::invalid(field(mount), mount.destination().to_string_lossy(), reason);
    let path = mount.destination().to_str().ok_or_else(|| invalid("is not UTF-8"))?;
    let trimmed = path.trim_end_matches('/');
    if !path.starts_with('/') {
        Err(invalid("is not absolute"))
    } else if trimmed.is_empty() {
        Err(invalid("is the root"))
    } else {
        Ok(trimmed.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[&str]) -> Options {
        let mut read = Options::default();
        for option in options {
            read.read(option, "test").unwrap();
        }
        read
    }

    #[test]
    fn the_last_option_about_a_bit_wins() {
        assert_eq!(read(&["ro", "rw"]).own, (0, libc::MOUNT_ATTR_RDONLY));
        assert_eq!(read(&["rw", "ro"]).own, (libc::MOUNT_ATTR_RDONLY, 0));
        assert_eq!(read(&["noatime", "strictatime"]).own, (libc::MOUNT_ATTR_STRICTATIME, ATIME));
        assert_eq!(read(&["noatime", "relatime"]).own, (0, ATIME));
    }

    #[test]
    fn an_r_makes_it_recursive_but_not_in_relatime() {
        let options = read(&["rro", "relatime", "rprivate"]);
        assert_eq!(options.recursive, (libc::MOUNT_ATTR_RDONLY, 0));
        assert_eq!(options.own, (0, ATIME));
        assert!(options.propagation_recursive);
        assert_eq!(u64::from(options.propagation), libc::MS_PRIVATE);
        assert!(options.parameters.is_empty());
    }

    #[test]
    fn what_is_no_flag_is_a_parameter() {
        let keys: Vec<String> =
            read(&["size=65536k", "newinstance"]).parameters.into_iter().map(|one| one.key).collect();
        assert_eq!(keys, ["size", "newinstance"]);
    }
}
