//! Limits, both ways.

use oci_spec::runtime::{
    LinuxCpu as OciCpu, LinuxDeviceCgroup as OciDevice, LinuxDeviceType, LinuxHugepageLimit as OciHugepage,
    LinuxMemory as OciMemory, LinuxPids as OciPids, LinuxResources as OciResources,
};

use super::AdjustError;
use crate::{
    HugepageLimit, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources, OptionalBool,
    OptionalInt64, OptionalUInt64,
};

const NO_CLASSES: &str = "berth knows no classes";
const NO_KERNEL_MEMORY: &str = "the kernel has no such limit any more";

/// Limits for a spec, and for a container that runs.
///
/// A limit of memory without one of swap leaves no swap, as everywhere in berth, when the host can limit swap
/// (`swap_controller`).
///
/// # Errors
/// [`AdjustError`] with the field.
pub fn limits(wanted: &LinuxResources, swap_controller: bool) -> Result<OciResources, AdjustError> {
    let mut resources = OciResources::default();
    resources.set_devices(None);
    overlay(&mut resources, wanted, swap_controller)?;
    Ok(resources)
}

/// Sets in a spec's limits what is set in `wanted`.
pub(super) fn overlay(
    resources: &mut OciResources,
    wanted: &LinuxResources,
    swap_controller: bool,
) -> Result<(), AdjustError> {
    for (field, class) in
        [("the block I/O class", &wanted.blockio_class), ("the RDT class", &wanted.rdt_class)]
    {
        // The empty one is no class, which is what every container has.
        if class.as_ref().is_some_and(|class| !class.value.is_empty()) {
            return Err(AdjustError::Unsupported(field, NO_CLASSES));
        }
    }
    if let Some(wanted) = &wanted.memory {
        let mut memory = resources.memory().unwrap_or_default();
        set_memory(&mut memory, wanted, swap_controller)?;
        resources.set_memory(Some(memory));
    }
    if let Some(wanted) = &wanted.cpu {
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        set_cpu(&mut cpu, wanted);
        resources.set_cpu(Some(cpu));
    }
    for wanted in &wanted.hugepage_limits {
        let limits = resources.hugepage_limits_mut().get_or_insert_default();
        limits.retain(|known| *known.page_size() != wanted.page_size);
        let mut limit = OciHugepage::default();
        limit.set_page_size(wanted.page_size.clone());
        limit.set_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
        limits.push(limit);
    }
    if let Some(wanted) = &wanted.pids {
        let mut pids = OciPids::default();
        pids.set_limit(wanted.limit);
        resources.set_pids(Some(pids));
    }
    if !wanted.unified.is_empty() {
        let unified = resources.unified_mut().get_or_insert_default();
        unified.extend(wanted.unified.clone());
    }
    for wanted in &wanted.devices {
        let rule = rule(wanted)?;
        resources.devices_mut().get_or_insert_default().push(rule);
    }
    Ok(())
}

fn set_memory(
    memory: &mut OciMemory,
    wanted: &LinuxMemory,
    swap_controller: bool,
) -> Result<(), AdjustError> {
    if wanted.kernel.is_some() {
        return Err(AdjustError::Unsupported("linux.resources.memory.kernel", NO_KERNEL_MEMORY));
    }
    if wanted.kernel_tcp.is_some() {
        return Err(AdjustError::Unsupported("linux.resources.memory.kernelTCP", NO_KERNEL_MEMORY));
    }
    if wanted.use_hierarchy.is_some() {
        return Err(AdjustError::Unsupported("linux.resources.memory.useHierarchy", "it is always so"));
    }
    let swap = wanted.swap.as_ref().map(|swap| swap.value);
    if let Some(limit) = wanted.limit.as_ref().map(|limit| limit.value).filter(|limit| *limit != 0) {
        let no_swap = memory.swap().is_none() || memory.swap() == memory.limit();
        memory.set_limit(Some(limit));
        if swap_controller && no_swap {
            memory.set_swap(Some(limit));
        }
    }
    match swap {
        None | Some(0) => {}
        Some(_) if swap_controller => {
            memory.set_swap(swap);
        }
        // No swap at all is what such a host has.
        Some(_) if swap == memory.limit() => {}
        Some(_) => {
            return Err(AdjustError::Unsupported(
                "linux.resources.memory.swap",
                "this host cannot limit swap",
            ));
        }
    }
    if let Some(reservation) = &wanted.reservation {
        memory.set_reservation(Some(reservation.value));
    }
    if let Some(swappiness) = &wanted.swappiness {
        memory.set_swappiness(Some(swappiness.value));
    }
    if let Some(disable) = &wanted.disable_oom_killer {
        memory.set_disable_oom_killer(Some(disable.value));
    }
    Ok(())
}

fn set_cpu(cpu: &mut OciCpu, wanted: &LinuxCpu) {
    if let Some(shares) = &wanted.shares {
        cpu.set_shares(Some(shares.value));
    }
    if let Some(quota) = &wanted.quota {
        cpu.set_quota(Some(quota.value));
    }
    if let Some(period) = &wanted.period {
        cpu.set_period(Some(period.value));
    }
    if let Some(runtime) = &wanted.realtime_runtime {
        cpu.set_realtime_runtime(Some(runtime.value));
    }
    if let Some(period) = &wanted.realtime_period {
        cpu.set_realtime_period(Some(period.value));
    }
    if !wanted.cpus.is_empty() {
        cpu.set_cpus(Some(wanted.cpus.clone()));
    }
    if !wanted.mems.is_empty() {
        cpu.set_mems(Some(wanted.mems.clone()));
    }
}

fn rule(wanted: &LinuxDeviceCgroup) -> Result<OciDevice, AdjustError> {
    let mut rule = OciDevice::default();
    rule.set_allow(wanted.allow);
    rule.set_typ(Some(device_type("linux.resources.devices", &wanted.r#type)?));
    rule.set_major(wanted.major.as_ref().map(|number| number.value));
    rule.set_minor(wanted.minor.as_ref().map(|number| number.value));
    rule.set_access(Some(wanted.access.clone()).filter(|access| !access.is_empty()));
    Ok(rule)
}

pub(super) fn device_type(field: &'static str, text: &str) -> Result<LinuxDeviceType, AdjustError> {
    match text {
        "b" => Ok(LinuxDeviceType::B),
        "c" => Ok(LinuxDeviceType::C),
        "u" => Ok(LinuxDeviceType::U),
        "p" => Ok(LinuxDeviceType::P),
        "" | "a" => Ok(LinuxDeviceType::A),
        other => Err(AdjustError::Invalid { field, why: format!("{other:?} is no type of a device") }),
    }
}

/// Limits of a spec, for a plugin.
#[must_use]
pub fn seen(resources: &OciResources) -> LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| OptionalInt64 { value });
    let unsigned = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    let memory = resources.memory().map(|memory| LinuxMemory {
        limit: signed(memory.limit()),
        reservation: signed(memory.reservation()),
        swap: signed(memory.swap()),
        swappiness: unsigned(memory.swappiness()),
        disable_oom_killer: memory.disable_oom_killer().map(|value| OptionalBool { value }),
        ..LinuxMemory::default()
    });
    let cpu = resources.cpu().as_ref().map(|cpu| LinuxCpu {
        shares: unsigned(cpu.shares()),
        quota: signed(cpu.quota()),
        period: unsigned(cpu.period()),
        realtime_runtime: signed(cpu.realtime_runtime()),
        realtime_period: unsigned(cpu.realtime_period()),
        cpus: cpu.cpus().clone().unwrap_or_default(),
        mems: cpu.mems().clone().unwrap_or_default(),
    });
    let pages = resources.hugepage_limits().iter().flatten().map(|limit| HugepageLimit {
        page_size: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or(0),
    });
    let devices = resources.devices().iter().flatten().map(|rule| LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().unwrap_or_default().as_str().to_owned(),
        major: signed(rule.major()),
        minor: signed(rule.minor()),
        access: rule.access().clone().unwrap_or_default(),
    });
    LinuxResources {
        memory,
        cpu,
        hugepage_limits: pages.collect(),
        unified: resources
            .unified()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        devices: devices.collect(),
        pids: resources.pids().map(|pids| LinuxPids { limit: pids.limit() }),
        ..LinuxResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OptionalString;

    fn memory(limit: i64, swap: Option<i64>) -> LinuxResources {
        let value = |value| OptionalInt64 { value };
        let memory = LinuxMemory { limit: Some(value(limit)), swap: swap.map(value), ..Default::default() };
        LinuxResources { memory: Some(memory), ..Default::default() }
    }

    #[test]
    fn memory_without_swap_leaves_none_where_swap_can_be_limited() {
        let swap = |wanted: &LinuxResources, controller| {
            limits(wanted, controller).map(|limits| limits.memory().unwrap().swap())
        };
        assert_eq!(swap(&memory(7, None), true), Ok(Some(7)));
        assert_eq!(swap(&memory(7, Some(9)), true), Ok(Some(9)));
        assert_eq!(swap(&memory(7, None), false), Ok(None));
        assert_eq!(swap(&memory(7, Some(7)), false), Ok(None));
        assert!(swap(&memory(7, Some(9)), false).is_err());
    }

    #[test]
    fn a_class_is_refused_by_name_and_no_class_is_fine() {
        let class = |class: &str| LinuxResources {
            rdt_class: Some(OptionalString { value: class.to_owned() }),
            ..Default::default()
        };
        assert!(limits(&class(""), true).is_ok());
        assert!(limits(&class("gold"), true).unwrap_err().to_string().contains("the RDT class"));
    }

    #[test]
    fn what_is_set_is_seen_again() {
        let wanted = LinuxResources {
            cpu: Some(LinuxCpu {
                shares: Some(OptionalUInt64 { value: 5 }),
                quota: Some(OptionalInt64 { value: -1 }),
                cpus: "0-1".to_owned(),
                ..Default::default()
            }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit: 4096 }],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            pids: Some(LinuxPids { limit: 9 }),
            ..Default::default()
        };
        assert_eq!(seen(&limits(&wanted, true).unwrap()), wanted);
    }
}
