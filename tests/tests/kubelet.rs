//! What a stock kubelet makes of berth: pods from files, from their first container to the last trace of them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::read_to_string,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node,
    cri::LogLine,
    host, image,
    kubelet::{Kubelet, Options},
    node::BUSYBOX,
    on_node, wait_until,
};
use flate2::read::GzDecoder;
use k8s_cri::v1::{ContainerStatus, ContainerStatusRequest, ListContainersRequest, ListPodSandboxRequest};
use serde_json::{Value, json};

/// Long enough for kubelet, which looks around once a second.
const LONG: Duration = Duration::from_secs(60);

/// kubelet removes what is left of a pod once a minute.
const COLLECTED: Duration = Duration::from_secs(90);

const NGINX: &str = "docker.io/library/nginx:latest";

/// A pod of these containers with a folder in memory that all of them share.
fn pod(name: &str, init: &[Value], containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "initContainers": init,
            "containers": containers,
            "volumes": [{ "name": "shared", "emptyDir": { "medium": "Memory" } }],
        },
    })
}

/// A container of the busybox image with the shared folder at /shared.
fn script(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }],
    })
}

/// Stands by nginx's side, in Kubernetes' sense, and says when it comes and goes.
fn sidecar() -> Value {
    let mut side = script(
        "side",
        "trap 'echo stopped; exit 0' TERM; cat /shared/index.html; while :; do sleep 0.1; done",
    );
    side["restartPolicy"] = json!("Always");
    side
}

/// Serves the shared folder, for as long as the file `alive` is in it.
fn nginx() -> Value {
    json!({
        "name": "nginx",
        "image": NGINX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "touch /usr/share/nginx/html/alive && exec nginx -g 'daemon off;'"],
        "volumeMounts": [{ "name": "shared", "mountPath": "/usr/share/nginx/html" }],
        "livenessProbe": {
            "exec": { "command": ["test", "-e", "/usr/share/nginx/html/alive"] }, "periodSeconds": 1, "failureThreshold": 1,
        },
        "readinessProbe": { "httpGet": { "path": "/index.html", "port": 80 }, "periodSeconds": 1 },
        "lifecycle": { "preStop": { "exec": { "command": ["sh", "-c", "echo before the stop >/proc/1/fd/1"] } } },
    })
}

fn web() -> Value {
    pod("web", &[script("prepare", "echo prepared >/shared/index.html"), sidecar()], &[nginx()])
}

/// Runs `body` with a kubelet on a node that can pull busybox and nginx.
fn on_kubelet(options: Options, body: impl AsyncFnOnce(&Node, &mut Kubelet<'_>) -> Result<()>) {
    on_node(async |node| {
        node.registry().push("library/nginx", "latest", &image::critest::nginx()?.build()?);
        let mut kubelet = Kubelet::start(node, &options).await?;
        body(node, &mut kubelet).await.with_context(|| kubelet.log_tail())?;
        kubelet.stop().await
    });
}

/// Waits until kubelet calls a pod ready with this number of restarts of a container.
async fn ready(kubelet: &Kubelet<'_>, name: &str, container: &str, restarts: u32) -> Result<Value> {
    wait_until(&format!("{name} to be ready"), LONG, async || {
        let pod = kubelet.pod(name).await?;
        let conditions = pod["status"]["conditions"].as_array().context("conditions")?;
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
        ensure!(ready.is_some_and(|ready| ready["status"] == "True"), "{pod}");
        ensure!(status_of(&pod, container)?["restartCount"] == restarts, "{pod}");
        Ok(pod)
    })
    .await
}

/// What kubelet says of a container.
fn status_of<'p>(pod: &'p Value, container: &str) -> Result<&'p Value> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|status| status["name"] == *container).with_context(|| format!("{container} in {pod}"))
}

/// What berth says of each container, by its name and attempt.
async fn containers(node: &Node) -> Result<BTreeMap<(String, u32), ContainerStatus>> {
    let list = node.runtime().list_containers(ListContainersRequest::default()).await?.into_inner();
    let mut all = BTreeMap::new();
    for container in list.containers {
        let request = ContainerStatusRequest { container_id: container.id, verbose: false };
        let status = node.runtime().container_status(request).await?.into_inner().status.context("status")?;
        let metadata = status.metadata.clone().context("metadata")?;
        all.insert((metadata.name, metadata.attempt), status);
    }
    Ok(all)
}

/// Waits until kubelet has let go of a pod: its containers have ended and its volumes are gone.
async fn forgotten(kubelet: &Kubelet<'_>, name: &str) -> Result<()> {
    wait_until(&format!("kubelet to forget {name}"), LONG, async || {
        ensure!(kubelet.pod(name).await.is_err(), "it has not");
        let left = kubelet.mounts()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

#[test]
fn a_pod_comes_heals_and_goes_in_the_right_order() {
    on_kubelet(Options::default(), async |node, kubelet| {
        kubelet.put("web", &web())?;
        let pod = ready(kubelet, "web", "nginx", 0).await?;
        let before = containers(node).await?;
        let of = |name: &str, attempt| before.get(&(name.to_owned(), attempt)).context(name.to_owned());
        ensure!(of("prepare", 0)?.finished_at <= of("side", 0)?.created_at, "{before:?}");
        ensure!(of("side", 0)?.started_at <= of("nginx", 0)?.created_at, "{before:?}");
        ensure!(kubelet.get(&Kubelet::logs("web", "side", "")).await? == "prepared\n");

        let ip = pod["status"]["podIP"].as_str().context("the pod's address")?;
        ensure!(kubelet.fetch(&format!("http://{ip}/index.html")).await? == "prepared\n");
        let ran =
            kubelet.exec("web", "side", &["sh", "-c", "cat; echo err >&2; exit 7"], b"to and fro").await?;
        ensure!(ran.stdout == "to and fro" && ran.stderr == "err\n", "{ran:?}");
        ensure!(ran.status.contains(r#"{"reason":"ExitCode","message":"7"}"#), "{ran:?}");

        // Its liveness fails: nginx is stopped and started again, and nothing else is.
        kubelet.run("web", "side", "rm /shared/alive").await?;
        let pod = ready(kubelet, "web", "nginx", 1).await?;
        let (nginx, side) = (status_of(&pod, "nginx")?, status_of(&pod, "side")?);
        ensure!(nginx["lastState"]["terminated"]["exitCode"] == 0, "{nginx}");
        ensure!(side["restartCount"] == 0 && side["state"]["running"].is_object(), "{side}");
        let previous = kubelet.get(&Kubelet::logs("web", "nginx", "previous=true")).await?;
        let told = ["before the stop", "(SIGTERM) received", "exit"].map(|word| previous.find(word));
        ensure!(told.is_sorted() && told[0].is_some(), "{previous}");
        let current = kubelet.get(&Kubelet::logs("web", "nginx", "")).await?;
        ensure!(current.contains("start worker processes") && !current.contains("SIGTERM"), "{current}");

        // The file goes. The logs go as well, so they are held open.
        let after = containers(node).await?;
        let open = |name: &str, attempt| -> Result<File> {
            let status = after.get(&(name.to_owned(), attempt)).context("no such container")?;
            Ok(File::open(&status.log_path)?)
        };
        let logs = (open("nginx", 1)?, open("side", 0)?);
        kubelet.take("web")?;
        forgotten(kubelet, "web").await?;
        let read = |log: File| LogLine::parse_all(&read_to_string(log)?);
        let (nginx, side) = (read(logs.0)?, read(logs.1)?);
        let time = |lines: &[LogLine], what: &str| {
            let line = lines.iter().find(|line| line.content.contains(what));
            line.map(|line| line.time.clone()).with_context(|| format!("{what:?} in {lines:?}"))
        };
        let times = [
            time(&nginx, "before the stop")?,
            time(&nginx, "(SIGTERM) received")?,
            nginx.last().context("nginx's last words")?.time.clone(),
            time(&side, "stopped")?,
        ];
        ensure!(times.is_sorted(), "{times:?}");

        wait_until("kubelet to collect the rest", COLLECTED, async || {
            let pods =
                node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
            ensure!(pods.is_empty(), "{pods:?}");
            ensure!(containers(node).await?.is_empty());
            Ok(())
        })
        .await?;
        let left: Vec<_> = host::cgroup_hierarchies()?
            .into_values()
            .flat_map(|hierarchy| kubelet.pod_cgroups(&hierarchy))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

#[test]
fn attach_and_port_forward_reach_a_pod_through_kubelet() {
    on_kubelet(Options::default(), async |_, kubelet| {
        let mut echo = script("echo", "cat; echo the end >&2");
        (echo["stdin"], echo["stdinOnce"]) = (json!(true), json!(true));
        let page = script("page", "mkdir /w && echo page >/w/index.html && exec httpd -f -h /w");
        let mut streams = pod("streams", &[], &[echo, page]);
        streams["spec"]["restartPolicy"] = json!("Never");
        kubelet.put("streams", &streams)?;
        ready(kubelet, "streams", "page", 0).await?;
        let request = b"GET / HTTP/1.0\r\n\r\n";
        let answer = kubelet.port_forward("streams", 80, request).await?;
        ensure!(answer.ends_with("\r\n\r\npage\n"), "{answer}");
        let refused = kubelet.port_forward("streams", 81, request).await;
        let refused = refused.err().context("nobody listens there")?.to_string();
        ensure!(refused.contains("refused"), "{refused}");
        let ran = kubelet.attach("streams", "echo", b"typed").await?;
        ensure!(ran.stdout == "typed" && ran.stderr == "the end\n", "{ran:?}");
        ensure!(ran.status.contains("Success"), "{ran:?}");
        kubelet.take("streams")?;
        forgotten(kubelet, "streams").await
    });
}

#[test]
fn a_log_is_rotated_without_loss_and_a_killed_daemon_is_not_noticed() {
    on_kubelet(Options::default(), async |node, kubelet| {
        let count =
            "until test -e /shared/enough; do i=$((i+1)); echo line $i; usleep 3000; done; echo the end";
        let mut chatty = pod("chatty", &[], &[script("count", count)]);
        chatty["spec"]["restartPolicy"] = json!("Never");
        kubelet.put("chatty", &chatty)?;
        ready(kubelet, "chatty", "count", 0).await?;
        let log = containers(node).await?[&("count".to_owned(), 0)].log_path.clone();
        let folder = Path::new(&log).parent().context("the log's folder")?;
        let rotated = async |files: usize| {
            wait_until("the log to be rotated", LONG, async || {
                let count = fs::read_dir(folder)?.count();
                ensure!(count >= files, "{count} of {files} files");
                Ok(count)
            })
            .await
        };
        let followed = Kubelet::logs("chatty", "count", "follow=true&tailLines=1");
        let rotate = async {
            let files = rotated(2).await?;
            // Not while kubelet waits for ReopenContainerLog: after an error it puts the old file back over the new one.
            tokio::time::sleep(Duration::from_secs(1)).await;
            node.kill9().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            node.start().await?;
            rotated(files + 2).await?;
            // A follower that is not in the new file yet when the container ends takes the old one's end for the log's.
            tokio::time::sleep(Duration::from_secs(1)).await;
            kubelet.run("chatty", "count", "touch /shared/enough").await
        };
        let (_, followed) = tokio::try_join!(rotate, kubelet.follow(&followed))?;
        ensure!(followed.ends_with("the end\n"), "{followed}");

        let mut lines = Vec::new();
        for file in fs::read_dir(folder)? {
            lines.extend(LogLine::parse_all(&log_file(&file?.path())?)?);
        }
        lines.sort_by(|a, b| a.time.cmp(&b.time));
        let last = lines.pop().context("no lines")?;
        ensure!(last.content == "the end", "{last:?}");
        for (number, line) in (1..).zip(&lines) {
            ensure!(line.content == format!("line {number}"), "{line:?} where {number} was to be");
        }
        let pod = kubelet.pod("chatty").await?;
        ensure!(status_of(&pod, "count")?["restartCount"] == 0, "{pod}");
        kubelet.take("chatty")?;
        forgotten(kubelet, "chatty").await
    });
}

/// One file of a log; kubelet packs all but the newest two.
fn log_file(path: &Path) -> Result<String> {
    let file = File::open(path)?;
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if packed { read_to_string(GzDecoder::new(file))? } else { read_to_string(file)? })
}

#[test]
fn statistics_and_events_come_from_the_runtime_where_kubelet_asks_for_them() {
    let feature_gates = vec!["PodAndContainerStatsFromCRI", "EventedPLEG", "CRIListStreaming"];
    on_kubelet(Options { feature_gates }, async |_node, kubelet| {
        kubelet.put("web", &web())?;
        ready(kubelet, "web", "nginx", 0).await?;
        wait_until("statistics of the pod", LONG, async || {
            let summary: Value = serde_json::from_str(&kubelet.get("stats/summary").await?)?;
            let mut pods = summary["pods"].as_array().into_iter().flatten();
            let pod = pods.find(|pod| pod["podRef"]["name"] == "web-node").context("the pod")?;
            for value in [
                &pod["cpu"]["usageCoreNanoSeconds"],
                &pod["memory"]["workingSetBytes"],
                &pod["network"]["rxBytes"],
                &pod["process_stats"]["process_count"],
                &pod["containers"][0]["cpu"]["usageNanoCores"],
                &pod["containers"][1]["memory"]["rssBytes"],
            ] {
                ensure!(value.as_u64().is_some_and(|value| value > 0), "{pod:#}");
            }
            Ok(())
        })
        .await?;
        let metrics = kubelet.get("metrics/cadvisor").await?;
        for (metric, container) in [
            ("container_memory_working_set_bytes", "nginx"),
            ("container_cpu_usage_seconds_total", "side"),
            ("container_network_receive_bytes_total", "POD"),
        ] {
            let begin = format!("{metric}{{container=\"{container}\"");
            let of_pod = |line: &str| line.starts_with(&begin) && line.contains(r#"pod="web-node""#);
            ensure!(metrics.lines().any(of_pod), "{begin} is not in:\n{metrics}");
        }
        let own = kubelet.get("metrics").await?;
        ensure!(own.contains("kubelet_evented_pleg_connection_success_count 1\n"), "{own}");
        ensure!(own.contains("kubelet_evented_pleg_connection_error_count 0\n"), "{own}");
        kubelet.take("web")?;
        forgotten(kubelet, "web").await
    });
}

#[test]
fn a_new_kubelet_finds_what_runs_and_leaves_it_alone() {
    on_kubelet(Options::default(), async |node, kubelet| {
        kubelet.put("web", &web())?;
        ready(kubelet, "web", "nginx", 0).await?;
        let before = containers(node).await?;
        kubelet.restart().await?;
        ready(kubelet, "web", "nginx", 0).await?;
        // Two more rounds of its loop.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = containers(node).await?;
        ensure!(after == before, "{before:?}\n{after:?}");
        kubelet.take("web")?;
        forgotten(kubelet, "web").await
    });
}
