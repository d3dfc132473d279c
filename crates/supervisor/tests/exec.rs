//! Further processes in running containers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;

use std::io::Read;
use std::time::Duration;

use berth_cri::berth::v1::PodSetup;
use berth_cri::berth::v1::failure::Kind;
use berth_supervisor::client::Supervisor;

#[tokio::test]
async fn an_execs_output_and_status_come_back() {
    let mut pod = TestPod::new().await;
    let container = pod.run("c1", &["sleep", "1000"]).await;
    let (stdio, output) = pipes();
    let script = "hostname; echo err >&2; cat /proc/1/cmdline; exit 5";
    let exec = pod.exec(&container, "e1", &["sh", "-c", script], stdio).await.unwrap();
    let exited = soon("the exec's end", exec.exit).await.unwrap();
    assert_eq!((exited.exit_code, exited.signal), (5, 0));
    let (stdout, stderr) = soon("its output", output).await.unwrap();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("pod\nsleep\u{0}1000\u{0}", "err\n"));
    assert_eq!(pod.output("c1"), (String::new(), String::new()), "none of it is the container's");
    pod.finish().await;
}

#[tokio::test]
async fn an_exec_of_a_missing_program_or_into_a_dead_container_says_so() {
    let mut pod = TestPod::new().await;
    let container = pod.run("c1", &["sleep", "1000"]).await;
    let missing = pod.exec(&container, "e1", &["/bin/nope"], pipes().0).await.unwrap_err();
    let missing = failure(missing);
    assert_eq!((missing.kind(), missing.errno), (Kind::Exec, libc::ENOENT), "{missing:?}");
    pod.supervisor.signal("c1", libc::SIGKILL, false).await.unwrap();
    pod.exit_of("c1").await;
    let late = failure(pod.exec(&container, "e2", &["true"], pipes().0).await.unwrap_err());
    assert_eq!(late.kind(), Kind::WrongState);
    pod.finish().await;
}

#[tokio::test]
async fn killing_an_exec_kills_what_it_started_and_nothing_else() {
    let mut pod = TestPod::new().await;
    let container = pod.run("c1", &["sh", "-c", "sleep 1001 & sleep 1001"]).await;
    let (stdio, output) = pipes();
    let script = "sleep 1002 & setsid sleep 1002 & (sleep 1002 & sleep 1002) & echo up; wait";
    let exec = pod.exec(&container, "e1", &["sh", "-c", script], stdio).await.unwrap();
    let cgroup = container.cgroup.clone();
    // A shell becomes the last command of its list.
    until("all of them run", || cgroup.pids().unwrap().len() == 2 + 5).await;
    pod.supervisor.kill_exec("e1").await.unwrap();
    let exited = soon("the exec's end", exec.exit).await.unwrap();
    assert_eq!((exited.exit_code, exited.signal), (137, 9));
    assert_eq!(soon("the pipes are closed", output).await.unwrap().0, "up\n");
    until("only the container's own are left", || cgroup.pids().unwrap().len() == 2).await;
    pod.supervisor.kill_exec("e1").await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn the_execs_of_a_lost_connection_are_killed() {
    let mut pod = TestPod::new().await;
    let container = pod.run("c1", &["sleep", "1000"]).await;
    let (other, ..) = Supervisor::connect(&pod.dir(), Duration::from_secs(10)).await.unwrap();
    let exec = other
        .exec(exec_request(&container, "e1"), native_exec(&container, &["sleep", "1000"], false), pipes().0)
        .await
        .unwrap();
    assert!(is_alive(exec.pid));
    drop(other);
    until("nobody wants it any more", || !is_alive(exec.pid)).await;
    pod.finish().await;
}

#[tokio::test]
async fn many_execs_at_once() {
    let mut pod = TestPod::new().await;
    let container = pod.run("c1", &["sleep", "1000"]).await;
    let execs = (0..20).map(|number| {
        let supervisor = pod.supervisor.clone();
        let request = exec_request(&container, &format!("e{number}"));
        let script = format!("echo {number}; exit {number}");
        let plan = native_exec(&container, &["sh", "-c", &script], false);
        tokio::spawn(async move {
            let (stdio, output) = pipes();
            let exec = supervisor.exec(request, plan, stdio).await.unwrap();
            (number, exec.exit.await.unwrap().exit_code, output.await.unwrap().0)
        })
    });
    for exec in execs.collect::<Vec<_>>() {
        let (number, code, output) = soon("an exec", exec).await.unwrap();
        assert_eq!((code, output), (number, format!("{number}\n")));
    }
    pod.finish().await;
}

#[tokio::test]
async fn an_exec_may_have_a_terminal_of_its_own() {
    let mut pod = TestPod::new().await;
    let container = pod.run("c1", &["sleep", "1000"]).await;
    let plan = native_exec(&container, &["sh", "-c", "tty; read line; echo got $line"], true);
    let (exec, master) = pod.supervisor.exec_terminal(exec_request(&container, "e1"), plan).await.unwrap();
    let text = tokio::task::spawn_blocking(move || {
        let mut master = std::fs::File::from(master);
        std::io::Write::write_all(&mut master, b"words\n").unwrap();
        let mut text = Vec::new();
        // A terminal ends with EIO when nobody has its other side open.
        assert_eq!(master.read_to_end(&mut text).unwrap_err().raw_os_error(), Some(libc::EIO));
        String::from_utf8(text).unwrap()
    });
    let text = soon("the terminal's output", text).await.unwrap();
    assert!(text.contains("/dev/pts/0\r\n") && text.ends_with("got words\r\n"), "{text:?}");
    assert_eq!(exec.exit.await.unwrap().exit_code, 0);
    pod.finish().await;
}

#[tokio::test]
async fn an_exec_in_a_shared_pid_namespace_sees_the_pod() {
    let setup = PodSetup { hostname: "pod".into(), shared_pid: true, ..PodSetup::default() };
    let mut pod = TestPod::with(setup).await;
    let share = |_: &mut _, spec: &mut serde_json::Value| {
        spec["linux"]["namespaces"] =
            serde_json::json!([{ "type": "pid", "path": "/proc/1/ns/pid" }, { "type": "mount" }]);
    };
    let container = pod.create_with("c1", &["sleep", "1000"], share).await.unwrap();
    pod.supervisor.start("c1", Duration::ZERO).await.unwrap();
    let (stdio, output) = pipes();
    let exec = pod.exec(&container, "e1", &["cat", "/proc/1/comm"], stdio).await.unwrap();
    assert_eq!(soon("its end", exec.exit).await.unwrap().exit_code, 0);
    assert_eq!(output.await.unwrap().0, "berth-pause\n");
    pod.finish().await;
}
