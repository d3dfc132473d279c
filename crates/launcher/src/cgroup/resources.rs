//! The limits of a container in the kernel-neutral form of the OCI runtime spec (config-linux.md, "Control groups").

use std::collections::BTreeMap;

/// What to limit. A field that is `None` or empty is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// v1's scale, 2 to 262144; converted to a weight on v2.
    pub cpu_shares: Option<u64>,
    /// Microseconds in each period; negative for no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds that may be saved up.
    pub cpu_burst: Option<u64>,
    /// SCHED_IDLE for the whole cgroup when 1.
    pub cpu_idle: Option<i64>,
    /// A list as in cpuset(7): "0-2,7".
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Bytes; negative for no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of soft limit (v1) or protection (v2 memory.low).
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together, v1's way; negative for no limit.
    pub memory_swap: Option<i64>,
    /// 0 to 100; v1 only.
    pub memory_swappiness: Option<u64>,
    /// v1 only.
    pub memory_disable_oom_killer: Option<bool>,
    /// Processes; negative for no limit.
    pub pids_limit: Option<i64>,
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Block I/O weight, 10 to 1000.
    pub block_io_weight: Option<u16>,
    /// Later rules win over earlier ones. Empty: no filter at all.
    pub devices: Vec<DeviceRule>,
    /// Files of cgroup v2 by name, written last; refused on v1.
    pub unified: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugepageLimit {
    /// As in the file's name: "2MB", "1GB".
    pub page_size: String,
    /// Bytes; negative for no limit.
    pub limit: i64,
}

/// One rule about devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    pub kind: DeviceKind,
    /// `None` for every number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: DeviceAccess,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    All,
    Block,
    Character,
}

/// What may be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess {
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl DeviceAccess {
    pub const ALL: DeviceAccess = DeviceAccess { read: true, write: true, mknod: true };
    pub const MKNOD: DeviceAccess = DeviceAccess { read: false, write: false, mknod: true };

    /// From "rwm" or a part of it; `None` for any other letter.
    pub fn parse(text: &str) -> Option<DeviceAccess> {
        let mut access = DeviceAccess { read: false, write: false, mknod: false };
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                _ => return None,
            }
        }
        Some(access)
    }
}

impl DeviceRule {
    /// Every device, every access.
    pub const fn everything(allow: bool) -> DeviceRule {
        DeviceRule { allow, kind: DeviceKind::All, major: None, minor: None, access: DeviceAccess::ALL }
    }

    pub(super) fn is_everything(&self) -> bool {
        *self == DeviceRule::everything(self.allow)
    }
}

/// The devices that every container has (config-linux.md, "Default Devices"), pseudoterminals, and mknod of any:
/// a node alone opens nothing.
pub(super) const DEFAULT_DEVICES: [DeviceRule; 10] = {
    const fn character(major: u32, minor: Option<u32>) -> DeviceRule {
        DeviceRule {
            allow: true,
            kind: DeviceKind::Character,
            major: Some(major),
            minor,
            access: DeviceAccess::ALL,
        }
    }
    const fn make(kind: DeviceKind) -> DeviceRule {
        DeviceRule { allow: true, kind, major: None, minor: None, access: DeviceAccess::MKNOD }
    }
    [
        make(DeviceKind::Character),
        make(DeviceKind::Block),
        character(1, Some(3)), // null
        character(1, Some(5)), // zero
        character(1, Some(7)), // full
        character(1, Some(8)), // random
        character(1, Some(9)), // urandom
        character(5, Some(0)), // tty
        character(5, Some(2)), // ptmx
        character(136, None),  // pts/*
    ]
};
