//! Whole specs, as golden files, for the kinds of containers there are; and single rules that a golden file would hide.

use berth_cri::runtime::v1::{
    Capability as CriCapability, ContainerConfig, ContainerMetadata, HugepageLimit, IdMapping, ImageSpec,
    KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SeLinuxOption, SecurityProfile, UserNamespace,
};
use berth_oci::{
    AppArmor, ContainerInput, ContainerSpec, DeviceKind, HostFacts, ImageDefaults, ImageVolume, OpenFiles,
    PidNamespace, PodFiles, PodNamespaces, ResolvedDevice, ResolvedUser, SpecError, capabilities_from_mask,
    container_spec, exec_process, image_volumes, seccomp::Profile,
};
use serde_json::Value;
use std::path::Path;

/// Owns what a [`ContainerInput`] borrows.
struct Case {
    sandbox: PodSandboxConfig,
    container: ContainerConfig,
    image: ImageDefaults,
    user: ResolvedUser,
    host: HostFacts,
    namespaces: PodNamespaces,
    files: PodFiles,
    seccomp: Profile<'static>,
    devices: Vec<ResolvedDevice>,
    volumes: Vec<ImageVolume>,
}

impl Case {
    /// What crictl sends from its shortest files, in a pod with namespaces of its own.
    fn minimal() -> Self {
        Self {
            sandbox: PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: "web".into(),
                    uid: "8a1f".into(),
                    namespace: "default".into(),
                    attempt: 1,
                }),
                hostname: "web".into(),
                ..Default::default()
            },
            container: ContainerConfig {
                metadata: Some(ContainerMetadata { name: "app".into(), attempt: 0 }),
                image: Some(ImageSpec { image: "busybox:1".into(), ..Default::default() }),
                ..Default::default()
            },
            image: ImageDefaults {
                env: vec!["LANG=C.UTF-8".into(), "novalue".into()],
                cmd: vec!["sh".into()],
                ..Default::default()
            },
            user: ResolvedUser { uid: 0, gid: 0, additional_gids: vec![0, 10], home: "/root".into() },
            host: HostFacts {
                bounding: capabilities_from_mask(u64::MAX),
                swap: true,
                hugetlb: true,
                seccomp: true,
                apparmor: AppArmor::Disabled,
                selinux: false,
                hostname: "node-1".into(),
                kernel: (6, 1),
                open_files: OpenFiles { soft: 1024, hard: 524_288 },
            },
            namespaces: PodNamespaces {
                network: Some("/proc/42/ns/net".into()),
                ipc: Some("/proc/42/ns/ipc".into()),
                uts: Some("/proc/42/ns/uts".into()),
                pid: PidNamespace::New,
                user: None,
            },
            files: PodFiles {
                resolv_conf: "/run/berth/pods/p/resolv.conf".into(),
                hostname: "/run/berth/pods/p/hostname".into(),
                shm: "/run/berth/pods/p/shm".into(),
                hosts: Some("/run/berth/pods/p/hosts".into()),
            },
            seccomp: Profile::Unconfined,
            devices: Vec::new(),
            volumes: Vec::new(),
        }
    }

    fn linux(&mut self) -> &mut LinuxContainerConfig {
        self.container.linux.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux().resources.get_or_insert_default()
    }

    fn privileged(mut self) -> Self {
        self.security().privileged = true;
        self.sandbox.linux = Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { privileged: true, ..Default::default() }),
            ..Default::default()
        });
        self
    }

    fn build(&self) -> Result<ContainerSpec, SpecError> {
        container_spec(&ContainerInput {
            sandbox_id: "5a4d",
            sandbox: &self.sandbox,
            container: &self.container,
            image: &self.image,
            user: &self.user,
            host: &self.host,
            namespaces: &self.namespaces,
            cgroups_path: "/kubepods/burstable/pod8a1f/c0ffee",
            rootfs: Path::new("/run/berth/pods/p/c0ffee/rootfs"),
            files: &self.files,
            seccomp: self.seccomp,
            devices: &self.devices,
            volumes: &self.volumes,
        })
    }

    fn spec(&self) -> Value {
        let mut spec =
            serde_json::to_value(self.build().expect("the request is met").spec).expect("specs are JSON");
        // Sets have no order of their own.
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            if let Some(Value::Array(names)) = spec.pointer_mut(&format!("/process/capabilities/{set}")) {
                names.sort_by_key(ToString::to_string);
            }
        }
        // The profile has tests of its own; here only that it is the right one.
        if let Some(filter) = spec.pointer_mut("/linux/seccomp") {
            let rules = filter["syscalls"].as_array().map_or(0, Vec::len);
            filter["syscalls"] = Value::String(format!("{rules} rules"));
        }
        spec
    }

    fn fault(&self) -> String {
        self.build().expect_err("the request is refused").to_string()
    }

    fn destinations(&self) -> Vec<String> {
        let spec = self.spec();
        let mounts = spec["mounts"].as_array().into_iter().flatten();
        mounts.filter_map(|mount| mount["destination"].as_str()).map(str::to_owned).collect()
    }
}

fn mount(container_path: &str, host_path: &str) -> Mount {
    Mount { container_path: container_path.into(), host_path: host_path.into(), ..Default::default() }
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.as_bytes().to_vec() }
}

/// What kubelet sends for a burstable pod with the usual mounts.
fn burstable() -> Case {
    let mut case = Case::minimal();
    case.container.command = vec!["/app".into()];
    case.container.args = vec!["--serve".into()];
    case.container.working_dir = "/srv".into();
    case.container.envs = vec![env("KUBERNETES_PORT", "tcp://10.96.0.1:443"), env("LANG", "de_DE.UTF-8")];
    case.container.mounts = vec![
        Mount {
            readonly: true,
            ..mount("/var/run/secrets/kubernetes.io/serviceaccount", "/var/lib/kubelet/pods/u/token")
        },
        mount("/etc/hosts", "/var/lib/kubelet/pods/u/etc-hosts"),
        mount("/dev/termination-log", "/var/lib/kubelet/pods/u/containers/app/1a2b3c4d"),
    ];
    case.user = ResolvedUser { uid: 1000, gid: 1000, additional_gids: vec![1000, 2000], home: "/".into() };
    case.seccomp = Profile::RuntimeDefault;
    *case.resources() = LinuxContainerResources {
        cpu_shares: 256,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 968,
        cpuset_cpus: "0-1".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    *case.security() = LinuxContainerSecurityContext {
        capabilities: Some(CriCapability {
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        }),
        no_new_privs: true,
        readonly_rootfs: true,
        masked_paths: vec!["/proc/kcore".into(), "/proc/interrupts".into()],
        readonly_paths: vec!["/proc/sys".into()],
        seccomp: Some(SecurityProfile::default()),
        ..Default::default()
    };
    case
}

#[test]
fn golden_minimal() {
    insta::assert_json_snapshot!(Case::minimal().spec());
}

#[test]
fn golden_burstable_pod_of_kubelet() {
    let case = burstable();
    assert_eq!(case.build().unwrap().warnings, [""; 0]);
    insta::assert_json_snapshot!(case.spec());
}

#[test]
fn golden_privileged() {
    let mut case = Case::minimal().privileged();
    // All of it is overruled.
    case.seccomp = Profile::RuntimeDefault;
    case.security().masked_paths = vec!["/proc/kcore".into()];
    case.host.bounding = capabilities_from_mask(1 << 21 | 1 << 12);
    let node = |path: &str, kind, major, minor| ResolvedDevice {
        path: path.into(),
        kind,
        major,
        minor,
        mode: 0o100_660,
        uid: 0,
        gid: 6,
        permissions: "rwm".into(),
    };
    case.devices = vec![
        node("/dev/null", DeviceKind::Character, 1, 3),
        node("/dev/vda", DeviceKind::Block, 254, 0),
        node("/dev/pts/0", DeviceKind::Character, 136, 0),
        node("/dev/vda", DeviceKind::Block, 254, 9),
    ];
    insta::assert_json_snapshot!(case.spec());
}

#[test]
fn golden_host_namespaces() {
    let mut case = Case::minimal();
    case.sandbox.hostname.clear();
    case.namespaces =
        PodNamespaces { network: None, ipc: None, uts: None, pid: PidNamespace::Host, user: None };
    case.files.shm = "/dev/shm".into();
    insta::assert_json_snapshot!(case.spec());
}

/// A pod of kubelet's with hostUsers: false, and one container with a volume.
fn with_user_ids() -> Case {
    let range = vec![IdMapping { container_id: 0, host_id: 131_072, length: 65_536 }];
    let mut case = Case::minimal();
    case.namespaces.user = Some(berth_oci::UserNamespace {
        path: "/proc/42/fd/9".into(),
        uids: range.clone(),
        gids: range.clone(),
    });
    case.security().namespace_options = Some(NamespaceOption {
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod as i32,
            uids: range.clone(),
            gids: range.clone(),
        }),
        ..Default::default()
    });
    case.container.mounts.push(Mount {
        container_path: "/data".into(),
        host_path: "/var/lib/kubelet/pods/p/volumes/v".into(),
        uid_mappings: range.clone(),
        gid_mappings: range,
        ..Default::default()
    });
    case
}

#[test]
fn golden_user_namespace() {
    insta::assert_json_snapshot!(with_user_ids().spec());
}

#[test]
fn a_user_namespace_holds_the_whole_container() {
    let mut case = with_user_ids();
    case.user.uid = 65_536;
    assert!(case.fault().contains("user 65536 of the container"), "{}", case.fault());
    let mut case = with_user_ids();
    case.user.additional_gids.push(70_000);
    assert!(case.fault().contains("group 70000 of the container"), "{}", case.fault());
    let mut case = with_user_ids();
    case.security().namespace_options.as_mut().unwrap().userns_options.as_mut().unwrap().mode = 2;
    assert!(case.fault().contains("the same as the pod sandbox's"), "{}", case.fault());
    let mut case = with_user_ids();
    case.security().namespace_options = None;
    assert!(case.build().is_ok(), "without options of its own it does as its pod does");
    let mut case = with_user_ids();
    case.container.mounts[0].gid_mappings.clear();
    assert!(case.fault().starts_with("config.mounts[0].gidMappings"), "{}", case.fault());
    let mut case = with_user_ids();
    case.container.mounts[0].propagation = MountPropagation::PropagationBidirectional as i32;
    assert!(case.fault().starts_with("config.mounts[0].propagation"), "{}", case.fault());
}

#[test]
fn sysfs_of_the_hosts_network_is_the_hosts_own_mount_in_a_user_namespace() {
    let mut case = with_user_ids();
    case.namespaces.network = None;
    let spec = case.spec();
    let mounts = spec["mounts"].as_array().unwrap();
    let sys = mounts.iter().find(|mount| mount["destination"] == "/sys").unwrap();
    assert_eq!((&sys["type"], &sys["source"]), (&"bind".into(), &"/sys".into()));
    assert!(sys["options"].as_array().unwrap().contains(&"rro".into()), "{sys}");
}

#[test]
fn golden_sidecar_with_volumes() {
    let mut case = Case::minimal();
    case.container.tty = true;
    case.image.entrypoint = vec!["/proxy".into()];
    case.container.args = vec!["run".into()];
    case.namespaces.pid = PidNamespace::Path("/proc/77/ns/pid".into());
    case.container.mounts = vec![
        mount("/data/deep/er", "/srv/er"),
        Mount { readonly: true, recursive_read_only: true, ..mount("/data", "/srv") },
        Mount {
            propagation: MountPropagation::PropagationHostToContainer as i32,
            mount_options: vec!["noexec".into()],
            ..mount("/data/in", "/srv/in")
        },
        Mount {
            propagation: MountPropagation::PropagationBidirectional as i32,
            ..mount("/out/", "/srv/out")
        },
    ];
    case.image.volumes = vec!["/data".into(), "/var/cache".into()];
    assert_eq!(image_volumes(&case.image.volumes, &case.container), ["/var/cache"]);
    case.volumes =
        vec![ImageVolume { container_path: "/var/cache".into(), host_path: "/var/lib/berth/v/1".into() }];
    case.devices = vec![ResolvedDevice {
        path: "/dev/fuse".into(),
        kind: DeviceKind::Character,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        permissions: "rw".into(),
    }];
    insta::assert_json_snapshot!(case.spec());
}

#[test]
fn exec_differs_from_the_first_process_in_what_runs_and_its_terminal_only() {
    let built = burstable().build().unwrap().spec;
    let first = built.process().as_ref().unwrap();
    let exec = exec_process(first, &["id".into(), "-G".into()], true);
    let (mut first, mut exec) = (serde_json::to_value(first).unwrap(), serde_json::to_value(exec).unwrap());
    assert_eq!(exec["args"], serde_json::json!(["id", "-G"]));
    assert_eq!(exec["terminal"], true);
    assert_eq!(exec["env"].as_array().unwrap().last().unwrap(), "TERM=xterm");
    for value in [&mut first, &mut exec] {
        for set in ["bounding", "effective", "permitted"] {
            value["capabilities"][set].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        for differing in ["args", "terminal", "env"] {
            value.as_object_mut().unwrap().remove(differing);
        }
    }
    assert_eq!(first, exec);
}

#[test]
fn request_and_image_share_command_and_arguments_by_the_rules() {
    let run = |command: &[&str], args: &[&str], entrypoint: &[&str], cmd: &[&str]| {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut case = Case::minimal();
        case.container.command = owned(command);
        case.container.args = owned(args);
        case.image.entrypoint = owned(entrypoint);
        case.image.cmd = owned(cmd);
        case.build().map(|built| built.spec.process().as_ref().unwrap().args().clone().unwrap().join(" "))
    };
    assert_eq!(run(&["c"], &["a"], &["e"], &["d"]).unwrap(), "c a");
    assert_eq!(run(&["c"], &[], &["e"], &["d"]).unwrap(), "c");
    assert_eq!(run(&[], &["a"], &["e"], &["d"]).unwrap(), "e a");
    assert_eq!(run(&[], &[], &["e"], &["d"]).unwrap(), "e d");
    assert_eq!(run(&[], &["a"], &[], &["d"]).unwrap(), "a");
    assert!(run(&[], &[], &[], &[]).unwrap_err().to_string().starts_with("config.command: "));
}

#[test]
fn variables_of_the_request_win_and_keep_their_place() {
    let mut case = Case::minimal();
    case.image.env = vec!["PATH=/image".into(), "A=1".into(), "B=x=y".into()];
    case.container.envs = vec![env("A", "2"), env("HOME", "/custom"), env("C", ""), env("C", "3")];
    let spec = case.spec();
    assert_eq!(
        spec["process"]["env"],
        serde_json::json!(["PATH=/image", "HOSTNAME=web", "HOME=/custom", "A=2", "B=x=y", "C=3"])
    );
    case.container.envs = vec![KeyValue { key: "RAW".into(), value: vec![0xff] }];
    assert_eq!(case.fault(), "config.envs is not supported: the value of \"RAW\" is not UTF-8");
    case.container.envs = vec![env("A=B", "")];
    assert!(case.fault().starts_with("config.envs: "));
}

#[test]
fn mounts_nearer_the_root_come_first_and_replace_defaults() {
    let mut case = Case::minimal();
    case.container.mounts = vec![
        mount("/etc/nginx/conf.d", "/a"),
        mount("/etc/resolv.conf", "/b"),
        mount("/etc", "/c"),
        mount("/sys", "/sys"),
    ];
    let made = case.destinations();
    assert_eq!(
        made,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/etc",
            "/sys",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts",
            "/dev/shm",
            "/etc/nginx/conf.d"
        ]
    );
    case.container.mounts =
        vec![mount("/dev", "/dev"), mount("/dev/termination-log", "/log"), mount("/etc/hosts", "/h")];
    let made = case.destinations();
    assert!(!made.contains(&"/dev/pts".to_owned()) && !made.contains(&"/dev/mqueue".to_owned()), "{made:?}");
    assert_eq!(made.iter().filter(|path| *path == "/etc/hosts").count(), 1);
    assert!(made.iter().position(|p| p == "/dev") < made.iter().position(|p| p == "/dev/termination-log"));
}

#[test]
fn shared_root_serves_mounts_that_only_receive() {
    let propagation = |modes: &[MountPropagation]| {
        let mut case = Case::minimal();
        case.container.mounts = modes
            .iter()
            .enumerate()
            .map(|(index, mode)| Mount { propagation: *mode as i32, ..mount(&format!("/m{index}"), "/m") })
            .collect();
        case.spec()["linux"]["rootfsPropagation"].clone()
    };
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    assert_eq!(propagation(&[PropagationPrivate]), Value::Null);
    assert_eq!(propagation(&[PropagationHostToContainer, PropagationPrivate]), "rslave");
    assert_eq!(
        propagation(&[PropagationHostToContainer, PropagationBidirectional, PropagationHostToContainer]),
        "rshared"
    );
}

#[test]
fn mounts_that_cannot_be_made_are_refused_by_name() {
    let fault = |mount: Mount| {
        let mut case = Case::minimal();
        case.container.mounts = vec![mount];
        case.fault()
    };
    let recursive = Mount { recursive_read_only: true, ..mount("/a", "/a") };
    assert!(fault(recursive.clone()).starts_with("config.mounts[0].recursive_read_only: "));
    let slave = Mount { readonly: true, propagation: 1, ..recursive };
    assert!(fault(slave).starts_with("config.mounts[0].recursive_read_only: "));
    assert!(fault(mount("a", "/a")).starts_with("config.mounts[0].container_path: "));
    assert!(fault(mount("/../", "/a")).starts_with("config.mounts[0].container_path: "));
    assert!(fault(mount("/a", "")).starts_with("config.mounts[0].host_path: "));
    assert!(
        fault(Mount { propagation: 9, ..mount("/a", "/a") }).starts_with("config.mounts[0].propagation: ")
    );
    let image = Mount { image: Some(ImageSpec::default()), ..mount("/a", "") };
    assert!(fault(image).starts_with("config.mounts[0].image: "), "mounting it is the caller's");
    let option = Mount { mount_options: vec!["size=1".into()], ..mount("/a", "/a") };
    assert!(fault(option).starts_with("config.mounts[0].mount_options is not supported"));
}

#[test]
fn memory_limit_alone_leaves_no_swap_and_hosts_without_the_controller_say_so() {
    let memory = |limit, total, controller| {
        let mut case = Case::minimal();
        case.resources().memory_limit_in_bytes = limit;
        case.resources().memory_swap_limit_in_bytes = total;
        case.host.swap = controller;
        let built = case.build()?;
        Ok::<_, SpecError>((case.spec()["linux"]["resources"]["memory"].clone(), built.warnings.len()))
    };
    assert_eq!(memory(100, 0, true).unwrap(), (serde_json::json!({ "limit": 100, "swap": 100 }), 0));
    assert_eq!(memory(100, 300, true).unwrap(), (serde_json::json!({ "limit": 100, "swap": 300 }), 0));
    assert_eq!(memory(100, -1, true).unwrap(), (serde_json::json!({ "limit": 100, "swap": -1 }), 0));
    assert_eq!(memory(100, 100, false).unwrap(), (serde_json::json!({ "limit": 100 }), 0));
    assert_eq!(memory(100, 300, false).unwrap(), (serde_json::json!({ "limit": 100 }), 1));
    assert_eq!(memory(0, 0, true).unwrap(), (Value::Null, 0));
    assert!(memory(100, 50, true).unwrap_err().to_string().contains("memory_swap_limit_in_bytes"));
}

#[test]
fn hugepages_without_a_controller_are_a_warning_only_when_limited() {
    let mut case = Case::minimal();
    case.host.hugetlb = false;
    case.resources().hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    assert_eq!(case.build().unwrap().warnings, [""; 0]);
    case.resources().hugepage_limits[0].limit = 4 << 20;
    assert_eq!(case.build().unwrap().warnings.len(), 1);
    assert_eq!(case.spec()["linux"]["resources"]["hugepageLimits"], Value::Null);
}

#[test]
fn what_is_not_built_or_not_possible_names_its_field() {
    let mut case = Case::minimal();
    case.security().privileged = true;
    assert!(case.fault().starts_with("security_context.privileged: "));

    let mut case = Case::minimal();
    case.security().namespace_options = Some(NamespaceOption {
        userns_options: Some(UserNamespace { mode: NamespaceMode::Pod as i32, ..Default::default() }),
        ..Default::default()
    });
    assert!(case.fault().contains("userns_options: must be the same as the pod sandbox's"));

    let mut case = Case::minimal();
    case.resources().oom_score_adj = 1001;
    assert!(case.fault().contains("oom_score_adj"));

    let mut case = Case::minimal();
    case.seccomp = Profile::RuntimeDefault;
    case.host.seccomp = false;
    assert!(matches!(case.build(), Err(SpecError::Seccomp(_))));

    let mut case = Case::minimal();
    case.security().masked_paths = vec!["proc/kcore".into()];
    assert!(case.fault().starts_with("security_context.masked_paths: "));
}

#[test]
fn selinux_options_become_a_label_where_selinux_is_on() {
    let mut case = Case::minimal();
    case.security().selinux_options = Some(SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() });
    assert_eq!(case.spec()["process"]["selinuxLabel"], Value::Null);
    case.host.selinux = true;
    assert_eq!(case.spec()["process"]["selinuxLabel"], "system_u:system_r:container_t:s0:c1,c2");
    case.container.mounts = vec![Mount { selinux_relabel: true, ..mount("/a", "/a") }];
    assert!(case.fault().starts_with("config.mounts[0].selinux_relabel is not supported"));
    case.container.mounts.clear();
    case.security().selinux_options.as_mut().unwrap().level = "wrong".into();
    assert!(case.fault().starts_with("security_context.selinux_options.level: "));
}
