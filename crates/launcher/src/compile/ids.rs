//! Ids inside and outside of a user namespace.

use berth_cri::berth::v1::{IdMaps, IdRange, RootIds};
use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::CompileError;

/// The id maps of a user namespace or of a mount, both there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ids(IdMaps);

impl Ids {
    /// The host's ids of the root inside.
    pub(super) fn root(&self) -> Result<RootIds, CompileError> {
        let uid = host_uid(Some(self), "linux.uidMappings", 0)?;
        let gid = host_gid(Some(self), "linux.gidMappings", 0)?;
        Ok(RootIds { uid, gid })
    }

    pub(super) fn into_maps(self) -> IdMaps {
        self.0
    }
}

/// Those of the container, when it is in a user namespace.
pub(super) fn read(linux: &Linux, in_namespace: bool) -> Result<Option<Ids>, CompileError> {
    match (of_mappings("linux", linux.uid_mappings(), linux.gid_mappings())?, in_namespace) {
        (None, false) => Ok(None),
        (Some(ids), true) => Ok(Some(ids)),
        (None, true) => Err(CompileError::Missing("linux.uidMappings")),
        (Some(_), false) => Err(CompileError::unsupported("linux.uidMappings: without a user namespace")),
    }
}

/// Ids of a pair of fields, of which both are set or none.
pub(super) fn of_mappings(
    field: &str,
    uids: &Option<Vec<LinuxIdMapping>>,
    gids: &Option<Vec<LinuxIdMapping>>,
) -> Result<Option<Ids>, CompileError> {
    match (some(uids), some(gids)) {
        (false, false) => Ok(None),
        (true, true) => Ok(Some(Ids(IdMaps { uids: ranges(uids), gids: ranges(gids) }))),
        (uids, _) => {
            let reason = if uids { "comes without gidMappings" } else { "comes without uidMappings" };
            let there = if uids { "uidMappings" } else { "gidMappings" };
            Err(CompileError::invalid(field, there, reason))
        }
    }
}

pub(super) fn some(mappings: &Option<Vec<LinuxIdMapping>>) -> bool {
    mappings.as_ref().is_some_and(|list| !list.is_empty())
}

/// The host's id of a user of the container.
pub(super) fn host_uid(ids: Option<&Ids>, field: &str, uid: u32) -> Result<u32, CompileError> {
    outside(ids.map(|ids| ids.0.uids.as_slice()), field, uid)
}

/// The host's id of a group of the container.
pub(super) fn host_gid(ids: Option<&Ids>, field: &str, gid: u32) -> Result<u32, CompileError> {
    outside(ids.map(|ids| ids.0.gids.as_slice()), field, gid)
}

fn outside(ranges: Option<&[IdRange]>, field: &str, id: u32) -> Result<u32, CompileError> {
    let Some(ranges) = ranges else { return Ok(id) };
    ranges
        .iter()
        .find_map(|range| {
            let offset = id.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
            range.outside.checked_add(offset)
        })
        .ok_or_else(|| CompileError::invalid(field, id.to_string(), "is not one of the user namespace's ids"))
}

fn ranges(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    mappings
        .iter()
        .flatten()
        .map(|mapping| IdRange {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            length: mapping.size(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_the_range_that_holds_it() {
        let range = |inside, outside, length| IdRange { inside, outside, length };
        let uids = vec![range(0, 100_000, 10), range(10, 5, 1), range(20, u32::MAX, 2)];
        let ids = Ids(IdMaps { uids, gids: vec![range(0, 7, 1)] });
        let uid = |uid| host_uid(Some(&ids), "test", uid).ok();
        assert_eq!([uid(0), uid(9), uid(10), uid(11)], [Some(100_000), Some(100_009), Some(5), None]);
        assert_eq!([uid(20), uid(21)], [Some(u32::MAX), None], "past the last id there is none");
        assert_eq!(host_gid(Some(&ids), "test", 1).ok(), None);
        assert_eq!(host_uid(None, "test", 11), Ok(11), "without a user namespace nothing is mapped");
    }
}
