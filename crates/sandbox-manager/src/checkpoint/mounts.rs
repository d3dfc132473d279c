//! Mounts of a container that lead out of it. CRIU's images name them, and a restore says what stands there now.

use std::path::{Path, PathBuf};

use berth_launcher::{
    cgroup::Cgroup,
    mount_table::{Mount as Listed, MountTable},
};
use oci_spec::runtime::{Mount, Spec};
use serde::{Deserialize, Serialize};

/// A mount point in the container, and what is mounted there from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct External {
    pub(super) point: String,
    pub(super) source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    /// A bind mount of the spec's, or something mounted below its source.
    Bind,
    /// The container's own cgroup, in the hierarchy that the mount point is named after.
    Cgroup,
    /// The host's /dev/null over a masked file.
    Null,
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// The bind mount that a point lies in, and the rest of its path below it.
fn bind_of<'s>(spec: &'s Spec, point: &str) -> Option<(&'s Mount, PathBuf)> {
    let binds = spec.mounts().iter().flatten().filter(|mount| is_bind(mount));
    let around = binds.filter_map(|mount| {
        Some((mount, Path::new(point).strip_prefix(mount.destination()).ok()?.to_owned()))
    });
    around.max_by_key(|(mount, _)| mount.destination().components().count())
}

/// The external ones of a container's mounts.
pub(super) fn externals(table: &MountTable, spec: &Spec) -> Vec<External> {
    let masked = spec.linux().as_ref().and_then(|linux| linux.masked_paths().as_ref());
    let external = |mount: Listed<'_>| {
        // CRIU's arguments are text as well.
        let point = mount.point().to_string_lossy().into_owned();
        let source = match mount.kind {
            "cgroup" | "cgroup2" => Source::Cgroup,
            "devtmpfs" if masked.is_some_and(|paths| paths.contains(&point)) => Source::Null,
            _ => bind_of(spec, &point).map(|_| Source::Bind)?,
        };
        Some(External { point, source })
    };
    table.mounts().filter_map(external).collect()
}

/// What is to be mounted at a point of a container with this spec and cgroup.
pub(super) fn source(external: &External, spec: &Spec, cgroup: &Cgroup) -> Option<PathBuf> {
    match external.source {
        Source::Null => Some("/dev/null".into()),
        Source::Bind => {
            let (mount, rest) = bind_of(spec, &external.point)?;
            let source = mount.source().as_ref()?;
            Some(if rest.as_os_str().is_empty() { source.clone() } else { source.join(rest) })
        }
        Source::Cgroup => {
            let name = Path::new(&external.point).file_name()?.to_str()?;
            let plain = |name: &String| name.strip_prefix("name=").unwrap_or(name).to_owned();
            let mut hierarchies = cgroup.hierarchies();
            let is_it = |controllers: &[String]| {
                // Version 2 has one, without controllers in its name.
                controllers.is_empty() || controllers.iter().map(plain).collect::<Vec<_>>().join(",") == name
            };
            hierarchies.find(|(_, controllers)| is_it(controllers)).map(|(folder, _)| folder.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "mounts": [
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/run/pods/a/hosts" },
                { "destination": "/data", "source": "/srv/data", "options": ["rbind"] },
                { "destination": "/data/in ner", "type": "bind", "source": "/srv/other" },
            ],
            "linux": { "maskedPaths": ["/proc/kcore"] },
        }))
        .unwrap()
    }

    const MOUNTINFO: &str = "48 49 0:41 / / rw - overlay overlay rw\n\
        81 48 254:0 /a /etc/hosts rw - ext4 /dev/vda rw\n\
        82 48 0:44 / /dev rw shared:1 - tmpfs tmpfs rw\n\
        83 48 254:0 /d /data rw master:1 - ext4 /dev/vda rw\n\
        84 83 0:50 / /data/sub rw - nfs x rw\n\
        85 83 254:0 /d /data/in\\040ner rw - ext4 /dev/vda rw\n\
        86 82 0:30 /p/c /sys/fs/cgroup/memory ro - cgroup cgroup rw\n\
        87 82 0:6 /null /proc/kcore rw - devtmpfs udev rw\n\
        88 82 0:60 / /proc/acpi ro - tmpfs tmpfs ro\n";

    #[test]
    fn what_comes_from_outside_is_found_and_found_again() {
        let found = externals(&MOUNTINFO.into(), &spec());
        let cgroup = Cgroup::from_dirs(["/sys/fs/cgroup/memory/x".into()]);
        let sources: Vec<_> = found
            .iter()
            .filter(|external| external.source != Source::Cgroup)
            .map(|external| (external.point.as_str(), source(external, &spec(), &cgroup).unwrap()))
            .collect();
        assert_eq!(
            sources,
            [
                ("/etc/hosts", PathBuf::from("/run/pods/a/hosts")),
                ("/data", "/srv/data".into()),
                ("/data/sub", "/srv/data/sub".into()),
                ("/data/in ner", "/srv/other".into()),
                ("/proc/kcore", "/dev/null".into()),
            ]
        );
        assert!(found.contains(&External { point: "/sys/fs/cgroup/memory".into(), source: Source::Cgroup }));
        let gone = External { point: "/gone".into(), source: Source::Bind };
        assert_eq!(source(&gone, &spec(), &cgroup), None);
    }
}
