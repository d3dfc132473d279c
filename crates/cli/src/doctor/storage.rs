//! Where images, layers and sockets go.

use std::path::{Path, PathBuf};

use rustix::fs::{StatVfs, statfs, statvfs};

use super::{Finding, probe};
use crate::output::bytes;

const AREA: &str = "storage";

/// For a few images.
const SPACE: u64 = 2 << 30;
const INODES: u64 = 100_000;

pub(super) async fn check(root: &Path, state: &Path) -> Vec<Finding> {
    let mut findings = vec![space(root), kind_of_state(state)];
    findings.push(match probe::attempt("overlay", root).await {
        Ok(()) => Finding::good(AREA, "overlay", format!("mounts on the file system of {}", root.display())),
        Err(why) => Finding::bad(
            AREA,
            "overlay",
            why,
            "a container's root file system is an overlay of its image's layers",
            "modprobe overlay; and have --root on ext4, xfs (with ftype=1) or btrfs, not on NFS or another overlay",
        ),
    });
    findings.push(match probe::attempt("idmap", root).await {
        Ok(()) => Finding::good(AREA, "idmapped mounts", format!("on the file system of {}", root.display())),
        Err(why) => Finding::warn(
            AREA,
            "idmapped mounts",
            why,
            "pods with hostUsers: false are refused",
            "have --root on ext4, xfs or btrfs, and a kernel from 5.19 on",
        ),
    });
    findings
}

/// What is there of a path that the daemon has still to make.
fn there(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn space(root: &Path) -> Finding {
    match statvfs(there(root)) {
        Ok(stat) => judge(root, &stat),
        Err(error) => Finding::bad(
            AREA,
            "free space",
            format!("{}: {error}", root.display()),
            "images and records go there",
            "choose another --root",
        ),
    }
}

fn judge(root: &Path, stat: &StatVfs) -> Finding {
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems make inodes as they are needed, and say there are none.
    let has_inodes = stat.f_files == 0 || stat.f_favail >= INODES;
    let found = format!("{} and {} inodes at {}", bytes(free), stat.f_favail, root.display());
    match free >= SPACE && has_inodes {
        true => Finding::good(AREA, "free space", found),
        false => Finding::warn(
            AREA,
            "free space",
            found,
            "pulls fail when it is used up; what runs goes on",
            "berth image prune, or choose another --root",
        ),
    }
}

/// What a reboot is to empty has to be empty after one.
fn kind_of_state(state: &Path) -> Finding {
    const TMPFS: u64 = 0x0102_1994;
    let kind = statfs(there(state)).map(|stat| stat.f_type as u64);
    match kind {
        Ok(TMPFS) => Finding::good(AREA, "state", format!("{} is in memory", state.display())),
        _ => Finding::warn(
            AREA,
            "state",
            format!("{} is not in memory", state.display()),
            "sockets and exit statuses of a boot before are swept at start, which takes longer",
            "have --state on a tmpfs, as /run is on most machines",
        ),
    }
}
