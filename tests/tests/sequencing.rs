//! Pods from manifests: the order of their containers, with real ones. The same rules on a virtual clock, and many more
//! pods, are in sandbox-manager's `sequence`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_cri::berth::v1::{AddEphemeralRequest, Manifest, Pod, pod::Phase, pod_container::State};
use berth_tests::{
    Node, PATIENCE, host,
    manifest::{container, has, state, times},
    on_node, wait_until,
};

/// A pod's manifest from its spec, each line of which is indented by two.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  terminationGracePeriodSeconds: 2\n{spec}"
    )
}

/// Ends at once when asked to.
const SERVE: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// Waits until a container writes a line with this text.
async fn wait_log(node: &Node, name: &str, container: &str, text: &str) -> Result<String> {
    wait_until(&format!("{text:?} in the log of {container}"), PATIENCE, async || {
        let log = node.pod_log(name, container).await?;
        ensure!(log.contains(text), "{log}");
        Ok(log)
    })
    .await
}

#[test]
fn three_init_containers_run_in_order_and_see_what_the_one_before_wrote() {
    on_node(async |node| {
        let spec = r#"
  volumes: [{ name: shared, emptyDir: {} }]
  initContainers:
  - { name: one, image: busybox, command: [sh, -c, "echo one > /s/page"], volumeMounts: &m [{ name: shared, mountPath: /s }] }
  - { name: two, image: busybox, command: [sh, -c, "grep -q one /s/page && echo two >> /s/page"], volumeMounts: *m }
  - { name: three, image: busybox, command: [sh, -c, "grep -q two /s/page && echo three >> /s/page"], volumeMounts: *m }
  containers:
  - { name: main, image: busybox, command: [sh, -c, "cat /s/page; exec sleep 1000"], volumeMounts: *m }
"#;
        node.run_manifest(&pod("web", spec)).await?;
        let pod = node.wait_ready("web").await?;
        let mut before = 0;
        for init in ["one", "two", "three"] {
            ensure!(state(&pod, init)? == "ended 0" && container(&pod, init)?.ready, "{pod:#?}");
            let (began, ended) = times(&pod, init)?;
            ensure!(before <= began, "{init} began before the one before it had ended: {pod:#?}");
            before = ended;
        }
        ensure!(times(&pod, "main")?.0 >= before, "{pod:#?}");
        ensure!(pod.phase() == Phase::Running && has(&pod, "Initialized"), "{pod:#?}");
        ensure!(!pod.ips.is_empty() && !pod.sandbox_id.is_empty(), "{pod:#?}");
        wait_log(node, "web", "main", "one\ntwo\nthree").await?;
        Ok(())
    });
}

#[test]
fn a_failing_init_container_is_tried_again_or_ends_a_never_pod() {
    on_node(async |node| {
        // Succeeds when it finds what its first attempt left.
        let spec = |policy: &str| {
            format!(
                r#"
  restartPolicy: {policy}
  volumes: [{{ name: shared, emptyDir: {{}} }}]
  initContainers:
  - name: setup
    image: busybox
    command: [sh, -c, "[ -e /s/again ] || {{ touch /s/again; exit 3; }}"]
    volumeMounts: [{{ name: shared, mountPath: /s }}]
  containers:
  - {{ name: main, image: busybox, command: [sh, -c, "{SERVE}"] }}
"#
            )
        };
        for policy in ["Always", "OnFailure", "Never"] {
            let name = policy.to_lowercase();
            node.run_manifest(&pod(&name, &spec(policy))).await?;
        }
        for name in ["always", "onfailure"] {
            let pod = node.wait_ready(name).await?;
            let setup = container(&pod, "setup")?;
            ensure!(setup.restarts == 1 && state(&pod, "setup")? == "ended 0", "{pod:#?}");
            ensure!(setup.last.as_ref().is_some_and(|last| last.exit_code == 3), "{pod:#?}");
        }
        ensure!(node.wait_over("never").await? == Phase::Failed);
        let pod = node.manifest_pod("never").await?;
        ensure!(
            state(&pod, "setup")? == "ended 3" && state(&pod, "main")?.starts_with("waiting"),
            "{pod:#?}"
        );
        ensure!(pod.reason == "InitContainerFailed" && !has(&pod, "Initialized"), "{pod:#?}");
        Ok(())
    });
}

#[test]
fn no_standard_container_waits_for_anothers_image_or_hook() {
    on_node(async |node| {
        let spec = format!(
            r#"
  containers:
  - name: hangs
    image: busybox
    command: [sh, -c, "{SERVE}"]
    lifecycle: {{ postStart: {{ exec: {{ command: [sleep, "1000"] }} }} }}
  - {{ name: absent, image: "nowhere/absent:1", command: [sh] }}
  - {{ name: main, image: busybox, command: [sh, -c, "{SERVE}"] }}
"#
        );
        node.run_manifest(&pod("web", &spec)).await?;
        let pod = node
            .wait_pod("web", |pod| {
                ensure!(container(pod, "main")?.ready, "not ready");
                ensure!(state(pod, "absent")? == "waiting ErrImagePull", "{}", state(pod, "absent")?);
                ensure!(state(pod, "hangs")? == "running", "{}", state(pod, "hangs")?);
                Ok(())
            })
            .await?;
        // Its process runs, and it counts as not started as long as its hook does.
        ensure!(!container(&pod, "hangs")?.started && !container(&pod, "hangs")?.ready, "{pod:#?}");
        ensure!(pod.phase() == Phase::Pending && !has(&pod, "ContainersReady"), "{pod:#?}");
        Ok(())
    });
}

#[test]
fn a_sidecar_that_is_not_started_holds_the_others_back_also_across_its_crash() {
    on_node(async |node| {
        // Its first attempt never gets there and ends; the second one does.
        let spec = format!(
            r#"
  volumes: [{{ name: shared, emptyDir: {{}} }}]
  initContainers:
  - name: proxy
    image: busybox
    restartPolicy: Always
    command: [sh, -c, "[ -e /s/again ] || {{ touch /s/again; sleep 1; exit 1; }}; sleep 1; touch /s/up; {SERVE}"]
    volumeMounts: &m [{{ name: shared, mountPath: /s }}]
    startupProbe: {{ periodSeconds: 1, failureThreshold: 30, exec: {{ command: [test, -e, /s/up] }} }}
  containers:
  - {{ name: main, image: busybox, command: [sh, -c, "test -e /s/up && echo up; {SERVE}"], volumeMounts: *m }}
"#
        );
        node.run_manifest(&pod("web", &spec)).await?;
        let held = node
            .wait_pod("web", |pod| {
                ensure!(container(pod, "proxy")?.restarts == 1, "not restarted");
                Ok(())
            })
            .await?;
        ensure!(state(&held, "main")? == "waiting PodInitializing", "{held:#?}");
        let pod = node.wait_ready("web").await?;
        ensure!(container(&pod, "proxy")?.started && container(&pod, "proxy")?.restarts == 1, "{pod:#?}");
        wait_log(node, "web", "main", "up").await?;
        Ok(())
    });
}

#[test]
fn a_sidecar_is_restarted_while_init_containers_still_run() {
    on_node(async |node| {
        let spec = r#"
  volumes: [{ name: shared, emptyDir: {} }]
  initContainers:
  - name: proxy
    image: busybox
    restartPolicy: Always
    command: [sh, -c, "echo x >> /s/starts; sleep 1; [ $(wc -l < /s/starts) -gt 1 ] && exec sleep 1000; exit 1"]
    volumeMounts: &m [{ name: shared, mountPath: /s }]
  - name: setup
    image: busybox
    command: [sh, -c, "until [ $(wc -l < /s/starts) -gt 1 ]; do sleep 0.1; done"]
    volumeMounts: *m
  containers:
  - { name: main, image: busybox, command: [sleep, "1000"] }
"#;
        node.run_manifest(&pod("web", spec)).await?;
        let pod = node.wait_ready("web").await?;
        ensure!(
            container(&pod, "proxy")?.restarts == 1 && container(&pod, "setup")?.restarts == 0,
            "{pod:#?}"
        );
        Ok(())
    });
}

#[test]
fn when_the_app_crash_loops_its_sidecar_stays() {
    on_node(async |node| {
        let spec = format!(
            r#"
  initContainers:
  - {{ name: proxy, image: busybox, restartPolicy: Always, command: [sh, -c, "{SERVE}"] }}
  containers:
  - {{ name: main, image: busybox, command: [sh, -c, "exit 7"] }}
"#
        );
        node.run_manifest(&pod("web", &spec)).await?;
        let pod = node
            .wait_pod("web", |pod| {
                let main = container(pod, "main")?;
                ensure!(state(pod, "main")? == "waiting CrashLoopBackOff" && main.restarts == 1, "{main:?}");
                Ok(())
            })
            .await?;
        let proxy = container(&pod, "proxy")?;
        ensure!(proxy.restarts == 0 && proxy.ready, "{pod:#?}");
        ensure!(container(&pod, "main")?.last.as_ref().is_some_and(|last| last.exit_code == 7), "{pod:#?}");
        let events = node.berth_ok(&["events", "web"]).await?;
        ensure!(events.contains("[main]  BackOff  CrashLoopBackOff: "), "{events}");
        Ok(())
    });
}

#[test]
fn a_job_succeeds_and_its_sidecars_are_stopped_after_it_in_reverse_order() {
    on_node(async |node| {
        let spec = format!(
            r#"
  restartPolicy: Never
  initContainers:
  - {{ name: first, image: busybox, restartPolicy: Always, command: [sh, -c, "{SERVE}"] }}
  - {{ name: second, image: busybox, restartPolicy: Always, command: [sh, -c, "{SERVE}"] }}
  containers:
  - {{ name: main, image: busybox, command: [sh, -c, "sleep 1"] }}
"#
        );
        node.run_manifest(&pod("job", &spec)).await?;
        ensure!(node.wait_over("job").await? == Phase::Succeeded);
        let pod = node.manifest_pod("job").await?;
        let (main, second, first) = (times(&pod, "main")?, times(&pod, "second")?, times(&pod, "first")?);
        ensure!(main.1 <= second.1 && second.1 <= first.1, "{pod:#?}");
        ensure!(!has(&pod, "Ready") && pod.finished_at >= first.1, "{pod:#?}");
        Ok(())
    });
}

#[test]
fn pre_stop_comes_before_sigterm_and_is_cut_at_the_grace_period() {
    on_node(async |node| {
        let spec = r#"
  volumes: [{ name: out, hostPath: { path: @OUT@ } }]
  containers:
  - name: polite
    image: busybox
    command: [sh, -c, "trap 'echo term >> /o/polite; exit 0' TERM; echo up > /o/polite-up; sleep 1000 & wait"]
    lifecycle: { preStop: { exec: { command: [sh, -c, "sleep 0.5; echo hook >> /o/polite"] } } }
    volumeMounts: &m [{ name: out, mountPath: /o }]
  - name: hangs
    image: busybox
    command: [sh, -c, "trap 'echo term >> /o/hangs; exit 0' TERM; echo up > /o/hangs-up; sleep 1000 & wait"]
    lifecycle: { preStop: { exec: { command: [sleep, "1000"] } } }
    volumeMounts: *m
"#;
        let out = node.dir().join("out");
        std::fs::create_dir(&out)?;
        let manifest = pod("web", &spec.replace("@OUT@", &out.display().to_string()));
        // Enough for the polite one on a machine that has much to do.
        node.run_manifest(&manifest.replace("PeriodSeconds: 2", "PeriodSeconds: 5")).await?;
        node.wait_ready("web").await?;
        for name in ["polite-up", "hangs-up"] {
            let up = out.join(name);
            wait_until("the traps", PATIENCE, async || up.exists().then_some(()).context("not there"))
                .await?;
        }
        let began = std::time::Instant::now();
        node.stop_manifest_pod("web").await?;
        let took = began.elapsed();
        ensure!(std::fs::read_to_string(out.join("polite"))? == "hook\nterm\n");
        // The grace of 5 s is for all of it: the hook that hangs is cut, then there is no time for SIGTERM to work.
        ensure!(took >= Duration::from_secs(5) && took < Duration::from_secs(10), "{took:?}");
        let pod = node.manifest_pod("web").await?;
        ensure!(state(&pod, "polite")? == "ended 0", "{pod:#?}");
        ensure!(pod.finished_at != 0, "{pod:#?}");
        Ok(())
    });
}

#[test]
fn liveness_restarts_readiness_flips_and_startup_gates_both() {
    on_node(async |node| {
        let spec = r#"
  volumes: [{ name: out, hostPath: { path: @OUT@ } }]
  containers:
  - name: main
    image: busybox
    command: [sh, -c, "touch /o/alive; sleep 1; touch /tmp/started; exec sleep 1000"]
    startupProbe: { periodSeconds: 1, failureThreshold: 60, exec: { command: [test, -e, /tmp/started] } }
    livenessProbe: { periodSeconds: 1, failureThreshold: 1, exec: { command: [test, -e, /o/alive] } }
    readinessProbe: { periodSeconds: 1, failureThreshold: 1, exec: { command: [test, -e, /o/ready] } }
    volumeMounts: [{ name: out, mountPath: /o }]
  - { name: other, image: busybox, command: [sleep, "1000"] }
"#;
        let out = node.dir().join("out");
        std::fs::create_dir(&out)?;
        node.run_manifest(&pod("web", &spec.replace("@OUT@", &out.display().to_string()))).await?;
        let is_ready = async |wanted: bool| {
            let check = |pod: &Pod| {
                let main = container(pod, "main")?;
                ensure!(main.started && main.ready == wanted && has(pod, "Ready") == wanted, "{main:?}");
                Ok(())
            };
            node.wait_pod("web", check).await
        };
        is_ready(false).await?;
        std::fs::write(out.join("ready"), "")?;
        is_ready(true).await?;
        std::fs::remove_file(out.join("ready"))?;
        let unready = is_ready(false).await?;
        ensure!(container(&unready, "main")?.restarts == 0, "readiness restarts nothing: {unready:#?}");
        std::fs::write(out.join("ready"), "")?;
        is_ready(true).await?;
        std::fs::remove_file(out.join("alive"))?;
        let again = node
            .wait_pod("web", |pod| {
                let main = container(pod, "main")?;
                ensure!(main.restarts == 1 && main.ready, "{main:?}");
                Ok(())
            })
            .await?;
        ensure!(container(&again, "other")?.restarts == 0, "{again:#?}");
        Ok(())
    });
}

#[test]
fn a_pod_that_is_active_for_too_long_has_failed() {
    on_node(async |node| {
        let spec = format!(
            r#"
  activeDeadlineSeconds: 1
  containers:
  - {{ name: main, image: busybox, command: [sh, -c, "{SERVE}"] }}
"#
        );
        node.run_manifest(&pod("web", &spec)).await?;
        ensure!(node.wait_over("web").await? == Phase::Failed);
        ensure!(node.manifest_pod("web").await?.reason == "DeadlineExceeded");
        Ok(())
    });
}

#[test]
fn a_program_that_is_not_there_is_named() {
    on_node(async |node| {
        let spec = r#"
  restartPolicy: Never
  containers:
  - { name: main, image: busybox, command: [/no/such/program] }
"#;
        node.run_manifest(&pod("web", spec)).await?;
        ensure!(node.wait_over("web").await? == Phase::Failed);
        let pod = node.manifest_pod("web").await?;
        let Some(State::Terminated(ended)) = &container(&pod, "main")?.state else {
            anyhow::bail!("{pod:#?}")
        };
        ensure!(
            ended.reason == "ContainerCannotRun" && ended.message.contains("/no/such/program"),
            "{ended:?}"
        );
        Ok(())
    });
}

#[test]
fn an_end_while_the_daemon_is_away_keeps_its_last_words() {
    on_node(async |node| {
        let spec = r#"  restartPolicy: Never
  containers:
  - { name: job, image: busybox, command: [sh, -c, "echo ready; while ! test -e /go; do sleep 0.05; done; echo the result > /dev/termination-log; exit 3"] }
"#;
        node.run_manifest(&pod("job", spec)).await?;
        wait_log(node, "job", "job", "ready").await?;
        let id = container(&node.manifest_pod("job").await?, "job")?.id.clone();
        let first = host::processes_in_cgroup(&id)?.into_iter().min().context("it has no process")?;
        node.kill9().await?;
        std::fs::write(format!("/proc/{first}/root/go"), "")?;
        wait_until("the job to end without a daemon", PATIENCE, async || {
            ensure!(host::processes_in_cgroup(&id)?.is_empty());
            Ok(())
        })
        .await?;
        node.start().await?;
        node.wait_over("job").await?;
        let ended = node.manifest_pod("job").await?;
        let Some(State::Terminated(ended)) = container(&ended, "job")?.state.clone() else {
            bail!("{ended:#?}")
        };
        ensure!(ended.exit_code == 3 && ended.message == "the result\n", "{ended:?}");
        Ok(())
    });
}

#[test]
fn a_pod_that_ends_with_its_supervisor_gives_its_ports_back() {
    on_node(async |node| {
        let port = node.host_ports().start;
        let spec = format!(
            r#"  restartPolicy: Never
  containers:
  - {{ name: main, image: busybox, command: [sleep, "1000"], ports: [{{ containerPort: 80, hostPort: {port} }}] }}
"#
        );
        node.run_manifest(&pod("first", &spec)).await?;
        let first = node.wait_ready("first").await?;
        host::send(host::supervisor(&first.sandbox_id)?, nix::sys::signal::Signal::SIGKILL)?;
        ensure!(node.wait_over("first").await? == Phase::Failed);
        node.run_manifest(&pod("second", &spec)).await?;
        node.wait_ready("second").await?;
        Ok(())
    });
}

#[test]
fn users_and_profiles_are_what_kubelet_would_make_of_them() {
    on_node(async |node| {
        let folder = node.dir().join("seccomp");
        std::fs::create_dir(&folder)?;
        let profile = r#"{ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO" }] }"#;
        std::fs::write(folder.join("no-chmod.json"), profile)?;
        let spec = r#"  restartPolicy: Never
  containers:
  - name: group
    image: busybox
    command: [sh, -c, "id -u; id -g"]
    securityContext: { runAsGroup: 3000 }
  - name: profile
    image: busybox
    command: [sh, -c, "grep Seccomp: /proc/self/status; touch /x; chmod 700 /x 2>/dev/null || echo refused"]
    securityContext: { seccompProfile: { type: Localhost, localhostProfile: no-chmod.json } }
"#;
        node.run_manifest(&pod("confined", spec)).await?;
        node.wait_over("confined").await?;
        ensure!(node.pod_log("confined", "group").await? == "0\n3000\n");
        let said = node.pod_log("confined", "profile").await?;
        ensure!(said == "Seccomp:\t2\nrefused\n", "{said}");
        Ok(())
    });
}

#[test]
fn a_debugger_waits_for_a_target_that_has_not_started() {
    on_node(async |node| {
        let spec = r#"  containers:
  - { name: app, image: "nowhere/at-all:1", command: [sleep, "1000"] }
  - { name: other, image: busybox, command: [sleep, "1000"] }
"#;
        node.run_manifest(&pod("web", spec)).await?;
        node.wait_pod("web", |pod| {
            ensure!(state(pod, "other")? == "running");
            Ok(())
        })
        .await?;
        let debugger = r#"{ "apiVersion": "v1", "kind": "EphemeralContainers", "metadata": { "name": "web" },
            "ephemeralContainers": [{ "name": "debugger", "image": "busybox", "targetContainerName": "app" }] }"#;
        let manifest = Manifest { name: "ec.json".to_owned(), text: debugger.to_owned() };
        node.pods().add_ephemeral(AddEphemeralRequest { pod: None, manifest: Some(manifest) }).await?;
        node.wait_pod("web", |pod| {
            let Some(State::Waiting(waiting)) = &container(pod, "debugger")?.state else {
                bail!("it does not wait")
            };
            ensure!(waiting.message.contains("container app"), "{waiting:?}");
            Ok(())
        })
        .await?;
        Ok(())
    });
}

#[test]
fn after_a_reboot_a_sidecar_waits_for_the_init_container_before_it() {
    on_node(async |node| {
        let spec = r#"  initContainers:
  - { name: setup, image: busybox, command: [sh, -c, "sleep 2"] }
  - { name: proxy, image: busybox, restartPolicy: Always, command: [sleep, "1000"] }
  containers:
  - { name: app, image: busybox, command: [sleep, "1000"] }
"#;
        node.run_manifest(&pod("web", spec)).await?;
        node.wait_ready("web").await?;
        node.reboot().await?;
        let pod = node.wait_ready("web").await?;
        ensure!(container(&pod, "setup")?.restarts == 1, "{pod:#?}");
        ensure!(times(&pod, "proxy")?.0 >= times(&pod, "setup")?.1, "{pod:#?}");
        Ok(())
    });
}
