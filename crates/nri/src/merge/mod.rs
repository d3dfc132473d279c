//! What several plugins want of one container, put together in their order.
//!
//! A later plugin sees what earlier ones made of the container, and may not set what one of them has set, unless it takes
//! that away first: two plugins that overwrite each other would each think that they had their way.

mod keyed;
mod owners;
mod resources;
mod update;

use self::keyed::Wish;
pub use self::resources::overlay;
pub(crate) use self::update::Updates;
use crate::{
    ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest, CreateContainerResponse,
    Field, Hooks, LinuxContainer, LinuxContainerAdjustment, LinuxResources, Refused,
    ValidateContainerAdjustmentRequest,
};

/// A creation on its way through the plugins.
#[derive(Debug)]
pub(crate) struct Creation {
    request: CreateContainerRequest,
    adjust: ContainerAdjustment,
    updates: Updates,
}

impl Creation {
    pub(crate) fn new(request: CreateContainerRequest) -> Self {
        Self { request, adjust: ContainerAdjustment::default(), updates: Updates::default() }
    }

    /// What the next plugin is asked.
    pub(crate) fn request(&self) -> &CreateContainerRequest {
        &self.request
    }

    /// Adds one plugin's answer.
    pub(crate) fn add(&mut self, plugin: &str, answer: CreateContainerResponse) -> Result<(), Refused> {
        let id = self.request.container.get_or_insert_default().id.clone();
        if let Some(wanted) = answer.adjust {
            self.adjust(&id, plugin, wanted)?;
        }
        self.updates.add(plugin, answer.update, None, Some(&id))?;
        self.updates.evict(answer.evict);
        Ok(())
    }

    /// What a validating plugin is asked. `pristine` is the request as the first plugin got it.
    pub(crate) fn validation(&self, pristine: CreateContainerRequest) -> ValidateContainerAdjustmentRequest {
        ValidateContainerAdjustmentRequest {
            pod: pristine.pod,
            container: pristine.container,
            adjust: Some(self.adjust.clone()),
            update: self.updates.others().to_vec(),
            owners: Some(self.updates.owners.message()),
            plugins: Vec::new(),
        }
    }

    pub(crate) fn finish(self) -> (ContainerAdjustment, Vec<ContainerUpdate>, Vec<ContainerEviction>) {
        let (updates, evictions) = self.updates.into_parts();
        (self.adjust, updates, evictions)
    }

    fn adjust(&mut self, id: &str, plugin: &str, wanted: ContainerAdjustment) -> Result<(), Refused> {
        let wish = |field| Wish { container: id, plugin, field };
        let owners = &mut self.updates.owners;
        let view = self.request.container.get_or_insert_default();
        let adjust = &mut self.adjust;
        keyed::map(
            owners,
            wish(Field::Annotations),
            wanted.annotations,
            &mut adjust.annotations,
            &mut view.annotations,
        )?;
        keyed::list(owners, wish(Field::Mounts), wanted.mounts, &mut adjust.mounts)?.apply(&mut view.mounts);
        keyed::list(owners, wish(Field::Env), wanted.env, &mut adjust.env)?
            .apply_to_text(&mut view.env, |entry| format!("{}={}", entry.key, entry.value));
        match wanted.args.split_first() {
            None => {}
            Some((first, rest)) => {
                let claim = [(Field::Args, None)];
                let args = match first.is_empty() {
                    true => {
                        owners.clear(id, plugin, &claim);
                        rest
                    }
                    false => &wanted.args[..],
                };
                owners.claim(id, plugin, &claim)?;
                adjust.args = args.to_vec();
                view.args = args.to_vec();
            }
        }
        if let Some(hooks) = wanted.hooks.filter(|hooks| *hooks != Hooks::default()) {
            owners.share(id, plugin, Field::OciHooks);
            add_hooks(adjust.hooks.get_or_insert_default(), &hooks);
            add_hooks(view.hooks.get_or_insert_default(), &hooks);
        }
        for limit in wanted.rlimits {
            owners.claim(id, plugin, &[(Field::Rlimits, Some(limit.r#type.clone()))])?;
            view.rlimits.retain(|known| known.r#type != limit.r#type);
            view.rlimits.push(limit.clone());
            adjust.rlimits.push(limit);
        }
        for device in wanted.cdi_devices {
            owners.claim(id, plugin, &[(Field::CdiDevices, Some(device.name.clone()))])?;
            adjust.cdi_devices.push(device);
        }
        match wanted.linux {
            Some(linux) => self.adjust_linux(id, plugin, linux),
            None => Ok(()),
        }
    }

    fn adjust_linux(
        &mut self,
        id: &str,
        plugin: &str,
        wanted: LinuxContainerAdjustment,
    ) -> Result<(), Refused> {
        let wish = |field| Wish { container: id, plugin, field };
        let owners = &mut self.updates.owners;
        let view: &mut LinuxContainer =
            self.request.container.get_or_insert_default().linux.get_or_insert_default();
        let adjust = self.adjust.linux.get_or_insert_default();
        keyed::list(owners, wish(Field::Devices), wanted.devices, &mut adjust.devices)?
            .apply(&mut view.devices);
        keyed::list(owners, wish(Field::Namespace), wanted.namespaces, &mut adjust.namespaces)?
            .apply(&mut view.namespaces);
        keyed::map(owners, wish(Field::Sysctl), wanted.sysctl, &mut adjust.sysctl, &mut view.sysctl)?;
        keyed::map(
            owners,
            wish(Field::LinuxNetDevices),
            wanted.net_devices,
            &mut adjust.net_devices,
            &mut view.net_devices,
        )?;
        if let Some(wanted) = &wanted.resources {
            owners.claim(id, plugin, &resources::claims(wanted))?;
            overlay(adjust.resources.get_or_insert_with(LinuxResources::default), wanted);
            overlay(view.resources.get_or_insert_with(LinuxResources::default), wanted);
        }
        if !wanted.cgroups_path.is_empty() {
            owners.claim(id, plugin, &[(Field::CgroupsPath, None)])?;
            view.cgroups_path.clone_from(&wanted.cgroups_path);
            adjust.cgroups_path = wanted.cgroups_path;
        }
        // Fields that are set whole; what stands behind the arrow in the view as well.
        macro_rules! whole {
            ($($field:ident $name:ident $(=> $seen:ident)?;)*) => {
                $(if let Some(wanted) = wanted.$field {
                    owners.claim(id, plugin, &[(Field::$name, None)])?;
                    $(view.$seen = Some(wanted.clone());)?
                    adjust.$field = Some(wanted);
                })*
            };
        }
        whole! {
            oom_score_adj OomScoreAdj => oom_score_adj;
            io_priority IoPriority => io_priority;
            seccomp_policy SeccompPolicy => seccomp_policy;
            scheduler LinuxSched => scheduler;
            memory_policy MemoryPolicy;
        }
        let Some(rdt) = wanted.rdt else { return Ok(()) };
        let fields = [
            (Field::RdtClosId, rdt.clos_id.is_some()),
            (Field::RdtSchemata, rdt.schemata.is_some()),
            (Field::RdtEnableMonitoring, rdt.enable_monitoring.is_some()),
        ];
        let collected = adjust.rdt.get_or_insert_default();
        if rdt.remove {
            owners.clear(id, plugin, &fields.map(|(field, _)| (field, None)));
            *collected = crate::LinuxRdt { remove: true, ..Default::default() };
        }
        let set = fields.into_iter().filter(|(_, set)| *set).map(|(field, _)| (field, None));
        owners.claim(id, plugin, &set.collect::<Vec<_>>())?;
        collected.clos_id = rdt.clos_id.or(collected.clos_id.take());
        collected.schemata = rdt.schemata.or(collected.schemata.take());
        collected.enable_monitoring = rdt.enable_monitoring.or(collected.enable_monitoring.take());
        view.rdt = Some(collected.clone());
        Ok(())
    }
}

fn add_hooks(to: &mut Hooks, hooks: &Hooks) {
    to.prestart.extend_from_slice(&hooks.prestart);
    to.create_runtime.extend_from_slice(&hooks.create_runtime);
    to.create_container.extend_from_slice(&hooks.create_container);
    to.start_container.extend_from_slice(&hooks.start_container);
    to.poststart.extend_from_slice(&hooks.poststart);
    to.poststop.extend_from_slice(&hooks.poststop);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Container, OptionalInt};

    fn creation() -> Creation {
        let container =
            Container { id: "new".to_owned(), args: vec!["sleep".to_owned()], ..Default::default() };
        Creation::new(CreateContainerRequest { pod: None, container: Some(container) })
    }

    fn answer(adjust: ContainerAdjustment) -> CreateContainerResponse {
        CreateContainerResponse { adjust: Some(adjust), ..Default::default() }
    }

    fn args(words: &[&str]) -> CreateContainerResponse {
        let args = words.iter().map(|word| (*word).to_owned()).collect();
        answer(ContainerAdjustment { args, ..Default::default() })
    }

    #[test]
    fn a_command_is_set_by_one_plugin_unless_a_later_one_means_to_override_it() {
        let mut creation = creation();
        creation.add("10-a", args(&["true"])).unwrap();
        assert!(creation.add("20-b", args(&["false"])).is_err());
        creation.add("20-b", args(&["", "false", "x"])).unwrap();
        assert_eq!(creation.request().container.as_ref().unwrap().args, ["false", "x"]);
        assert_eq!(creation.finish().0.args, ["false", "x"]);
    }

    #[test]
    fn what_is_set_whole_belongs_to_one_plugin_and_the_next_one_sees_it() {
        let mut creation = creation();
        let linux =
            LinuxContainerAdjustment { oom_score_adj: Some(OptionalInt { value: 7 }), ..Default::default() };
        let adjustment = ContainerAdjustment { linux: Some(linux), ..Default::default() };
        creation.add("10-a", answer(adjustment.clone())).unwrap();
        let seen = creation.request().container.as_ref().unwrap().linux.as_ref().unwrap();
        assert_eq!(seen.oom_score_adj, Some(OptionalInt { value: 7 }));
        let error = creation.add("20-b", answer(adjustment)).unwrap_err();
        assert!(error.to_string().contains("OomScoreAdj"), "{error}");
    }

    #[test]
    fn hooks_of_all_plugins_are_there() {
        let mut creation = creation();
        for plugin in ["10-a", "20-b"] {
            let hook = crate::Hook { path: format!("/{plugin}"), ..Default::default() };
            let hooks = Some(Hooks { poststop: vec![hook], ..Default::default() });
            creation.add(plugin, answer(ContainerAdjustment { hooks, ..Default::default() })).unwrap();
        }
        let owners = creation.validation(CreateContainerRequest::default()).owners.unwrap();
        assert_eq!(owners.owners["new"].simple[&(Field::OciHooks as i32)], "10-a,20-b");
        assert_eq!(creation.finish().0.hooks.unwrap().poststop.len(), 2);
    }
}
