//! Pods from manifests: the order of their containers, with real ones.

use anyhow::ensure;
use berth_cri::berth::v1::pod::Phase;
use berth_tests::{
    manifest::{container, has, state},
    on_node,
};

#[test]
fn three_init_containers_run_in_order_and_see_what_the_one_before_wrote() {
    on_node(async |node| {
        node.run_manifest(
            r#"
apiVersion: v1
kind: Pod
metadata: { name: web }
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{ name: shared, emptyDir: {} }]
  initContainers:
  - { name: one, image: busybox, command: [sh, -c, "echo one > /s/page"], volumeMounts: &m [{ name: shared, mountPath: /s }] }
  - { name: two, image: busybox, command: [sh, -c, "grep -q one /s/page && echo two >> /s/page"], volumeMounts: *m }
  - { name: three, image: busybox, command: [sh, -c, "grep -q two /s/page && echo three >> /s/page"], volumeMounts: *m }
  containers:
  - { name: main, image: busybox, command: [sh, -c, "cat /s/page; sleep 1000"], volumeMounts: *m }
"#,
        )
        .await?;
        let pod = node.wait_ready("web").await?;
        for init in ["one", "two", "three"] {
            ensure!(state(&pod, init)? == "ended 0" && container(&pod, init)?.ready, "{pod:#?}");
        }
        ensure!(pod.phase() == Phase::Running && has(&pod, "Initialized"), "{pod:#?}");
        ensure!(!pod.ips.is_empty() && !pod.sandbox_id.is_empty(), "{pod:#?}");
        Ok(())
    });
}
