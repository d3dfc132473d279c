//! A pseudoterminal of the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::ProcessPlan;
use rustix::fs::{FileType, OFlags, makedev};
use rustix::termios::Winsize;

use super::mounts;
use super::rootfs::{Root, open_below, open_root};
use crate::error::{AtStep, StepError};
use crate::sys;

/// `DEVPTS_SUPER_MAGIC`, statfs(2).
const DEVPTS_MAGIC: i64 = 0x1cd1;
/// /dev/pts/ptmx, in Documentation/admin-guide/devices.txt.
const PTMX: (u32, u32) = (5, 2);

#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

/// Opens a new pair below `root`, and makes sure that it comes from a devpts and nothing that looks like one.
pub(super) fn open(root: BorrowedFd<'_>, process: &ProcessPlan) -> Result<Terminal, StepError> {
    let step = "open a pseudoterminal";
    let path = open_below(root, "/dev/pts/ptmx", OFlags::PATH).step(step)?;
    let stat = rustix::fs::fstat(&path).step(step)?;
    let real = rustix::fs::fstatfs(&path).step(step)?.f_type as i64 == DEVPTS_MAGIC
        && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(PTMX.0, PTMX.1);
    if !real {
        return Err(StepError::refused(step, "the container's /dev/pts is no devpts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = open_below(root, "/dev/pts/ptmx", flags).step(step)?;
    // Both opens must have met the same file: the number of the device is checked again on what is used.
    if rustix::fs::fstat(&master).step(step)?.st_rdev != makedev(PTMX.0, PTMX.1) {
        return Err(StepError::refused(step, "the container's /dev/pts has changed meanwhile"));
    }
    let slave = sys::pty_peer(&master).step(step)?;
    if process.console_rows != 0 || process.console_columns != 0 {
        let size = Winsize {
            ws_row: u16::try_from(process.console_rows).unwrap_or(u16::MAX),
            ws_col: u16::try_from(process.console_columns).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).step("set the terminal's size")?;
    }
    Ok(Terminal { master, slave })
}

impl Terminal {
    /// Binds the terminal at /dev/console.
    pub(super) fn bind_console(&self, root: &Root) -> Result<(), StepError> {
        let step = "mount /dev/console";
        let target = root.ensure_file("/dev/console").step(step)?;
        let tree = mounts::clone_tree(&self.slave, false).step(step)?;
        mounts::attach(&tree, &target).step(step)
    }

    /// Makes it the controlling terminal and the standard three; the master is for the supervisor.
    pub(super) fn take_over(self) -> Result<OwnedFd, StepError> {
        rustix::process::ioctl_tiocsctty(&self.slave).step("take the terminal")?;
        use_for_stdio(&self.slave)?;
        Ok(self.master)
    }
}

/// Opens the terminal of `master`, the standard three, once more. The mount that they belong to is not one of the
/// container's since its mounts were copied, so ttyname(3) would not find them.
pub(super) fn open_again(master: BorrowedFd<'_>) -> Result<(), StepError> {
    let step = "open the terminal again";
    let known = rustix::fs::fstat(rustix::stdio::stdin()).step(step)?;
    let name = rustix::pty::ptsname(master, Vec::new()).step(step)?;
    let root = open_root()?;
    let slave =
        open_below(root.as_fd(), &name.to_string_lossy(), OFlags::RDWR | OFlags::NOCTTY).step(step)?;
    let found = rustix::fs::fstat(&slave).step(step)?;
    if (found.st_dev, found.st_rdev) != (known.st_dev, known.st_rdev) {
        return Err(StepError::refused(step, "the container's /dev/pts has changed meanwhile"));
    }
    use_for_stdio(&slave)
}

fn use_for_stdio(slave: &OwnedFd) -> Result<(), StepError> {
    rustix::stdio::dup2_stdin(slave).step("standard input")?;
    rustix::stdio::dup2_stdout(slave).step("standard output")?;
    rustix::stdio::dup2_stderr(slave).step("standard error")
}
