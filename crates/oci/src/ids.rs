//! User namespaces: the ids of the pod, and those of single mounts.

use crate::{ContainerInput, SpecError};
use berth_cri::runtime::v1::{IdMapping, LinuxContainerSecurityContext, NamespaceMode, UserNamespace};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

const FIELD: &str = "security_context.namespace_options.userns_options";

/// A container is in the user namespace of its pod, and its user is one of those that exist there. Without options of its
/// own it does as its pod does.
pub(crate) fn check(
    input: &ContainerInput<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let pod = match &input.namespaces.user {
        Some(user) => UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: user.uids.clone(),
            gids: user.gids.clone(),
        },
        None => UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() },
    };
    let own = security.namespace_options.as_ref().and_then(|options| options.userns_options.as_ref());
    if own.is_some_and(|own| *own != pod) {
        return Err(SpecError::invalid(FIELD, "must be the same as the pod sandbox's"));
    }
    let Some(user) = &input.namespaces.user else { return Ok(()) };
    let mapped = |what: &str, ranges: &[IdMapping], id: u32| {
        let holds =
            |range: &IdMapping| id.checked_sub(range.container_id).is_some_and(|at| at < range.length);
        match ranges.iter().any(holds) {
            true => Ok(()),
            false => {
                let reason = format!("{what} {id} of the container is not one of them");
                Err(SpecError::invalid(FIELD, reason))
            }
        }
    };
    mapped("user", &user.uids, input.user.uid)?;
    let mut groups = [input.user.gid].into_iter().chain(input.user.additional_gids.iter().copied());
    groups.try_for_each(|gid| mapped("group", &user.gids, gid))
}

/// What the ids in a mount are mapped to.
pub(crate) struct MountIds {
    pub(crate) uids: Vec<LinuxIdMapping>,
    pub(crate) gids: Vec<LinuxIdMapping>,
}

/// The ids of users and groups in one mount, both there or none.
pub(crate) fn of_mount(
    field: &str,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> Result<Option<MountIds>, SpecError> {
    let missing =
        |name: &str| Err(SpecError::invalid(format!("{field}.{name}"), "missing beside the other one"));
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(MountIds { uids: oci(uids), gids: oci(gids) })),
        (true, false) => missing("uidMappings"),
        (false, true) => missing("gidMappings"),
    }
}

pub(crate) fn oci(mappings: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let one = |mapping: &IdMapping| {
        LinuxIdMappingBuilder::default()
            .container_id(mapping.container_id)
            .host_id(mapping.host_id)
            .size(mapping.length)
            .build()
            .expect("every field is set")
    };
    mappings.iter().map(one).collect()
}
