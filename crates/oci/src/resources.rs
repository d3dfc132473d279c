//! `linux.resources`: CRI's numbers in OCI's form.

use crate::{ContainerInput, HostFacts, SpecError, devices};
use berth_cri::runtime::v1::LinuxContainerResources;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

/// Range of `/proc/PID/oom_score_adj`.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

/// The resources of a container. Values are passed on as they are (shares stay shares, also on cgroup v2: whoever
/// writes the cgroup converts them); zero means not set, as CRI has it.
pub(crate) fn resources(
    input: &ContainerInput<'_>,
    privileged: bool,
    warnings: &mut Vec<String>,
) -> Result<LinuxResources, SpecError> {
    let asked = input.container.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let mut resources = match asked {
        Some(asked) => limits(asked, input.host, warnings)?,
        None => LinuxResources::default(),
    };
    resources.set_devices(Some(devices::rules(input, privileged)));
    Ok(resources)
}

/// The limits of a container that runs, to be changed. As in CRI a zero leaves its limit as it is; devices are no limits
/// and not in the answer.
///
/// # Errors
/// [`SpecError::Invalid`], naming the field.
pub fn limits(
    asked: &LinuxContainerResources,
    host: &HostFacts,
    warnings: &mut Vec<String>,
) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(cpu(asked)?);
    resources.set_memory(memory(asked, host.swap, warnings)?);
    resources.set_hugepage_limits(hugepages(asked, host.hugetlb, warnings)?);
    if !asked.unified.is_empty() {
        resources.set_unified(Some(asked.unified.clone().into_iter().collect()));
    }
    Ok(resources)
}

/// The score of a container's first process; always set, because the supervisor's own must not be inherited.
pub(crate) fn oom_score_adj(input: &ContainerInput<'_>) -> Result<i32, SpecError> {
    let asked = input.container.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let value = asked.map_or(0, |resources| resources.oom_score_adj);
    if !OOM_SCORE_ADJ.contains(&value) {
        return Err(invalid("oom_score_adj", value));
    }
    Ok(value as i32)
}

fn cpu(asked: &LinuxContainerResources) -> Result<Option<LinuxCpu>, SpecError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(unsigned("cpu_shares", asked.cpu_shares)?);
    cpu.set_period(unsigned("cpu_period", asked.cpu_period)?);
    cpu.set_quota(Some(asked.cpu_quota).filter(|quota| *quota != 0));
    cpu.set_cpus(Some(asked.cpuset_cpus.clone()).filter(|cpus| !cpus.is_empty()));
    cpu.set_mems(Some(asked.cpuset_mems.clone()).filter(|mems| !mems.is_empty()));
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

/// OCI's `swap` is memory and swap together, which is also what CRI's `memory_swap_limit_in_bytes` means. A memory limit
/// without one leaves no swap, on every cgroup version.
fn memory(
    asked: &LinuxContainerResources,
    swap_controller: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = Some(asked.memory_limit_in_bytes).filter(|limit| *limit != 0);
    let total = Some(asked.memory_swap_limit_in_bytes).filter(|total| *total != 0);
    if let (Some(limit), Some(total)) = (limit, total)
        && (0..limit).contains(&total)
    {
        return Err(SpecError::invalid(
            "config.linux.resources.memory_swap_limit_in_bytes",
            format!("{total} is memory and swap together, but less than the memory limit {limit}"),
        ));
    }
    if limit.is_none() && total.is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit);
    if swap_controller {
        memory.set_swap(total.or(limit));
    } else if total.is_some() && total != limit {
        warnings.push("this host cannot limit swap: memory_swap_limit_in_bytes is left out".to_owned());
    }
    Ok(Some(memory))
}

fn hugepages(
    asked: &LinuxContainerResources,
    controller: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    if asked.hugepage_limits.is_empty() {
        return Ok(None);
    }
    if !controller {
        // kubelet sends a zero for every page size there is.
        if asked.hugepage_limits.iter().any(|limit| limit.limit != 0) {
            warnings.push("this host has no hugetlb controller: hugepage_limits are left out".to_owned());
        }
        return Ok(None);
    }
    let convert = |limit: &berth_cri::runtime::v1::HugepageLimit| {
        let mut converted = LinuxHugepageLimit::default();
        converted.set_page_size(limit.page_size.clone());
        converted.set_limit(i64::try_from(limit.limit).map_err(|_| invalid("hugepage_limits", limit.limit))?);
        Ok(converted)
    };
    asked.hugepage_limits.iter().map(convert).collect::<Result<_, _>>().map(Some)
}

fn unsigned(field: &str, value: i64) -> Result<Option<u64>, SpecError> {
    let value = u64::try_from(value).map_err(|_| invalid(field, value))?;
    Ok(Some(value).filter(|value| *value != 0))
}

fn invalid(field: &str, value: impl std::fmt::Display) -> SpecError {
    SpecError::invalid(format!("config.linux.resources.{field}"), format!("{value} is out of range"))
}
