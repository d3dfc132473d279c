//! System call names and numbers of the machines a filter may meet, as the kernel's tables have them.

use oci_spec::runtime::Arch;
use std::str::FromStr;

/// A system call convention of the host's kernel: what `seccomp_data.arch` says, and whose numbers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Machine {
    X86_64,
    /// 32-bit x86 under an x86-64 kernel.
    X86,
    /// 32-bit pointers with 64-bit registers: shares x86-64's `arch` value, with bit 30 set in the number.
    X32,
    Aarch64,
    /// 32-bit ARM (EABI) under an arm64 kernel.
    Arm,
}

/// Bit that tells an x32 call from an x86-64 one (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// First of ARM's private calls, far above the ordinary numbers (`__ARM_NR_BASE`).
pub(super) const ARM_PRIVATE: u32 = 0x000f_0000;

impl Machine {
    /// The machine this program was built for, if filters can be made for it.
    pub(super) fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// The machine a profile means; `None` for one that neither x86-64 nor arm64 kernels can run.
    pub(super) fn from_oci(arch: Arch, native: Self) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// Whether a kernel of `native` can run programs of this machine.
    pub(super) fn runs_on(self, native: Self) -> bool {
        match native {
            Self::X86_64 => matches!(self, Self::X86_64 | Self::X86 | Self::X32),
            Self::Aarch64 => matches!(self, Self::Aarch64 | Self::Arm),
            _ => self == native,
        }
    }

    /// The AUDIT_ARCH value of `linux/audit.h`.
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Arguments are 64 bits wide: x32 passes them in full registers too.
    pub(super) fn wide_arguments(self) -> bool {
        !matches!(self, Self::X86 | Self::Arm)
    }

    /// The number of a call; `None` where this machine has no such call.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let listed = match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).map(|n| n.id()),
            Self::X86 => syscalls::x86::Sysno::from_str(name).map(|n| n.id()),
            Self::X32 => return x32_number(name),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).map(|n| n.id()),
            Self::Arm => match ARM_EXTRA.iter().find(|(known, _)| *known == name) {
                Some((_, number)) => return Some(*number),
                None => syscalls::arm::Sysno::from_str(name).map(|n| n.id()),
            },
        };
        listed.ok().and_then(|number| u32::try_from(number).ok())
    }

    /// The call that stands for `name` behind 32-bit x86's two multiplexers: the multiplexer's name, the value its
    /// first argument must have, and the mask to compare it under (ipc(2) keeps a version in the upper half).
    pub(super) fn multiplexed(self, name: &str) -> Option<(&'static str, u32, u32)> {
        if self != Self::X86 {
            return None;
        }
        let position = |table: &[&str]| table.iter().position(|known| *known == name).map(|at| at as u32 + 1);
        if let Some(call) = position(&SOCKETCALL) {
            return Some(("socketcall", call, u32::MAX));
        }
        IPC.iter().find(|(known, _)| *known == name).map(|(_, call)| ("ipc", *call, 0xffff))
    }
}

/// Whether any machine we know has a call of this name.
pub(super) fn known_anywhere(name: &str) -> bool {
    [Machine::X86_64, Machine::X86, Machine::X32, Machine::Aarch64, Machine::Arm]
        .iter()
        .any(|machine| machine.number(name).is_some() || machine.multiplexed(name).is_some())
}

/// x32 uses x86-64's numbers but for the calls whose structures differ, which start at 512.
fn x32_number(name: &str) -> Option<u32> {
    let own = X32_OWN.iter().position(|known| *known == name).map(|at| 512 + at as u32);
    let number = match own {
        Some(number) => number,
        None => u32::try_from(syscalls::x86_64::Sysno::from_str(name).ok()?.id()).ok()?,
    };
    Some(number | X32_BIT)
}

/// From 512 upwards, in the order of the kernel's syscall_64.tbl.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// ARM's private calls, and the second name of number 341.
const ARM_EXTRA: [(&str, u32); 4] = [
    ("breakpoint", ARM_PRIVATE + 1),
    ("cacheflush", ARM_PRIVATE + 2),
    ("set_tls", ARM_PRIVATE + 5),
    ("sync_file_range2", 341),
];

/// Sub-calls of socketcall(2) from 1 upwards (linux/net.h).
const SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// Sub-calls of ipc(2) (linux/ipc.h).
const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_headers() {
        assert_eq!(Machine::X86_64.number("mseal"), Some(462));
        assert_eq!(Machine::X86.number("socketcall"), Some(102));
        assert_eq!(Machine::Aarch64.number("openat"), Some(56));
        assert_eq!(Machine::Aarch64.number("open"), None);
        assert_eq!(Machine::Arm.number("set_tls"), Some(0x000f_0005));
        assert_eq!(Machine::X32.number("pwritev2"), Some(X32_BIT | 547));
        assert_eq!(Machine::X32.number("read"), Some(X32_BIT));
        assert_eq!(Machine::X86.multiplexed("sendmmsg"), Some(("socketcall", 20, u32::MAX)));
        assert_eq!(Machine::X86_64.multiplexed("socket"), None);
    }
}
