//! The system calls that neither rustix nor nix has a safe wrapper for: the only unsafe code of this crate.
//!
//! Descriptors come in borrowed or owned, errors go out as `io::Error` with the kernel's errno. Everything works on
//! Linux 5.12 and later (`mount_setattr`); the newest call besides is `clone3` with `CLONE_INTO_CGROUP` (5.7).
#![allow(unsafe_code)]

pub mod bpf;

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// linux/sched.h; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A new process, not yet waited for.
#[derive(Debug)]
pub struct Spawned {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Becomes readable when the process has ended. Close-on-exec.
    pub pidfd: OwnedFd,
}

/// What differs from a plain fork.
#[derive(Debug, Default)]
pub struct SpawnOptions<'a> {
    pub new_mount_namespace: bool,
    pub new_pid_namespace: bool,
    pub new_user_namespace: bool,
    /// The child's parent is that of this process.
    pub sibling: bool,
    /// A cgroup v2 folder for the child to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Forks, and runs `child` in the new process, which ends with the status that `child` returns.
///
/// The child owns a copy of this process's memory and descriptors; destructors of what the parent holds never run
/// there. Call this from a process with one thread: a lock that another thread holds at this instant, the
/// allocator's among them, is never released in the child.
///
/// # Errors
/// clone3(2): `EPERM` without CAP_SYS_ADMIN for a namespace, `EAGAIN` at a pids limit, `EBUSY` when the cgroup has
/// children with controllers, `ENODEV` when it is gone.
pub fn spawn(options: &SpawnOptions<'_>, child: impl FnOnce() -> i32) -> io::Result<Spawned> {
    /// An unwinding panic must not carry the child into the parent's code.
    struct ExitOnDrop(i32);
    impl Drop for ExitOnDrop {
        fn drop(&mut self) {
            exit_now(self.0);
        }
    }

    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is a plain struct of integers, for which zero means "not asked for".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    if options.sibling {
        // The signal at its end is that of this process.
        arguments.flags |= libc::CLONE_PARENT as u64;
    } else {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if options.new_mount_namespace {
        arguments.flags |= libc::CLONE_NEWNS as u64;
    }
    if options.new_pid_namespace {
        arguments.flags |= libc::CLONE_NEWPID as u64;
    }
    if options.new_user_namespace {
        arguments.flags |= libc::CLONE_NEWUSER as u64;
    }
    if let Some(cgroup) = options.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork: the child has its own copy of memory and stack. The kernel reads
    // `arguments` and writes `pidfd`, both of which outlive the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let mut guard = ExitOnDrop(255);
            guard.0 = child();
            drop(guard);
            unreachable!("the guard has ended the process")
        }
        pid => {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Spawned { pid: i32::try_from(pid).expect("a pid fits pid_t"), pidfd })
        }
    }
}

/// Ends this process at once: no destructors, no exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// mount_setattr(2) with `MOUNT_ATTR_IDMAP`: from now on files of the detached mount `mount`, and of all mounts below with
/// `recursive`, have the owners that `user_namespace` maps theirs to.
///
/// # Errors
/// `EINVAL` when the file system cannot do it, the mount is attached already or `user_namespace` is the initial one;
/// `EPERM` when the mount is idmapped already.
pub fn id_map_mount(mount: impl AsFd, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    call_mount_setattr(mount.as_fd(), &argument, recursive)
}

/// `MOUNT_ATTR_*` changes for one mount, or a whole tree of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes {
    pub set: u64,
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or 0.
    pub propagation: u64,
    pub recursive: bool,
}

/// mount_setattr(2) on the mount that `mount` refers to.
///
/// # Errors
/// `EINVAL` when `mount` is not the root of a mount or an attribute is unknown; `EPERM` for a locked attribute.
pub fn mount_setattr(mount: impl AsFd, attributes: MountAttributes) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    call_mount_setattr(mount.as_fd(), &argument, attributes.recursive)
}

fn call_mount_setattr(mount: BorrowedFd<'_>, argument: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the kernel reads an empty C string and `argument`, whose size is given.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(argument),
            size_of::<libc::mount_attr>(),
        )
    };
    check(answer)
}

/// pivot_root(".", "."): the working directory becomes the root, and the old root lies on top of it.
///
/// # Errors
/// `EINVAL` when the working directory is no mount point, or a mount involved is shared.
pub fn pivot_root_here() -> io::Result<()> {
    // SAFETY: two C strings that live for ever.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })
}

/// Closes every descriptor except those in `keep`.
///
/// Only for a new process that has just been forked and never returns to the code that owned them: whatever holds
/// one of the others is left with a number that means nothing.
///
/// # Errors
/// close_range(2): `ENOSYS` before Linux 5.9.
pub fn close_all_except(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first = 0;
    for &fd in keep.iter() {
        let Ok(fd) = u32::try_from(fd) else { continue };
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// close_range(2): `EINVAL` before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: three integers. That no live owner is left with a closed descriptor is what the callers promise.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })
}

/// Default disposition for every signal, and none blocked: what a program may expect at its start.
pub fn reset_signals() {
    // struct kernel_sigaction: SIG_DFL, no flags, no restorer, an empty mask. The call is made bare because libc
    // refuses its own two signals, which a parent may well have left ignored.
    let default = [0_u64; 4];
    let none = 0_u64;
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the kernel reads `default`; SIG_DFL runs no code of ours. SIGKILL and SIGSTOP are refused, rightly.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<libc::c_void>(),
                size_of::<u64>(),
            );
        }
    }
    // SAFETY: the kernel reads eight bytes of `none`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<libc::c_void>(),
            size_of::<u64>(),
        );
    }
}

/// One instruction of classic BPF, as `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterInstruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub value: u32,
}

/// Loads a seccomp filter for this thread and everything it starts.
///
/// # Errors
/// `EACCES` with neither no_new_privs nor CAP_SYS_ADMIN; `EINVAL` for a program that the kernel refuses or that is
/// empty or longer than 4096 instructions.
pub fn seccomp_load(program: &[FilterInstruction], flags: u32) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let argument = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `argument` and `len` instructions behind it; the layout is that of sock_filter.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const argument)
    })
}

/// sched_setattr(2) for this thread.
///
/// # Errors
/// `EPERM` for more than this process may have, or than its cgroup has realtime for; `EINVAL` for values that do not go
/// together; `EBUSY` when there is no processor time for a deadline.
pub fn set_scheduler(attributes: &libc::sched_attr) -> io::Result<()> {
    let (this_thread, no_flags) = (0, 0);
    // SAFETY: the kernel reads as many bytes of `attributes` as its field `size` says.
    check(unsafe {
        libc::syscall(libc::SYS_sched_setattr, this_thread, std::ptr::from_ref(attributes), no_flags)
    })
}

/// ioprio_set(2) for this thread: class and level in one number.
///
/// # Errors
/// `EPERM` for the realtime class without the capability for it; `EINVAL` for an unknown class.
pub fn set_io_priority(priority: u32) -> io::Result<()> {
    /// linux/ioprio.h
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    let this_thread = 0;
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, this_thread, priority) })
}

/// set_mempolicy(2) for this thread; execve keeps it. `nodes` is a mask, 64 nodes in each element.
///
/// # Errors
/// `EINVAL` for nodes that are not there or a mode that does not want any; `ENOSYS` on a kernel without NUMA.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // The kernel takes one off before it counts.
    let bits = nodes.len() * 64 + 1;
    // SAFETY: the kernel reads `bits` - 1 bits behind `mask`, which are `nodes`, and none when that is 0.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })
}

/// Leaves the session keyring that was inherited for a new one without a name, keyctl(2) KEYCTL_JOIN_SESSION_KEYRING.
///
/// # Errors
/// `ENOSYS` on a kernel without keys; `EDQUOT` when the user has as many as it may.
pub fn join_new_session_keyring() -> io::Result<()> {
    /// linux/keyctl.h
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let no_name: *const libc::c_char = std::ptr::null();
    // SAFETY: with a null name the call reads no memory of ours, and changes only this thread's credentials.
    match unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, no_name) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Unlocks and opens the other end of a pseudoterminal from its master, whatever the name in /dev/pts leads to by now.
///
/// # Errors
/// ioctl(TIOCGPTPEER): `ENOTTY` when `master` is no pseudoterminal's master.
pub fn pty_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let unlock: libc::c_int = 0;
    // SAFETY: the first ioctl reads an integer; the second takes one and returns a new descriptor, owned by nobody yet.
    unsafe {
        if libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn check(answer: libc::c_long) -> io::Result<()> {
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
