//! The daemon's half: an OCI runtime spec becomes a plan.
//!
//! Everything that is text with a meaning is resolved here, once: capability, limit and device names, mount options,
//! namespaces, seccomp flags. What the launcher cannot do is refused with the field's name rather than left out; what
//! only this host cannot do (a capability that the daemon itself lacks) is left out with a [`Warning`].
//!
//! Taken from the spec as config.md and config-linux.md define it, except where berth's pods differ: the network,
//! IPC and UTS namespaces and the host name are the pod's, so the container inherits them from the supervisor and
//! these fields have no place in a plan. Of the pod's user namespace only its id maps matter, since the process is set
//! up as the host's root and needs to know the host's ids of what it makes. The cgroup is made and limited beforehand ([`crate::cgroup`]).

mod capabilities;
mod devices;
mod hooks;
mod ids;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod scheduling;

use berth_cri::berth::v1::{ExecPlan, LaunchPlan, PlanHeader, Sysctl};
use oci_spec::runtime::{Linux, Process, Spec};

use crate::cgroup::{Cgroup, Version};
use crate::plan;
use ids::Ids;

pub use crate::cgroup::Warning;
pub use capabilities::CapSet;
pub use hooks::hooks;

/// Why there is no plan for this spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field}: {value:?} {reason}")]
    Invalid { field: String, value: String, reason: &'static str },
    /// Valid, but not something this launcher does.
    #[error("{field} is not supported by the native launcher")]
    Unsupported { field: String },
}

impl CompileError {
    fn invalid(field: impl Into<String>, value: impl Into<String>, reason: &'static str) -> CompileError {
        CompileError::Invalid { field: field.into(), value: value.into(), reason }
    }

    fn unsupported(field: impl Into<String>) -> CompileError {
        CompileError::Unsupported { field: field.into() }
    }
}

/// What a plan needs besides the spec.
#[derive(Clone, Copy, Debug)]
pub struct CompileInput<'a> {
    /// The container's own cgroup, made and limited.
    pub cgroup: &'a Cgroup,
    /// The spec's seccomp profile as a program (`struct sock_filter`s in this machine's byte order). Required
    /// exactly when the spec has a profile.
    pub seccomp_bpf: Option<&'a [u8]>,
    /// What hooks are told of the container ([`crate::hook::run_all`]). Required exactly when the spec has hooks.
    pub hook_state: Option<&'a str>,
    /// What the daemon may give away: [`CapSet::of_this_process`].
    pub host_caps: CapSet,
}

/// A plan in bytes, for [`crate::container`].
#[derive(Clone, Debug)]
pub struct Compiled {
    pub plan: Vec<u8>,
    pub warnings: Vec<Warning>,
}

/// Compiles a container's spec.
///
/// # Errors
/// [`CompileError`], with the field as the OCI spec calls it.
pub fn compile(spec: &Spec, input: CompileInput<'_>) -> Result<Compiled, CompileError> {
    let mut warnings = Vec::new();
    let linux = spec.linux().as_ref().ok_or(CompileError::Missing("linux"))?;
    refuse_unsupported(spec, linux)?;
    let namespaces = namespaces::read(linux)?;
    let ids = ids::read(linux, namespaces.user)?;
    let process = spec.process().as_ref().ok_or(CompileError::Missing("process"))?;
    let dev = spec.mounts().iter().flatten().find(|mount| {
        let path = mount.destination().to_string_lossy();
        path.trim_end_matches('/') == "/dev"
    });
    let launch = LaunchPlan {
        process: Some(process::compile(process, linux, ids.as_ref(), input, &mut warnings)?),
        cgroup_tasks: cgroup_tasks(input.cgroup),
        new_cgroup_namespace: namespaces.new_cgroup,
        root_propagation: linux.rootfs_propagation().as_deref().map_or(Ok(0), mounts::root_propagation)?,
        root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        mounts: mounts::compile(
            spec.mounts().as_deref().unwrap_or_default(),
            linux,
            input.cgroup,
            ids.as_ref(),
        )?,
        populate_dev: !dev.is_some_and(mounts::is_bind),
        devices: devices::compile(linux.devices().as_deref().unwrap_or_default(), ids.as_ref())?,
        masked_paths: absolute("linux.maskedPaths", linux.masked_paths())?,
        readonly_paths: absolute("linux.readonlyPaths", linux.readonly_paths())?,
        sysctls: sysctls(linux)?,
        user_namespace: ids.as_ref().map(Ids::root).transpose()?,
        hooks: hooks::compile(spec, input.hook_state)?,
    };
    let header = PlanHeader { unified_cgroup: unified_cgroup(input.cgroup), pid_mode: namespaces.pid.into() };
    Ok(Compiled { plan: plan::encode(&header, &launch), warnings })
}

/// Compiles a further process of a container: `process` says what to run and as whom, and what it does not say about
/// its confinement is as in the container's own spec.
///
/// # Errors
/// [`CompileError`], as [`compile`].
pub fn compile_exec(
    process: &Process,
    container: &Spec,
    input: CompileInput<'_>,
) -> Result<Compiled, CompileError> {
    let mut warnings = Vec::new();
    let linux = container.linux().as_ref().ok_or(CompileError::Missing("linux"))?;
    let first = container.process().as_ref().ok_or(CompileError::Missing("process"))?;
    let merged = process::confine_like(process, first);
    let ids = ids::read(linux, namespaces::read(linux)?.user)?;
    let exec = ExecPlan {
        process: Some(process::compile(&merged, linux, ids.as_ref(), input, &mut warnings)?),
        cgroup_tasks: cgroup_tasks(input.cgroup),
        user_namespace: ids.is_some(),
    };
    let header = PlanHeader { unified_cgroup: unified_cgroup(input.cgroup), ..PlanHeader::default() };
    Ok(Compiled { plan: plan::encode(&header, &exec), warnings })
}

/// cgroup v1: the files by which a process enters a cgroup.
pub fn cgroup_tasks(cgroup: &Cgroup) -> Vec<String> {
    match cgroup.version() {
        Version::V1 => {
            cgroup.dirs().map(|folder| folder.join("tasks").to_string_lossy().into_owned()).collect()
        }
        Version::V2 => Vec::new(),
    }
}

/// cgroup v2: the folder in which a process is born.
pub fn unified_cgroup(cgroup: &Cgroup) -> String {
    match cgroup.version() {
        Version::V1 => String::new(),
        Version::V2 => {
            cgroup.dirs().map(|folder| folder.to_string_lossy().into_owned()).next().unwrap_or_default()
        }
    }
}

fn refuse_unsupported(spec: &Spec, linux: &Linux) -> Result<(), CompileError> {
    let fields = [
        ("domainname", spec.domainname().as_ref().is_some_and(|name| !name.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())),
    ];
    match fields.into_iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(CompileError::unsupported(field)),
        None => Ok(()),
    }
}

fn absolute(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<String>, CompileError> {
    let paths = paths.clone().unwrap_or_default();
    match paths.iter().find(|path| !path.starts_with('/')) {
        Some(path) => Err(CompileError::invalid(field, path, "is not absolute")),
        None => Ok(paths),
    }
}

/// Only what belongs to a namespace of the pod: anything else would be a change to the host.
fn sysctls(linux: &Linux) -> Result<Vec<Sysctl>, CompileError> {
    let namespaced = |name: &str| {
        name.starts_with("net.")
            || name.starts_with("fs.mqueue.")
            || name.starts_with("kernel.shm")
            || name.starts_with("kernel.msg")
            || name == "kernel.sem"
    };
    let mut sysctls = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        if !namespaced(name) {
            return Err(CompileError::invalid("linux.sysctl", name, "does not belong to a namespace"));
        }
        if name.split('.').any(|part| part.is_empty() || part.contains('/')) {
            return Err(CompileError::invalid("linux.sysctl", name, "is not a dotted name"));
        }
        sysctls.push(Sysctl { path: name.replace('.', "/"), value: value.clone() });
    }
    sysctls.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(sysctls)
}
