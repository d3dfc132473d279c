//! `berth-pod` with real containers by the native launcher.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../src/testing.rs"]
mod testing;

use common::*;
use testing::TinyDisk;

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use berth_cri::berth::v1::PodSetup;
use berth_cri::berth::v1::container_report::State;
use berth_cri::berth::v1::failure::Kind;
use berth_supervisor::client::{CallError, ConnectError, Event, Supervisor};
use berth_supervisor::exit_file;

#[tokio::test]
async fn a_container_runs_logs_and_exits() {
    let mut pod = TestPod::new().await;
    let container = pod.create("c1", &["sh", "-c", "hostname; echo err >&2; printf partial; exit 7"]).await;
    assert!(is_alive(container.pid));
    assert!(pod.log("c1").exists(), "the log is there before create is answered");
    let started = pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    let exited = pod.exit_of("c1").await;
    assert_eq!((exited.exit_code, exited.signal, exited.oom_killed), (7, 0, false));
    assert_eq!(exited.started_at, started);
    assert!(exited.finished_at > started);
    assert_eq!(exit_file::read(&pod.dir(), "c1").unwrap(), Some(exited.clone()));
    assert_eq!(pod.output("c1"), ("pod\npartial".into(), "err\n".into()));
    let state = pod.supervisor.state().await.unwrap();
    assert_eq!(state.containers[0].exit, Some(exited));
    pod.supervisor.delete("c1").await.unwrap();
    assert_eq!(exit_file::read(&pod.dir(), "c1").unwrap(), None);
    pod.finish().await;
}

#[tokio::test]
async fn all_output_is_in_the_log_when_the_exit_is_told() {
    let mut pod = TestPod::new().await;
    for round in 0..5 {
        let id = format!("c{round}");
        pod.run(&id, &["sh", "-c", "yes 0123456789 | head -c 1048576; printf end >&2"]).await;
        pod.exit_of(&id).await;
        let (stdout, stderr) = pod.output(&id);
        assert_eq!((stdout.len(), stderr.as_str()), (1024 * 1024, "end"));
    }
    pod.finish().await;
}

#[tokio::test]
async fn a_missing_program_is_an_exec_failure_of_start() {
    let mut pod = TestPod::new().await;
    pod.create("c1", &["/bin/nope"]).await;
    let failure = failure(pod.supervisor.start("c1", Duration::ZERO).await.unwrap_err());
    assert_eq!(failure.kind(), Kind::Exec, "{failure:?}");
    assert_eq!(failure.errno, libc::ENOENT);
    assert!(format!("{failure:?}").contains("/bin/nope"));
    let exited = pod.exit_of("c1").await;
    assert_eq!((exited.exit_code, exited.started_at), (128, 0));
    pod.finish().await;
}

#[tokio::test]
async fn a_container_that_cannot_be_set_up_leaves_nothing() {
    let mut pod = TestPod::new().await;
    let broken = pod
        .create_with("c1", &["true"], |_, spec| {
            spec["mounts"].as_array_mut().unwrap().push(serde_json::json!(
                { "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"] }
            ));
        })
        .await;
    let broken = failure(broken.err().unwrap());
    assert_eq!(broken.kind(), Kind::Launch);
    assert!(format!("{broken:?}").contains("/no/such/source"), "{broken:?}");
    let no_log = pod
        .create_with("c2", &["true"], |request, _| request.log_path = "/no/such/folder/0.log".into())
        .await;
    let no_log = failure(no_log.err().unwrap());
    assert_eq!((no_log.kind(), no_log.errno), (Kind::Launch, libc::ENOENT));
    assert!(pod.supervisor.state().await.unwrap().containers.is_empty());
    pod.finish().await;
}

#[tokio::test]
async fn a_created_container_can_be_deleted_and_a_running_one_cannot() {
    let mut pod = TestPod::new().await;
    let created = pod.create("c1", &["sleep", "1000"]).await;
    pod.supervisor.delete("c1").await.unwrap();
    assert!(!is_alive(created.pid), "deleted means gone");
    assert_eq!(pod.exit_of("c1").await.started_at, 0);
    pod.run("c2", &["sleep", "1000"]).await;
    assert_eq!(failure(pod.supervisor.delete("c2").await.unwrap_err()).kind(), Kind::WrongState);
    assert_eq!(failure(pod.supervisor.shutdown().await.unwrap_err()).kind(), Kind::WrongState);
    assert_eq!(
        failure(pod.supervisor.start("c2", Duration::ZERO).await.unwrap_err()).kind(),
        Kind::WrongState
    );
    assert_eq!(failure(pod.supervisor.start("c3", Duration::ZERO).await.unwrap_err()).kind(), Kind::NotFound);
    pod.finish().await;
}

#[tokio::test]
async fn many_containers_at_once() {
    let mut pod = TestPod::new().await;
    let ids: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
    for id in &ids {
        pod.create(id, &["sh", "-c", "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done; exit 3"])
            .await;
    }
    let starts: Vec<_> = ids
        .iter()
        .map(|id| {
            let (supervisor, id) = (pod.supervisor.clone(), id.clone());
            tokio::spawn(async move { supervisor.start(&id, Duration::ZERO).await })
        })
        .collect();
    for start in starts {
        soon("a start", start).await.unwrap().unwrap();
    }
    let expected: String = (0..500).map(|number| format!("{number}\n")).collect();
    for id in &ids {
        assert_eq!(pod.exit_of(id).await.exit_code, 3);
        assert_eq!(pod.output(id).0, expected);
    }
    pod.finish().await;
}

#[tokio::test]
async fn signals_reach_the_first_process_or_all() {
    let mut pod = TestPod::new().await;
    let script = "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.01; done";
    pod.run("c1", &["sh", "-c", script]).await;
    let log = pod.log("c1");
    until("the container's first line", || fs::read_to_string(&log).unwrap().contains("ready")).await;
    pod.supervisor.signal("c1", libc::SIGTERM, false).await.unwrap();
    assert_eq!(pod.exit_of("c1").await.exit_code, 4);
    assert_eq!(pod.output("c1").0, "ready\nterm\n");
    let ended = failure(pod.supervisor.signal("c1", libc::SIGTERM, false).await.unwrap_err());
    assert_eq!(ended.kind(), Kind::WrongState);
    pod.run("c2", &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]).await;
    pod.supervisor.signal("c2", libc::SIGKILL, true).await.unwrap();
    let exited = pod.exit_of("c2").await;
    assert_eq!((exited.exit_code, exited.signal), (137, 9));
    pod.finish().await;
}

#[tokio::test]
async fn what_a_container_leaves_in_a_shared_pid_namespace_is_killed_with_it() {
    let setup = PodSetup { hostname: "pod".into(), shared_pid: true, ..PodSetup::default() };
    let mut pod = TestPod::with(setup).await;
    let pid1 = pod.supervisor.state().await.unwrap().pid1;
    assert_eq!(status(pid1, "Name").as_deref(), Some("berth-pause"));
    assert_eq!(status(pid1, "CapPrm").as_deref(), Some("0000000000000000"));
    assert_eq!(fs::read_to_string(format!("/proc/{pid1}/mountinfo")).unwrap().lines().count(), 1);
    // It closes the one to report by after it has reported.
    let descriptors = || fs::read_dir(format!("/proc/{pid1}/fd")).unwrap().count();
    until("it holds no descriptor", || descriptors() == 0).await;
    let share = |_: &mut _, spec: &mut serde_json::Value| {
        spec["linux"]["namespaces"] =
            serde_json::json!([{ "type": "pid", "path": "/proc/1/ns/pid" }, { "type": "mount" }]);
    };
    let first =
        pod.create_with("c1", &["sh", "-c", "cat /proc/1/comm; sleep 1000 & exit 0"], share).await.unwrap();
    pod.create_with("c2", &["sleep", "1000"], share).await.unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    pod.supervisor.start("c2", Duration::ZERO).await.unwrap();
    soon("the exit", pod.exit_of("c1")).await;
    assert_eq!(pod.output("c1").0, "berth-pause\n");
    let cgroup = first.cgroup.clone();
    until("the rest of the container is dead", || cgroup.pids().unwrap().is_empty()).await;
    assert_eq!(pod.supervisor.state().await.unwrap().containers[1].state(), State::Running);
    pod.finish().await;
    until("the shared pid 1 goes with its pod", || !is_alive(pid1)).await;
}

#[tokio::test]
async fn a_container_enters_anothers_pid_namespace() {
    let mut pod = TestPod::new().await;
    pod.run("target", &["sleep", "1000"]).await;
    let join = |request: &mut berth_cri::berth::v1::CreateProcess, spec: &mut serde_json::Value| {
        request.target_container = "target".into();
        spec["linux"]["namespaces"] =
            serde_json::json!([{ "type": "pid", "path": "/proc/1/ns/pid" }, { "type": "mount" }]);
    };
    pod.create_with("debug", &["cat", "/proc/1/cmdline"], join).await.unwrap();
    pod.supervisor.start("debug", Duration::ZERO).await.unwrap();
    pod.exit_of("debug").await;
    assert_eq!(pod.output("debug").0, "sleep\u{0}1000\u{0}");
    pod.finish().await;
}

#[tokio::test]
async fn orphans_are_reaped() {
    let mut pod = TestPod::new().await;
    // With the host's pid namespace, an orphan falls to berth-pod.
    let host = |_: &mut _, spec: &mut serde_json::Value| {
        spec["linux"]["namespaces"] = serde_json::json!([{ "type": "mount" }]);
    };
    // One of them is ended by a signal that has no name.
    let script = "(sleep 100 & kill -40 $!); for i in 1 2 3 4 5; do (sleep 0.0$i & ); done; sleep 1000";
    pod.create_with("c1", &["sh", "-c", script], host).await.unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    let pid = pod.supervisor.pid();
    let children = move || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    until("only the shell and its sleep are left", || children().split_whitespace().count() == 1).await;
    pod.finish().await;
}

#[tokio::test]
async fn a_terminal_stays_where_nobody_has_it_open_for_a_while() {
    let mut pod = TestPod::new().await;
    let script = "exec </dev/null >/dev/null 2>&1; sleep 0.3; echo late >/dev/console; exit 4";
    let tty = |request: &mut berth_cri::berth::v1::CreateProcess, spec: &mut serde_json::Value| {
        request.tty = true;
        spec["process"]["terminal"] = true.into();
    };
    pod.create_with("c1", &["sh", "-c", script], tty).await.unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    let exited = pod.exit_of("c1").await;
    assert_eq!((exited.exit_code, exited.signal), (4, 0));
    assert_eq!(pod.output("c1").0, "late\r\n");
    pod.finish().await;
}

#[tokio::test]
async fn one_that_never_answers_a_new_connection_is_killed() {
    let pod = TestPod::new().await;
    let pid = pod.supervisor.pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    tokio::time::pause();
    let connected = Supervisor::connect(&pod.dir(), Duration::from_secs(10)).await;
    tokio::time::resume();
    assert!(matches!(connected, Err(ConnectError::Call(CallError::Timeout { .. }))), "{connected:?}");
    until("it is gone", || !is_alive(pid)).await;
}

#[tokio::test]
async fn a_terminals_output_is_stdout_with_its_carriage_returns() {
    let mut pod = TestPod::new().await;
    let tty = |request: &mut berth_cri::berth::v1::CreateProcess, spec: &mut serde_json::Value| {
        request.tty = true;
        spec["process"]["terminal"] = true.into();
    };
    pod.create_with("c1", &["sh", "-c", "tty >/dev/null && echo out; echo err >&2; seq 2000"], tty)
        .await
        .unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    pod.exit_of("c1").await;
    let numbers: String = (1..=2000).map(|number| format!("{number}\r\n")).collect();
    assert_eq!(pod.output("c1"), (format!("out\r\nerr\r\n{numbers}"), String::new()));
    pod.finish().await;
}

#[tokio::test]
async fn stdin_stays_open_when_asked_for() {
    let mut pod = TestPod::new().await;
    pod.create_with("c1", &["sh", "-c", "cat; echo end"], |request, _| request.stdin = true).await.unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    pod.run("c2", &["sh", "-c", "cat; echo end"]).await;
    pod.exit_of("c2").await;
    assert_eq!(pod.output("c2").0, "end\n", "/dev/null is at its end at once");
    assert_eq!(pod.supervisor.state().await.unwrap().containers[0].state(), State::Running);
    pod.finish().await;
}

#[tokio::test]
async fn logs_are_rotated_without_losing_or_mixing() {
    let mut pod = TestPod::new().await;
    pod.run("c1", &["sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"]).await;
    let mut text = String::new();
    for round in 0..20 {
        let old = pod.log("c1").with_extension(round.to_string());
        fs::rename(pod.log("c1"), &old).unwrap();
        if let Err(error) = pod.supervisor.reopen_log("c1").await {
            assert_eq!(failure(error).kind(), Kind::WrongState, "it may have ended");
            fs::rename(&old, pod.log("c1")).unwrap();
            break;
        }
        let at_reply = fs::read_to_string(&old).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(fs::read_to_string(&old).unwrap(), at_reply, "nothing goes to the old file any more");
        text.push_str(&at_reply);
    }
    pod.exit_of("c1").await;
    text.push_str(&fs::read_to_string(pod.log("c1")).unwrap());
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(" F ").unwrap().1).collect();
    assert_eq!(lines.len(), 20000);
    assert!(lines.iter().enumerate().all(|(number, line)| *line == format!("line {number}")));
    assert_eq!(failure(pod.supervisor.reopen_log("c1").await.unwrap_err()).kind(), Kind::WrongState);
    pod.finish().await;
}

#[tokio::test]
async fn a_full_log_disk_stops_no_container() {
    let mut pod = TestPod::new().await;
    let disk = TinyDisk::mount(&pod.home.path().join("logs"), 256 * 1024);
    pod.run("c1", &["sh", "-c", "yes 0123456789 | head -c 4194304; cat /dev/fd/0; sleep 1000"]).await;
    let log = pod.log("c1");
    until("the disk is full", || fs::metadata(&log).unwrap().len() > 240 * 1024).await;
    let cgroup = pod.new_cgroup("c1");
    // The shell becomes its last command.
    until("the flood is over", || cgroup.pids().unwrap().len() == 1).await;
    // A rotation makes room, and the loss is told.
    fs::remove_file(&log).unwrap();
    pod.supervisor.reopen_log("c1").await.unwrap();
    let (_, note) = pod.output("c1");
    assert!(note.starts_with("berth: ") && note.contains("were lost: No space left"), "{note}");
    drop(disk);
    pod.finish().await;
}

#[tokio::test]
async fn memory_kills_are_recognised() {
    let mut pod = TestPod::new().await;
    let container = pod.create("c1", &["sh", "-c", "head -c 100000000 /dev/zero | tail"]).await;
    let resources = berth_launcher::cgroup::Resources { memory_limit: Some(16 << 20), ..Default::default() };
    container.cgroup.apply(&resources).unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    let exited = pod.exit_of("c1").await;
    assert!(exited.oom_killed, "{exited:?}");
    pod.finish().await;
}

#[tokio::test]
async fn a_lost_connection_changes_nothing_and_a_new_one_learns_all() {
    let mut pod = TestPod::new().await;
    let pid = pod.supervisor.pid();
    pod.run("long", &["sh", "-c", "echo before; sleep 1000"]).await;
    pod.run("short", &["sh", "-c", "sleep 0.1; echo late; exit 9"]).await;
    pod.create("created", &["true"]).await;
    let dir = pod.dir();
    let TestPod { supervisor, events, .. } = &mut pod;
    let (other, other_events, _) = Supervisor::connect(&dir, Duration::from_secs(10)).await.unwrap();
    drop(std::mem::replace(supervisor, other));
    drop(std::mem::replace(events, other_events));
    assert_eq!(pod.supervisor.pid(), pid);
    assert_eq!(pod.exit_of("short").await.exit_code, 9);
    let state = pod.supervisor.state().await.unwrap();
    let states: Vec<_> = state
        .containers
        .iter()
        .map(|container| (container.container_id.as_str(), container.state()))
        .collect();
    assert_eq!(states, [("long", State::Running), ("short", State::Exited), ("created", State::Created)]);
    assert!(state.set_up);
    assert_eq!(pod.output("short").0, "late\n");
    pod.supervisor.start("created", Duration::ZERO).await.unwrap();
    assert_eq!(pod.exit_of("created").await.exit_code, 0);
    pod.finish().await;
}

#[tokio::test]
async fn a_dead_supervisor_fails_all_waiting_calls() {
    let mut pod = TestPod::new().await;
    let pid = pod.supervisor.pid();
    let container = pod.run("c1", &["sleep", "1000"]).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let waiting = tokio::spawn({
        let supervisor = pod.supervisor.clone();
        async move { supervisor.state().await }
    });
    tokio::task::yield_now().await;
    pod.supervisor.kill().await.unwrap();
    assert!(matches!(soon("the waiting call", waiting).await.unwrap(), Err(CallError::Gone)));
    assert_eq!(soon("the event", pod.events.recv()).await, Some(Event::Gone));
    assert_eq!(pod.events.recv().await, None);
    assert!(matches!(
        Supervisor::connect(&pod.dir(), Duration::from_secs(10)).await,
        Err(ConnectError::Gone)
    ));
    until("the supervisor is reaped", || !is_alive(pid)).await;
    assert!(is_alive(container.pid), "a container outlives even this");
    container.cgroup.kill_all().unwrap();
}

#[tokio::test]
async fn no_signal_but_sigkill_ends_a_supervisor_and_its_file_cannot_be_written() {
    use nix::sys::signal::{Signal, kill};
    let pod = TestPod::new().await;
    let pid = nix::unistd::Pid::from_raw(pod.supervisor.pid());
    for signal in
        [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGPIPE]
    {
        kill(pid, signal).unwrap();
    }
    pod.supervisor.state().await.unwrap();
    assert_eq!(status(pid.as_raw(), "Name").as_deref(), Some("berth-pod"));
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid);
    let own_program = fs::File::open(format!("/proc/{pid}/exe")).unwrap();
    let socket = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(pod.dir().join("control.sock")).unwrap().permissions(),
    );
    assert_eq!(socket & 0o777, 0o600);
    pod.finish().await;
    // A container that has got hold of its supervisor's program waits until nobody runs it, and writes (CVE-2019-5736).
    let path = format!("/proc/self/fd/{}", own_program.as_raw_fd());
    let refused = fs::File::options().write(true).open(path).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
}

#[tokio::test]
async fn sysctls_are_the_pods_own() {
    let sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into();
    let mut pod = TestPod::with(PodSetup { hostname: "pod".into(), sysctls, ..PodSetup::default() }).await;
    let before = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    pod.run("c1", &["cat", "/proc/sys/kernel/shm_rmid_forced"]).await;
    pod.exit_of("c1").await;
    assert_eq!(pod.output("c1").0, "1\n");
    assert_eq!(before, "0\n");
    pod.finish().await;
}
