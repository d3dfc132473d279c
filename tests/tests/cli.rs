//! The `berth` command, as a person or a script uses it.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use berth_cri::berth::v1::ExecInPodRequest;
use berth_tests::{Node, Options, PATIENCE, manifest::reference, on_node, on_node_with, wait_until};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

/// A pod that runs a script of one line.
fn pod(name: &str, policy: &str, script: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  containers:
  - {{ name: main, image: busybox, command: [sh, -c, {script:?}] }}
"#
    )
}

const SERVE: &str = "trap 'exit 0' TERM; echo begun; while :; do sleep 1000 & wait $!; done";

const PAGE: &str = "mkdir /w; echo page > /w/index.html; exec httpd -f -p 80 -h /w";

/// Runs `berth` with a manifest on its standard input.
async fn run(node: &Node, arguments: &[&str], manifest: &str) -> Result<(i32, String)> {
    let mut command = node.berth_command(&[&["run", "-f", "-"], arguments].concat())?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(manifest.as_bytes()).await?;
    let output = timeout(3 * PATIENCE, child.wait_with_output()).await.context("it does not end")??;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

#[test]
fn run_waits_for_ready_or_for_the_end_and_ends_with_the_pods_code() {
    on_node(async |node| {
        let (code, text) = run(node, &[], &pod("web", "Always", SERVE)).await?;
        ensure!(code == 0 && text.contains("default/web is ready after"), "{code}: {text}");
        let (code, text) = run(node, &["--wait"], &pod("good", "Never", "exit 0")).await?;
        ensure!(code == 0 && text.contains("default/good succeeded"), "{code}: {text}");
        let (code, text) = run(node, &["--wait"], &pod("bad", "Never", "exit 42")).await?;
        ensure!(code == 42 && text.contains("default/bad failed"), "{code}: {text}");
        let (code, text) = run(node, &["--detach"], &pod("later", "Never", "exit 0")).await?;
        ensure!(code == 0 && text.contains("default/later is taken"), "{code}: {text}");
        let (code, text) = run(node, &[], &pod("wrong", "Sometimes", "exit 0")).await?;
        ensure!(code == 1 && text.contains("spec.restartPolicy"), "{code}: {text}");
        let (code, text) = run(node, &["-o", "json"], &pod("web", "Always", SERVE)).await?;
        let pods: Value = serde_json::from_str(&text).context(text.clone())?;
        ensure!(code == 0 && pods[0]["status"]["phase"] == "Running", "{code}: {pods}");
        Ok(())
    });
}

#[test]
fn a_pod_is_shown_as_kubernetes_shows_it() {
    on_node(async |node| {
        run(node, &[], &pod("web", "Always", SERVE)).await?;
        let table = node.berth_ok(&["ps"]).await?;
        ensure!(table.lines().count() == 2 && table.contains("web") && table.contains("1/1"), "{table}");
        let list: Value = serde_json::from_str(&node.berth_ok(&["ps", "-o", "json"]).await?)?;
        ensure!(list["kind"] == "List" && list["items"][0]["metadata"]["name"] == "web", "{list}");
        let pod: Value = serde_json::from_str(&node.berth_ok(&["get", "web", "-o", "json"]).await?)?;
        ensure!(pod["kind"] == "Pod" && pod["spec"]["containers"][0]["name"] == "main", "{pod}");
        let status = &pod["status"];
        ensure!(status["phase"] == "Running" && status["podIP"].is_string(), "{status}");
        let container = &status["containerStatuses"][0];
        ensure!(
            container["ready"] == true && container["state"]["running"]["startedAt"].is_string(),
            "{status}"
        );
        ensure!(container["containerID"].as_str().is_some_and(|id| id.starts_with("berth://")), "{status}");
        let conditions = status["conditions"].as_array().context("no conditions")?;
        ensure!(conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"), "{status}");
        let yaml = node.berth_ok(&["get", "default/web", "-o", "yaml"]).await?;
        ensure!(yaml.contains("kind: Pod") && yaml.contains("  phase: Running"), "{yaml}");
        let said = node.berth(&["get", "nobody"]).await?;
        ensure!(said.code == 3 && said.err.contains("there are: default/web"), "{said:?}");
        let said = node.berth(&["exec", "web", "-c", "nobody", "--", "true"]).await?;
        ensure!(said.code == 3 && said.err.contains("there are: main"), "{said:?}");
        Ok(())
    });
}

#[test]
fn exec_passes_streams_and_the_exit_code() {
    on_node(async |node| {
        run(node, &[], &pod("web", "Always", SERVE)).await?;
        let said = node.berth(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
        ensure!((said.code, said.out.as_str(), said.err.as_str()) == (7, "out\n", "err\n"), "{said:?}");
        echo_through_cat(node).await?;
        let said = node.berth(&["exec", "web", "--", "/no/such"]).await?;
        ensure!(said.code == 1 && said.err.contains("/no/such"), "{said:?}");
        Ok(())
    });
}

/// Half a megabyte to and fro; cat ends when its input does.
async fn echo_through_cat(node: &Node) -> Result<()> {
    let mut command = node.berth_command(&["exec", "-i", "web", "--", "cat"])?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let sent = "all of it\n".repeat(50_000);
    stdin.write_all(sent.as_bytes()).await?;
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output()).await.context("cat does not end")??;
    ensure!(output.status.success() && output.stdout == sent.as_bytes(), "{} bytes", output.stdout.len());
    Ok(())
}

#[test]
fn streams_go_over_tls_where_the_server_has_a_certificate() {
    let pem = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("crates/streaming/tests/tls");
    let pem = pem.display();
    let streaming =
        format!("[streaming]\ntls_certificate = \"{pem}/certificate.pem\"\ntls_key = \"{pem}/key.pem\"\n");
    on_node_with(Options { extra_config: streaming, ..Options::default() }, async |node| {
        run(node, &[], &pod("web", "Always", PAGE)).await?;
        let exec = ExecInPodRequest {
            pod: reference("web"),
            command: vec!["true".to_owned()],
            ..ExecInPodRequest::default()
        };
        let answer = node.pods().exec(exec).await?.into_inner();
        ensure!(answer.url.starts_with("https://127.0.0.1:"), "{answer:?}");
        let said = node.berth(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
        ensure!((said.code, said.out.as_str(), said.err.as_str()) == (7, "out\n", "err\n"), "{said:?}");
        echo_through_cat(node).await?;
        let (mut child, addresses) = forward(node, &[":80"]).await?;
        wait_until("the page", PATIENCE, async || {
            let answer = ask(&addresses[0]).await?;
            ensure!(answer.ends_with("page\n"), "{answer}");
            Ok(())
        })
        .await?;
        child.kill().await?;
        Ok(())
    });
}

#[test]
fn logs_are_followed_to_the_end_and_cut_as_asked() {
    on_node(async |node| {
        let script = "for i in 1 2 3 4; do echo line $i; sleep 0.2; done; echo last >&2";
        run(node, &["--detach"], &pod("job", "Never", script)).await?;
        let followed = async || {
            let said = node.berth(&["logs", "-f", "job"]).await?;
            ensure!(said.code == 0, "{said:?}");
            Ok(said)
        };
        let said = wait_until("the log", PATIENCE, followed).await?;
        ensure!(said.out == "line 1\nline 2\nline 3\nline 4\n" && said.err == "last\n", "{said:?}");
        let tail = node.berth(&["logs", "job", "--tail", "2"]).await?;
        ensure!(tail.out == "line 4\n" && tail.err == "last\n", "{tail:?}");
        let timed = node.berth_ok(&["logs", "job", "--timestamps", "--since", "1h"]).await?;
        ensure!(
            timed.lines().all(|line| line.split(' ').next().is_some_and(|time| time.ends_with('Z'))),
            "{timed}"
        );
        ensure!(node.berth_ok(&["logs", "job", "--since", "1ns"]).await?.is_empty());
        let crash = "echo attempt $(cat /proc/sys/kernel/random/uuid); exit 1";
        run(node, &["--detach"], &pod("loop", "Always", crash)).await?;
        wait_until("a restart", PATIENCE, async || {
            let table = node.berth_ok(&["ps"]).await?;
            ensure!(table.contains("CrashLoopBackOff"), "{table}");
            Ok(())
        })
        .await?;
        let (now, before) =
            (node.berth_ok(&["logs", "loop"]).await?, node.berth_ok(&["logs", "-p", "loop"]).await?);
        // While it waits to be started again, as it does now, both are the attempt that has ended (kubectl has it so).
        ensure!(now.starts_with("attempt ") && before == now, "{now:?} {before:?}");
        Ok(())
    });
}

#[test]
fn a_debugger_sees_its_targets_processes_and_files() {
    on_node(async |node| {
        run(node, &[], &pod("web", "Always", SERVE)).await?;
        let look = "grep -c begun /proc/1/cmdline; ls -d /proc/1/root/bin; exit 9";
        let debug = [
            "debug", "web", "--image", "busybox", "--target", "main", "--name", "look", "--", "sh", "-c",
            look,
        ];
        let said = node.berth(&debug).await?;
        ensure!(said.code == 9 && said.out == "1\n/proc/1/root/bin\n", "{said:?}");
        let page = node.berth_ok(&["get", "web"]).await?;
        let apart = page.split("EPHEMERAL").nth(1).context(page.clone())?;
        ensure!(apart.contains("look") && apart.contains("Error (9)"), "{page}");
        Ok(())
    });
}

#[test]
fn a_terminal_has_its_size_and_is_left_with_keys() {
    on_node(async |node| {
        run(node, &[], &pod("web", "Always", SERVE)).await?;
        // script(1) gives the command a terminal, and passes on what is typed.
        let berth = node.berth_command(&[])?.as_std().get_program().to_string_lossy().into_owned();
        let resize = node.dir().join("resize");
        let debug = format!(
            "stty cols 111 rows 44
             ( until test -e {}; do sleep 0.1; done; stty cols 77 rows 22 </dev/tty ) &
             {berth} debug web --image busybox --name tty -it -- sh
             echo code $?",
            resize.display()
        );
        let mut command = tokio::process::Command::new("script");
        command.args(["-qfec", &debug, "/dev/null"]).kill_on_drop(true);
        command.env("BERTH_ADDRESS", format!("unix://{}", node.socket().display()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        let mut seen = String::new();
        read_until(&mut stdout, &mut seen, "# ").await?;
        stdin.write_all(b"stty size; echo $((6*7))\n").await?;
        read_until(&mut stdout, &mut seen, "\r\n42\r\n").await?;
        ensure!(seen.contains("44 111"), "{seen:?}");
        std::fs::write(&resize, "")?;
        stdin.write_all(b"until stty size | grep '^22 77$'; do sleep 0.1; done; echo $((6*9))\n").await?;
        read_until(&mut stdout, &mut seen, "\r\n54\r\n").await?;
        stdin.write_all(b"\x10\x11").await?;
        read_until(&mut stdout, &mut seen, "code 0").await?;
        ensure!(seen.contains("detached"), "{seen:?}");
        let page = node.berth_ok(&["get", "web"]).await?;
        ensure!(page.split("EPHEMERAL").nth(1).is_some_and(|apart| apart.contains("Running")), "{page}");
        Ok(())
    });
}

async fn read_until(from: &mut ChildStdout, seen: &mut String, wanted: &str) -> Result<()> {
    let mut piece = [0; 4096];
    while !seen.contains(wanted) {
        let count = timeout(PATIENCE, from.read(&mut piece))
            .await
            .with_context(|| format!("no {wanted:?} in {seen:?}"))??;
        ensure!(count > 0, "the end before {wanted:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    Ok(())
}

/// `berth port-forward web`, and where it listens for each port.
async fn forward(node: &Node, ports: &[&str]) -> Result<(Child, Vec<String>)> {
    let mut command = node.berth_command(&[&["port-forward", "web"], ports].concat())?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut addresses = Vec::new();
    for _ in ports {
        let line = timeout(PATIENCE, lines.next_line()).await??.context("no line")?;
        addresses.push(line.split_whitespace().nth(1).context(line.clone())?.to_owned());
    }
    Ok((child, addresses))
}

async fn ask(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

#[test]
fn ports_are_forwarded_until_it_is_ended() {
    on_node(async |node| {
        run(node, &[], &pod("web", "Always", PAGE)).await?;
        let (mut child, addresses) = forward(node, &[":80", ":81"]).await?;
        let (open, closed) = (&addresses[0], &addresses[1]);
        ensure!(ask(closed).await.unwrap_or_default().is_empty(), "nobody listens there");
        wait_until("the page", PATIENCE, async || {
            // One that was refused has ended nothing.
            let answer = ask(open).await?;
            ensure!(answer.ends_with("page\n"), "{answer}");
            Ok(())
        })
        .await?;
        let answers = futures::future::join_all((0..20).map(|_| ask(open))).await;
        ensure!(
            answers.iter().all(|answer| answer.as_ref().is_ok_and(|text| text.ends_with("page\n"))),
            "{answers:?}"
        );
        child.kill().await?;
        Ok(())
    });
}

#[test]
fn a_slow_start_is_seen_in_the_timeline() {
    on_node(async |node| {
        let manifest = r#"apiVersion: v1
kind: Pod
metadata: { name: slow }
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - { name: fetch, image: busybox, command: [sleep, "3"] }
  containers:
  - { name: main, image: busybox, command: [sleep, "1000"] }
"#;
        run(node, &[], manifest).await?;
        let timeline: Value =
            serde_json::from_str(&node.berth_ok(&["timeline", "slow", "-o", "json"]).await?)?;
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let (began, ready) = (number(&timeline["began"]), number(&timeline["ready"]));
        let spans = timeline["spans"].as_array().context("no spans")?;
        let took = |span: &Value| number(&span["ended"]) - number(&span["began"]);
        let init = spans.iter().find(|span| span["kind"] == "INIT").context("no init container")?;
        ensure!((3_000_000_000..3_300_000_000).contains(&took(init)) && init["waitedFor"] == true, "{init}");
        let sum: i64 = spans.iter().filter(|span| span["waitedFor"] == true).map(took).sum();
        let wall = ready - began;
        ensure!(wall > 3_000_000_000 && (wall - sum).abs() * 20 <= wall, "{sum} of {wall}: {timeline:#}");
        ensure!(
            spans.iter().any(|span| span["kind"] == "NETWORK" && span["partOf"].is_u64()),
            "{timeline:#}"
        );
        let chart = node.berth_ok(&["timeline", "slow"]).await?;
        ensure!(
            chart.contains("* run init fetch") && chart.contains("to Ready are in the marked spans"),
            "{chart}"
        );
        let picture = node.dir().join("slow.svg");
        node.berth_ok(&["timeline", "slow", "--svg", &picture.display().to_string()]).await?;
        let svg = std::fs::read_to_string(picture)?;
        ensure!(svg.starts_with("<svg") && svg.contains("run init fetch"), "{svg}");
        Ok(())
    });
}

#[test]
fn pods_are_stopped_and_removed_by_name() {
    on_node(async |node| {
        run(node, &[], &pod("web", "Always", SERVE)).await?;
        let said = node.berth(&["rm", "web"]).await?;
        ensure!(said.code == 1 && said.err.contains("berth stop web"), "{said:?}");
        let top = node.berth_ok(&["top", "-o", "json"]).await?;
        let top: Value = serde_json::from_str(&top)?;
        ensure!(top[0]["containers"][0]["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{top}");
        let events = node.berth_ok(&["events", "web"]).await?;
        ensure!(events.contains("Pulled") && events.contains("Started"), "{events}");
        node.berth_ok(&["stop", "web"]).await?;
        node.berth_ok(&["rm", "web"]).await?;
        let said = node.berth(&["rm", "web"]).await?;
        ensure!(said.code == 3, "{said:?}");
        ensure!(node.berth_ok(&["ps"]).await?.lines().count() == 1);
        Ok(())
    });
}

#[test]
fn images_are_pulled_listed_and_pruned() {
    on_node(async |node| {
        node.push_manifest_images()?;
        let pulled = node.berth_ok(&["image", "pull", "nginx"]).await?;
        ensure!(pulled.contains("nginx is sha256:"), "{pulled}");
        run(node, &[], &pod("web", "Always", SERVE)).await?;
        let images = node.berth_ok(&["image", "ls"]).await?;
        ensure!(images.contains("docker.io/library/nginx:latest") && images.contains("busybox"), "{images}");
        let dry = node.berth_ok(&["image", "prune", "--dry-run", "-o", "json"]).await?;
        let dry: Value = serde_json::from_str(&dry)?;
        ensure!(dry.as_array().is_some_and(|all| all.len() == 1), "busybox is in use: {dry}");
        ensure!(dry[0]["names"][0] == "docker.io/library/nginx:latest", "{dry}");
        node.berth_ok(&["image", "prune"]).await?;
        let images = node.berth_ok(&["image", "ls", "-o", "json"]).await?;
        ensure!(!images.contains("nginx") && images.contains("busybox"), "what a pod uses stays: {images}");
        let said = node.berth(&["image", "rm", "nginx"]).await?;
        ensure!(said.code == 1 && said.err.contains("there is no image nginx"), "{said:?}");
        let said = node.berth(&["image", "pull", "no/such:1"]).await?;
        ensure!(said.code == 3 && said.err.contains("no/such:1"), "{said:?}");
        Ok(())
    });
}

#[test]
fn where_an_image_comes_from_is_explained() {
    on_node(async |node| {
        let said = node.berth_ok(&["image", "explain", "busybox"]).await?;
        let file = node.dir().join("certs.d/docker.io/hosts.toml");
        ensure!(said.starts_with("docker.io/library/busybox:latest\n"), "{said}");
        ensure!(said.contains(&format!("as {} has it\n", file.display())), "{said}");
        ensure!(said.contains("here under that name: sha256:") && said.contains("resolve, pull"), "{said}");
        let json: Value =
            serde_json::from_str(&node.berth_ok(&["image", "explain", "absent", "-o", "json"]).await?)?;
        ensure!(json["present"] == "" && json["endpoints"][0]["answer"]["failure"].is_string(), "{json}");
        Ok(())
    });
}

#[test]
fn an_image_goes_through_a_file_and_runs() {
    on_node(async |node| {
        let file = node.dir().join("busybox.tar").display().to_string();
        node.berth_ok(&["image", "save", "-o", &file, "busybox"]).await?;
        node.berth_ok(&["image", "rm", "busybox"]).await?;
        let loaded = node.berth_ok(&["image", "load", "-i", &file, "-o", "json"]).await?;
        let loaded: Value = serde_json::from_str(&loaded)?;
        ensure!(loaded[0]["names"][0] == "docker.io/library/busybox:latest", "{loaded}");
        let manifest =
            pod("job", "Never", "exit 3").replace("image: busybox", "image: busybox, imagePullPolicy: Never");
        let (code, text) = run(node, &["--wait"], &manifest).await?;
        ensure!(code == 3, "{code}: {text}");
        // Through pipes as well.
        let mut save = node.berth_command(&["image", "save", "busybox"])?.stdout(Stdio::piped()).spawn()?;
        let pipe: Stdio = save.stdout.take().context("no stdout")?.try_into()?;
        let load = timeout(PATIENCE, node.berth_command(&["image", "load"])?.stdin(pipe).output()).await??;
        ensure!(load.status.success() && save.wait().await?.success(), "{load:?}");
        let said = node.berth(&["image", "load", "-i", &node.config_file().display().to_string()]).await?;
        ensure!(said.code == 1 && said.err.contains("no image archive"), "{said:?}");
        let said = node.berth(&["image", "save", "-o", &file, "absent"]).await?;
        ensure!(said.code == 3 && said.err.contains("absent"), "{said:?}");
        Ok(())
    });
}
