//! Updates of containers that are there, put together from what several plugins want.

use super::{
    owners::Owners,
    resources::{claims, overlay},
};
use crate::{ContainerEviction, ContainerUpdate, LinuxContainerUpdate, LinuxResources, Refused};

/// What plugins want of other containers, and of the one that an update is about.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    pub(crate) owners: Owners,
    others: Vec<ContainerUpdate>,
    evictions: Vec<ContainerEviction>,
}

impl Updates {
    /// Adds one plugin's. `own` is the container that is being updated, with its new limits so far; `creating` one that
    /// is being made, whose limits belong into its adjustment.
    pub(crate) fn add(
        &mut self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        mut own: Option<(&str, &mut LinuxResources)>,
        creating: Option<&str>,
    ) -> Result<(), Refused> {
        for update in updates {
            let ignorable = update.ignore_failure;
            match self.add_one(plugin, update, &mut own, creating) {
                Err(Refused::Conflict { one, other, what, container }) if ignorable => {
                    tracing::warn!(
                        plugin = one,
                        other,
                        what,
                        container,
                        "an update is left out: another plugin has set it"
                    );
                }
                result => result?,
            }
        }
        Ok(())
    }

    pub(crate) fn evict(&mut self, evictions: Vec<ContainerEviction>) {
        self.evictions.extend(evictions);
    }

    fn add_one(
        &mut self,
        plugin: &str,
        update: ContainerUpdate,
        own: &mut Option<(&str, &mut LinuxResources)>,
        creating: Option<&str>,
    ) -> Result<(), Refused> {
        let invalid = |why: String| Refused::Invalid { plugin: plugin.to_owned(), why };
        let (id, ignore_failure) = (update.container_id.as_str(), update.ignore_failure);
        if creating == Some(id) {
            return Err(invalid(format!("it updates container {id} while that is being made")));
        }
        let wanted = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
        if !wanted.devices.is_empty() {
            return Err(invalid(format!("it changes the devices of container {id}, which is there already")));
        }
        self.owners.claim(id, plugin, &claims(&wanted))?;
        if let Some((own, resources)) = own
            && *own == id
        {
            overlay(resources, &wanted);
            return Ok(());
        }
        let known = self.others.iter_mut().find(|other| other.container_id == id);
        let target = match known {
            Some(known) => {
                known.ignore_failure &= ignore_failure;
                known
            }
            None => {
                let container_id = update.container_id;
                self.others.push(ContainerUpdate { container_id, linux: None, ignore_failure });
                self.others.last_mut().expect("it was just put there")
            }
        };
        let linux = target.linux.get_or_insert_with(LinuxContainerUpdate::default);
        overlay(linux.resources.get_or_insert_with(LinuxResources::default), &wanted);
        Ok(())
    }

    /// What is to be done to other containers.
    pub(crate) fn others(&self) -> &[ContainerUpdate] {
        &self.others
    }

    pub(crate) fn into_parts(self) -> (Vec<ContainerUpdate>, Vec<ContainerEviction>) {
        (self.others, self.evictions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LinuxCpu, OptionalUInt64};

    fn update(id: &str, shares: u64, cpus: &str) -> ContainerUpdate {
        let cpu = LinuxCpu {
            shares: (shares != 0).then_some(OptionalUInt64 { value: shares }),
            cpus: cpus.to_owned(),
            ..Default::default()
        };
        let resources = Some(LinuxResources { cpu: Some(cpu), ..Default::default() });
        ContainerUpdate {
            container_id: id.to_owned(),
            linux: Some(LinuxContainerUpdate { resources }),
            ignore_failure: false,
        }
    }

    #[test]
    fn updates_of_one_container_by_two_plugins_become_one() {
        let mut updates = Updates::default();
        updates.add("10-a", vec![update("c", 2, "")], None, None).unwrap();
        updates.add("20-b", vec![update("c", 0, "0-1")], None, None).unwrap();
        assert_eq!(updates.others(), [update("c", 2, "0-1")]);
        assert!(updates.add("30-c", vec![update("c", 3, "")], None, None).is_err());
    }

    #[test]
    fn a_conflict_that_nobody_minds_is_left_out() {
        let mut updates = Updates::default();
        updates.add("10-a", vec![update("c", 2, "")], None, None).unwrap();
        let ignorable = ContainerUpdate { ignore_failure: true, ..update("c", 3, "") };
        updates.add("20-b", vec![ignorable], None, None).unwrap();
        assert_eq!(updates.others(), [update("c", 2, "")]);
    }

    #[test]
    fn the_container_itself_is_changed_where_it_stands_and_one_that_is_being_made_not_at_all() {
        let mut updates = Updates::default();
        let mut own = LinuxResources::default();
        updates.add("10-a", vec![update("own", 7, "")], Some(("own", &mut own)), None).unwrap();
        assert_eq!(own.cpu.unwrap().shares.unwrap().value, 7);
        assert!(updates.others().is_empty());
        assert!(updates.add("10-a", vec![update("new", 7, "")], None, Some("new")).is_err());
    }
}
