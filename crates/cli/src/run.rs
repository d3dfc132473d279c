//! `berth run`: gives manifests to the daemon, and shows what becomes of them.

pub(crate) mod progress;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use berth_cri::berth::v1::{
    Manifest, Pod, PodRef, RunRequest,
    pod::Phase,
    pod_container::{Kind, State},
    watch_pods_response::What,
};
use serde_json::{Value, json};

use self::progress::Progress;
use crate::args::{Format, Run};
use crate::client::Client;
use crate::error::Error;
use crate::get;
use crate::output::{Colour, coloured, print};

pub(crate) async fn run(client: Client, args: Run) -> Result<u8, Error> {
    let files = args.files.iter().chain(&args.filename);
    let manifests = files.map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let request = RunRequest { manifests, lenient: args.lenient, dry_run: args.dry_run };
    let taken = client.pods().run(request).await.map_err(client.failed())?.into_inner();
    for warning in &taken.warnings {
        eprintln!("{} {warning}", coloured("warning:", Colour::Yellow));
    }
    let as_data = args.output.output != Format::Table;
    if args.dry_run || args.detach {
        let what = if args.dry_run { "would run" } else { "is taken" };
        match as_data {
            true => print(&Value::Array(taken.pods.iter().map(reference).collect()), args.output.output)?,
            false => taken.pods.iter().for_each(|pod| println!("{}/{} {what}", pod.namespace, pod.name)),
        }
        return Ok(0);
    }
    let ended = tokio::select! {
        ended = follow(&client, &taken.pods, args.wait, as_data) => ended?,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\nthe pods go on without you: berth ps, berth events -f, berth stop");
            return Ok(130);
        }
    };
    if as_data {
        let documents = ended.values().map(get::document).collect::<Result<Vec<_>, _>>()?;
        print(&Value::Array(documents), args.output.output)?;
    }
    Ok(ended.values().map(exit_code).find(|code| *code != 0).unwrap_or(0))
}

fn reference(pod: &PodRef) -> Value {
    json!({ "namespace": pod.namespace, "name": pod.name })
}

/// A manifest's text; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<Manifest, Error> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(Error::file("read", PathBuf::from("standard input")))?;
    } else {
        text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    }
    Ok(Manifest { name: path.display().to_string(), text })
}

/// Until all pods are ready, or with `to_the_end` have ended. The pods as they are then.
async fn follow(
    client: &Client,
    pods: &[PodRef],
    to_the_end: bool,
    silent: bool,
) -> Result<BTreeMap<(String, String), Pod>, Error> {
    let key = |pod: &PodRef| (pod.namespace.clone(), pod.name.clone());
    let wanted: Vec<_> = pods.iter().map(key).collect();
    let mut seen = BTreeMap::new();
    let mut progress = Progress::new(silent);
    let mut changes = client.watch(None).await?;
    loop {
        match changes.next().await?.what {
            Some(What::Pod(pod)) if pod.pod.as_ref().is_some_and(|one| wanted.contains(&key(one))) => {
                progress.show(&pod);
                seen.extend(pod.pod.as_ref().map(key).map(|key| (key, pod)));
            }
            Some(What::Removed(pod)) if wanted.contains(&key(&pod)) => {
                progress.finish();
                return Err(Error::Failed(format!("pod {}/{} was removed", pod.namespace, pod.name)));
            }
            _ => continue,
        }
        let done = |pod: &Pod| is_over(pod) || (!to_the_end && is_ready(pod));
        if seen.len() == wanted.len() && seen.values().all(done) {
            progress.finish();
            return Ok(seen);
        }
    }
}

fn is_over(pod: &Pod) -> bool {
    pod.finished_at != 0
}

fn is_ready(pod: &Pod) -> bool {
    pod.conditions.iter().any(|one| one.r#type == "Ready" && one.holds)
}

/// Of a pod that has ended: that of the first standard container that failed, else of any that did; 1 for a pod that
/// failed without one.
fn exit_code(pod: &Pod) -> u8 {
    if pod.phase() != Phase::Failed {
        return 0;
    }
    let codes = |kind: Kind| {
        pod.containers.iter().filter(move |one| one.kind() == kind).filter_map(|one| match &one.state {
            Some(State::Terminated(ended)) if ended.exit_code != 0 => Some(ended.exit_code),
            _ => None,
        })
    };
    let code = codes(Kind::Standard).chain(codes(Kind::Init)).next().unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
