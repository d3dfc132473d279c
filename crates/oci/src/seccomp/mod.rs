//! seccomp: which profile a container asks for, what the profile says for this container, and the BPF that says it.
//!
//! [`requested`] reads the request, [`load`] turns the profile's JSON (Docker's published format, of which OCI's own is
//! a part) into the OCI spec's form for the capabilities and the kernel at hand, [`compile`] makes the program. Equal
//! [`oci_spec::runtime::LinuxSeccomp`] values compile to equal programs, so a caller may cache by them.
//!
//! The compiler is ours rather than libseccomp's: it needs no C library, knows system calls newer than a
//! distribution's libseccomp does, and a bisected program is a tenth of the comparisons of a linear one.

mod bpf;
mod compile;
mod profile;
mod syscalls;

pub use compile::{Filter, compile};
pub use profile::load;

use berth_cri::runtime::v1::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};
use std::path::PathBuf;

/// The profile that "RuntimeDefault" means, as JSON: what the ecosystem's other runtimes allow and forbid.
const RUNTIME_DEFAULT: &str = include_str!("runtime-default.json");

/// What a container asks for, its file not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requested {
    /// No filter at all.
    Unconfined,
    RuntimeDefault,
    /// The profile in this file of the host.
    Localhost(PathBuf),
}

/// What a container asks for, with the file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile<'a> {
    Unconfined,
    RuntimeDefault,
    Localhost(&'a [u8]),
}

/// Why a seccomp profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("security_context.{field}: {value:?} is not a seccomp profile: expected {expected}")]
    Reference { field: &'static str, value: String, expected: &'static str },
    #[error("the host's kernel has no seccomp filters")]
    NoKernelSupport,
    #[error("seccomp profile is not valid JSON of the Docker or OCI format")]
    Json(#[source] serde_json::Error),
    #[error("seccomp profile gives both architectures and archMap: use one")]
    TwoArchitectureLists,
    #[error("seccomp profile: errno name {name:?} is not known here: give errnoRet as a number")]
    ErrnoName { name: String },
    #[error("seccomp profile: minKernel {value:?} is not of the form 4.8")]
    KernelVersion { value: String },
    #[error(
        "seccomp profile asks for a notification listener (SCMP_ACT_NOTIFY or listenerPath), which is not supported"
    )]
    Notify,
    #[error(
        "seccomp profile: system call {name:?} tests argument {index}, but there are only arguments 0 to 5"
    )]
    Argument { name: String, index: usize },
    #[error("seccomp profile: errnoRet {value} is too large")]
    Errno { value: u32 },
    #[error("seccomp profile has two different actions for system call {name:?} without a condition")]
    Contradiction { name: String },
    #[error("seccomp profile compiles to {instructions} instructions; the kernel takes 4096")]
    TooLarge { instructions: usize },
    #[error("seccomp filters cannot be made for this machine")]
    Machine,
}

/// The profile a container asks for. The structured field wins over the deprecated string; neither means unconfined;
/// a privileged container is never filtered.
///
/// # Errors
/// An unknown profile type, a string of no known form, a localhost profile without an absolute path.
#[allow(deprecated)] // `seccomp_profile_path` is what callers older than CRI 1.22 send
pub fn requested(security: Option<&LinuxContainerSecurityContext>) -> Result<Requested, SeccompError> {
    let Some(security) = security.filter(|security| !security.privileged) else {
        return Ok(Requested::Unconfined);
    };
    match &security.seccomp {
        Some(profile) => structured(profile),
        None => from_string(&security.seccomp_profile_path),
    }
}

fn structured(profile: &SecurityProfile) -> Result<Requested, SeccompError> {
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Requested::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Requested::Unconfined),
        Ok(ProfileType::Localhost) => localhost("seccomp.localhost_ref", &profile.localhost_ref),
        Err(_) => Err(SeccompError::Reference {
            field: "seccomp.profile_type",
            value: profile.profile_type.to_string(),
            expected: "0 (RuntimeDefault), 1 (Unconfined) or 2 (Localhost)",
        }),
    }
}

fn from_string(value: &str) -> Result<Requested, SeccompError> {
    match value {
        "" | "unconfined" => Ok(Requested::Unconfined),
        "runtime/default" | "docker/default" => Ok(Requested::RuntimeDefault),
        other if other.starts_with("localhost/") => localhost("seccomp_profile_path", other),
        other => Err(SeccompError::Reference {
            field: "seccomp_profile_path",
            value: other.to_owned(),
            expected: "runtime/default, unconfined or localhost/PATH",
        }),
    }
}

/// kubelet sends a bare path, other callers put `localhost/` before it.
fn localhost(field: &'static str, value: &str) -> Result<Requested, SeccompError> {
    let path = PathBuf::from(value.strip_prefix("localhost/").unwrap_or(value));
    if !path.is_absolute() {
        return Err(SeccompError::Reference { field, value: value.to_owned(), expected: "an absolute path" });
    }
    Ok(Requested::Localhost(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(profile_type: i32, localhost_ref: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            seccomp: Some(SecurityProfile { profile_type, localhost_ref: localhost_ref.to_owned() }),
            ..Default::default()
        }
    }

    #[test]
    fn missing_profile_is_unconfined_and_empty_profile_is_the_default() {
        assert_eq!(requested(None).unwrap(), Requested::Unconfined);
        assert_eq!(
            requested(Some(&LinuxContainerSecurityContext::default())).unwrap(),
            Requested::Unconfined
        );
        assert_eq!(requested(Some(&with(0, ""))).unwrap(), Requested::RuntimeDefault);
    }

    #[test]
    fn privileged_container_is_never_filtered() {
        let security = LinuxContainerSecurityContext { privileged: true, ..with(0, "") };
        assert_eq!(requested(Some(&security)).unwrap(), Requested::Unconfined);
    }

    #[test]
    fn localhost_prefix_is_optional_and_path_must_be_absolute() {
        let expected = Requested::Localhost("/var/lib/kubelet/seccomp/a.json".into());
        assert_eq!(requested(Some(&with(2, "/var/lib/kubelet/seccomp/a.json"))).unwrap(), expected);
        assert_eq!(requested(Some(&with(2, "localhost//var/lib/kubelet/seccomp/a.json"))).unwrap(), expected);
        assert!(matches!(requested(Some(&with(2, "a.json"))), Err(SeccompError::Reference { .. })));
        assert!(matches!(requested(Some(&with(7, ""))), Err(SeccompError::Reference { .. })));
    }

    #[test]
    #[allow(deprecated)]
    fn deprecated_string_counts_only_alone() {
        let string = |value: &str| LinuxContainerSecurityContext {
            seccomp_profile_path: value.to_owned(),
            ..Default::default()
        };
        assert_eq!(requested(Some(&string("runtime/default"))).unwrap(), Requested::RuntimeDefault);
        assert_eq!(
            requested(Some(&string("localhost//p.json"))).unwrap(),
            Requested::Localhost("/p.json".into())
        );
        assert!(requested(Some(&string("nonsense"))).is_err());
        let both =
            LinuxContainerSecurityContext { seccomp_profile_path: "runtime/default".into(), ..with(1, "") };
        assert_eq!(requested(Some(&both)).unwrap(), Requested::Unconfined);
    }
}
