//! How the process is scheduled: inherited by all it starts, and kept across exec.

use std::io;

use berth_cri::berth::v1::{MemoryPolicy, ProcessPlan, Scheduler};

use crate::error::{AtStep, StepError};
use crate::sys;

/// Applies what the plan says. What this host does not let berth have is left out with a warning.
///
/// When the process is in its cgroup, whose share of realtime bounds it; before a user namespace, in which it no longer
/// may; and late, so that no low priority slows down what is still to be done for it.
pub(super) fn apply(process: &ProcessPlan, warnings: &mut Vec<String>) -> Result<(), StepError> {
    let mut step = |name: &str, answer: io::Result<()>| match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            warnings.push(format!("{name} left out: this host does not let berth set it ({error})"));
            Ok(())
        }
        answer => answer.step_with(|| format!("set the {name}")),
    };
    if let Some(scheduler) = &process.scheduler {
        step("scheduler", sys::set_scheduler(&attributes(scheduler)))?;
    }
    if let Some(priority) = process.io_priority {
        step("I/O priority", sys::set_io_priority(priority))?;
    }
    if let Some(MemoryPolicy { mode, nodes }) = &process.memory_policy {
        step("memory policy", sys::set_memory_policy(*mode, nodes))?;
    }
    Ok(())
}

fn attributes(scheduler: &Scheduler) -> libc::sched_attr {
    libc::sched_attr {
        size: size_of::<libc::sched_attr>().try_into().expect("it is a small struct"),
        sched_policy: scheduler.policy,
        sched_flags: scheduler.flags,
        sched_nice: scheduler.nice,
        sched_priority: scheduler.priority,
        sched_runtime: scheduler.runtime,
        sched_deadline: scheduler.deadline,
        sched_period: scheduler.period,
    }
}
