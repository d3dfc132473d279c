//! User namespaces: made by a process that does nothing else, held by a descriptor (user_namespaces(7)).
//!
//! Only a process with one thread can enter one, and only a child can be born into a new one. So there is a short-lived
//! child: it is born into the user namespace, waits for its id maps, makes whatever other namespaces shall belong to it,
//! and stays until its maker has taken what it wants.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::{IdMaps, IdRange};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};

use crate::sys::{self, SpawnOptions};

/// A process in a new user namespace, where it is root. It ends with this value.
#[derive(Debug)]
pub struct Holder {
    pidfd: OwnedFd,
    /// Its pid in the procfs of this process.
    pid: i32,
    /// It waits for this to close.
    socket: Option<OwnedFd>,
}

impl Holder {
    /// Makes a user namespace with these ids, and `own` namespaces that belong to it. Takes as long as a fork and a few
    /// system calls.
    ///
    /// Also for processes with several threads: the child allocates nothing and takes no lock.
    ///
    /// # Errors
    /// `EINVAL` for maps that overlap or are empty, `ENOSPC` and `EUSERS` over the limits of user.max_user_namespaces and
    /// nesting, `EPERM` where they are forbidden.
    pub fn start(ids: &IdMaps, own: CloneFlags) -> io::Result<Holder> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let options = SpawnOptions { new_user_namespace: true, ..SpawnOptions::default() };
        let spawned = sys::spawn(&options, || hold(theirs.as_fd(), own))?;
        drop(theirs);
        let mut holder = Holder { pid: 0, pidfd: spawned.pidfd, socket: Some(ours) };
        holder.pid = pid_in_procfs(holder.pidfd.as_fd())?;
        holder.write_map("uid_map", &ids.uids)?;
        holder.write_map("gid_map", &ids.gids)?;
        let socket = holder.socket.as_ref().expect("it is taken at the end only");
        rustix::io::retry_on_intr(|| rustix::net::send(socket, &[1], SendFlags::NOSIGNAL))?;
        let mut answer = [0; size_of::<i32>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut answer[..]))? {
            length if length == answer.len() => match i32::from_ne_bytes(answer) {
                0 => Ok(holder),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            _ => Err(io::Error::other("the process that makes a user namespace was killed")),
        }
    }

    /// The user namespace: it lives as long as this descriptor, a process or a namespace that belongs to it.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn user_namespace(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/{}/ns/user", self.pid);
        Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// One line for each range, user_namespaces(7).
    fn write_map(&self, file: &str, ranges: &[IdRange]) -> io::Result<()> {
        let lines: Vec<String> = ranges
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length))
            .collect();
        let path = format!("/proc/{}/{file}", self.pid);
        let map = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // The kernel takes the whole map in one call, or nothing.
        rustix::io::write(&map, lines.concat().as_bytes())?;
        Ok(())
    }
}

/// For entering the namespaces of the holder, setns(2).
impl AsFd for Holder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.socket = None;
        // That nobody is there to be waited for is as good.
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// A user namespace with these ids and nothing in it.
///
/// # Errors
/// As [`Holder::start`].
pub fn create(ids: &IdMaps) -> io::Result<OwnedFd> {
    Holder::start(ids, CloneFlags::empty())?.user_namespace()
}

/// The life of the child. Nothing here may allocate.
fn hold(socket: BorrowedFd<'_>, own: CloneFlags) -> i32 {
    // The copy of the other end among them: its closing is the signal to end.
    if sys::close_all_except(&mut [socket.as_raw_fd()]).is_err() {
        return 1;
    }
    let mut byte = [0];
    if rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte)) != Ok(1) {
        return 1;
    }
    let errno = become_owner(own).map_or_else(|errno| errno.raw_os_error(), |()| 0);
    let told =
        rustix::io::retry_on_intr(|| rustix::net::send(socket, &errno.to_ne_bytes(), SendFlags::NOSIGNAL));
    if told.is_ok() {
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte));
    }
    0
}

/// Root first, and the namespaces after: what the kernel makes in them belongs to whoever makes them.
fn become_owner(own: CloneFlags) -> Result<(), rustix::io::Errno> {
    become_root()?;
    nix::sched::unshare(own).map_err(|errno| rustix::io::Errno::from_raw_os_error(errno as i32))
}

/// Enters a user namespace, as its root. For a process with one thread, which cannot leave it again.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN in it; `EINVAL` with several threads, or when the namespace has no root.
pub fn enter(user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    nix::sched::setns(user_namespace, CloneFlags::CLONE_NEWUSER)?;
    Ok(become_root()?)
}

/// Takes the ids of the root of the user namespace that this process is in: real, effective, saved and those for files.
///
/// # Errors
/// `EINVAL` when the namespace has no root.
pub(crate) fn become_root() -> rustix::io::Result<()> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// The number that /proc has for a process. It is not the one from fork where /proc is of another pid namespace.
pub(crate) fn pid_in_procfs(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse::<i32>().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the process has ended"))
}
