//! What manifests mean, and what is said of wrong ones.

use std::time::Duration;

use berth_manifest::{
    Content, DnsPolicy, EnvValue, FieldPath, Hook, Manifests, Medium, Pod, PortRef, ProbeAction, PullPolicy,
    RestartPolicy, Seccomp, Source, Startup, Strictness, VolumeSource, read,
};
use proptest::prelude::*;
use serde_json::Value;

fn read_all(text: &str, strictness: Strictness) -> Result<Manifests, String> {
    read(&[Source { name: "pod.yaml", text }], strictness).map_err(|faults| faults.to_string())
}

fn pod(text: &str) -> Pod {
    let mut manifests = read_all(text, Strictness::Strict).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(manifests.pods.len(), 1);
    manifests.pods.remove(0)
}

fn faults(text: &str) -> Vec<String> {
    let faults = read_all(text, Strictness::Strict).expect_err("it is not refused");
    faults.lines().map(|line| line.strip_prefix("pod.yaml: ").unwrap_or(line).to_owned()).collect()
}

/// A pod with these lines of its spec, indented by two.
fn with_spec(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{ name: web }}\nspec:\n{spec}")
}

/// A pod with one container of these lines, indented by four.
fn with_container(lines: &str) -> String {
    with_spec(&format!("  containers:\n  - name: main\n    image: busybox\n{lines}"))
}

fn names(startup: &[Startup]) -> Vec<(&str, bool)> {
    startup.iter().map(|step| (step.container().name.as_str(), matches!(step, Startup::Sidecar(_)))).collect()
}

#[test]
fn the_smallest_pod_has_kubernetes_defaults() {
    let pod = pod(&with_container(""));
    assert_eq!((pod.metadata.name.as_str(), pod.metadata.namespace.as_str()), ("web", "default"));
    assert_eq!(pod.restart_policy, RestartPolicy::Always);
    assert_eq!(pod.termination_grace_period, Duration::from_secs(30));
    assert_eq!((pod.hostname.as_str(), pod.dns_policy, pod.host_users), ("web", DnsPolicy::Default, true));
    let main = &pod.standard[0];
    assert_eq!(main.pull_policy, PullPolicy::Always, "no tag is latest");
    assert_eq!(main.termination_message.path, "/dev/termination-log");
    assert!(pod.startup.is_empty() && main.command.is_empty() && main.probes.liveness.is_none());
}

#[test]
fn json_is_read_as_well_and_lists_are_taken_apart() {
    let item = |name| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}},
                "spec": {{"containers": [{{"name": "c", "image": "nginx:1.27"}}]}}}}"#
        )
    };
    let one = pod(&item("web"));
    assert_eq!(one.standard[0].pull_policy, PullPolicy::IfNotPresent);
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{}, {}]}}"#, item("a"), item("b"));
    let pods = read_all(&list, Strictness::Strict).unwrap().pods;
    assert_eq!(pods.iter().map(|pod| pod.metadata.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn startup_is_the_init_list_as_written_and_then_the_older_sidecars() {
    let pod = pod(&with_spec(
        "  initContainers:
  - { name: first, image: a }
  - { name: proxy, image: b, restartPolicy: Always, startupProbe: { exec: { command: [ok] } } }
  - { name: second, image: c }
  containers:
  - { name: app, image: d }
  - { name: old, image: e, lifecycle: { type: Sidecar } }
  - { name: other, image: f, lifecycle: { type: Standard, preStop: { sleep: { seconds: 2 } } } }
",
    ));
    assert_eq!(names(&pod.startup), [("first", false), ("proxy", true), ("second", false), ("old", true)]);
    assert_eq!(pod.standard.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["app", "other"]);
    assert_eq!(pod.standard[1].lifecycle.pre_stop, Some(Hook::Sleep(Duration::from_secs(2))));
    assert!(pod.startup[1].container().probes.startup.is_some());
}

#[test]
fn probes_have_kubernetes_defaults_and_one_thing_to_do() {
    let pod = pod(&with_container(
        "    ports: [{ name: http, containerPort: 80 }]
    livenessProbe: { httpGet: { port: http, path: healthz, httpHeaders: [{ name: X-From, value: probe }] } }
    readinessProbe: { tcpSocket: { port: 80 }, periodSeconds: 2, successThreshold: 2 }
    startupProbe: { grpc: { port: 9000 }, failureThreshold: 30, initialDelaySeconds: 1 }
",
    ));
    let probes = &pod.standard[0].probes;
    let liveness = probes.liveness.as_ref().unwrap();
    assert_eq!((liveness.period, liveness.timeout), (Duration::from_secs(10), Duration::from_secs(1)));
    assert_eq!((liveness.success_threshold, liveness.failure_threshold), (1, 3));
    let ProbeAction::HttpGet(get) = &liveness.action else { panic!("{liveness:?}") };
    assert_eq!((get.path.as_str(), &get.port), ("/healthz", &PortRef::Name("http".into())));
    assert_eq!(probes.readiness.as_ref().unwrap().success_threshold, 2);
    let startup = probes.startup.as_ref().unwrap();
    assert_eq!(startup.action, ProbeAction::Grpc { port: 9000, service: String::new() });
    assert_eq!((startup.failure_threshold, startup.initial_delay), (30, Duration::from_secs(1)));
}

const CONFIGS: &str = "apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { mode: fast, app.conf: 'a = 1' }
---
apiVersion: v1
kind: Secret
metadata: { name: login }
stringData: { user: joe }
data: { password: c2VjcmV0 }
---
";

#[test]
fn references_are_their_contents_wherever_they_stand() {
    let spec = with_spec(
        "  containers:
  - name: main
    image: busybox
    envFrom: [{ prefix: S_, configMapRef: { name: settings } }]
    env:
    - { name: PASSWORD, valueFrom: { secretKeyRef: { name: login, key: password } } }
    - { name: MAYBE, valueFrom: { configMapKeyRef: { name: none, key: k, optional: true } } }
    - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    - { name: URL, value: 'http://$(IP)/' }
    volumeMounts: [{ name: all, mountPath: /all, readOnly: true }]
  volumes:
  - name: all
    projected:
      defaultMode: 0400
      sources:
      - configMap: { name: settings, items: [{ key: app.conf, path: etc/app.conf }] }
      - secret: { name: login }
      - downwardAPI: { items: [{ path: labels, fieldRef: { fieldPath: metadata.labels } }] }
",
    );
    let before = pod(&format!("{CONFIGS}{spec}"));
    assert_eq!(before, pod(&format!("{spec}---\n{CONFIGS}")));
    let env: Vec<_> =
        before.standard[0].env.iter().map(|env| (env.name.as_str(), env.value.clone())).collect();
    assert_eq!(
        env,
        [
            ("S_app.conf", EnvValue::Literal("a = 1".into())),
            ("S_mode", EnvValue::Literal("fast".into())),
            ("PASSWORD", EnvValue::Literal("secret".into())),
            ("IP", EnvValue::Field(FieldPath::PodIp)),
            ("URL", EnvValue::Text("http://$(IP)/".into())),
        ]
    );
    let VolumeSource::Files { items, in_memory: true } = &before.volumes[0].source else { panic!() };
    let files: Vec<_> = items.iter().map(|item| (item.path.as_str(), item.mode)).collect();
    assert_eq!(files, [("etc/app.conf", 0o400), ("labels", 0o400), ("password", 0o400), ("user", 0o400)]);
    assert_eq!(items[0].content, Content::Bytes(b"a = 1".into()));
    assert_eq!(items[1].content, Content::Field(FieldPath::Labels));
}

#[test]
fn a_reference_that_leads_nowhere_names_what_is_missing() {
    let text = with_container(
        "    env:
    - { name: A, valueFrom: { configMapKeyRef: { name: settings, key: none } } }
    - { name: B, valueFrom: { secretKeyRef: { name: none, key: k } } }
",
    );
    assert_eq!(
        faults(&format!("{CONFIGS}{text}")),
        [
            "pod.yaml, document 3: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: there is no key \"none\" in it",
            "pod.yaml, document 3: spec.containers[0].env[1].valueFrom.secretKeyRef.name: the input has no Secret \
             \"none\" in namespace \"default\"",
        ]
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_path() {
    let text = with_spec(
        "  restartPolicy: Sometimes
  terminationGracePeriodSeconds: -1
  nodeSelector: { disk: ssd }
  initContainers:
  - { name: setup, image: a, restartPolicy: OnFailure, readinessProbe: { exec: { command: [x] } } }
  containers:
  - name: Main
    image: busybox
    imagePullPolcy: Never
    env: [{ name: COUNT, value: 5 }]
    resources: { limits: { cpu: 1x, gpu: 1 }, requests: { memory: -1 } }
    livenessProbe: { exec: { command: [x] }, tcpSocket: { port: 1 }, successThreshold: 2 }
    volumeMounts: [{ name: data, mountPath: data }]
  - { name: side, image: busybox, lifecycle: { type: Ambassador } }
  volumes:
  - { name: claim, persistentVolumeClaim: { claimName: c } }
",
    );
    assert_eq!(
        faults(&text),
        [
            "spec.nodeSelector: is not supported: there is no scheduler",
            "spec.volumes[0].persistentVolumeClaim: is not supported: without a cluster nobody provides it",
            "spec.initContainers[0].restartPolicy: must be Always, which makes it a sidecar, or be left out, not \
             \"OnFailure\"",
            "spec.initContainers[0].readinessProbe: is possible only with restartPolicy: Always: a plain init container \
             runs to its end",
            "spec.containers[0].name: \"Main\" is no name: lowercase letters, digits, hyphens; a letter or digit at both \
             ends; at most 63",
            "spec.containers[0].livenessProbe: has several of exec, tcpSocket: only one is possible",
            "spec.containers[0].livenessProbe.successThreshold: must be 1 for this kind of probe",
            "spec.containers[0].livenessProbe.tcpSocket: unknown field",
            "spec.containers[0].volumeMounts[0].name: the pod has no volume \"data\"",
            "spec.containers[0].volumeMounts[0].mountPath: \"data\" must be an absolute path without ..",
            "spec.containers[0].env[0].value: must be a string, not a number (quote it to mean text)",
            "spec.containers[0].resources.limits.cpu: \"1x\" is no quantity: a number with a suffix such as m, k, M, G, Ki, \
             Mi or Gi",
            "spec.containers[0].resources.limits.gpu: is no resource of this node: cpu, memory, ephemeral-storage or \
             hugepages-SIZE",
            "spec.containers[0].resources.requests.memory: must not be negative",
            "spec.containers[0].imagePullPolcy: unknown field; did you mean imagePullPolicy?",
            "spec.containers[1].lifecycle.type: must be one of Standard, Sidecar, not \"Ambassador\"",
            "spec.restartPolicy: must be one of Always, OnFailure, Never, not \"Sometimes\"",
            "spec.terminationGracePeriodSeconds: must be from 0 to 2147483647, not -1",
        ]
    );
}

#[test]
fn lenient_passes_over_what_means_nothing_and_says_so() {
    let text = with_container("    color: red\n").replace("spec:\n", "spec:\n  nodeSelector: { a: b }\n");
    assert_eq!(faults(&text).len(), 2);
    let manifests = read_all(&text, Strictness::Lenient).unwrap();
    assert_eq!(manifests.pods.len(), 1);
    let warnings: Vec<&str> = manifests.warnings.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(warnings, ["spec.nodeSelector", "spec.containers[0].color"]);
    assert!(read_all(&with_container("    tty: maybe\n"), Strictness::Lenient).is_err(), "a value is wrong");
}

#[test]
fn what_kubectl_adds_to_a_pod_does_no_harm() {
    let text = with_spec(
        "  containers: [{ name: main, image: busybox }]
  schedulerName: default-scheduler
  nodeName: node-1
  serviceAccountName: default
  enableServiceLinks: true
  priority: 0
  tolerations: [{ key: node.kubernetes.io/not-ready, operator: Exists }]
status: { phase: Running }
",
    );
    let text = text
        .replace("{ name: web }", "{ name: web, uid: u-1, resourceVersion: '5', creationTimestamp: null }");
    assert_eq!(pod(&text).metadata.uid, "u-1");
}

#[test]
fn ephemeral_containers_are_refused_what_they_cannot_have_by_its_name() {
    let refused = [
        "ports: [{ containerPort: 80 }]",
        "livenessProbe: { exec: { command: [x] } }",
        "readinessProbe: { exec: { command: [x] } }",
        "startupProbe: { exec: { command: [x] } }",
        "resources: { limits: { cpu: 1 } }",
        "lifecycle: { preStop: { sleep: { seconds: 1 } } }",
        "restartPolicy: Always",
    ];
    for field in refused {
        let text = format!(
            "apiVersion: v1\nkind: EphemeralContainers\nmetadata: {{ name: web }}\nephemeralContainers:\n- name: debug\n  \
             image: busybox\n  {field}\n"
        );
        let name = field.split(':').next().unwrap();
        assert_eq!(
            faults(&text),
            [format!("ephemeralContainers[0].{name}: is not possible for an ephemeral container")]
        );
    }
}

#[test]
fn the_list_of_ephemeral_containers_is_a_kind_of_its_own() {
    let text = r#"{
      "apiVersion": "v1", "kind": "EphemeralContainers", "metadata": { "name": "demo-pod" },
      "ephemeralContainers": [{
        "command": ["sh"], "image": "busybox", "imagePullPolicy": "IfNotPresent", "name": "debugger",
        "stdin": true, "tty": true, "targetContainerName": "app", "terminationMessagePolicy": "File"
      }]
    }"#;
    let manifests = read_all(text, Strictness::Strict).unwrap();
    let [list] = manifests.ephemeral.as_slice() else { panic!("{manifests:?}") };
    assert_eq!(list.pod.name, "demo-pod");
    let debugger = &list.containers[0];
    assert!(debugger.container.tty && debugger.container.stdin);
    assert_eq!(debugger.target.as_deref(), Some("app"));
    assert_eq!(debugger.misfits(&["app"], &[]), []);
    assert_eq!(debugger.misfits(&["other"], &[])[0].0, "targetContainerName");
    assert_eq!(debugger.misfits(&["app", "debugger"], &[])[0].0, "name");
}

#[test]
fn names_and_ports_of_the_host_are_there_once() {
    let text = with_spec(
        "  initContainers: [{ name: a, image: x }]
  containers:
  - { name: a, image: x, ports: [{ containerPort: 80, hostPort: 8080 }] }
  - { name: b, image: x, ports: [{ containerPort: 81, hostPort: 8080 }, { containerPort: 8080, protocol: UDP }] }
  volumes: [{ name: v }, { name: v, emptyDir: { medium: Memory, sizeLimit: 1Mi } }]
",
    );
    assert_eq!(
        faults(&text),
        [
            "spec.volumes: two have the name \"v\"",
            "spec.containers[0].name: two containers have the name \"a\"",
            "spec.containers[1].ports: hostPort 8080 is taken twice",
        ]
    );
}

#[test]
fn volumes_without_a_source_are_empty_folders() {
    let pod = pod(&with_spec(
        "  containers: [{ name: main, image: x, volumeMounts: [{ name: m, mountPath: /m, subPath: a/b }] }]
  volumes: [{ name: v }, { name: m, emptyDir: { medium: Memory, sizeLimit: 1Mi } }, { name: h, hostPath: { path: /dev } }]
",
    ));
    let VolumeSource::EmptyDir(disk) = pod.volumes[0].source else { panic!() };
    let VolumeSource::EmptyDir(memory) = pod.volumes[1].source else { panic!() };
    assert_eq!((disk.medium, memory.medium), (Medium::Disk, Medium::Memory));
    assert_eq!(memory.size_limit.map(|limit| limit.value()), Some(1 << 20));
}

#[test]
fn a_container_says_more_than_its_pod() {
    let pod = pod(&with_spec(
        "  securityContext: { runAsUser: 1000, fsGroup: 2000, seccompProfile: { type: RuntimeDefault } }
  containers:
  - { name: own, image: x, securityContext: { runAsUser: 5, capabilities: { drop: [ALL], add: [NET_BIND_SERVICE] } } }
  - { name: other, image: x }
",
    ));
    let [own, other] = [0, 1].map(|index| pod.standard[index].security.within(&pod.security));
    assert_eq!((own.run_as_user, other.run_as_user), (Some(5), Some(1000)));
    assert_eq!(own.seccomp, Some(Seccomp::RuntimeDefault));
    assert_eq!(
        (own.drop_capabilities.as_slice(), other.drop_capabilities.len()),
        (&["ALL".to_owned()][..], 0)
    );
    assert_eq!(pod.security.fs_group, Some(2000));
}

#[test]
fn text_that_is_no_manifest_is_named_as_such() {
    assert_eq!(faults("# nothing\n"), ["has no document"]);
    assert!(faults("a: [1")[0].contains("line"), "{:?}", faults("a: [1"));
    assert_eq!(faults("- 1\n"), ["must be an object, not a list"]);
    assert_eq!(faults("apiVersion: v1\nkind: Deployment\n")[0].split(':').next(), Some("kind"));
    assert!(faults("kind: Pod\n").iter().any(|fault| fault.starts_with("apiVersion: is required")));
    let bomb = format!("{}k: &a [x]\n", "z: 1\n".repeat(10)) + "b: [*a,*a,*a]\n";
    assert!(read_all(&bomb, Strictness::Strict).is_err());
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    assert_eq!(faults(&with_container("    image: other\n")).len(), 1);
}

/// Values of every type below keys that manifests have, so that readers meet what they do not expect.
fn anything() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "name",
        "image",
        "containers",
        "initContainers",
        "env",
        "valueFrom",
        "volumes",
        "emptyDir",
        "sizeLimit",
        "projected",
        "sources",
        "items",
        "ports",
        "containerPort",
        "livenessProbe",
        "httpGet",
        "port",
        "securityContext",
        "resources",
        "limits",
        "cpu",
        "restartPolicy",
        "ephemeralContainers",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "v1",
            "Pod",
            "List",
            "Secret",
            "EphemeralContainers",
            "Always",
            "web",
            "1Gi",
            ""
        ])
        .prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC*|([ -]{0,4}[a-z]{0,3}[:&*!|>{}\\[\\],\"' ]{0,3}\n){0,12}") {
        let _ = read_all(&text, Strictness::Lenient);
    }

    #[test]
    fn any_object_is_survived_and_its_faults_have_paths(kind in "Pod|Secret|ConfigMap|EphemeralContainers", mut value in anything()) {
        if let Some(object) = value.as_object_mut() {
            object.insert("kind".to_owned(), kind.into());
            object.insert("apiVersion".to_owned(), "v1".into());
        }
        let text = value.to_string();
        for strictness in [Strictness::Strict, Strictness::Lenient] {
            if let Err(faults) = read(&[Source { name: "pod.yaml", text: &text }], strictness) {
                prop_assert!(!faults.0.is_empty());
                prop_assert!(faults.0.iter().all(|fault| !fault.path.ends_with('.')), "{faults}");
            }
        }
    }
}
