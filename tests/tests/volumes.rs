//! Pods from manifests: what their containers get from the node, and what is read back from them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_cri::berth::v1::{
    LogsRequest, RemovePodRequest,
    pod::Phase,
    pod_container::{State, Terminated},
};
use berth_tests::{
    Node, PATIENCE, host,
    manifest::{container, reference, state},
    on_node, wait_until,
};

/// A pod's manifest from its spec, each line of which is indented by two, and what it refers to.
fn pod(name: &str, spec: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: {name} }} }}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
{spec}
---
{{ apiVersion: v1, kind: ConfigMap, metadata: {{ name: config }}, data: {{ app.conf: level=1 }} }}
---
{{ apiVersion: v1, kind: Secret, metadata: {{ name: secret }}, stringData: {{ word: hush }} }}
"#
    )
}

/// Waits for the end of a pod, and gives its container's.
async fn ended(node: &Node, name: &str) -> Result<Terminated> {
    node.wait_over(name).await?;
    let pod = node.manifest_pod(name).await?;
    match &container(&pod, "main")?.state {
        Some(State::Terminated(ended)) => Ok(ended.clone()),
        _ => anyhow::bail!("{pod:#?}"),
    }
}

/// Runs a script to its end as the only container of a pod, with more of its spec; what it wrote when it failed.
async fn succeeds(node: &Node, name: &str, script: &str, spec: &str) -> Result<()> {
    let script: String = script.lines().map(|line| format!("      {}\n", line.trim())).collect();
    let command = format!("    command:\n    - sh\n    - -exc\n    - |\n{script}");
    node.run_manifest(&pod(name, &spec.replace("    COMMAND\n", &command))).await?;
    let phase = node.wait_over(name).await?;
    ensure!(phase == Phase::Succeeded, "{}", node.pod_log(name, "main").await?);
    Ok(())
}

/// Waits until a pod's container waits for a reason that has this in it.
async fn waits(node: &Node, name: &str, reason: &str) -> Result<()> {
    node.wait_pod(name, |pod| {
        let Some(State::Waiting(waiting)) = &container(pod, "main")?.state else {
            anyhow::bail!("it is {}", state(pod, "main")?);
        };
        ensure!(waiting.message.contains(reason));
        Ok(())
    })
    .await?;
    Ok(())
}

fn mounted(folder: &Path) -> Result<bool> {
    Ok(host::mounts("self")?.iter().any(|mount| mount.mount_point.starts_with(folder)))
}

#[test]
fn volumes_hold_what_the_manifest_says_and_go_with_the_pod() {
    on_node(async |node| {
        let spec = r#"
  securityContext: { runAsUser: 1000, fsGroup: 2000 }
  hostAliases: [{ ip: 10.9.9.9, hostnames: [db, db.test] }]
  volumes:
  - { name: disk }
  - { name: memory, emptyDir: { medium: Memory, sizeLimit: 1Mi } }
  - { name: secret, secret: { secretName: secret, defaultMode: 0400 } }
  - { name: config, configMap: { name: config } }
  - { name: info, downwardAPI: { items: [{ path: labels, fieldRef: { fieldPath: metadata.labels } }] } }
  containers:
  - name: main
    image: busybox
    COMMAND
    volumeMounts:
    - { name: disk, mountPath: /disk }
    - { name: disk, mountPath: /part, subPath: a/b }
    - { name: memory, mountPath: /memory }
    - { name: secret, mountPath: /secret }
    - { name: config, mountPath: /etc/app.conf, subPath: app.conf }
    - { name: info, mountPath: /info }
"#;
        let script = r#"touch /disk/file /part/file /memory/file
            test "$(stat -c %u:%g /disk/file)" = 1000:2000
            test "$(stat -c %u:%g /disk/a/b/file)" = 1000:2000
            test "$(df -k /memory | awk 'END { print $2 }')" = 1024
            test "$(cat /secret/word)" = hush
            test "$(stat -Lc %a:%g /secret/word)" = 440:2000
            grep -q ' /secret tmpfs ro' /proc/mounts
            test "$(cat /etc/app.conf)" = level=1
            grep -q 'app="web"' /info/labels
            grep -q '10.9.9.9.db' /etc/hosts
            grep -q "$(hostname)" /etc/hosts"#;
        succeeds(node, "web", script, spec).await?;
        let pod = node.manifest_pod("web").await?;
        let folder = node.root().join("manifest-pods").join(&pod.uid);
        ensure!(mounted(&folder)? && folder.join("volumes/disk/file").exists(), "{folder:?}");
        node.pods().remove(RemovePodRequest { pod: reference("web"), stop: false }).await?;
        ensure!(!folder.exists() && !mounted(&folder)?, "{folder:?}");
        Ok(())
    });
}

/// Whether a tmpfs can be shown with other owners: since Linux 6.3.
fn tmpfs_has_other_owners() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers: Vec<u32> = release.split(['.', '-']).map_while(|number| number.parse().ok()).collect();
    Ok(numbers >= vec![6, 3])
}

#[test]
fn roots_files_are_roots_in_a_pod_with_users_of_its_own() {
    on_node(async |node| {
        let spec = |medium: &str, secret: &str| {
            format!(
                r#"
  hostUsers: false
  hostAliases: [{{ ip: 10.9.9.9, hostnames: [db] }}]
  volumes: [{{ name: disk }}, {{ name: other, emptyDir: {medium} }}, {{ name: files, {secret} }}]
  containers:
  - name: main
    image: busybox
    COMMAND
    volumeMounts:
    - {{ name: disk, mountPath: /disk, subPath: part }}
    - {{ name: other, mountPath: /other }}
    - {{ name: files, mountPath: /files }}
"#
            )
        };
        let spec = match tmpfs_has_other_owners()? {
            true => spec("{ medium: Memory }", "secret: { secretName: secret }"),
            false => spec("{}", "configMap: { name: config }"),
        };
        let script = r#"for file in /disk /other /files /files/* /etc/hosts /dev/termination-log; do test "$(stat -Lc %u:%g $file)" = 0:0; done
            touch /disk/file /other/file
            test "$(stat -c %u:%g /disk/file /other/file | uniq)" = 0:0
            ! grep -q '^ *0 *0 ' /proc/self/uid_map"#;
        succeeds(node, "own", script, &spec).await
    });
}

#[test]
fn a_link_in_a_volume_leads_no_sub_path_out_of_it() {
    on_node(async |node| {
        let spec = r#"
  restartPolicy: Always
  volumes: [{ name: shared }]
  initContainers:
  - { name: plant, image: busybox, command: [ln, -s, /, /s/link], volumeMounts: [{ name: shared, mountPath: /s }] }
  containers:
  - { name: main, image: busybox, command: [sleep, "1000"], volumeMounts: [{ name: shared, mountPath: /m, subPath: link/etc }] }
"#;
        let manifest = pod("evil", spec).replace("  restartPolicy: Never\n", "");
        node.run_manifest(&manifest).await?;
        waits(node, "evil", "\"link/etc\" leads out of it").await
    });
}

#[test]
fn a_container_leaves_its_last_words() {
    on_node(async |node| {
        let spec = |policy: &str, command: &str| {
            format!(
                "  containers: [{{ name: main, image: busybox, terminationMessagePolicy: {policy}, \
                 command: [sh, -c, {command:?}] }}]\n"
            )
        };
        let says = "echo log; echo file > /dev/termination-log; exit 3";
        node.run_manifest(&pod("file", &spec("FallbackToLogsOnError", says))).await?;
        node.run_manifest(&pod("log", &spec("FallbackToLogsOnError", "echo log; exit 3"))).await?;
        node.run_manifest(&pod("none", &spec("File", "echo log; exit 3"))).await?;
        for (name, words) in [("file", "file\n"), ("log", "log\n"), ("none", "")] {
            let ended = ended(node, name).await?;
            ensure!((ended.exit_code, ended.message.as_str()) == (3, words), "{name}: {ended:?}");
        }
        Ok(())
    });
}

#[test]
fn what_must_not_be_root_is_not_started_as_root() {
    on_node(async |node| {
        let spec = r#"
  securityContext: { runAsNonRoot: true }
  containers:
  - { name: main, image: busybox, command: [sleep, "1000"] }
  - { name: other, image: busybox, command: [sleep, "1000"], securityContext: { runAsUser: 1000 } }
"#;
        node.run_manifest(&pod("careful", spec).replace("  restartPolicy: Never\n", "")).await?;
        waits(node, "careful", "runAsNonRoot").await?;
        node.wait_pod("careful", |pod| {
            ensure!(state(pod, "other")? == "running");
            Ok(())
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_log_is_followed_from_attempt_to_attempt_to_the_end_of_the_last_one() {
    on_node(async |node| {
        let spec = r#"
  restartPolicy: OnFailure
  volumes: [{ name: shared }]
  containers:
  - name: main
    image: busybox
    command:
    - sh
    - -c
    - |
      if [ -e /s/again ]; then
        for i in 4 5 6; do echo $i; sleep 0.2; done
      else
        touch /s/again
        for i in 1 2 3; do echo $i; sleep 0.2; done
        exit 1
      fi
    volumeMounts: [{ name: shared, mountPath: /s }]
"#;
        node.run_manifest(&pod("twice", spec).replace("  restartPolicy: Never\n", "")).await?;
        let request = LogsRequest { pod: reference("twice"), follow: true, ..LogsRequest::default() };
        // Begun before there is anything to read.
        let mut lines = node.pods().logs(request.clone()).await?.into_inner();
        let mut followed = Vec::new();
        let follow = async {
            while let Some(line) = lines.message().await? {
                followed.push(String::from_utf8(line.text)?);
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(PATIENCE, follow).await.context("it goes on")??;
        ensure!(followed == ["1", "2", "3", "4", "5", "6"], "{followed:?}");
        ensure!(node.wait_over("twice").await? == Phase::Succeeded);
        for (request, expected) in [
            (LogsRequest { previous: true, ..request.clone() }, "123"),
            (LogsRequest { tail: Some(2), ..request.clone() }, "56"),
            (LogsRequest { follow: false, ..request }, "456"),
        ] {
            let mut lines = node.pods().logs(request).await?.into_inner();
            let mut text = String::new();
            while let Some(line) = lines.message().await? {
                text.push_str(&String::from_utf8(line.text)?);
            }
            ensure!(text == expected, "{text} where {expected} was to be");
        }
        wait_until("no follower is left", PATIENCE, async || {
            let pid = node.pid()?;
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
            let links = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            let logs = node.root().join("manifest-pods");
            ensure!(!links.into_iter().any(|link| link.starts_with(&logs)), "a log is open");
            Ok(())
        })
        .await
    });
}
