//! Pods from manifests: the service, whose they are, what of them outlives the daemon, and static manifests.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_cri::berth::v1::{
    AddEphemeralRequest, GetTimelineRequest, ListPodsRequest, Manifest, Pod, RemovePodRequest, RunRequest,
    StopPodRequest, WatchPodsRequest, WatchPodsResponse, pod::Phase, pod_container::Kind,
    watch_pods_response::What,
};
use berth_tests::{
    PATIENCE,
    cri::sleeper,
    manifest::{container, reference, sleeping, state},
    on_node, wait_until,
};
use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use tonic::Code;

/// The code and text of a call that failed.
fn refusal<T>(result: Result<T, tonic::Status>) -> Result<(Code, String)> {
    let status = result.err().context("it was not refused")?;
    Ok((status.code(), status.message().to_owned()))
}

fn run_request(text: &str) -> RunRequest {
    let manifest = Manifest { name: "pod.yaml".to_owned(), text: text.to_owned() };
    RunRequest { manifests: vec![manifest], ..RunRequest::default() }
}

#[test]
fn kubelets_pods_and_these_do_not_see_each_other() {
    on_node(async |node| {
        node.run_manifest(&sleeping("web")).await?;
        let pod = node.wait_ready("web").await?;
        let of_cri = node.run_pod(node.pod("web")).await?;
        let other = of_cri.run(sleeper("main")).await?;
        let listed =
            node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
        ensure!(listed.len() == 1 && listed[0].id == of_cri.id, "{listed:?}");
        let listed = node.runtime().list_containers(ListContainersRequest::default()).await?.into_inner();
        ensure!(listed.containers.len() == 1 && listed.containers[0].id == other.id, "{listed:?}");
        let asked =
            k8s_cri::v1::PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox_id.clone(), verbose: false };
        let (code, _) = refusal(node.runtime().pod_sandbox_status(asked).await)?;
        ensure!(code == Code::NotFound, "{code:?}");
        // As for any pod that is not there, this is fine, and does nothing.
        let stop = k8s_cri::v1::StopPodSandboxRequest { pod_sandbox_id: pod.sandbox_id.clone() };
        node.runtime().stop_pod_sandbox(stop).await?;
        let remove = k8s_cri::v1::RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox_id.clone() };
        node.runtime().remove_pod_sandbox(remove).await?;
        let still = node.manifest_pod("web").await?;
        ensure!(still.sandbox_id == pod.sandbox_id && state(&still, "main")? == "running", "{still:#?}");
        let pods = node.pods().list(ListPodsRequest::default()).await?.into_inner().pods;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(())
    });
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_path() {
    on_node(async |node| {
        let text = sleeping("web")
            .replace("    image: busybox", "    imagee: busybox\n    lifecycle: { type: Sidekick }");
        let (code, message) = refusal(node.pods().run(run_request(&text)).await)?;
        ensure!(code == Code::InvalidArgument, "{code:?}");
        for path in
            ["spec.containers[0].imagee", "spec.containers[0].image", "spec.containers[0].lifecycle.type"]
        {
            ensure!(message.contains(path), "{path} is not in {message}");
        }
        ensure!(node.pods().list(ListPodsRequest::default()).await?.into_inner().pods.is_empty());
        let lenient = sleeping("web").replace("    image: busybox", "    image: busybox\n    colour: red");
        let request = RunRequest { lenient: true, dry_run: true, ..run_request(&lenient) };
        let answer = node.pods().run(request).await?.into_inner();
        ensure!(
            answer.warnings.len() == 1 && answer.warnings[0].contains("spec.containers[0].colour"),
            "{answer:?}"
        );
        Ok(())
    });
}

#[test]
fn the_same_manifest_again_is_the_same_pod_and_another_is_refused() {
    on_node(async |node| {
        node.run_manifest(&sleeping("web")).await?;
        let pod = node.wait_ready("web").await?;
        node.run_manifest(&sleeping("web")).await?;
        ensure!(node.manifest_pod("web").await?.uid == pod.uid);
        let other = sleeping("web").replace("started", "others");
        let (code, message) = refusal(node.pods().run(run_request(&other)).await)?;
        ensure!(code == Code::AlreadyExists && message.contains("default/web"), "{message}");
        let remove = RemovePodRequest { pod: reference("web"), stop: false };
        let (code, _) = refusal(node.pods().remove(remove.clone()).await)?;
        ensure!(code == Code::FailedPrecondition, "it runs: {code:?}");
        node.pods().remove(RemovePodRequest { stop: true, ..remove.clone() }).await?;
        node.pods().remove(remove).await?;
        let (code, message) =
            refusal(node.pods().get(berth_cri::berth::v1::GetPodRequest { pod: reference("web") }).await)?;
        ensure!(code == Code::NotFound && message.contains("default/web"), "{message}");
        Ok(())
    });
}

#[test]
fn pods_go_on_after_kill_9_with_their_restarts_counted() {
    on_node(async |node| {
        let crashing = r#"apiVersion: v1
kind: Pod
metadata: { name: crashing }
spec:
  initContainers:
  - { name: setup, image: busybox, command: [sh, -c, "sleep 2"] }
  containers:
  - { name: main, image: busybox, command: [sh, -c, "exit 4"] }
"#;
        node.run_manifest(crashing).await?;
        node.run_manifest(&sleeping("steady")).await?;
        let steady = node.wait_ready("steady").await?;
        // In the middle of an init container, then in the middle of a back-off.
        node.wait_pod("crashing", |pod| {
            ensure!(state(pod, "setup")? == "running");
            Ok(())
        })
        .await?;
        node.kill9().await?;
        node.start().await?;
        let looping = |pod: &Pod| {
            let main = container(pod, "main")?;
            ensure!(state(pod, "main")? == "waiting CrashLoopBackOff" && main.restarts == 1, "{main:?}");
            Ok(())
        };
        let before = node.wait_pod("crashing", looping).await?;
        ensure!(container(&before, "setup")?.restarts == 0, "{before:#?}");
        node.kill9().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.start().await?;
        let after = node.wait_pod("crashing", looping).await?;
        ensure!(after.uid == before.uid && after.sandbox_id == before.sandbox_id, "{after:#?}");
        ensure!(after.generation > before.generation, "watchers go on from a number");
        let same = node.wait_ready("steady").await?;
        ensure!(container(&same, "main")?.id == container(&steady, "main")?.id, "{same:#?}");
        ensure!(container(&same, "main")?.restarts == 0, "{same:#?}");
        Ok(())
    });
}

#[test]
fn after_a_reboot_pods_run_again_except_those_that_may_run_only_once() {
    on_node(async |node| {
        node.run_manifest(&sleeping("web")).await?;
        let once = sleeping("once").replace("spec:", "spec:\n  restartPolicy: Never");
        node.run_manifest(&once).await?;
        let before = node.wait_ready("web").await?;
        node.wait_ready("once").await?;
        let request = GetTimelineRequest { pod: before.pod.clone() };
        let first = node.pods().get_timeline(request.clone()).await?.into_inner();
        node.reboot().await?;
        let after = node.wait_ready("web").await?;
        ensure!(after.uid == before.uid && after.sandbox_id != before.sandbox_id, "{after:#?}");
        let main = container(&after, "main")?;
        ensure!(
            main.restarts == 1 && main.last.as_ref().is_some_and(|last| last.exit_code == 255),
            "{main:#?}"
        );
        let timeline = node.pods().get_timeline(request).await?.into_inner();
        ensure!(
            first.ready > 0 && timeline.began > first.ready && timeline.ready > timeline.began,
            "{timeline:#?}"
        );
        let lost = node.manifest_pod("once").await?;
        ensure!(lost.phase() == Phase::Failed && lost.reason == "SandboxLost", "{lost:#?}");
        Ok(())
    });
}

#[test]
fn a_power_loss_makes_nothing_run_twice() {
    on_node(async |node| {
        let counted = |name: &str, policy: &str, then: &str| {
            let file = node.dir().join(name).display().to_string();
            format!(
                r#"apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 0
  volumes: [{{ name: host, hostPath: {{ path: "{file}", type: FileOrCreate }} }}]
  containers:
  - name: main
    image: busybox
    command: [sh, -c, "echo once >> /count; {then}"]
    volumeMounts: [{{ name: host, mountPath: /count }}]
"#
            )
        };
        let runs =
            |name: &str| std::fs::read_to_string(node.dir().join(name)).map(|text| text.lines().count());
        node.run_manifest(&counted("done", "OnFailure", "exit 0")).await?;
        node.run_manifest(&counted("cut-off", "Never", "sleep 1000")).await?;
        node.run_manifest(&counted("stopped", "Always", "sleep 1000")).await?;
        node.run_manifest(&counted("service", "Always", "sleep 1000")).await?;
        let succeeded = |pod: &Pod| {
            ensure!(pod.phase() == Phase::Succeeded, "{pod:#?}");
            Ok(())
        };
        node.wait_pod("done", succeeded).await?;
        for name in ["cut-off", "stopped", "service"] {
            // A shell that runs need not have come to its first command yet.
            let once = async || {
                ensure!(runs(name)? == 1, "{name}");
                Ok(())
            };
            wait_until("it to have run", PATIENCE, once).await?;
            node.wait_ready(name).await?;
        }
        node.pods().stop(StopPodRequest { pod: reference("stopped"), grace_seconds: None }).await?;
        node.lose_power().await?;
        let twice = |_: &Pod| {
            ensure!(runs("service")? == 2);
            Ok(())
        };
        node.wait_pod("service", twice).await?;
        succeeded(&node.manifest_pod("done").await?)?;
        for name in ["cut-off", "stopped"] {
            let pod = node.manifest_pod(name).await?;
            ensure!(pod.phase() == Phase::Failed, "{pod:#?}");
        }
        for name in ["done", "cut-off", "stopped"] {
            ensure!(runs(name)? == 1, "{name}");
        }
        Ok(())
    });
}

#[test]
fn ephemeral_containers_join_a_pod_and_are_never_restarted() {
    on_node(async |node| {
        node.run_manifest(&sleeping("demo-pod")).await?;
        node.wait_ready("demo-pod").await?;
        let manifest = |text: &str| AddEphemeralRequest {
            pod: None,
            manifest: Some(Manifest { name: "ec.json".to_owned(), text: text.to_owned() }),
        };
        let debugger = r#"{ "apiVersion": "v1", "kind": "EphemeralContainers", "metadata": { "name": "demo-pod" },
            "ephemeralContainers": [{ "name": "debugger", "image": "busybox", "targetContainerName": "main",
            "command": ["sh", "-c", "grep -c trap /proc/1/cmdline; ls /proc/1/root >/dev/null && echo seen; exit 5"] }] }"#;
        let added = node.pods().add_ephemeral(manifest(debugger)).await?.into_inner();
        ensure!(container(&added, "debugger")?.kind() == Kind::Ephemeral, "{added:#?}");
        let over = |pod: &Pod| {
            ensure!(state(pod, "debugger")? == "ended 5", "{}", state(pod, "debugger")?);
            Ok(())
        };
        let pod = node.wait_pod("demo-pod", over).await?;
        ensure!(container(&pod, "debugger")?.restarts == 0 && pod.phase() == Phase::Running, "{pod:#?}");
        let log = node.pod_log("demo-pod", "debugger").await?;
        ensure!(log == "1\nseen\n", "{log:?}");
        // What is there stays as it is, and what cannot be had is refused by its name.
        let (code, message) = refusal(node.pods().add_ephemeral(manifest(debugger)).await)?;
        ensure!(
            code == Code::InvalidArgument && message.contains("ephemeralContainers[0].name"),
            "{message}"
        );
        let wrong = debugger.replace("debugger", "second").replace("\"main\"", "\"nobody\"");
        let (_, message) = refusal(node.pods().add_ephemeral(manifest(&wrong)).await)?;
        ensure!(message.contains("ephemeralContainers[0].targetContainerName"), "{message}");
        let wrong =
            debugger.replace("\"image\"", "\"ports\": [], \"resources\": {}, \"lifecycle\": {}, \"image\"");
        let (_, message) = refusal(node.pods().add_ephemeral(manifest(&wrong)).await)?;
        for field in ["ports", "resources", "lifecycle"] {
            ensure!(message.contains(&format!("ephemeralContainers[0].{field}")), "{field}: {message}");
        }
        // Two that come at once are both there.
        let named = |name: &str| manifest(&debugger.replace("debugger", name));
        let (mut one, mut other) = (node.pods(), node.pods());
        let (first, second) =
            tokio::join!(one.add_ephemeral(named("third")), other.add_ephemeral(named("fourth")));
        first?;
        second?;
        let pod = node.manifest_pod("demo-pod").await?;
        ensure!(container(&pod, "third").is_ok() && container(&pod, "fourth").is_ok(), "{pod:#?}");
        node.kill9().await?;
        node.start().await?;
        node.wait_pod("demo-pod", over).await?;
        Ok(())
    });
}

#[test]
fn a_debugger_gets_into_a_pod_whose_container_crash_loops() {
    on_node(async |node| {
        let crashing = r#"apiVersion: v1
kind: Pod
metadata: { name: web }
spec:
  containers:
  - { name: main, image: busybox, command: [sh, -c, "cat /proc/sys/kernel/random/uuid >/clue; rm /bin/true; exit 1"] }
"#;
        node.run_manifest(crashing).await?;
        node.wait_pod("web", |pod| {
            ensure!(state(pod, "main")? == "waiting CrashLoopBackOff");
            Ok(())
        })
        .await?;
        // It shares the pod's network, and sees what the attempt that failed left.
        let look = "ip addr show eth0; test -e /target/bin/busybox && test ! -e /target/bin/true && echo its files; \
                    touch /target/x || echo kept";
        let debug = ["debug", "web", "--image", "busybox", "--target", "main", "--name", "look", "--"];
        let said = node.berth(&[&debug[..], &["sh", "-c", look]].concat()).await?;
        let pod = node.manifest_pod("web").await?;
        let ip = pod.ips.first().context("no address")?;
        ensure!(said.out.contains(ip) && said.out.ends_with("its files\nkept\n"), "{said:?}");
        ensure!(said.err.contains("main does not run; the files it left are in /target"), "{said:?}");
        let stay = "apiVersion: v1\nkind: EphemeralContainers\nmetadata: { name: web }\nephemeralContainers:\n\
                    - { name: stay, image: busybox, targetContainerName: main, command: [sleep, '1000'] }\n";
        let manifest = Manifest { name: "ec.yaml".to_owned(), text: stay.to_owned() };
        node.pods().add_ephemeral(AddEphemeralRequest { pod: None, manifest: Some(manifest) }).await?;
        node.wait_pod("web", |pod| {
            ensure!(state(pod, "stay")? == "running", "{}", state(pod, "stay")?);
            Ok(())
        })
        .await?;
        let clue = async || node.berth_ok(&["exec", "web", "-c", "stay", "--", "cat", "/target/clue"]).await;
        let first = clue().await?;
        // Attempts that are two behind are removed, but for one that is looked at.
        let fourth = |pod: &Pod| {
            ensure!(container(pod, "main")?.restarts == 3);
            Ok(())
        };
        node.wait_pod_for("web", Duration::from_secs(60), fourth).await?;
        ensure!(clue().await? == first && !first.is_empty(), "{first:?}");
        Ok(())
    });
}

/// The next answers of a watch, up to and with one that `last` picks.
async fn watched(
    stream: &mut tonic::Streaming<WatchPodsResponse>,
    last: impl Fn(&What) -> bool,
) -> Result<Vec<WatchPodsResponse>> {
    let mut all = Vec::new();
    let limit = tokio::time::Instant::now() + PATIENCE;
    loop {
        let next = tokio::time::timeout_at(limit, stream.message()).await.context("nothing comes")??;
        let next = next.context("the stream ended")?;
        ensure!(all.last().is_none_or(|before: &WatchPodsResponse| before.generation <= next.generation));
        let done = next.what.as_ref().is_some_and(&last);
        all.push(next);
        if done {
            return Ok(all);
        }
    }
}

#[test]
fn a_watcher_that_comes_back_misses_nothing() {
    on_node(async |node| {
        node.run_manifest(&sleeping("one")).await?;
        node.wait_ready("one").await?;
        let mut stream = node.pods().watch(WatchPodsRequest::default()).await?.into_inner();
        let begun = watched(&mut stream, |what| matches!(what, What::Synced(_))).await?;
        ensure!(begun.len() == 2, "the pod and the mark: {begun:?}");
        let seen = begun.last().context("nothing")?.generation;
        node.pods().remove(RemovePodRequest { pod: reference("one"), stop: true }).await?;
        node.run_manifest(&sleeping("two")).await?;
        let ready = |what: &What| matches!(what, What::Pod(pod) if pod.pod == reference("two") && berth_tests::manifest::has(pod, "Ready"));
        let followed = watched(&mut stream, ready).await?;
        let mut again = node.pods().watch(WatchPodsRequest { since: seen, pod: None }).await?.into_inner();
        let missed = watched(&mut again, ready).await?;
        ensure!(missed == followed, "{missed:#?}\n{followed:#?}");
        let generations: Vec<_> = missed.iter().map(|one| one.generation).collect();
        let all = (seen + 1..).take(missed.len());
        ensure!(generations.iter().copied().eq(all), "one is left out after {seen}: {generations:?}");
        let removed = |one: &WatchPodsResponse| matches!(&one.what, Some(What::Removed(pod)) if Some(pod) == reference("one").as_ref());
        ensure!(missed.iter().any(removed), "{missed:?}");
        Ok(())
    });
}
