//! Mount propagation: what a bind mount's source must be like for the container's mounts to reach the node.

use std::{io, path::Path};

use berth_cri::runtime::v1::{Mount, MountPropagation};
use berth_launcher::mount_table::MountTable;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// A source that cannot carry mounts back to the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PropagationError {
    #[error("cannot look at the mount that holds {path}")]
    Look {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is to propagate mounts in both directions, but lies on a mount that is not shared; \
         make it so with `mount --make-rshared`"
    )]
    NotShared { path: String },
}

/// Refuses Bidirectional mounts of private sources: the kernel would take them, and what the container mounts would
/// stay in the container without a word. Blocks: the sources are foreign paths.
pub(crate) fn check(mounts: &[Mount]) -> Result<(), PropagationError> {
    let both_ways =
        mounts.iter().filter(|mount| mount.propagation() == MountPropagation::PropagationBidirectional);
    for mount in both_ways {
        let path = &mount.host_path;
        match is_shared(Path::new(path)) {
            Ok(true) => {}
            Ok(false) => return Err(PropagationError::NotShared { path: path.clone() }),
            Err(source) => return Err(PropagationError::Look { path: path.clone(), source }),
        }
    }
    Ok(())
}

/// Whether the mount that holds a path is in a peer group.
fn is_shared(path: &Path) -> io::Result<bool> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let table = MountTable::of_this_process()?;
    Ok(table.mounts().any(|mount| mount.id == id && mount.shared))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn proc_is_shared_when_mountinfo_says_so() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let proc = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some("/proc")).unwrap();
        assert_eq!(is_shared(Path::new("/proc")).unwrap(), proc.contains(" shared:"));
        assert!(is_shared(Path::new("/no/such/path")).is_err());
    }
}
