//! How the process is scheduled, on processors, disks and memory nodes: numbers of the kernel's for names of the OCI
//! spec's.

use berth_cri::berth::v1::{MemoryPolicy, Scheduler};
use oci_spec::runtime::{
    self as oci, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType,
};

use super::CompileError;

/// linux/sched.h; it never came to be, and the kernel says so.
const SCHED_ISO: libc::c_int = 4;
/// linux/mempolicy.h, as the one below; libc does not have them.
const MPOL_PREFERRED_MANY: libc::c_int = 5;
const MPOL_WEIGHTED_INTERLEAVE: libc::c_int = 6;
/// linux/ioprio.h
const IOPRIO_CLASS_SHIFT: u32 = 13;
/// As many nodes as any kernel is built for (`CONFIG_NODES_SHIFT`).
const NODES: usize = 1024;

/// `process.scheduler`. Which values go together is for the kernel to say.
pub(super) fn scheduler(wanted: &oci::Scheduler) -> Result<Scheduler, CompileError> {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIso => SCHED_ISO,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let flags = wanted.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
        LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
        LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
        LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
    });
    let priority = wanted.priority().unwrap_or_default();
    Ok(Scheduler {
        policy: policy.cast_unsigned(),
        flags: u64::from(flags.fold(0, |all, flag| all | flag).cast_unsigned()),
        nice: wanted.nice().unwrap_or_default(),
        priority: u32::try_from(priority).map_err(|_| {
            CompileError::invalid("process.scheduler.priority", priority.to_string(), "is negative")
        })?,
        runtime: wanted.runtime().unwrap_or_default(),
        deadline: wanted.deadline().unwrap_or_default(),
        period: wanted.period().unwrap_or_default(),
    })
}

/// `process.ioPriority` as ioprio_set(2) takes it.
pub(super) fn io_priority(wanted: &LinuxIOPriority) -> Result<u32, CompileError> {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = wanted.priority();
    let level = u32::try_from(level).ok().filter(|level| *level < 8).ok_or_else(|| {
        CompileError::invalid("process.ioPriority.priority", level.to_string(), "is not one of 0 to 7")
    })?;
    Ok(class << IOPRIO_CLASS_SHIFT | level)
}

/// `linux.memoryPolicy`.
pub(super) fn memory_policy(wanted: &LinuxMemoryPolicy) -> Result<MemoryPolicy, CompileError> {
    let mode = match wanted.mode() {
        MemoryPolicyModeType::MpolDefault => libc::MPOL_DEFAULT,
        MemoryPolicyModeType::MpolPreferred => libc::MPOL_PREFERRED,
        MemoryPolicyModeType::MpolBind => libc::MPOL_BIND,
        MemoryPolicyModeType::MpolInterleave => libc::MPOL_INTERLEAVE,
        MemoryPolicyModeType::MpolLocal => libc::MPOL_LOCAL,
        MemoryPolicyModeType::MpolPreferredMany => MPOL_PREFERRED_MANY,
        MemoryPolicyModeType::MpolWeightedInterleave => MPOL_WEIGHTED_INTERLEAVE,
    };
    let flags = wanted.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => libc::MPOL_F_NUMA_BALANCING,
        MemoryPolicyFlagType::MpolFRelativeNodes => libc::MPOL_F_RELATIVE_NODES,
        MemoryPolicyFlagType::MpolFStaticNodes => libc::MPOL_F_STATIC_NODES,
    });
    let nodes = wanted.nodes().as_deref().unwrap_or_default();
    let mask = node_mask(nodes).ok_or_else(|| {
        CompileError::invalid("linux.memoryPolicy.nodes", nodes, "is no list of nodes such as 0-3,7")
    })?;
    Ok(MemoryPolicy { mode: flags.fold(mode, |all, flag| all | flag), nodes: mask })
}

/// "0-3,7" as a mask; `None` when it is not that.
fn node_mask(list: &str) -> Option<Vec<u64>> {
    let mut mask = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= NODES {
            return None;
        }
        if mask.len() <= last / 64 {
            mask.resize(last / 64 + 1, 0);
        }
        for node in first..=last {
            mask[node / 64] |= 1 << (node % 64);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_a_mask() {
        assert_eq!(node_mask(""), Some(Vec::new()));
        assert_eq!(node_mask("0"), Some(vec![1]));
        assert_eq!(node_mask("0-2, 64"), Some(vec![0b111, 1]));
        for wrong in ["x", "-1", "3-1", "1-", "1024", "0-99999999999999999999"] {
            assert_eq!(node_mask(wrong), None, "{wrong}");
        }
    }
}
