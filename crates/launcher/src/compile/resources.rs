//! linux.resources of the spec as [`Resources`].

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::CompileError;
use crate::cgroup::{DeviceAccess, DeviceKind, DeviceRule, HugepageLimit, Resources};

impl Resources {
    /// What the spec limits.
    ///
    /// # Errors
    /// [`CompileError`] with the field's name for what the launcher does not do: network classes, RDMA, real-time
    /// scheduling, kernel memory, and block I/O beyond a weight.
    pub fn from_spec(spec: &LinuxResources) -> Result<Resources, CompileError> {
        let mut resources = Resources::default();
        refuse_unsupported(spec)?;
        if let Some(cpu) = spec.cpu() {
            resources.cpu_shares = cpu.shares().filter(|shares| *shares != 0);
            resources.cpu_quota = cpu.quota();
            resources.cpu_period = cpu.period();
            resources.cpu_burst = cpu.burst();
            resources.cpu_idle = cpu.idle();
            resources.cpuset_cpus = cpu.cpus().clone();
            resources.cpuset_mems = cpu.mems().clone();
        }
        if let Some(memory) = spec.memory() {
            resources.memory_limit = memory.limit();
            resources.memory_reservation = memory.reservation().filter(|reservation| *reservation != 0);
            resources.memory_swap = memory.swap();
            resources.memory_swappiness = memory.swappiness();
            resources.memory_disable_oom_killer = memory.disable_oom_killer();
        }
        resources.pids_limit = spec.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0);
        resources.block_io_weight = spec.block_io().as_ref().and_then(|block_io| block_io.weight());
        for hugepage in spec.hugepage_limits().iter().flatten() {
            let page_size = hugepage.page_size().clone();
            resources.hugepage_limits.push(HugepageLimit { page_size, limit: hugepage.limit() });
        }
        for rule in spec.devices().iter().flatten() {
            resources.devices.extend(device(rule)?);
        }
        resources.unified =
            spec.unified().iter().flatten().map(|(file, value)| (file.clone(), value.clone())).collect();
        Ok(resources)
    }
}

fn refuse_unsupported(spec: &LinuxResources) -> Result<(), CompileError> {
    let cpu = spec.cpu().as_ref();
    let block_io = spec.block_io().as_ref();
    let fields = [
        ("linux.resources.network", spec.network().is_some()),
        ("linux.resources.rdma", spec.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty())),
        (
            "linux.resources.cpu.realtimeRuntime",
            cpu.is_some_and(|cpu| cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)),
        ),
        (
            "linux.resources.blockIO.leafWeight",
            block_io.is_some_and(|block_io| block_io.leaf_weight().is_some()),
        ),
        (
            "linux.resources.blockIO.weightDevice",
            block_io.is_some_and(|block_io| block_io.weight_device().is_some()),
        ),
        (
            "linux.resources.blockIO.throttle…Device",
            block_io.is_some_and(|block_io| {
                block_io.throttle_read_bps_device().is_some()
                    || block_io.throttle_write_bps_device().is_some()
                    || block_io.throttle_read_iops_device().is_some()
                    || block_io.throttle_write_iops_device().is_some()
            }),
        ),
    ];
    match fields.into_iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(CompileError::unsupported(field)),
        None => Ok(()),
    }
}

/// One rule; about all kinds of device with a number or part of the access it becomes two.
fn device(rule: &LinuxDeviceCgroup) -> Result<Vec<DeviceRule>, CompileError> {
    let field = "linux.resources.devices";
    let letters = rule.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    let access = DeviceAccess::parse(letters)
        .ok_or_else(|| CompileError::invalid(field, letters, "is no access to a device"))?;
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| CompileError::invalid(field, number.to_string(), "is no device number")),
    };
    let whole = DeviceRule {
        allow: rule.allow(),
        kind: DeviceKind::All,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    };
    Ok(match rule.typ().unwrap_or_default() {
        LinuxDeviceType::C | LinuxDeviceType::U => vec![DeviceRule { kind: DeviceKind::Character, ..whole }],
        LinuxDeviceType::B => vec![DeviceRule { kind: DeviceKind::Block, ..whole }],
        // The kernel's own "a" rule is about everything, whatever else it says.
        LinuxDeviceType::A if whole == DeviceRule::everything(rule.allow()) => vec![whole],
        LinuxDeviceType::A => [DeviceKind::Character, DeviceKind::Block]
            .into_iter()
            .map(|kind| DeviceRule { kind, ..whole })
            .collect(),
        LinuxDeviceType::P => {
            return Err(CompileError::invalid(field, "p", "is no type that a cgroup can filter"));
        }
    })
}
