//! Edits become part of an OCI spec.

use std::collections::HashMap;

use oci_spec::runtime::{
    Hook as OciHook, Hooks, Linux, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt,
    LinuxNetDevice, LinuxNetDeviceBuilder, Mount as OciMount, Process, Spec,
};

use super::edits::{DeviceNode, Edits, Hook, HookName, IntelRdt, Mount, NetDevice, NodeType};

/// Edits that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The caller did not say which device a node stands for.
    #[error("device node {0}: neither its file nor the host says what it is")]
    UnknownDevice(String),
}

impl Edits {
    /// Makes them in a container's spec. What is there already at a device's or a mount's path is replaced.
    ///
    /// # Errors
    /// [`ApplyError::UnknownDevice`]; the spec is then of no use.
    pub fn apply(self, spec: &mut Spec) -> Result<(), ApplyError> {
        let mut process = spec.process().clone().unwrap_or_default();
        let mut linux = spec.linux().clone().unwrap_or_default();
        set_variables(&mut process, self.env);
        add_groups(&mut process, self.additional_gids);
        for node in self.device_nodes {
            add_device(&mut linux, &process, node)?;
        }
        add_net_devices(&mut linux, self.net_devices);
        if let Some(rdt) = self.intel_rdt {
            linux.set_intel_rdt(Some(intel_rdt(rdt)));
        }
        spec.set_process(Some(process)).set_linux(Some(linux));
        add_mounts(spec, self.mounts);
        add_hooks(spec, self.hooks);
        Ok(())
    }
}

fn set_variables(process: &mut Process, variables: Vec<String>) {
    let mut environment = process.env().clone().unwrap_or_default();
    for variable in variables {
        let name_and_sign = variable.split_inclusive('=').next().unwrap_or(&variable);
        match environment.iter_mut().find(|known| known.starts_with(name_and_sign)) {
            Some(known) => *known = variable,
            None => environment.push(variable),
        }
    }
    process.set_env(Some(environment));
}

fn add_groups(process: &mut Process, groups: Vec<u32>) {
    let mut user = process.user().clone();
    let mut all = user.additional_gids().clone().unwrap_or_default();
    for group in groups {
        // 0 is no group to be given by a device (SPEC.md, "additionalGids").
        if group != 0 && !all.contains(&group) {
            all.push(group);
        }
    }
    user.set_additional_gids(Some(all));
    process.set_user(user);
}

fn add_device(linux: &mut Linux, process: &Process, node: DeviceNode) -> Result<(), ApplyError> {
    if node.is_incomplete() {
        return Err(ApplyError::UnknownDevice(node.path.display().to_string()));
    }
    let kind = match node.kind {
        Some(NodeType::Block) => LinuxDeviceType::B,
        Some(NodeType::Fifo) => LinuxDeviceType::P,
        Some(NodeType::Character) | None => LinuxDeviceType::C,
    };
    let (major, minor) = (node.major.unwrap_or(0), node.minor.unwrap_or(0));
    // A container that is not root's would otherwise not get at the device that it was given.
    let user = process.user();
    let mut device = LinuxDeviceBuilder::default()
        .path(&node.path)
        .typ(kind)
        .major(major)
        .minor(minor)
        .uid(node.uid.unwrap_or(user.uid()))
        .gid(node.gid.unwrap_or(user.gid()))
        .build()
        .expect("every field of this builder has a default");
    device.set_file_mode(node.file_mode);
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| known.path() != &node.path);
    devices.push(device);
    linux.set_devices(Some(devices));

    if kind != LinuxDeviceType::P {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_typ(Some(kind)).set_major(Some(major)).set_minor(Some(minor));
        let access = node.permissions.filter(|letters| !letters.is_empty());
        rule.set_access(Some(access.unwrap_or_else(|| "rwm".to_owned())));
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    Ok(())
}

fn add_net_devices(linux: &mut Linux, devices: Vec<NetDevice>) {
    if devices.is_empty() {
        return;
    }
    let mut all: HashMap<String, LinuxNetDevice> = linux.net_devices().clone().unwrap_or_default();
    all.extend(devices.into_iter().map(|NetDevice { host, name }| {
        let device = LinuxNetDeviceBuilder::default().name(name).build();
        (host, device.expect("every field of this builder has a default"))
    }));
    linux.set_net_devices(Some(all));
}

fn intel_rdt(rdt: IntelRdt) -> LinuxIntelRdt {
    let mut made = LinuxIntelRdt::default();
    made.set_clos_id(rdt.clos_id)
        .set_l3_cache_schema(rdt.l3_cache_schema)
        .set_mem_bw_schema(rdt.mem_bw_schema);
    made.set_schemata(Some(rdt.schemata).filter(|lines| !lines.is_empty()));
    // The two older words ask for halves of the newer one.
    made.set_enable_monitoring((rdt.enable_monitoring || rdt.enable_cmt || rdt.enable_mbm).then_some(true));
    made
}

/// Mounts nearer to the root come first, so that none is hidden by a later one.
fn add_mounts(spec: &mut Spec, mounts: Vec<Mount>) {
    if mounts.is_empty() {
        return;
    }
    let mut all = spec.mounts().clone().unwrap_or_default();
    for Mount { host_path, container_path, options, kind } in mounts {
        all.retain(|known| known.destination() != &container_path);
        let mut mount = OciMount::default();
        mount.set_destination(container_path).set_source(Some(host_path)).set_options(options);
        mount.set_typ(kind.filter(|kind| !kind.is_empty()));
        // Without a type or an option that says so it can only be meant as a bind.
        let says_bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        if mount.typ().is_none() && !says_bind {
            mount.set_typ(Some("bind".to_owned()));
        }
        all.push(mount);
    }
    all.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(all));
}

#[allow(deprecated, reason = "prestart hooks are deprecated, and vendors still use them")]
fn add_hooks(spec: &mut Spec, hooks: Vec<Hook>) {
    if hooks.is_empty() {
        return;
    }
    let mut all = spec.hooks().clone().unwrap_or_default();
    for hook in hooks {
        let list = match hook.hook_name {
            HookName::Prestart => Hooks::prestart_mut,
            HookName::CreateRuntime => Hooks::create_runtime_mut,
            HookName::CreateContainer => Hooks::create_container_mut,
            HookName::StartContainer => Hooks::start_container_mut,
            HookName::Poststart => Hooks::poststart_mut,
            HookName::Poststop => Hooks::poststop_mut,
        };
        let mut made = OciHook::default();
        made.set_path(hook.path).set_args(hook.args).set_env(hook.env).set_timeout(hook.timeout);
        list(&mut all).get_or_insert_default().push(made);
    }
    spec.set_hooks(Some(all));
}
