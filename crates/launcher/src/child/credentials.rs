//! Groups, user and capabilities of the container's program.

use berth_cri::berth::v1::{Capabilities, ProcessPlan};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{AtStep, StepError};

/// More than the kernel will ever know in two 32-bit words.
const CAPABILITY_LIMIT: u32 = 64;

/// Becomes the plan's user, with the plan's capabilities and `extra` besides (permitted and effective).
///
/// The calls are the kernel's own, for this one thread: libc's would signal threads that exist in the supervisor only.
pub(super) fn assume(process: &ProcessPlan, extra: CapabilitySet) -> Result<(), StepError> {
    let none = Capabilities::default();
    let wanted = process.capabilities.as_ref().unwrap_or(&none);
    // First, while CAP_SETPCAP is there for sure.
    limit_bounding_set(wanted.bounding)?;

    let groups: Vec<Gid> = process.additional_gids.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).step("set the supplementary groups")?;
    let gid = Gid::from_raw(process.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .step_with(|| format!("become group {}", process.gid))?;
    rustix::thread::set_keep_capabilities(true).step("keep capabilities")?;
    let uid = Uid::from_raw(process.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step_with(|| format!("become user {}", process.uid))?;
    rustix::thread::set_keep_capabilities(false).step("keep capabilities no longer")?;

    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective) | extra,
        permitted: CapabilitySet::from_bits_retain(wanted.permitted) | extra,
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).step("set the capabilities")?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    for number in members(wanted.ambient) {
        rustix::thread::configure_capability_in_ambient_set(capability(number), true)
            .step_with(|| format!("ambient capability {number}"))?;
    }
    Ok(())
}

fn limit_bounding_set(bounding: u64) -> Result<(), StepError> {
    for number in 0..CAPABILITY_LIMIT {
        if bounding & (1 << number) != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability(number)) {
            Ok(()) => {}
            // The kernel knows no capability of this number, so none above it either.
            Err(Errno::INVAL) => break,
            Err(error) => {
                return Err(StepError::new(format!("drop capability {number} from the bounding set"), error));
            }
        }
    }
    Ok(())
}

fn members(set: u64) -> impl Iterator<Item = u32> {
    (0..CAPABILITY_LIMIT).filter(move |number| set & (1 << number) != 0)
}

fn capability(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}
