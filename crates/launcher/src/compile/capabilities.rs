//! Capability sets: names to bits, never more than the host has.

use std::collections::{BTreeMap, HashSet};

use berth_cri::berth::v1::Capabilities;
use oci_spec::runtime::{Capability, LinuxCapabilities};
use rustix::thread::CapabilitySet;

use super::Warning;

/// A set of capabilities; bit N is capability N (linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapSet(pub u64);

impl CapSet {
    pub const ALL: CapSet = CapSet(u64::MAX);

    /// What this process may hand on: permitted, and in its bounding set.
    ///
    /// # Errors
    /// capget(2)'s.
    pub fn of_this_process() -> std::io::Result<CapSet> {
        let permitted = rustix::thread::capabilities(None)?.permitted;
        let mut set = CapSet(0);
        for one in permitted.iter() {
            for number in 0..u64::BITS {
                let bit = CapabilitySet::from_bits_retain(1 << number);
                if one.contains(bit) && rustix::thread::capability_is_in_bounding_set(bit)? {
                    set.0 |= 1 << number;
                }
            }
        }
        Ok(set)
    }
}

/// The sets of a process; without any in the spec it has none.
pub(super) fn compile(
    wanted: Option<&LinuxCapabilities>,
    host: CapSet,
    warnings: &mut Vec<Warning>,
) -> Capabilities {
    let Some(wanted) = wanted else { return Capabilities::default() };
    let mut missing = BTreeMap::new();
    let mut set = |names: &Option<HashSet<Capability>>| -> u64 {
        let mut bits = 0;
        for capability in names.iter().flatten() {
            match 1 << number(*capability) {
                bit if host.0 & bit != 0 => bits |= bit,
                bit => drop(missing.insert(bit, *capability)),
            }
        }
        bits
    };
    let bounding = set(wanted.bounding());
    let effective = set(wanted.effective());
    let permitted = set(wanted.permitted());
    let inheritable = set(wanted.inheritable());
    let ambient = set(wanted.ambient());
    for capability in missing.values() {
        warnings.push(Warning(format!(
            "capability CAP_{capability} left out: berth does not have it on this host"
        )));
    }
    // capabilities(7): what is ambient must be permitted and inheritable, what is effective permitted.
    let possible = ambient & permitted & inheritable;
    if possible != ambient {
        warnings
            .push(Warning("ambient capabilities that are not permitted and inheritable left out".to_owned()));
    }
    Capabilities { bounding, effective: effective & permitted, permitted, inheritable, ambient: possible }
}

/// linux/capability.h. Every name is here; a new one in oci-spec fails the build.
const fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_the_host_lacks_is_left_out_with_a_warning() {
        let names: LinuxCapabilities = serde_json::from_str(
            r#"{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"permitted":["CAP_CHOWN"],"effective":["CAP_CHOWN","CAP_KILL"],
                "inheritable":[],"ambient":["CAP_CHOWN"]}"#,
        )
        .unwrap();
        let mut warnings = Vec::new();
        let sets = compile(Some(&names), CapSet(!(1 << 24)), &mut warnings);
        assert_eq!((sets.bounding, sets.permitted, sets.effective, sets.ambient), (1, 1, 1, 0));
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].0.contains("CAP_SYS_RESOURCE"), "{warnings:?}");
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (capability, bit) in [
            (Capability::Chown, CapabilitySet::CHOWN),
            (Capability::Setpcap, CapabilitySet::SETPCAP),
            (Capability::NetAdmin, CapabilitySet::NET_ADMIN),
            (Capability::SysPtrace, CapabilitySet::SYS_PTRACE),
            (Capability::SysAdmin, CapabilitySet::SYS_ADMIN),
            (Capability::Mknod, CapabilitySet::MKNOD),
            (Capability::AuditRead, CapabilitySet::AUDIT_READ),
            (Capability::CheckpointRestore, CapabilitySet::CHECKPOINT_RESTORE),
        ] {
            assert_eq!(1 << number(capability), bit.bits(), "{capability}");
        }
    }
}
