//! What a runtime is asked for.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_cri::runtime::v1::{ContainerConfig, NamespaceMode, PodSandboxConfig};
use berth_manifest::cri::{self, Facts, Ids};
use berth_manifest::{DnsConfig, Mount, Pod, Source, Strictness, VolumeSource, read};

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

fn pod(spec: &str) -> Pod {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: web, labels: {{ app: shop }} }}\nspec:\n{spec}"
    );
    let manifests = read(&[Source { name: "pod.yaml", text: &text }], Strictness::Strict);
    manifests.unwrap_or_else(|faults| panic!("{faults}")).pods.remove(0)
}

fn with_facts<T>(use_them: impl FnOnce(&Facts<'_>) -> T) -> T {
    let resolver = DnsConfig {
        nameservers: vec!["192.0.2.53".into()],
        searches: vec!["example".into()],
        options: vec!["ndots:2".into(), "rotate".into()],
    };
    use_them(&Facts {
        uid: "u-1",
        node_name: "node",
        host_ips: &[NODE],
        pod_ips: &[POD],
        memory: 4 << 30,
        cpus: 2,
        huge_page_sizes: &["2MB".into()],
        cgroup2: true,
        resolver: &resolver,
        seccomp_profiles: Path::new("/profiles"),
        log_directory: "/logs/web",
        ids: Some(Ids { first: 100_000, count: 65_536 }),
    })
}

fn sandbox(pod: &Pod) -> PodSandboxConfig {
    with_facts(|facts| cri::sandbox(pod, facts, 0))
}

fn container(pod: &Pod) -> ContainerConfig {
    let places = |mount: &Mount| PathBuf::from(format!("/volumes/{}", mount.volume));
    let made = with_facts(|facts| cri::container(pod, &pod.standard[0], 3, None, facts, &places));
    made.unwrap_or_else(|problem| panic!("{problem}"))
}

#[test]
fn the_sandbox_has_the_pods_names_ports_and_resolver() {
    let pod = pod("  dnsConfig: { searches: [shop], options: [{ name: ndots, value: '5' }] }
  containers:
  - { name: a, image: x, ports: [{ containerPort: 80, hostPort: 8080 }, { containerPort: 81 }] }
");
    let config = sandbox(&pod);
    let metadata = config.metadata.unwrap();
    assert_eq!((metadata.name.as_str(), metadata.uid.as_str()), ("web", "u-1"));
    assert_eq!((config.hostname.as_str(), config.labels["io.kubernetes.pod.uid"].as_str()), ("web", "u-1"));
    assert_eq!(config.port_mappings.len(), 1);
    assert_eq!((config.port_mappings[0].container_port, config.port_mappings[0].host_port), (80, 8080));
    let dns = config.dns_config.unwrap();
    assert_eq!(dns.servers, ["192.0.2.53"]);
    assert_eq!(dns.searches, ["example", "shop"]);
    assert_eq!(dns.options, ["rotate", "ndots:5"]);
}

#[test]
fn namespaces_are_the_pods_the_nodes_or_the_containers_own() {
    let modes = |spec: &str| {
        let pod = pod(&format!("{spec}  containers: [{{ name: a, image: x }}]\n"));
        let security = container(&pod).linux.unwrap().security_context.unwrap();
        security.namespace_options.unwrap()
    };
    let plain = modes("");
    assert_eq!(
        (plain.network(), plain.pid(), plain.ipc()),
        (NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Pod)
    );
    assert_eq!(plain.userns_options, None);
    let host = modes("  hostNetwork: true\n  hostPID: true\n  hostIPC: true\n");
    assert_eq!(
        (host.network(), host.pid(), host.ipc()),
        (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node)
    );
    assert_eq!(modes("  shareProcessNamespace: true\n").pid(), NamespaceMode::Pod);
    let users = modes("  hostUsers: false\n").userns_options.unwrap();
    assert_eq!((users.uids[0].host_id, users.gids[0].length), (100_000, 65_536));
}

#[test]
fn variables_know_the_pod_and_those_before_them() {
    let pod = pod("  containers:
  - name: a
    image: x
    command: [run, --ip=$(IP), $$(IP), $(UNKNOWN)]
    env:
    - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    - { name: URL, value: 'http://$(IP)/$(LATER)' }
    - { name: LATER, value: x }
    - { name: APP, valueFrom: { fieldRef: { fieldPath: \"metadata.labels['app']\" } } }
    - { name: CPUS, valueFrom: { resourceFieldRef: { resource: limits.cpu } } }
    - { name: MIB, valueFrom: { resourceFieldRef: { resource: requests.memory, divisor: 1Mi } } }
    resources: { requests: { memory: 100M } }
");
    let config = container(&pod);
    assert_eq!(config.command, ["run", "--ip=10.1.2.3", "$(IP)", "$(UNKNOWN)"]);
    let env: Vec<(String, String)> = config
        .envs
        .into_iter()
        .map(|variable| (variable.key, String::from_utf8(variable.value).unwrap()))
        .collect();
    let expected = [
        ("IP", "10.1.2.3"),
        ("URL", "http://10.1.2.3/$(LATER)"),
        ("LATER", "x"),
        ("APP", "shop"),
        ("CPUS", "2"),
        ("MIB", "96"),
    ];
    assert_eq!(env, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(config.log_path, "a/3.log");
}

#[test]
fn resources_are_what_kubelet_makes_of_them() {
    let resources = |lines: &str| {
        let pod = pod(&format!("  containers: [{{ name: a, image: x, resources: {{ {lines} }} }}]\n"));
        container(&pod).linux.unwrap().resources.unwrap()
    };
    let none = resources("");
    assert_eq!((none.cpu_shares, none.cpu_quota, none.memory_limit_in_bytes), (2, 0, 0));
    assert_eq!(none.oom_score_adj, 1000);
    let guaranteed = resources("limits: { cpu: 500m, memory: 64Mi, hugepages-2Mi: 4Mi }");
    assert_eq!((guaranteed.cpu_shares, guaranteed.cpu_quota, guaranteed.cpu_period), (512, 50_000, 100_000));
    assert_eq!((guaranteed.memory_limit_in_bytes, guaranteed.oom_score_adj), (64 << 20, -997));
    assert_eq!(
        (guaranteed.hugepage_limits[0].page_size.as_str(), guaranteed.hugepage_limits[0].limit),
        ("2MB", 4 << 20)
    );
    assert_eq!(guaranteed.unified["memory.oom.group"], "1");
    assert_eq!(resources("requests: { memory: 1Gi }").oom_score_adj, 750);
}

#[test]
fn a_container_is_confined_as_its_manifest_says() {
    let pod = pod("  securityContext: { fsGroup: 2000, supplementalGroups: [7], runAsUser: 5 }
  containers:
  - name: a
    image: x
    securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ALL] }, seccompProfile: { type: Localhost, localhostProfile: p.json } }
");
    let security = container(&pod).linux.unwrap().security_context.unwrap();
    assert!(security.no_new_privs && security.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert_eq!(security.supplemental_groups, [7, 2000]);
    assert_eq!(security.run_as_user.unwrap().value, 5);
    assert_eq!(security.capabilities.unwrap().drop_capabilities, ["ALL"]);
    assert_eq!(security.seccomp.unwrap().localhost_ref, "/profiles/p.json");
}

#[test]
fn files_of_the_downward_api_say_what_the_pod_is() {
    let pod = pod("  containers: [{ name: a, image: x, resources: { limits: { cpu: 1500m } } }]
  volumes:
  - name: info
    downwardAPI:
      items:
      - { path: labels, fieldRef: { fieldPath: metadata.labels } }
      - { path: cpu, resourceFieldRef: { containerName: a, resource: limits.cpu, divisor: 1m } }
");
    let VolumeSource::Files { items, .. } = &pod.volumes[0].source else { panic!("{:?}", pod.volumes) };
    let texts = with_facts(|facts| {
        items.iter().map(|item| String::from_utf8(cri::file(&pod, item, facts)).unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(texts, ["app=\"shop\"", "1500"]);
}

#[test]
fn owners_in_volumes_are_the_pods_and_their_files_are_not_the_containers_to_change() {
    let mounts = |spec: &str| {
        let pod = pod(&format!(
            "{spec}  containers:
  - name: a
    image: x
    volumeMounts: [{{ name: dir, mountPath: /dir }}, {{ name: info, mountPath: /info }}, {{ name: files, mountPath: /files }}]
  volumes:
  - name: dir
  - {{ name: info, downwardAPI: {{ items: [{{ path: name, fieldRef: {{ fieldPath: metadata.name }} }}] }} }}
  - {{ name: files, image: {{ reference: x }} }}
"
        ));
        container(&pod).mounts
    };
    let plain = mounts("");
    assert_eq!(plain.iter().map(|mount| mount.readonly).collect::<Vec<_>>(), [false, true, true]);
    assert!(plain.iter().all(|mount| mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty()));
    let own = mounts("  hostUsers: false\n");
    for mount in &own[..2] {
        assert_eq!((mount.uid_mappings[0].host_id, mount.gid_mappings[0].length), (100_000, 65_536));
    }
    // The sandbox manager gives images to the pod in its own way.
    assert!(own[2].image.is_some() && own[2].uid_mappings.is_empty());
}
