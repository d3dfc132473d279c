//! ExecSync.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    PATIENCE,
    cri::{code_of, script, sleeper},
    host, on_node, wait_until,
};
use k8s_cri::v1::ExecSyncRequest;

/// Each stream's share of an answer.
const CAP: usize = 16 << 20;

#[test]
fn stdout_stderr_and_exit_code_come_back_apart() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let done = container.exec(&["sh", "-c", "printf out; printf err >&2; exit 42"]).await?;
        ensure!(done.stdout == "out" && done.stderr == "err" && done.code == 42, "{done:?}");
        let killed = container.exec(&["sh", "-c", "kill -KILL $$"]).await?;
        ensure!(killed.code == 137, "{killed:?}");
        Ok(())
    });
}

#[test]
fn bytes_are_not_touched() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let answer = container.exec_raw(&["printf", r"\000\377\r\n"], 20).await?;
        ensure!(answer.stdout == [0, 255, b'\r', b'\n'], "{:?}", answer.stdout);
        Ok(())
    });
}

#[test]
fn a_missing_program_is_an_error_that_names_it() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let error = match container.exec(&["/no/such/program"]).await {
            Ok(done) => bail!("it ran: {done:?}"),
            Err(error) => error,
        };
        ensure!(format!("{error:#}").contains("/no/such/program"), "{error:#}");
        Ok(())
    });
}

#[test]
fn a_timeout_kills_the_whole_group_and_is_deadline_exceeded() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let begun = Instant::now();
        let answer = container.exec_raw(&["sh", "-c", "sleep 4321 & sleep 4321 & sleep 4321; true"], 1).await;
        let Err(error) = answer else { bail!("it ended") };
        ensure!(code_of(&error) == Some(tonic::Code::DeadlineExceeded), "{error:#}");
        ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let left: Vec<String> = container
            .pids()?
            .into_iter()
            .map(host::command_line)
            .filter(|line| line.contains("4321"))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        // The container itself goes on.
        ensure!(container.sh("echo alive").await? == "alive\n");
        Ok(())
    });
}

#[test]
fn output_is_capped_at_16_mib_for_each_stream_without_an_error() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let flood = "head -c 20000000 /dev/zero; head -c 18000000 /dev/zero >&2; exit 3";
        let answer = container.exec_raw(&["sh", "-c", flood], 60).await?;
        ensure!(answer.stdout.len() == CAP, "{}", answer.stdout.len());
        ensure!(answer.stderr.len() == CAP, "{}", answer.stderr.len());
        ensure!(answer.exit_code == 3);
        Ok(())
    });
}

#[test]
fn a_child_that_keeps_the_pipes_open_does_not_hold_the_answer_back() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let begun = Instant::now();
        let done = container.exec(&["sh", "-c", "sleep 30 & echo done"]).await?;
        ensure!(done.stdout == "done\n" && done.code == 0, "{done:?}");
        ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        Ok(())
    });
}

#[test]
fn it_runs_in_the_containers_cgroup_and_namespaces_and_confined_alike() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let done = wait_until("both to be seen", PATIENCE, async || {
            let script = "cat /proc/self/cgroup /proc/1/cgroup | sort | uniq -c | grep -vc ' 2 '; \
                          for n in cgroup ipc mnt net pid uts; do (readlink /proc/1/ns/$n; readlink /proc/self/ns/$n) | sort -u | wc -l; done; \
                          for f in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp; do grep -h ^$f: /proc/1/status /proc/self/status | sort -u | wc -l; done";
            container.exec(&["sh", "-c", script]).await
        })
        .await?;
        let mut lines = done.stdout.lines();
        ensure!(lines.next() == Some("0"), "cgroups differ: {}", done.stdout);
        ensure!(lines.all(|line| line == "1"), "first process and exec differ: {}", done.stdout);
        Ok(())
    });
}

#[test]
fn many_at_once_keep_their_outputs_apart() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let answers = futures::future::join_all((0..20).map(async |number| {
            let done = container.exec(&["sh", "-c", &format!("echo {number}; exit {number}")]).await?;
            ensure!(done.stdout == format!("{number}\n") && done.code == number, "{done:?}");
            Ok(())
        }))
        .await;
        answers.into_iter().collect::<Result<Vec<()>>>()?;
        ensure!(!container.sh("ps").await?.contains("[sh]"), "zombies are left");
        Ok(())
    });
}

#[test]
fn a_caller_that_gives_up_leaves_no_process() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let request = ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: vec!["sleep".to_owned(), "8765".to_owned()],
            timeout: 0,
        };
        let running = async || {
            let lines: Vec<String> = container.pids()?.into_iter().map(host::command_line).collect();
            anyhow::Ok(lines.iter().any(|line| line.contains("8765")))
        };
        let mut runtime = node.runtime();
        {
            let call = runtime.exec_sync(request);
            tokio::pin!(call);
            let seen = wait_until("the exec to run", PATIENCE, async || {
                ensure!(running().await?, "not yet");
                Ok(())
            });
            tokio::select! {
                answer = &mut call => bail!("it ended: {answer:?}"),
                seen = seen => seen?,
            }
        }
        wait_until("the abandoned exec to end", PATIENCE, async || {
            ensure!(!running().await?, "still running");
            Ok(())
        })
        .await
    });
}

#[test]
fn exec_in_what_does_not_run_is_refused() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let created = pod.create(sleeper("created")).await?;
        ensure!(created.exec(&["true"]).await.is_err(), "exec in a created container");
        let exited = pod.run(script("exited", "exit 0")).await?;
        exited.wait_exited().await?;
        let Err(error) = exited.exec(&["true"]).await else { bail!("exec in an exited container") };
        let code = code_of(&error).context("no code")?;
        ensure!(code == tonic::Code::FailedPrecondition, "{error:#}");
        Ok(())
    });
}
