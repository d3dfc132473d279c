//! Containers by external OCI runtimes: Debian's runc and crun.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use berth_cri::berth::v1::container_report::State;
use berth_cri::berth::v1::failure::Kind;

const RUNTIMES: [&str; 2] =
    ["/usr/sbin/runc", concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/tools/crun-v1")];

#[tokio::test]
async fn a_container_runs_logs_and_exits() {
    for runtime in RUNTIMES {
        let mut pod = TestPod::new().await;
        let script = "echo out; echo err >&2; yes x | head -c 200000; exit 7";
        let container = pod.create_external(runtime, "c1", &["sh", "-c", script], false).await.unwrap();
        assert!(is_alive(container.pid));
        assert_eq!(
            status(container.pid, "PPid"),
            Some(pod.supervisor.pid().to_string()),
            "it fell to its supervisor"
        );
        pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
        let exited = pod.exit_of("c1").await;
        assert_eq!((exited.exit_code, exited.signal), (7, 0), "{runtime}");
        assert!(exited.started_at > 0);
        let (stdout, stderr) = pod.output("c1");
        assert_eq!((stdout.len(), stderr.as_str()), (200_004, "err\n"), "{runtime}");
        pod.finish().await;
    }
}

#[tokio::test]
async fn a_very_short_container_has_its_real_status() {
    for runtime in RUNTIMES {
        let mut pod = TestPod::new().await;
        for round in 0..5 {
            let id = format!("c{round}");
            pod.create_external(runtime, &id, &["sh", "-c", "exit 42"], false).await.unwrap();
            pod.supervisor.start(&id, Duration::ZERO).await.unwrap();
            assert_eq!(pod.exit_of(&id).await.exit_code, 42, "{runtime}");
        }
        pod.finish().await;
    }
}

#[tokio::test]
async fn a_missing_program_is_an_exec_failure_of_create() {
    for runtime in RUNTIMES {
        let mut pod = TestPod::new().await;
        let failure = failure(pod.create_external(runtime, "c1", &["/bin/nope"], false).await.err().unwrap());
        assert_eq!(failure.kind(), Kind::Exec, "{runtime}: {failure:?}");
        assert!(failure.message.contains("/bin/nope"), "{failure:?}");
        assert!(!failure.message.contains("\"msg\""), "{failure:?}");
        assert!(pod.supervisor.state().await.unwrap().containers.is_empty());
        let runtime_root = pod.home.path().join("runtime");
        assert_eq!(fs::read_dir(runtime_root).map_or(0, Iterator::count), 0, "{runtime} keeps nothing");
        pod.finish().await;
    }
}

#[tokio::test]
async fn execs_signals_and_deletion() {
    for runtime in RUNTIMES {
        let mut pod = TestPod::new().await;
        let container = pod.create_external(runtime, "c1", &["sleep", "1000"], false).await.unwrap();
        pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
        let process = |args: &[&str]| serde_json::to_vec(&exec_process(&container, args, false)).unwrap();
        let (stdio, output) = pipes();
        let plan = process(&["sh", "-c", "cat /proc/1/cmdline; echo err >&2; exit 5"]);
        let exec = pod.supervisor.exec(exec_request(&container, "e1"), plan, stdio).await.unwrap();
        assert_eq!(soon("its end", exec.exit).await.unwrap().exit_code, 5, "{runtime}");
        assert_eq!(soon("its output", output).await.unwrap(), ("sleep\u{0}1000\u{0}".into(), "err\n".into()));

        let plan = process(&["/bin/nope"]);
        let missing = pod.supervisor.exec(exec_request(&container, "e2"), plan, pipes().0).await.unwrap_err();
        assert_eq!(failure(missing).kind(), Kind::Exec, "{runtime}");

        let plan = process(&["sh", "-c", "sleep 1000 & sleep 1000"]);
        let exec = pod.supervisor.exec(exec_request(&container, "e3"), plan, pipes().0).await.unwrap();
        pod.supervisor.kill_exec("e3").await.unwrap();
        assert_eq!(soon("its end", exec.exit).await.unwrap().signal, 9);
        let cgroup = container.cgroup.clone();
        until("only the container's own is left", || cgroup.pids().unwrap().len() == 1).await;

        pod.supervisor.signal("c1", libc::SIGKILL, false).await.unwrap();
        assert_eq!(pod.exit_of("c1").await.exit_code, 137);
        pod.supervisor.delete("c1").await.unwrap();
        pod.create_external(runtime, "c2", &["sleep", "1000"], false).await.unwrap();
        pod.supervisor.delete("c2").await.unwrap();
        pod.finish().await;
    }
}

#[tokio::test]
async fn a_terminal_comes_by_the_console_socket() {
    for runtime in RUNTIMES {
        let mut pod = TestPod::new().await;
        let container =
            pod.create_external(runtime, "c1", &["sh", "-c", "tty; sleep 1000"], true).await.unwrap();
        pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
        let log = pod.log("c1");
        until("the first line", || fs::read_to_string(&log).unwrap().ends_with("stdout F /dev/pts/0\r\n"))
            .await;
        let plan = serde_json::to_vec(&exec_process(&container, &["sh", "-c", "tty"], true)).unwrap();
        let (exec, master) =
            pod.supervisor.exec_terminal(exec_request(&container, "e1"), plan).await.unwrap();
        assert_eq!(soon("its end", exec.exit).await.unwrap().exit_code, 0);
        let mut buffer = [0; 64];
        let read = rustix::io::read(&master, &mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"/dev/pts/1\r\n", "{runtime}");
        pod.finish().await;
    }
}

#[tokio::test]
async fn a_runtime_that_hangs_is_killed_and_the_others_go_on() {
    let mut pod = TestPod::new().await;
    let hangs = pod.home.path().join("hangs");
    let begun_file = pod.home.path().join("begun");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *delete*) exit 0;; esac\n: > {}\nexec sleep 1000\n",
        begun_file.display()
    );
    fs::write(&hangs, script).unwrap();
    fs::set_permissions(&hangs, fs::Permissions::from_mode(0o755)).unwrap();
    pod.run("other", &["sleep", "1000"]).await;
    let cgroup = pod.new_cgroup("c1");
    let mut request = pod.request("c1", &cgroup);
    request.external = Some(berth_cri::berth::v1::ExternalRuntime {
        path: hangs.to_str().unwrap().into(),
        bundle: "/".into(),
        root: "/".into(),
        timeout_seconds: 1,
    });
    let begun = Instant::now();
    let supervisor = pod.supervisor.clone();
    let creating = tokio::spawn(async move { supervisor.create(request, None, Duration::ZERO).await });
    until("it is under way", || begun_file.exists()).await;
    assert_eq!(pod.supervisor.state().await.unwrap().containers[0].state(), State::Running);
    let failure = failure(soon("the time-out", creating).await.unwrap().unwrap_err());
    assert!(failure.message.contains("not ended in time"), "{failure:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let missing = pod.create_external("/no/such/runtime", "c2", &["true"], false).await;
    assert!(missing.is_err());
    pod.finish().await;
}
