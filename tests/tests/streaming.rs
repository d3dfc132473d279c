//! Exec, attach and port-forward with the real crictl, over SPDY and over WebSocket.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, PATIENCE,
    cri::{code_of, script, sleeper},
    on_node, wait_until,
};
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// What a crictl call ended with and wrote.
#[derive(Debug)]
struct Ran {
    success: bool,
    stdout: Vec<u8>,
    stderr: String,
}

/// Runs crictl with something on its standard input.
async fn crictl(node: &Node, arguments: &[&str], input: &[u8]) -> Result<Ran> {
    let mut child = start(node, arguments)?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let feed = async {
        // crictl may end before it has read everything.
        drop(stdin.write_all(input).await);
        drop(stdin);
    };
    let (_, output) =
        tokio::time::timeout(PATIENCE * 3, async { tokio::join!(feed, child.wait_with_output()) })
            .await
            .with_context(|| format!("crictl {arguments:?} does not end"))?;
    let output = output?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Ran { success: output.status.success(), stdout: output.stdout, stderr })
}

fn start(node: &Node, arguments: &[&str]) -> Result<Child> {
    let mut command = node.crictl_command(arguments)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command.spawn()?)
}

#[test]
fn exec_keeps_the_streams_apart_and_tells_the_exit_code() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        for transport in TRANSPORTS {
            let command =
                ["exec", "-r", transport, &container.id, "sh", "-c", "echo out; echo err >&2; exit 7"];
            let ran = crictl(node, &command, b"").await?;
            ensure!(!ran.success && ran.stdout == b"out\n", "{transport}: {ran:?}");
            ensure!(
                ran.stderr.contains("err\n") && ran.stderr.contains("exit code 7"),
                "{transport}: {ran:?}"
            );
            let echo =
                crictl(node, &["exec", "-r", transport, "-i", &container.id, "cat"], b"to and fro").await?;
            ensure!(echo.success && echo.stdout == b"to and fro", "{transport}: {echo:?}");
        }
        Ok(())
    });
}

#[test]
fn a_hundred_megabytes_go_in_and_come_out_unchanged() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let sent: Vec<u8> = (0..100_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for transport in TRANSPORTS {
            let ran = crictl(node, &["exec", "-r", transport, "-i", &container.id, "cat"], &sent).await?;
            ensure!(ran.success, "{transport}: {}", ran.stderr);
            ensure!(
                ran.stdout == sent,
                "{transport}: {} of {} bytes came back",
                ran.stdout.len(),
                sent.len()
            );
        }
        Ok(())
    });
}

#[test]
fn a_client_that_vanishes_takes_its_command_along() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let running = || -> Result<usize> {
            let of_ours = |pid: &&i32| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                [&b"sleep\x004321\0"[..], b"cat\0"].contains(&command.as_slice())
            };
            Ok(container.pids()?.iter().filter(of_ours).count())
        };
        for transport in TRANSPORTS {
            let mut child =
                start(node, &["exec", "-r", transport, "-i", &container.id, "sh", "-c", "sleep 4321 & cat"])?;
            wait_until("the command to run", PATIENCE, async || {
                ensure!(running()? == 2, "not yet");
                Ok(())
            })
            .await?;
            child.kill().await?;
            wait_until("the command to be gone", PATIENCE, async || {
                ensure!(running()? == 0, "{} run", running()?);
                Ok(())
            })
            .await?;
        }
        Ok(())
    });
}

#[test]
fn an_attachment_sees_output_from_now_on_and_stdin_once_ends_with_it() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        for transport in TRANSPORTS {
            let mut config =
                script(transport, "echo before; while read line; do echo got $line; done; echo over");
            (config.stdin, config.stdin_once) = (true, true);
            let container = pod.run(config).await?;
            container.wait_log(1).await?;
            // Several at once see the same.
            let mut watching = start(node, &["attach", "-r", transport, &container.id])?;
            let mut talking = start(node, &["attach", "-r", transport, "-i", &container.id])?;
            let mut stdin = talking.stdin.take().context("stdin")?;
            let mut seen = BufReader::new(watching.stdout.take().context("stdout")?);
            ensure!(talk_until_seen(&mut stdin, &mut seen).await? == "got hello\n");
            stdin.write_all(b"one\ntwo\n").await?;
            drop(stdin);
            let talked = tokio::time::timeout(PATIENCE, talking.wait_with_output()).await??;
            ensure!(talked.status.success(), "{transport}: {talked:?}");
            let mut watched = String::new();
            tokio::time::timeout(PATIENCE, seen.read_to_string(&mut watched)).await??;
            for text in [String::from_utf8(talked.stdout)?, watched] {
                let end = text.trim_start_matches("got hello\n");
                ensure!(end == "got one\ngot two\nover\n", "{transport}: {text:?}");
            }
            ensure!(container.wait_exited().await?.exit_code == 0);
            let log = container.log_text()?.replace("got hello\n", "");
            ensure!(log == "before\ngot one\ngot two\nover\n", "{log:?}");
        }
        Ok(())
    });
}

#[test]
fn stdin_once_ends_also_with_a_client_that_vanishes() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        for transport in TRANSPORTS {
            let mut config = script(transport, "cat; echo over");
            (config.stdin, config.stdin_once) = (true, true);
            let container = pod.run(config).await?;
            let mut child = start(node, &["attach", "-r", transport, "-i", &container.id])?;
            child.stdin.as_mut().context("stdin")?.write_all(b"a line\n").await?;
            container.wait_log(1).await?;
            child.kill().await?;
            ensure!(container.wait_exited().await?.exit_code == 0);
            ensure!(container.log_text()? == "a line\nover\n", "{:?}", container.log_text()?);
        }
        Ok(())
    });
}

#[test]
fn a_follower_that_does_not_read_stops_neither_container_nor_log() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = script(
            "main",
            "while read line && [ $line = hello ]; do echo hello; done; yes $(printf %0100d) | head -c 8000000",
        );
        config.stdin = true;
        let container = pod.run(config).await?;
        // Its pipe is not read any more.
        let mut stalled = start(node, &["attach", &container.id])?;
        let mut talking = start(node, &["attach", "-i", &container.id])?;
        let mut stdin = talking.stdin.take().context("stdin")?;
        let mut seen = BufReader::new(stalled.stdout.take().context("stdout")?);
        talk_until_seen(&mut stdin, &mut seen).await?;
        stdin.write_all(b"go\n").await?;
        let status = container.wait_exited().await?;
        ensure!(status.exit_code == 0, "{status:?}");
        ensure!(container.log()?.len() > 3000);
        drop(stalled);
        Ok(())
    });
}

/// Says hello to a container until somebody else sees its answer: then both are attached. Returns the first answer.
async fn talk_until_seen(stdin: &mut ChildStdin, seen: &mut BufReader<ChildStdout>) -> Result<String> {
    let mut line = String::new();
    let mut answer = std::pin::pin!(seen.read_line(&mut line));
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        stdin.write_all(b"hello\n").await?;
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(200), answer.as_mut()).await {
            read?;
            return Ok(line);
        }
    }
    bail!("nobody saw an answer in {PATIENCE:?}")
}

#[test]
fn many_connections_go_through_a_port_forward_to_both_families() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        // One server on IPv4 alone and one on IPv6 alone; nobody on 9999.
        let text = "mkdir /w; head -c 10000000 /dev/urandom > /w/big; \
                    httpd -p 127.0.0.1:8080 -h /w; httpd -p [::1]:8081 -h /w; sha256sum /w/big > /w/sum; touch /ready; exec sleep 1000";
        let container = pod.run(script("main", text)).await?;
        container.wait_file("/ready").await?;
        let sum = container.sh("cat /w/sum").await?;
        for transport in TRANSPORTS {
            let [four, six, refused] = [free_port()?, free_port()?, free_port()?];
            let ports = [format!("{four}:8080"), format!("{six}:8081"), format!("{refused}:9999")];
            let mut arguments = vec!["port-forward", "-r", transport, &pod.id];
            arguments.extend(ports.iter().map(String::as_str));
            let _forward = start(node, &arguments)?;
            wait_until("the forward to stand", PATIENCE, async || {
                ensure!(get(four, "/sum")?.contains("big"), "not yet");
                Ok(())
            })
            .await?;
            let wanted = sum.clone();
            let all = (0..8).map(|number| {
                let (port, wanted) = (if number % 2 == 0 { four } else { six }, wanted.clone());
                tokio::task::spawn_blocking(move || {
                    ensure!(get(port, "/sum")? == wanted, "another answer");
                    let body = get_bytes(port, "/big")?;
                    ensure!(body.len() == 10_000_000, "{} bytes", body.len());
                    Ok(body)
                })
            });
            let bodies: Vec<Vec<u8>> = futures::future::join_all(all.collect::<Vec<_>>())
                .await
                .into_iter()
                .map(|body| body?)
                .collect::<Result<_>>()
                .with_context(|| transport.to_owned())?;
            ensure!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{transport}: they differ");
            // Last, because crictl itself gives up its session after a refused connection.
            let mut nothing = TcpStream::connect(("127.0.0.1", refused))?;
            nothing.set_read_timeout(Some(PATIENCE))?;
            let _ = nothing.write_all(b"GET / HTTP/1.0\r\n\r\n");
            ensure!(nothing.read(&mut [0; 16]).unwrap_or(0) == 0, "somebody answers on 9999");
        }
        Ok(())
    });
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn get(port: u16, path: &str) -> Result<String> {
    Ok(String::from_utf8(get_bytes(port, path)?)?)
}

/// The body of an HTTP answer.
fn get_bytes(port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no end of the head")?;
    Ok(answer.split_off(end + 4))
}

#[test]
fn what_cannot_be_streamed_to_is_refused_before_there_is_a_url() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let running = pod.run(sleeper("main")).await?;
        let ended = pod.run(script("ended", "exit 0")).await?;
        ended.wait_exited().await?;
        let exec = |container_id: &str, tty, stderr| ExecRequest {
            container_id: container_id.to_owned(),
            cmd: vec!["true".to_owned()],
            tty,
            stdout: true,
            stderr,
            ..ExecRequest::default()
        };
        let mut runtime = node.runtime();
        let unknown = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for (request, code) in [
            (exec(unknown, false, true), tonic::Code::NotFound),
            (exec(&ended.id, false, true), tonic::Code::FailedPrecondition),
            (exec(&running.id, true, true), tonic::Code::InvalidArgument),
        ] {
            let Err(status) = runtime.exec(request).await else { bail!("it got a URL") };
            ensure!(status.code() == code, "{status}");
        }
        let attach = AttachRequest {
            container_id: running.id.clone(),
            tty: true,
            stdout: true,
            ..AttachRequest::default()
        };
        let Err(status) = runtime.attach(attach).await else { bail!("a terminal that is none") };
        ensure!(status.code() == tonic::Code::InvalidArgument, "{status}");
        pod.stop().await?;
        let forward = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: Vec::new() };
        let refused = runtime.port_forward(forward).await.map_err(anyhow::Error::from);
        let Err(error) = refused else { bail!("a stopped pod has ports") };
        ensure!(code_of(&error) == Some(tonic::Code::FailedPrecondition), "{error:#}");
        Ok(())
    });
}
