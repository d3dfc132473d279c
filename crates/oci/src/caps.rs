//! Capability sets: the default one, what a request adds and drops, what the host has to give.

use crate::SpecError;
use berth_cri::runtime::v1::{self as cri, LinuxContainerSecurityContext};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

/// What a container gets without asking: containerd's set, which images are built for.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// In the order of their numbers (linux/capability.h).
const NUMBERED: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The capabilities of a bit mask, as `CapBnd` in /proc/PID/status has it. Bits newer than this program are left out.
pub fn capabilities_from_mask(mask: u64) -> Capabilities {
    NUMBERED
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask & (1 << bit) != 0)
        .map(|(_, capability)| *capability)
        .collect()
}

/// The five sets of a container's first process, and a warning for each capability the host cannot give.
///
/// # Errors
/// A name that is no capability.
pub(crate) fn resolve(
    security: &LinuxContainerSecurityContext,
    host: &Capabilities,
    warnings: &mut Vec<String>,
) -> Result<LinuxCapabilities, SpecError> {
    let (mut set, ambient) = if security.privileged {
        (host.clone(), Capabilities::new())
    } else {
        let nothing = cri::Capability::default();
        requested(security.capabilities.as_ref().unwrap_or(&nothing), host)?
    };
    let mut missing: Vec<String> =
        set.difference(host).map(|capability| format!("CAP_{capability}")).collect();
    missing.sort();
    if !missing.is_empty() {
        warnings.push(format!("capabilities that berth itself lacks are left out: {}", missing.join(", ")));
        set.retain(|capability| host.contains(capability));
    }
    // The kernel raises a capability to ambient only if it is permitted and inheritable.
    let ambient: Capabilities = ambient.intersection(&set).copied().collect();
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .expect("all five fields of this builder are set"))
}

/// The set and its ambient part. `ALL` first, so that single names refine it: drop ALL, add one; add ALL, drop one.
fn requested(
    asked: &cri::Capability,
    host: &Capabilities,
) -> Result<(Capabilities, Capabilities), SpecError> {
    let (add_all, add) = parse("add_capabilities", &asked.add_capabilities)?;
    let (drop_all, drop) = parse("drop_capabilities", &asked.drop_capabilities)?;
    let (ambient_all, ambient) = parse("add_ambient_capabilities", &asked.add_ambient_capabilities)?;
    if ambient_all {
        return Err(SpecError::invalid(
            "security_context.capabilities.add_ambient_capabilities",
            "ALL is not possible here: name the capabilities",
        ));
    }
    let mut set = match (add_all, drop_all) {
        (_, true) => Capabilities::new(),
        (true, false) => host.clone(),
        (false, false) => DEFAULT.into(),
    };
    set.extend(add);
    set.extend(&ambient);
    for capability in &drop {
        set.remove(capability);
    }
    Ok((set, ambient.into_iter().collect()))
}

/// Names as Kubernetes writes them (`NET_ADMIN`), any case, with or without `CAP_`; whether `ALL` is among them.
fn parse(list: &str, names: &[String]) -> Result<(bool, Vec<Capability>), SpecError> {
    let mut all = false;
    let mut parsed = Vec::with_capacity(names.len());
    for name in names {
        let upper = name.to_ascii_uppercase();
        match upper.strip_prefix("CAP_").unwrap_or(&upper) {
            "ALL" => all = true,
            plain => parsed.push(plain.parse().map_err(|_| {
                SpecError::invalid(
                    format!("security_context.capabilities.{list}"),
                    format!("{name:?} is not a capability of Linux"),
                )
            })?),
        }
    }
    Ok((all, parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Capabilities {
        capabilities_from_mask(u64::MAX)
    }

    fn asked(add: &[&str], drop: &[&str], ambient: &[&str]) -> LinuxContainerSecurityContext {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: owned(add),
                drop_capabilities: owned(drop),
                add_ambient_capabilities: owned(ambient),
            }),
            ..Default::default()
        }
    }

    fn bounding(security: &LinuxContainerSecurityContext, host: &Capabilities) -> Capabilities {
        let sets = resolve(security, host, &mut Vec::new()).unwrap();
        assert_eq!(sets.bounding(), sets.permitted());
        assert_eq!(sets.bounding(), sets.effective());
        sets.bounding().clone().unwrap()
    }

    #[test]
    fn mask_bits_are_the_kernels_numbers() {
        assert_eq!(capabilities_from_mask(1 << 21 | 1), [Capability::SysAdmin, Capability::Chown].into());
        assert_eq!(all().len(), 41);
        // What Docker's and containerd's documentation give for the default set.
        assert_eq!(bounding(&asked(&[], &[], &[]), &all()), capabilities_from_mask(0xa804_25fb));
    }

    #[test]
    fn all_comes_first_and_single_names_refine_it() {
        assert_eq!(bounding(&asked(&["ALL"], &[], &[]), &all()), all());
        assert_eq!(bounding(&asked(&[], &["ALL"], &[]), &all()), Capabilities::new());
        assert_eq!(bounding(&asked(&["NET_ADMIN"], &["all"], &[]), &all()), [Capability::NetAdmin].into());
        assert!(!bounding(&asked(&["ALL"], &["CAP_NET_RAW"], &[]), &all()).contains(&Capability::NetRaw));
        assert!(!bounding(&asked(&["net_raw"], &["net_raw"], &[]), &all()).contains(&Capability::NetRaw));
    }

    #[test]
    fn what_the_host_lacks_is_left_out_with_a_warning() {
        let host = capabilities_from_mask(!(1 << 24));
        let mut warnings = Vec::new();
        let sets = resolve(&asked(&["SYS_RESOURCE", "NET_ADMIN"], &[], &[]), &host, &mut warnings).unwrap();
        assert!(!sets.bounding().as_ref().unwrap().contains(&Capability::SysResource));
        assert_eq!(warnings, ["capabilities that berth itself lacks are left out: CAP_SYS_RESOURCE"]);
        warnings.clear();
        let privileged = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        assert_eq!(*resolve(&privileged, &host, &mut warnings).unwrap().bounding(), Some(host));
        assert!(warnings.is_empty());
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let sets = resolve(&asked(&[], &["ALL"], &["NET_BIND_SERVICE"]), &all(), &mut Vec::new()).unwrap();
        let expected: Option<Capabilities> = Some([Capability::NetBindService].into());
        assert_eq!(*sets.ambient(), expected);
        assert_eq!(*sets.inheritable(), expected);
        assert_eq!(*sets.bounding(), expected);
    }

    #[test]
    fn unknown_names_are_errors_that_name_the_field() {
        let fault = resolve(&asked(&[], &["FLY"], &[]), &all(), &mut Vec::new()).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "security_context.capabilities.drop_capabilities: \"FLY\" is not a capability of Linux"
        );
    }
}
