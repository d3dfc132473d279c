//! Docker's profile format: the OCI one, with conditions on capabilities, machine and kernel that are decided here.

use super::{Profile, RUNTIME_DEFAULT, SeccompError};
use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use std::sync::LazyLock;

/// Parsed once: it is the profile of nearly every container.
static DEFAULT: LazyLock<Document> = LazyLock::new(|| {
    serde_json::from_str(RUNTIME_DEFAULT)
        .expect("runtime-default.json is part of this crate and its tests parse it")
});

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// The form before `names`; still found in old files.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Conditions>,
    excludes: Option<Conditions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The profile as it holds for a container with these capabilities (its bounding set) on a kernel of this version
/// (major, minor), on the machine this program runs on. `None` for [`Profile::Unconfined`].
///
/// # Errors
/// JSON that is not a profile, and what a profile may ask that we do not support.
pub fn load(
    profile: Profile<'_>,
    capabilities: &Capabilities,
    kernel: (u32, u32),
) -> Result<Option<LinuxSeccomp>, SeccompError> {
    match profile {
        Profile::Unconfined => Ok(None),
        Profile::RuntimeDefault => DEFAULT.resolve(capabilities, kernel).map(Some),
        Profile::Localhost(json) => {
            let document: Document = serde_json::from_slice(json).map_err(SeccompError::Json)?;
            document.resolve(capabilities, kernel).map(Some)
        }
    }
}

impl Document {
    fn resolve(&self, capabilities: &Capabilities, kernel: (u32, u32)) -> Result<LinuxSeccomp, SeccompError> {
        if self.listener_path.as_ref().is_some_and(|path| !path.is_empty()) {
            return Err(SeccompError::Notify);
        }
        let mut syscalls = Vec::new();
        for rule in self.syscalls.iter().flatten() {
            if rule.applies(capabilities, kernel)? {
                syscalls.extend(rule.resolve()?);
            }
        }
        let mut seccomp = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .syscalls(syscalls)
            .build()
            .expect("every field of this builder has a default");
        seccomp.set_default_errno_ret(errno(self.default_errno_ret, self.default_errno.as_deref())?);
        seccomp.set_architectures(self.architectures()?);
        seccomp.set_flags(self.flags.clone());
        Ok(seccomp)
    }

    fn architectures(&self) -> Result<Option<Vec<Arch>>, SeccompError> {
        let listed = self.architectures.clone().filter(|list| !list.is_empty());
        let Some(map) = self.arch_map.as_ref().filter(|map| !map.is_empty()) else { return Ok(listed) };
        if listed.is_some() {
            return Err(SeccompError::TwoArchitectureLists);
        }
        Ok(map.iter().find(|entry| Some(entry.architecture) == native_arch()).map(|entry| {
            let further = entry.sub_architectures.iter().flatten().copied();
            std::iter::once(entry.architecture).chain(further).collect()
        }))
    }
}

impl Rule {
    /// Includes name what must be there, excludes what must not be.
    fn applies(&self, capabilities: &Capabilities, kernel: (u32, u32)) -> Result<bool, SeccompError> {
        let none = Conditions::default();
        let (includes, excludes) =
            (self.includes.as_ref().unwrap_or(&none), self.excludes.as_ref().unwrap_or(&none));
        let has = |name: &String| {
            let name = name.strip_prefix("CAP_").unwrap_or(name);
            name.parse::<Capability>().is_ok_and(|capability| capabilities.contains(&capability))
        };
        let here = |name: &String| Some(name.as_str()) == native_go_name();
        let reached = |conditions: &Conditions| {
            conditions.min_kernel.as_deref().map(|least| Ok(kernel >= kernel_version(least)?)).transpose()
        };
        let excluded = excludes.arches.iter().flatten().any(here)
            || excludes.caps.iter().flatten().any(has)
            || reached(excludes)?.unwrap_or(false);
        let arches = includes.arches.as_deref().unwrap_or_default();
        let included = (arches.is_empty() || arches.iter().any(here))
            && includes.caps.iter().flatten().all(has)
            && reached(includes)?.unwrap_or(true);
        Ok(included && !excluded)
    }

    fn resolve(&self) -> Result<Option<LinuxSyscall>, SeccompError> {
        let names: Vec<String> = self.names.iter().flatten().chain(&self.name).cloned().collect();
        if names.is_empty() {
            return Ok(None); // the OCI schema wants at least one name
        }
        let mut rule = LinuxSyscallBuilder::default()
            .names(names)
            .action(self.action)
            .build()
            .expect("every field of this builder has a default");
        rule.set_errno_ret(errno(self.errno_ret, self.errno.as_deref())?);
        rule.set_args(self.args.clone().filter(|args| !args.is_empty()));
        Ok(Some(rule))
    }
}

/// Podman's files give an errno by name beside the number; the number wins.
fn errno(number: Option<u32>, name: Option<&str>) -> Result<Option<u32>, SeccompError> {
    match (number, name) {
        (Some(number), _) => Ok(Some(number)),
        (None, None | Some("")) => Ok(None),
        (None, Some(name)) => match name {
            "EPERM" => Ok(Some(1)),
            "ENOENT" => Ok(Some(2)),
            "EACCES" => Ok(Some(13)),
            "EINVAL" => Ok(Some(22)),
            "ENOSYS" => Ok(Some(38)),
            "EOPNOTSUPP" => Ok(Some(95)),
            other => Err(SeccompError::ErrnoName { name: other.to_owned() }),
        },
    }
}

fn kernel_version(text: &str) -> Result<(u32, u32), SeccompError> {
    text.split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| SeccompError::KernelVersion { value: text.to_owned() })
}

fn native_arch() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::ScmpArchX86_64),
        "aarch64" => Some(Arch::ScmpArchAarch64),
        _ => None,
    }
}

/// The format's `arches` are Go's names.
fn native_go_name() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Some("amd64"),
        "aarch64" => Some("arm64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KERNEL: (u32, u32) = (6, 1);

    fn localhost(json: &str) -> Result<LinuxSeccomp, SeccompError> {
        load(Profile::Localhost(json.as_bytes()), &Capabilities::new(), KERNEL)
            .map(|loaded| loaded.expect("a localhost profile is a filter"))
    }

    fn names(seccomp: &LinuxSeccomp) -> Vec<&str> {
        seccomp.syscalls().iter().flatten().flat_map(LinuxSyscall::names).map(String::as_str).collect()
    }

    #[test]
    fn default_profile_depends_on_capabilities_and_kernel() {
        let plain = load(Profile::RuntimeDefault, &Capabilities::new(), KERNEL).unwrap().unwrap();
        assert!(names(&plain).contains(&"ptrace"));
        for absent in ["mount", "unshare", "bpf", "io_uring_setup", "keyctl", "userfaultfd", "chroot"] {
            assert!(!names(&plain).contains(&absent), "{absent}");
        }
        let admin = load(Profile::RuntimeDefault, &[Capability::SysAdmin].into(), KERNEL).unwrap().unwrap();
        assert!(names(&admin).contains(&"mount"));
        assert!(names(&admin).contains(&"bpf"));
        let old = load(Profile::RuntimeDefault, &Capabilities::new(), (4, 4)).unwrap().unwrap();
        assert!(!names(&old).contains(&"ptrace"));
    }

    #[test]
    fn both_forms_of_rule_names_and_errno_are_read() {
        let seccomp = localhost(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"name":"chmod","action":"SCMP_ACT_ERRNO","errno":"EACCES"},
                {"names":["fchmod"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"errno":"EPERM"},
                {"names":[],"action":"SCMP_ACT_KILL"}]}"#,
        )
        .unwrap();
        let rules = seccomp.syscalls().as_deref().unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].errno_ret(), Some(13));
        assert_eq!(rules[1].errno_ret(), Some(5));
    }

    #[test]
    fn faults_are_named() {
        assert!(matches!(localhost("{}"), Err(SeccompError::Json(_))));
        assert!(matches!(localhost(r#"{"defaultAction":"SCMP_ACT_NONE"}"#), Err(SeccompError::Json(_))));
        let listener = r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent.sock"}"#;
        assert!(matches!(localhost(listener), Err(SeccompError::Notify)));
        let twice = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],
            "archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#;
        assert!(matches!(localhost(twice), Err(SeccompError::TwoArchitectureLists)));
        let kernel = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}]}"#;
        assert!(matches!(localhost(kernel), Err(SeccompError::KernelVersion { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_loading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = load(Profile::Localhost(&bytes), &Capabilities::new(), KERNEL);
        }

        #[test]
        fn any_well_formed_profile_loads_and_compiles_or_says_why(
            action in prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRACE"]),
            rules in proptest::collection::vec(
                (
                    prop::sample::select(vec!["read", "socket", "clone", "no_such_call", "semop"]),
                    prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG"]),
                    prop::option::of((0usize..8, any::<u64>(), any::<u64>(),
                        prop::sample::select(vec!["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"]))),
                    0u32..6000,
                ),
                0..20,
            ),
        ) {
            let rules: Vec<_> = rules.iter().map(|(name, action, arg, errno)| {
                let args: Vec<_> = arg.iter().map(|(index, value, two, op)| serde_json::json!({
                    "index": index, "value": value, "valueTwo": two, "op": op })).collect();
                serde_json::json!({ "names": [name], "action": action, "errnoRet": errno, "args": args })
            }).collect();
            let json = serde_json::json!({ "defaultAction": action, "syscalls": rules }).to_string();
            let seccomp = localhost(&json).unwrap();
            if let Err(fault) = crate::seccomp::compile(&seccomp) {
                let explained = matches!(
                    fault,
                    SeccompError::Argument { .. } | SeccompError::Errno { .. } | SeccompError::Contradiction { .. }
                );
                prop_assert!(explained, "{fault}");
            }
        }
    }
}
