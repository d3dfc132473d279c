//! bpf(2), as far as a cgroup v2 device filter needs it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;

/// One instruction of eBPF, as `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    /// Destination in the low half, source in the high half.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

// The heads of `union bpf_attr` for the two commands; what is left out is zero to the kernel.
#[repr(C)]
struct LoadArgument {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

#[repr(C)]
struct AttachArgument {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads a device filter and returns its descriptor.
///
/// # Errors
/// `EPERM` without CAP_BPF or CAP_SYS_ADMIN; `EINVAL` or `EACCES` when the verifier refuses the program.
pub fn load_device_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    let argument = LoadArgument {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
    };
    // SAFETY: the kernel reads `argument`, the instructions it counts and a C string, all alive during the call; the
    // descriptor it returns is new.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const argument, size_of::<LoadArgument>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// Attaches a device filter to a cgroup v2 folder, beside what is attached already: every filter must agree.
///
/// # Errors
/// `EBADF` or `EINVAL` when `cgroup` is no cgroup v2 folder, `E2BIG` with 64 filters attached.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let argument = AttachArgument {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `argument`, whose size is given.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const argument, size_of::<AttachArgument>())
    };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
