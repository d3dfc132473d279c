//! What plugins want of a new container, in its spec.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{
    Hook as OciHook, Linux, LinuxDevice as OciDevice, LinuxDeviceCgroup as OciDeviceRule,
    LinuxNamespace as OciNamespace, LinuxNetDevice as OciNetDevice, Mount as OciMount,
    PosixRlimit as OciRlimit, Process, Spec,
};
use serde_json::{Value, json};

use super::{
    AdjustError,
    resources::{device_type, overlay},
};
use crate::{
    ContainerAdjustment, Hook, Hooks, IoPrioClass, KeyValue, LinuxContainerAdjustment, LinuxDevice,
    LinuxIoPriority, LinuxMemoryPolicy, LinuxNamespace, LinuxNetDevice, LinuxRdt, LinuxScheduler,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, LinuxSeccomp, Mount, MpolFlag, MpolMode, PosixRlimit,
    api::removed,
};

/// Changes a spec as plugins want it. CDI devices are not looked at: what they are only the caller knows.
///
/// # Errors
/// [`AdjustError`], with the field as the OCI spec calls it.
pub fn adjust(
    spec: &mut Spec,
    wanted: ContainerAdjustment,
    swap_controller: bool,
) -> Result<(), AdjustError> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    change_map(&mut annotations, wanted.annotations, |value| value);
    spec.set_annotations(Some(annotations));
    if let Some(hooks) = &wanted.hooks {
        add_hooks(spec, hooks)?;
    }
    let mut process = spec.process().clone().unwrap_or_default();
    change_env(&mut process, &wanted.env);
    if !wanted.args.is_empty() {
        process.set_args(Some(wanted.args));
    }
    set_rlimits(&mut process, &wanted.rlimits)?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    if let Some(wanted) = wanted.linux {
        set_process(&mut process, &wanted)?;
        set_linux(&mut linux, wanted, swap_controller)?;
    }
    if !wanted.mounts.is_empty() {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        change_mounts(&mut mounts, &wanted.mounts);
        spread(&mut linux, &wanted.mounts);
        spec.set_mounts(Some(mounts));
    }
    spec.set_process(Some(process));
    spec.set_linux(Some(linux));
    Ok(())
}

/// Names of enums and the like are the same here and there; what is not among them is an error.
fn from_json<T: serde::de::DeserializeOwned>(field: &'static str, value: Value) -> Result<T, AdjustError> {
    serde_json::from_value(value).map_err(|error| AdjustError::Invalid { field, why: error.to_string() })
}

/// Taking away first: what replaces an entry stands beside its mark.
fn change_map<V, W>(map: &mut HashMap<String, W>, wanted: BTreeMap<String, V>, value: impl Fn(V) -> W) {
    for key in wanted.keys().filter_map(|key| removed(key)) {
        map.remove(key);
    }
    let set = wanted.into_iter().filter(|(key, _)| removed(key).is_none());
    map.extend(set.map(|(key, wanted)| (key, value(wanted))));
}

fn change_env(process: &mut Process, wanted: &[KeyValue]) {
    let mut env = process.env().clone().unwrap_or_default();
    for KeyValue { key, value } in wanted {
        let name = removed(key).unwrap_or(key);
        let known =
            env.iter_mut().find(|entry| entry.split_once('=').map_or(entry.as_str(), |(key, _)| key) == name);
        match (known, removed(key)) {
            (known, None) => {
                let entry = format!("{key}={value}");
                match known {
                    Some(known) => *known = entry,
                    None => env.push(entry),
                }
            }
            (_, Some(name)) => {
                env.retain(|entry| entry.split_once('=').map_or(entry.as_str(), |(key, _)| key) != name);
            }
        }
    }
    process.set_env(Some(env));
}

fn set_rlimits(process: &mut Process, wanted: &[PosixRlimit]) -> Result<(), AdjustError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for limit in wanted {
        let json = json!({ "type": limit.r#type, "hard": limit.hard, "soft": limit.soft });
        let limit: OciRlimit = from_json("process.rlimits", json)?;
        limits.retain(|known| known.typ() != limit.typ());
        limits.push(limit);
    }
    process.set_rlimits(Some(limits));
    Ok(())
}

fn add_hooks(spec: &mut Spec, wanted: &Hooks) -> Result<(), AdjustError> {
    fn add(known: &Option<Vec<OciHook>>, wanted: &[Hook]) -> Result<Option<Vec<OciHook>>, AdjustError> {
        let mut all = known.clone().unwrap_or_default();
        for hook in wanted {
            let timeout = hook.timeout.as_ref().map(|timeout| timeout.value);
            let json = json!({ "path": hook.path, "args": hook.args, "env": hook.env, "timeout": timeout });
            all.push(from_json("hooks", json)?);
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let prestart = add(hooks.prestart(), &wanted.prestart)?;
    hooks.set_prestart(prestart);
    hooks.set_create_runtime(add(hooks.create_runtime(), &wanted.create_runtime)?);
    hooks.set_create_container(add(hooks.create_container(), &wanted.create_container)?);
    hooks.set_start_container(add(hooks.start_container(), &wanted.start_container)?);
    hooks.set_poststart(add(hooks.poststart(), &wanted.poststart)?);
    hooks.set_poststop(add(hooks.poststop(), &wanted.poststop)?);
    spec.set_hooks(Some(hooks).filter(|hooks| *hooks != oci_spec::runtime::Hooks::default()));
    Ok(())
}

fn change_mounts(mounts: &mut Vec<OciMount>, wanted: &[Mount]) {
    for mount in wanted {
        let destination = Path::new(removed(&mount.destination).unwrap_or(&mount.destination));
        mounts.retain(|known| known.destination() != destination);
        if removed(&mount.destination).is_some() {
            continue;
        }
        let mut new = OciMount::default();
        new.set_destination(destination.to_owned());
        new.set_typ(Some(mount.r#type.clone()).filter(|kind| !kind.is_empty()));
        new.set_source(Some(PathBuf::from(&mount.source)).filter(|source| !source.as_os_str().is_empty()));
        new.set_options(Some(mount.options.clone()));
        mounts.push(new);
    }
    // A mount above another one must come first. What has the same depth stays in its order.
    mounts.sort_by_key(|mount| mount.destination().components().count());
}

/// A mount that is to be heard of on the other side needs a root that lets it.
fn spread(linux: &mut Linux, wanted: &[Mount]) {
    let has = |option: &str| wanted.iter().any(|mount| mount.options.iter().any(|given| given == option));
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    let wider = match propagation {
        "rshared" => None,
        _ if has("rshared") => Some("rshared"),
        "rslave" => None,
        _ if has("rslave") => Some("rslave"),
        _ => None,
    };
    if let Some(wider) = wider {
        linux.set_rootfs_propagation(Some(wider.to_owned()));
    }
}

fn set_process(process: &mut Process, wanted: &LinuxContainerAdjustment) -> Result<(), AdjustError> {
    if let Some(score) = &wanted.oom_score_adj {
        let why = || format!("{} is out of range", score.value);
        let fits = i32::try_from(score.value).ok().filter(|score| (-1000..=1000).contains(score));
        let score = fits.ok_or_else(|| AdjustError::Invalid { field: "process.oomScoreAdj", why: why() })?;
        process.set_oom_score_adj(Some(score));
    }
    if let Some(LinuxIoPriority { class, priority }) = wanted.io_priority {
        let priority = match IoPrioClass::try_from(class) {
            Ok(IoPrioClass::IoprioClassNone) => None,
            class => {
                let class = class.map(|class| class.as_str_name()).unwrap_or_default();
                Some(from_json("process.ioPriority", json!({ "class": class, "priority": priority }))?)
            }
        };
        process.set_io_priority(priority);
    }
    if let Some(wanted) = &wanted.scheduler {
        process.set_scheduler(scheduler(wanted)?);
    }
    Ok(())
}

fn scheduler(wanted: &LinuxScheduler) -> Result<Option<oci_spec::runtime::Scheduler>, AdjustError> {
    let policy = LinuxSchedulerPolicy::try_from(wanted.policy).map(|policy| policy.as_str_name());
    if policy == Ok(LinuxSchedulerPolicy::SchedNone.as_str_name()) {
        return Ok(None);
    }
    let flags =
        wanted.flags.iter().map(|flag| LinuxSchedulerFlag::try_from(*flag).map(|flag| flag.as_str_name()));
    let json = json!({
        "policy": policy.unwrap_or_default(),
        "nice": wanted.nice,
        "priority": wanted.priority,
        "flags": flags.map(Result::unwrap_or_default).collect::<Vec<_>>(),
        "runtime": wanted.runtime,
        "deadline": wanted.deadline,
        "period": wanted.period,
    });
    from_json("process.scheduler", json).map(Some)
}

fn set_linux(
    linux: &mut Linux,
    wanted: LinuxContainerAdjustment,
    swap_controller: bool,
) -> Result<(), AdjustError> {
    if !wanted.cgroups_path.is_empty() {
        return Err(AdjustError::Unsupported("linux.cgroupsPath", "berth finds containers by their cgroups"));
    }
    if let Some(wanted) = &wanted.resources {
        let mut resources = linux.resources().clone().unwrap_or_default();
        overlay(&mut resources, wanted, swap_controller)?;
        linux.set_resources(Some(resources));
    }
    for device in &wanted.devices {
        change_device(linux, device)?;
    }
    for namespace in wanted.namespaces {
        change_namespace(linux, namespace)?;
    }
    if !wanted.sysctl.is_empty() {
        let mut sysctl = linux.sysctl().clone().unwrap_or_default();
        change_map(&mut sysctl, wanted.sysctl, |value| value);
        linux.set_sysctl(Some(sysctl).filter(|sysctl| !sysctl.is_empty()));
    }
    if !wanted.net_devices.is_empty() {
        let mut devices = linux.net_devices().clone().unwrap_or_default();
        change_map(&mut devices, wanted.net_devices, net_device);
        linux.set_net_devices(Some(devices).filter(|devices| !devices.is_empty()));
    }
    if let Some(wanted) = wanted.seccomp_policy {
        linux.set_seccomp(Some(seccomp(&wanted)?));
    }
    if let Some(wanted) = wanted.memory_policy {
        linux.set_memory_policy(Some(memory_policy(&wanted)?));
    }
    if let Some(wanted) = wanted.rdt {
        set_rdt(linux, wanted);
    }
    Ok(())
}

/// A node in /dev, and the right to use it.
fn change_device(linux: &mut Linux, wanted: &LinuxDevice) -> Result<(), AdjustError> {
    let path = removed(&wanted.path).unwrap_or(&wanted.path);
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| known.path() != Path::new(path));
    if removed(&wanted.path).is_none() {
        let kind = device_type("linux.devices.type", &wanted.r#type)?;
        let mut device = OciDevice::default();
        device.set_path(path.into()).set_typ(kind).set_major(wanted.major).set_minor(wanted.minor);
        device.set_file_mode(wanted.file_mode.as_ref().map(|mode| mode.value));
        device.set_uid(wanted.uid.as_ref().map(|uid| uid.value));
        device.set_gid(wanted.gid.as_ref().map(|gid| gid.value));
        devices.push(device);
        let mut rule = OciDeviceRule::default();
        rule.set_allow(true);
        rule.set_typ(Some(kind)).set_major(Some(wanted.major)).set_minor(Some(wanted.minor));
        rule.set_access(Some("rwm".to_owned()));
        let mut resources = linux.resources().clone().unwrap_or_default();
        resources.devices_mut().get_or_insert_default().push(rule);
        linux.set_resources(Some(resources));
    }
    linux.set_devices(Some(devices));
    Ok(())
}

fn change_namespace(linux: &mut Linux, wanted: LinuxNamespace) -> Result<(), AdjustError> {
    let name = removed(&wanted.r#type).unwrap_or(&wanted.r#type);
    let path = Some(wanted.path.as_str()).filter(|path| !path.is_empty());
    let new: OciNamespace = from_json("linux.namespaces", json!({ "type": name, "path": path }))?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|known| known.typ() != new.typ());
    if removed(&wanted.r#type).is_none() {
        namespaces.push(new);
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

fn net_device(wanted: LinuxNetDevice) -> OciNetDevice {
    let mut device = OciNetDevice::default();
    device.set_name(Some(wanted.name).filter(|name| !name.is_empty()));
    device
}

fn seccomp(wanted: &LinuxSeccomp) -> Result<oci_spec::runtime::LinuxSeccomp, AdjustError> {
    let syscalls = wanted.syscalls.iter().map(|syscall| {
        let args = syscall.args.iter().map(
            |arg| json!({ "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op }),
        );
        json!({
            "names": syscall.names,
            "action": syscall.action,
            "errnoRet": syscall.errno_ret.as_ref().map(|errno| errno.value),
            "args": args.collect::<Vec<_>>(),
        })
    });
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let json = json!({
        "defaultAction": wanted.default_action,
        "defaultErrnoRet": wanted.default_errno.as_ref().map(|errno| errno.value),
        "architectures": wanted.architectures,
        "flags": wanted.flags,
        "listenerPath": text(&wanted.listener_path),
        "listenerMetadata": text(&wanted.listener_metadata),
        "syscalls": syscalls.collect::<Vec<_>>(),
    });
    from_json("linux.seccomp", json)
}

fn memory_policy(wanted: &LinuxMemoryPolicy) -> Result<oci_spec::runtime::LinuxMemoryPolicy, AdjustError> {
    let mode = MpolMode::try_from(wanted.mode).map(|mode| mode.as_str_name()).unwrap_or_default();
    let flags = wanted.flags.iter().map(|flag| MpolFlag::try_from(*flag).map(|flag| flag.as_str_name()));
    let json = json!({
        "mode": mode,
        "nodes": wanted.nodes,
        "flags": flags.map(Result::unwrap_or_default).collect::<Vec<_>>(),
    });
    from_json("linux.memoryPolicy", json)
}

fn set_rdt(linux: &mut Linux, wanted: LinuxRdt) {
    let known = linux.intel_rdt().clone().filter(|_| !wanted.remove);
    let LinuxRdt { clos_id, schemata, enable_monitoring, .. } = wanted;
    if clos_id.is_none() && schemata.is_none() && enable_monitoring.is_none() {
        linux.set_intel_rdt(known);
        return;
    }
    let mut rdt = known.unwrap_or_default();
    if let Some(id) = clos_id {
        rdt.set_clos_id(Some(id.value));
    }
    if let Some(schemata) = schemata {
        rdt.set_schemata(Some(schemata.value));
    }
    if let Some(enable) = enable_monitoring {
        rdt.set_enable_monitoring(Some(enable.value));
    }
    linux.set_intel_rdt(Some(rdt));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Container, LinuxSyscall, OptionalInt, OptionalInt64, OptionalUInt32, oci::describe};

    fn spec() -> Spec {
        from_json(
            "spec",
            json!({
                "ociVersion": "1.0.2",
                "process": { "args": ["sleep"], "env": ["PATH=/bin", "HOME=/"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
                "mounts": [
                    { "destination": "/proc", "type": "proc" },
                    { "destination": "/data/inner", "type": "bind", "source": "/x", "options": ["rbind"] },
                ],
                "annotations": { "a": "1" },
                "linux": { "namespaces": [{ "type": "mount" }, { "type": "network", "path": "/proc/1/ns/net" }] },
            }),
        )
        .unwrap()
    }

    fn adjusted(wanted: ContainerAdjustment) -> Spec {
        let mut spec = spec();
        adjust(&mut spec, wanted, true).unwrap();
        spec
    }

    fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
        ContainerAdjustment { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn no_wish_changes_nothing() {
        let mut expected = spec();
        // What was absent may be there and empty.
        expected.set_annotations(expected.annotations().clone());
        assert_eq!(adjusted(ContainerAdjustment::default()), expected);
        assert_eq!(adjusted(linux(LinuxContainerAdjustment::default())), expected);
    }

    #[test]
    fn environment_annotations_and_command_are_changed_where_they_stand() {
        let pair = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.to_owned() };
        let spec = adjusted(ContainerAdjustment {
            env: vec![pair("-HOME", ""), pair("-PATH", ""), pair("PATH", "/sbin"), pair("NEW", "1")],
            annotations: [("-a".to_owned(), String::new()), ("b".to_owned(), "2".to_owned())].into(),
            args: vec!["true".to_owned()],
            ..Default::default()
        });
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_deref().unwrap(), ["PATH=/sbin", "NEW=1"]);
        assert_eq!(process.args().as_deref().unwrap(), ["true"]);
        assert_eq!(spec.annotations().clone().unwrap(), HashMap::from([("b".to_owned(), "2".to_owned())]));
    }

    #[test]
    fn a_mount_above_another_comes_first_and_one_taken_away_is_gone() {
        let mount = |destination: &str, options: &[&str]| Mount {
            destination: destination.to_owned(),
            r#type: "bind".to_owned(),
            source: "/host".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let spec = adjusted(ContainerAdjustment {
            mounts: vec![mount("-/proc", &[]), mount("/data", &["rbind", "rslave"])],
            ..Default::default()
        });
        let mounts = spec.mounts().as_ref().unwrap();
        let places: Vec<_> = mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
        assert_eq!(places, ["/data", "/data/inner"]);
        assert_eq!(spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some("rslave"));
    }

    #[test]
    fn names_that_the_spec_does_not_know_are_errors_with_the_field() {
        let mut spec = spec();
        let mut error = |wanted| adjust(&mut spec, wanted, true).unwrap_err().to_string();
        let rlimit = PosixRlimit { r#type: "RLIMIT_FUN".to_owned(), hard: 1, soft: 1 };
        let wanted = ContainerAdjustment { rlimits: vec![rlimit], ..Default::default() };
        assert!(error(wanted).starts_with("process.rlimits"));
        let policy = LinuxSeccomp { default_action: "SCMP_ACT_FUN".to_owned(), ..Default::default() };
        let wanted = LinuxContainerAdjustment { seccomp_policy: Some(policy), ..Default::default() };
        assert!(error(linux(wanted)).starts_with("linux.seccomp"));
        let wanted = LinuxContainerAdjustment { cgroups_path: "/x".to_owned(), ..Default::default() };
        assert!(error(linux(wanted)).starts_with("linux.cgroupsPath"));
        let score = Some(OptionalInt { value: 2000 });
        let wanted = LinuxContainerAdjustment { oom_score_adj: score, ..Default::default() };
        assert!(error(linux(wanted)).starts_with("process.oomScoreAdj"));
    }

    #[test]
    fn what_linux_alone_has_becomes_the_spec_s() {
        let syscall = LinuxSyscall {
            names: vec!["mkdir".to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(OptionalUInt32 { value: 1 }),
            args: Vec::new(),
        };
        let spec = adjusted(linux(LinuxContainerAdjustment {
            devices: vec![LinuxDevice {
                path: "/dev/fun".to_owned(),
                r#type: "c".to_owned(),
                major: 1,
                minor: 3,
                ..Default::default()
            }],
            namespaces: vec![LinuxNamespace { r#type: "-network".to_owned(), path: String::new() }],
            seccomp_policy: Some(LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".to_owned(),
                architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
                syscalls: vec![syscall],
                ..Default::default()
            }),
            io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassBe.into(), priority: 3 }),
            scheduler: Some(LinuxScheduler {
                policy: LinuxSchedulerPolicy::SchedBatch.into(),
                nice: 5,
                ..Default::default()
            }),
            memory_policy: Some(LinuxMemoryPolicy {
                mode: MpolMode::MpolBind.into(),
                nodes: "0".to_owned(),
                flags: vec![MpolFlag::MpolFStaticNodes.into()],
            }),
            sysctl: [("net.core.somaxconn".to_owned(), "7".to_owned())].into(),
            rdt: Some(LinuxRdt {
                clos_id: Some(crate::OptionalString { value: "gold".to_owned() }),
                ..Default::default()
            }),
            ..Default::default()
        }));
        let value = serde_json::to_value(&spec).unwrap();
        assert_eq!(value["linux"]["devices"][0]["path"], "/dev/fun");
        assert_eq!(value["linux"]["resources"]["devices"][0]["access"], "rwm");
        assert_eq!(value["linux"]["namespaces"], json!([{ "type": "mount" }]));
        assert_eq!(value["linux"]["seccomp"]["syscalls"][0]["errnoRet"], 1);
        assert_eq!(value["process"]["ioPriority"]["class"], "IOPRIO_CLASS_BE");
        assert_eq!(value["process"]["scheduler"]["policy"], "SCHED_BATCH");
        assert_eq!(value["linux"]["memoryPolicy"]["mode"], "MPOL_BIND");
        assert_eq!(value["linux"]["sysctl"]["net.core.somaxconn"], "7");
        assert_eq!(value["linux"]["intelRdt"]["closID"], "gold");
    }

    #[test]
    fn hooks_and_limits_are_seen_again_by_the_next_plugin() {
        let hook = Hook {
            path: "/bin/hook".to_owned(),
            args: vec!["hook".to_owned()],
            env: Vec::new(),
            timeout: Some(OptionalInt { value: 3 }),
        };
        let resources = crate::LinuxResources {
            memory: Some(crate::LinuxMemory {
                limit: Some(OptionalInt64 { value: 9 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let spec = adjusted(ContainerAdjustment {
            hooks: Some(Hooks { create_runtime: vec![hook.clone()], ..Default::default() }),
            rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".to_owned(), hard: 8, soft: 4 }],
            linux: Some(LinuxContainerAdjustment { resources: Some(resources), ..Default::default() }),
            ..Default::default()
        });
        let mut seen = Container::default();
        describe(&spec, &mut seen);
        assert_eq!(seen.hooks.unwrap().create_runtime, [hook]);
        assert_eq!(seen.rlimits[0].r#type, "RLIMIT_NOFILE");
        let linux = seen.linux.unwrap();
        assert_eq!(linux.resources.unwrap().memory.unwrap().limit, Some(OptionalInt64 { value: 9 }));
        assert_eq!(linux.namespaces[1].path, "/proc/1/ns/net");
    }
}
