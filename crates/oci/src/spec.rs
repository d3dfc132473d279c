//! Putting the parts together: one container's OCI runtime spec.

use crate::{
    ContainerInput, OpenFiles, PidNamespace, SpecError, caps, devices, ids, lsm, mounts, process, resources,
    seccomp,
};
use berth_cri::runtime::v1::LinuxContainerSecurityContext;
use oci_spec::runtime::{
    Capabilities, Linux, LinuxNamespace, LinuxNamespaceType as NamespaceType, LinuxSeccomp, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec, User,
};
use std::collections::HashMap;
use std::path::PathBuf;

/// The OCI version whose fields are used; older runtimes (runc 1.1) refuse newer numbers.
const OCI_VERSION: &str = "1.0.2";

/// A container's spec and what had to be left out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    pub spec: Spec,
    /// For people: what the request asks and this host cannot give (DESIGN, invariant 9).
    pub warnings: Vec<String>,
}

/// Makes the spec of a container.
///
/// Every field of the result is set here or left empty on purpose; nothing is taken from oci-spec's defaults. No hooks
/// and no CDI devices ([`crate::cdi`] adds both), no rlimits but that on open files (the others are the daemon's), no
/// sysctls (they belong to the pod's namespaces).
///
/// # Errors
/// [`SpecError::Invalid`] for a request that contradicts itself, [`SpecError::Unsupported`] for one we cannot meet,
/// [`SpecError::Seccomp`] for a bad profile.
pub fn container_spec(input: &ContainerInput<'_>) -> Result<ContainerSpec, SpecError> {
    let nothing = LinuxContainerSecurityContext::default();
    let security =
        input.container.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap_or(&nothing);
    refuse(input, security)?;
    ids::check(input, security)?;

    let mut warnings = Vec::new();
    let capabilities = caps::resolve(security, &input.host.bounding, &mut warnings)?;
    let bounding = capabilities.bounding().clone().unwrap_or_default();
    let mounts = mounts::mounts(input, security.privileged)?;

    let mut user = User::default();
    user.set_uid(input.user.uid).set_gid(input.user.gid);
    user.set_additional_gids(Some(input.user.additional_gids.clone()));

    let mut process = Process::default();
    process.set_terminal(Some(input.container.tty)).set_console_size(None);
    process.set_user(user);
    process.set_args(Some(process::arguments(input)?)).set_command_line(None);
    process.set_env(Some(process::environment(input)?));
    process.set_cwd(process::working_dir(input)?);
    process.set_capabilities(Some(capabilities));
    process.set_rlimits(Some(vec![open_files(input.host.open_files)]));
    // `false` is left out: some runtimes take its presence for a wish.
    process.set_no_new_privileges(security.no_new_privs.then_some(true));
    process.set_apparmor_profile(lsm::apparmor_profile(security, &input.host.apparmor)?);
    process.set_selinux_label(lsm::selinux_label(input, security)?);
    process.set_oom_score_adj(Some(resources::oom_score_adj(input)?));
    process.set_io_priority(None).set_scheduler(None).set_exec_cpu_affinity(None);

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(input, security.privileged)));
    linux.set_resources(Some(resources::resources(input, security.privileged, &mut warnings)?));
    linux.set_cgroups_path(Some(PathBuf::from(input.cgroups_path)));
    linux.set_devices(Some(devices::nodes(input)?));
    linux.set_seccomp(seccomp_filter(input, security, &bounding)?);
    linux.set_rootfs_propagation(mounts.rootfs_propagation);
    // Exactly what was sent: an empty list masks nothing (kubelet's procMount: Unmasked).
    let paths = |list: &[String]| if security.privileged { Vec::new() } else { list.to_vec() };
    linux.set_masked_paths(Some(paths(&security.masked_paths)));
    linux.set_readonly_paths(Some(paths(&security.readonly_paths)));
    let user_namespace = input.namespaces.user.as_ref();
    linux.set_uid_mappings(user_namespace.map(|user| ids::oci(&user.uids)));
    linux.set_gid_mappings(user_namespace.map(|user| ids::oci(&user.gids)));
    linux.set_sysctl(None).set_mount_label(None);
    linux.set_net_devices(None).set_intel_rdt(None).set_personality(None).set_time_offsets(None);
    linux.set_memory_policy(None);

    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned()).set_readonly(Some(security.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned());
    spec.set_root(Some(root));
    spec.set_mounts(Some(mounts.mounts));
    spec.set_process(Some(process));
    spec.set_hostname(None).set_domainname(None); // the pod's UTS namespace has them
    spec.set_hooks(None);
    spec.set_annotations(Some(annotations(input)));
    spec.set_linux(Some(linux));
    spec.set_solaris(None).set_windows(None).set_vm(None).set_zos(None);
    spec.set_uid_mappings(None).set_gid_mappings(None);
    Ok(ContainerSpec { spec, warnings })
}

fn open_files(OpenFiles { soft, hard }: OpenFiles) -> PosixRlimit {
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard);
    limit.build().expect("every field has a default")
}

/// What a request may ask that nothing below looks at.
fn refuse(input: &ContainerInput<'_>, security: &LinuxContainerSecurityContext) -> Result<(), SpecError> {
    if input.container.windows.is_some() {
        return Err(SpecError::unsupported("config.windows", "this is Linux"));
    }
    for (field, list) in
        [("masked_paths", &security.masked_paths), ("readonly_paths", &security.readonly_paths)]
    {
        if let Some(path) = list.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
            let reason = format!("{path:?} is not an absolute path");
            return Err(SpecError::invalid(format!("security_context.{field}"), reason));
        }
    }
    if security.privileged {
        let sandbox = input.sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        if !sandbox.is_some_and(|sandbox| sandbox.privileged) {
            return Err(SpecError::invalid(
                "security_context.privileged",
                "a privileged container needs a sandbox that was made for one",
            ));
        }
    }
    Ok(())
}

/// The pod's namespaces by path, the container's own without one; the host's are not mentioned.
fn namespaces(input: &ContainerInput<'_>, privileged: bool) -> Vec<LinuxNamespace> {
    let pod = input.namespaces;
    let namespace = |kind: NamespaceType, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace.set_path(path);
        namespace
    };
    let mut namespaces = vec![namespace(NamespaceType::Mount, None)];
    let user = pod.user.as_ref().map(|user| user.path.clone());
    for (kind, path) in [
        (NamespaceType::User, &user),
        (NamespaceType::Network, &pod.network),
        (NamespaceType::Ipc, &pod.ipc),
        (NamespaceType::Uts, &pod.uts),
    ] {
        namespaces.extend(path.clone().map(|path| namespace(kind, Some(path))));
    }
    match &pod.pid {
        PidNamespace::New => namespaces.push(namespace(NamespaceType::Pid, None)),
        PidNamespace::Host => {}
        PidNamespace::Path(path) => namespaces.push(namespace(NamespaceType::Pid, Some(path.clone()))),
    }
    // Hides the host's cgroup tree. Privileged containers are often node agents that read it.
    if !privileged {
        namespaces.push(namespace(NamespaceType::Cgroup, None));
    }
    namespaces
}

fn seccomp_filter(
    input: &ContainerInput<'_>,
    security: &LinuxContainerSecurityContext,
    bounding: &Capabilities,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    if security.privileged || input.seccomp == seccomp::Profile::Unconfined {
        return Ok(None);
    }
    if !input.host.seccomp {
        return Err(SpecError::Seccomp(seccomp::SeccompError::NoKernelSupport));
    }
    seccomp::load(input.seccomp, bounding, input.host.kernel).map_err(SpecError::Seccomp)
}

/// Who the container is, in the words of containerd's CRI plugin, which sandboxed runtimes (kata, gVisor) look for.
/// Annotations of the pod are not passed on: OCI runtimes act on some (`run.oci.*`, `org.systemd.property.*`).
fn annotations(input: &ContainerInput<'_>) -> HashMap<String, String> {
    let pod = input.sandbox.metadata.clone().unwrap_or_default();
    let container = input.container.metadata.clone().unwrap_or_default();
    let image = input.container.image.clone().unwrap_or_default();
    let named = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    [
        ("container-type", "container".to_owned()),
        ("container-name", container.name),
        ("image-name", named),
        ("sandbox-id", input.sandbox_id.to_owned()),
        ("sandbox-name", pod.name),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value))
    .collect()
}
