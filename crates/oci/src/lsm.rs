//! Linux security modules: the AppArmor profile and the SELinux label of a container.

use crate::{AppArmor, ContainerInput, SpecError};
use berth_cri::runtime::v1::{
    LinuxContainerSecurityContext, SeLinuxOption, SecurityProfile, security_profile::ProfileType,
};

/// The profile to enter at exec; `None` stays in the daemon's own, which is unconfined on an ordinary host. Whether a
/// named profile is loaded is the caller's to check.
pub(crate) fn apparmor_profile(
    security: &LinuxContainerSecurityContext,
    host: &AppArmor,
) -> Result<Option<String>, SpecError> {
    if security.privileged {
        return Ok(None);
    }
    let wanted = wanted_apparmor(security)?;
    match (host, wanted) {
        (_, Wanted::Unconfined) | (AppArmor::Disabled, Wanted::Default) => Ok(None),
        (AppArmor::Enabled { default_profile }, Wanted::Default) => Ok(default_profile.clone()),
        (AppArmor::Enabled { .. }, Wanted::Named(name)) => Ok(Some(name)),
        (AppArmor::Disabled, Wanted::Named(name)) => Err(SpecError::unsupported(
            "security_context.apparmor",
            format!("profile {name:?} is asked for, but AppArmor is off on this host"),
        )),
    }
}

enum Wanted {
    Default,
    Unconfined,
    Named(String),
}

/// The structured field wins over the deprecated string; neither means the default profile.
#[allow(deprecated)]
fn wanted_apparmor(security: &LinuxContainerSecurityContext) -> Result<Wanted, SpecError> {
    let named = |field: &str, value: &str| match value.strip_prefix("localhost/").unwrap_or(value) {
        "" => Err(SpecError::invalid(format!("security_context.{field}"), "the profile's name is empty")),
        name => Ok(Wanted::Named(name.to_owned())),
    };
    match (&security.apparmor, security.apparmor_profile.as_str()) {
        (Some(SecurityProfile { profile_type, localhost_ref }), _) => {
            match ProfileType::try_from(*profile_type) {
                Ok(ProfileType::RuntimeDefault) => Ok(Wanted::Default),
                Ok(ProfileType::Unconfined) => Ok(Wanted::Unconfined),
                Ok(ProfileType::Localhost) => named("apparmor.localhost_ref", localhost_ref),
                Err(_) => Err(SpecError::invalid(
                    "security_context.apparmor.profile_type",
                    format!("{profile_type} is not a profile type"),
                )),
            }
        }
        (None, "" | "runtime/default") => Ok(Wanted::Default),
        (None, "unconfined") => Ok(Wanted::Unconfined),
        (None, value) if value.starts_with("localhost/") => named("apparmor_profile", value),
        (None, value) => Err(SpecError::invalid(
            "security_context.apparmor_profile",
            format!("{value:?} is none of runtime/default, unconfined, localhost/NAME"),
        )),
    }
}

/// The process label, where SELinux is enabled and the request gives options; without options the container runs with
/// the daemon's.
pub(crate) fn selinux_label(
    input: &ContainerInput<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Option<String>, SpecError> {
    let Some(options) =
        security.selinux_options.as_ref().filter(|options| **options != SeLinuxOption::default())
    else {
        return Ok(None);
    };
    if !input.host.selinux {
        return Ok(None);
    }
    if let Some(index) = input.container.mounts.iter().position(|mount| mount.selinux_relabel) {
        return Err(SpecError::unsupported(
            format!("config.mounts[{index}].selinux_relabel"),
            "volumes are not relabelled, so a labelled container could not use them",
        ));
    }
    for (field, value) in [("user", &options.user), ("role", &options.role), ("type", &options.r#type)] {
        if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(selinux_fault(field, value));
        }
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        return Err(selinux_fault("level", &options.level));
    }
    let or =
        |value: &str, default: &str| if value.is_empty() { default.to_owned() } else { value.to_owned() };
    let default_type = if security.privileged { "spc_t" } else { "container_t" };
    Ok(Some(format!(
        "{}:{}:{}:{}",
        or(&options.user, "system_u"),
        or(&options.role, "system_r"),
        or(&options.r#type, default_type),
        or(&options.level, "s0"),
    )))
}

fn selinux_fault(field: &str, value: &str) -> SpecError {
    SpecError::invalid(
        format!("security_context.selinux_options.{field}"),
        format!("{value:?} is not part of a SELinux label"),
    )
}

/// `s0`, `s0-s15`, `s0:c1,c2`, `s0-s0:c0.c1023`.
fn is_level(text: &str) -> bool {
    let numbered = |text: &str, letter: char| {
        text.strip_prefix(letter)
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let sensitivity = |text: &str| {
        let (level, categories) = text.split_once(':').map_or((text, None), |(level, c)| (level, Some(c)));
        numbered(level, 's')
            && categories.is_none_or(|list| {
                list.split(',').all(|range| range.splitn(2, '.').all(|category| numbered(category, 'c')))
            })
    };
    text.splitn(2, '-').all(sensitivity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: fn() -> AppArmor = || AppArmor::Enabled { default_profile: Some("berth-default".to_owned()) };

    fn structured(profile_type: ProfileType, name: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor: Some(SecurityProfile {
                profile_type: profile_type as i32,
                localhost_ref: name.to_owned(),
            }),
            ..Default::default()
        }
    }

    #[allow(deprecated)]
    fn string(value: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext { apparmor_profile: value.to_owned(), ..Default::default() }
    }

    #[test]
    fn apparmor_profile_comes_from_either_field() {
        let default = Some("berth-default".to_owned());
        let named = Some("p".to_owned());
        assert_eq!(apparmor_profile(&Default::default(), &ON()).unwrap(), default);
        assert_eq!(apparmor_profile(&string("runtime/default"), &ON()).unwrap(), default);
        assert_eq!(apparmor_profile(&string("unconfined"), &ON()).unwrap(), None);
        assert_eq!(apparmor_profile(&string("localhost/p"), &ON()).unwrap(), named);
        assert_eq!(apparmor_profile(&structured(ProfileType::Localhost, "p"), &ON()).unwrap(), named);
        assert_eq!(
            apparmor_profile(&structured(ProfileType::Localhost, "localhost/p"), &ON()).unwrap(),
            named
        );
        assert_eq!(apparmor_profile(&structured(ProfileType::Unconfined, ""), &ON()).unwrap(), None);
        assert!(apparmor_profile(&structured(ProfileType::Localhost, "localhost/"), &ON()).is_err());
        assert!(apparmor_profile(&string("p"), &ON()).is_err());
    }

    #[test]
    fn named_profile_without_apparmor_is_refused_and_default_is_not() {
        assert_eq!(apparmor_profile(&Default::default(), &AppArmor::Disabled).unwrap(), None);
        let fault = apparmor_profile(&string("localhost/p"), &AppArmor::Disabled);
        assert!(matches!(fault, Err(SpecError::Unsupported { .. })));
    }

    #[test]
    fn selinux_levels() {
        for level in ["s0", "s0-s15", "s0:c1,c2", "s0-s0:c0.c1023", "s0:c1.c5,c9"] {
            assert!(is_level(level), "{level}");
        }
        for level in ["", "wrong", "s", "s0:", "s0:1", "s0:c1,,c2", "s0 "] {
            assert!(!is_level(level), "{level}");
        }
    }
}
