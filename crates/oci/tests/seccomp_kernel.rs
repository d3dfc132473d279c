//! The kernel takes our programs and answers as the profiles say. Each filter is loaded in a thread of its own: without
//! TSYNC it binds that thread only and ends with it.
#![allow(unsafe_code)]

use berth_oci::seccomp::{Filter, Profile, compile, load};
use oci_spec::runtime::{Capabilities, Capability};
use std::ffi::CString;
use std::io;

fn filter(profile: Profile<'_>, capabilities: &[Capability]) -> Filter {
    let capabilities: Capabilities = capabilities.iter().copied().collect();
    let loaded = load(profile, &capabilities, (6, 1)).expect("profile loads");
    compile(&loaded.expect("profile is a filter")).expect("profile compiles")
}

/// Runs `body` in a thread under `filter`.
fn under<T: Send>(filter: &Filter, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                install(filter).expect("the kernel takes the program");
                body()
            })
            .join()
            .expect("the filtered thread lives")
    })
}

fn install(filter: &Filter) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.program.len() / 8).expect("at most 4096 instructions"),
        filter: filter.program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: prctl with integers only; it changes this thread.
    let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies `len` instructions from `filter.program`, which outlives the call.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0usize, &program) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The errno of a system call with integer arguments; 0 for success.
fn errno(number: libc::c_long, arguments: [libc::c_long; 3]) -> i32 {
    // SAFETY: the calls made here take integers, or pointers that are null.
    let rc = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
    if rc >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().expect("errno is set") }
}

fn chmod(path: &str, mode: libc::mode_t) -> i32 {
    let path = CString::new(path).expect("no NUL");
    // SAFETY: `path` ends with NUL and lives through the call.
    let rc = unsafe { libc::chmod(path.as_ptr(), mode) };
    if rc == 0 { 0 } else { io::Error::last_os_error().raw_os_error().expect("errno is set") }
}

#[test]
fn runtime_default_lets_ordinary_calls_through_and_stops_the_others() {
    let filter = filter(Profile::RuntimeDefault, &[]);
    under(&filter, || {
        let mode = std::fs::read_to_string("/proc/thread-self/status").expect("own status is readable");
        assert!(mode.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])), "{mode}");
        // SAFETY: all zero is a valid utsname, which the kernel fills.
        let mut name: libc::utsname = unsafe { std::mem::zeroed() };
        // SAFETY: `name` is ours and large enough by its type.
        assert_eq!(unsafe { libc::uname(&raw mut name) }, 0);

        assert_eq!(errno(libc::SYS_unshare, [libc::c_long::from(libc::CLONE_NEWUTS), 0, 0]), libc::EPERM);
        assert_eq!(errno(libc::SYS_io_uring_setup, [0, 0, 0]), libc::EPERM);
        assert_eq!(errno(libc::SYS_keyctl, [0, 0, 0]), libc::EPERM);
        assert_eq!(errno(libc::SYS_clone3, [0, 0, 0]), libc::ENOSYS);
        assert_eq!(
            errno(libc::SYS_clone, [libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0]),
            libc::EPERM
        );
        assert_eq!(errno(libc::SYS_socket, [38, 5, 0]), libc::EPERM);
        assert_eq!(errno(libc::SYS_socket, [40, 1, 0]), libc::EPERM);
        assert_eq!(errno(libc::SYS_personality, [0xffff_ffff, 0, 0]), 0);
        assert_eq!(errno(libc::SYS_personality, [0x0040_0000, 0, 0]), libc::EPERM);
        assert_eq!(errno(900, [0, 0, 0]), libc::ENOSYS);
    });
}

#[test]
fn threads_and_files_work_under_the_default_profile() {
    let filter = filter(Profile::RuntimeDefault, &[]);
    let answer = under(&filter, || {
        let thread =
            std::thread::spawn(|| std::fs::read("/proc/self/cmdline").expect("files are readable").len());
        let output = std::process::Command::new("/bin/true").status().expect("fork and exec work");
        assert!(output.success());
        thread.join().expect("threads end")
    });
    assert!(answer > 0);
}

#[test]
fn capability_in_the_container_opens_its_calls() {
    let filter = filter(Profile::RuntimeDefault, &[Capability::SysAdmin]);
    // The test's own privileges decide now: EINVAL is the kernel's answer to nonsense flags.
    under(&filter, || assert_eq!(errno(libc::SYS_unshare, [1, 0, 0]), libc::EINVAL));
}

#[test]
fn localhost_profile_blocks_what_it_names_with_its_errno() {
    let profile = br#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30 },
            { "names": ["sethostname"], "action": "SCMP_ACT_ERRNO" }
        ]
    }"#;
    let filter = filter(Profile::Localhost(profile), &[]);
    under(&filter, || {
        assert_eq!(chmod("/nowhere/at/all", 0o600), libc::EROFS);
        assert_eq!(errno(libc::SYS_sethostname, [0, 0, 0]), libc::EPERM);
        assert_eq!(errno(libc::SYS_getpid, [0, 0, 0]), 0);
    });
    assert_eq!(chmod("/nowhere/at/all", 0o600), libc::ENOENT, "other threads are not filtered");
}

#[test]
fn killing_profile_ends_the_process_with_sigsys() {
    let profile = br#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["getpriority"], "action": "SCMP_ACT_KILL_PROCESS" }]
    }"#;
    let filter = filter(Profile::Localhost(profile), &[]);
    // SAFETY: the child only makes system calls before it ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let installed = install(&filter).is_ok();
        if installed {
            errno(libc::SYS_getpriority, [0, 0, 0]);
        }
        // SAFETY: ends the child without running what the parent registered.
        unsafe { libc::_exit(1) };
    }
    assert!(child > 0, "{}", io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: `status` is ours; `child` is our child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status:#x}");
}
