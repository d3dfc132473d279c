//! What a new daemon finds: pods that went on without one, pods that a reboot ended, halves of pods.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::Arc,
    time::Duration,
};

use berth_cri::berth::v1::{ContainerExited, ContainerReport, container_report::State};
use berth_store::Batch;
use berth_supervisor::client::{Events, Supervisor};
use futures::future::join_all;

use crate::{
    Container, ContainerState, Error, Exit, HostError, Owner, Sandbox, SandboxId, SandboxPhase, checkpoint,
    create::discard,
    error::cause,
    host::Host,
    manager::Directory,
    pod::Pod,
    sandbox::{remove_cgroup, tear_down},
    volumes,
};

const REBOOTED: &str = "the machine was restarted while it ran";
const ORPHANED: &str =
    "the pod's supervisor (berth-pod) was gone, or did not answer, when the daemon started";
const FORGOTTEN: &str = "the pod's supervisor does not know it";

/// For a supervisor to answer a new daemon, in which its disk under a log may be slow and is not gone. A service manager waits
/// longer than that for the daemon's start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the records, agrees them with the supervisors that still run, and sweeps what belongs to no pod.
pub(crate) async fn recover(host: &Arc<Host>, directory: &Arc<Directory>) -> Result<(), HostError> {
    checkpoint::sweep(host).await;
    let sandboxes = host.store().load::<Sandbox>()?;
    let mut containers: HashMap<SandboxId, Vec<Container>> = HashMap::new();
    for (_, container) in host.store().load::<Container>()? {
        host.created_before(container.created_at);
        containers.entry(container.sandbox_id.clone()).or_default().push(container);
    }
    let pods: Vec<_> = sandboxes
        .into_iter()
        .map(|(_, sandbox)| {
            host.created_before(sandbox.created_at);
            let containers = containers.remove(&sandbox.id).unwrap_or_default();
            (sandbox, containers)
        })
        .collect();
    // Containers whose sandbox has no record any more: its quarantine took them along.
    let strays = containers.into_values().flatten().collect::<Vec<_>>();

    let found = join_all(pods.into_iter().map(|(sandbox, containers)| pod(host, sandbox, containers))).await;
    let mut adopted = Vec::new();
    for recovered in found.into_iter().flatten() {
        let Recovered { sandbox, containers, connection } = recovered;
        adopted.push(Pod::recovered(
            Arc::clone(host),
            Arc::clone(directory),
            sandbox,
            containers,
            connection,
        ));
    }
    sweep(host, &adopted.iter().map(|(_, handle)| handle.id.clone()).collect(), strays).await?;
    let mut pods = directory.write();
    for (pod, handle) in adopted {
        directory.adopt(&mut pods, pod, handle);
    }
    Ok(())
}

struct Recovered {
    sandbox: Sandbox,
    containers: Vec<Container>,
    connection: Option<(Supervisor, Events)>,
}

/// One pod. `None` when it was half-made, and is undone now.
async fn pod(host: &Host, sandbox: Sandbox, containers: Vec<Container>) -> Option<Recovered> {
    let (half_made, containers): (Vec<_>, Vec<_>) =
        containers.into_iter().partition(|container| container.state == ContainerState::Creating);
    let rebooted = sandbox.boot_id != host.boot_id;
    let connection = match rebooted {
        true => None,
        false => connect(host, &sandbox).await,
    };
    let supervisor = connection.as_ref().map(|(supervisor, ..)| supervisor);
    for container in &half_made {
        if let Err(err) = discard(host, &sandbox, &container.id, supervisor).await {
            tracing::warn!(error = cause(&err), "cannot sweep a half-made container");
        }
    }
    if sandbox.phase == SandboxPhase::Creating {
        undo(host, &sandbox).await;
        return None;
    }
    let reports = connection.as_ref().map_or(&[][..], |(_, _, reports)| reports);
    let lost = match (rebooted, &connection) {
        (true, _) => REBOOTED,
        (false, None) => ORPHANED,
        (false, Some(_)) => FORGOTTEN,
    };
    let mut known = Vec::new();
    for container in containers {
        let changed = agreed(host, &container, reports, lost);
        if let Some(container) = &changed {
            save(host, Batch::new().put(container.id.as_str(), container)).await;
        }
        let container = changed.unwrap_or(container);
        if matches!(container.state, ContainerState::Running { .. }) {
            checkpoint::thaw(host, &container, &sandbox.cgroup_parent);
        }
        known.push(container);
    }
    let ready = sandbox.phase == SandboxPhase::Ready && connection.is_some();
    if sandbox.phase == SandboxPhase::Ready && !ready {
        return Some(end(host, sandbox, known).await);
    }
    let connection = connection.map(|(supervisor, events, _)| (supervisor, events));
    Some(Recovered { sandbox, containers: known, connection })
}

/// The supervisor of a pod, with what it knows of its containers.
pub(crate) type Connection = (Supervisor, Events, Vec<ContainerReport>);

/// Finds a pod's supervisor. `None` when there is none, or one that does not answer: that one is dead by then.
pub(crate) async fn connect(host: &Host, sandbox: &Sandbox) -> Option<Connection> {
    match Supervisor::connect(host.pod_dir(&sandbox.id).path(), PATIENCE).await {
        Ok((supervisor, events, state)) => Some((supervisor, events, state.containers)),
        Err(err) => {
            tracing::info!(sandbox = %sandbox.id.short(), error = cause(&err), "no supervisor answers");
            None
        }
    }
}

/// A container with a process as it is now, where its record says otherwise; see [`agree`].
pub(crate) fn agreed(
    host: &Host,
    container: &Container,
    reports: &[ContainerReport],
    lost: &str,
) -> Option<Container> {
    container.pid()?;
    let report = reports.iter().find(|report| report.container_id == container.id.as_str());
    let left = exit_file(host, container);
    let state = agree(&container.state, report, left.as_ref(), lost);
    (state != container.state).then(|| container.with_state(state))
}

/// What a container is now, from its record and from what its supervisor says: live, or in the exit file that it left.
fn agree(
    recorded: &ContainerState,
    report: Option<&ContainerReport>,
    left: Option<&ContainerExited>,
    lost: &str,
) -> ContainerState {
    let started_at = match recorded {
        ContainerState::Running { started_at, .. } => *started_at,
        ContainerState::Creating | ContainerState::Created { .. } => 0,
        // Its end is known; the supervisor may have forgotten it.
        ContainerState::Exited(_) => return recorded.clone(),
    };
    let exited = |exit: Option<&ContainerExited>| {
        ContainerState::Exited(exit.or(left).map_or_else(|| Exit::unseen(started_at, lost), Exit::seen))
    };
    let Some(report) = report else { return exited(None) };
    match report.state() {
        State::Created => ContainerState::Created { pid: report.pid },
        State::Running => ContainerState::Running { pid: report.pid, started_at: report.started_at },
        State::Exited => exited(report.exit.as_ref()),
    }
}

/// The exit that a supervisor wrote down before it died.
fn exit_file(host: &Host, container: &Container) -> Option<ContainerExited> {
    let dir = host.pod_dir(&container.sandbox_id);
    berth_supervisor::exit_file::read(dir.path(), container.id.as_str()).unwrap_or_else(|err| {
        tracing::warn!(container = %container.id.short(), error = cause(&err), "cannot read its exit file");
        None
    })
}

/// A pod whose supervisor is gone: what it left is ended, its records stay.
async fn end(host: &Host, sandbox: Sandbox, containers: Vec<Container>) -> Recovered {
    let sandbox = sandbox.with_phase(SandboxPhase::NotReady);
    let shared: Vec<_> = containers.iter().cloned().map(Arc::new).collect();
    if let Err(err) = tear_down(host, &sandbox, &shared, None).await {
        tracing::error!(
            error = cause(&err),
            "cannot end what is left of a dead pod; its stop will try again"
        );
    }
    save(host, Batch::new().put(sandbox.id.as_str(), &sandbox)).await;
    Recovered { sandbox, containers, connection: None }
}

async fn undo(host: &Host, sandbox: &Sandbox) {
    match tear_down(host, sandbox, &[], None).await {
        Ok(()) => save(host, Batch::new().delete::<Sandbox>(sandbox.id.as_str())).await,
        Err(err) => {
            tracing::error!(error = cause(&err), "cannot undo a half-made pod; the next start will try again")
        }
    }
}

/// A record that cannot be written now is true in memory, and is found out again by the next start.
async fn save(host: &Host, batch: Batch) {
    if let Err(err) = host.persist(batch).await {
        tracing::error!(error = cause(&err), "cannot write a record during recovery");
    }
}

/// Ends and removes what belongs to no pod: folders with live supervisors, snapshots, addresses, cgroups.
async fn sweep(host: &Host, known: &HashSet<SandboxId>, strays: Vec<Container>) -> Result<(), HostError> {
    let pods = host.config.state.join("pods");
    let names = folder_names(&pods)?;
    let cgroup_root =
        host.cgroups.at(&host.config.cgroup_root).map_err(|err| HostError::Cgroups(Box::new(err)))?;
    let mut cgroups = Vec::new();
    for dir in cgroup_root.dirs().filter(|dir| dir.exists()) {
        cgroups.extend(folder_names(dir)?);
    }
    let unknown: HashSet<String> = names
        .into_iter()
        .chain(cgroups)
        .filter(|name| is_id(name) && !known.contains(&SandboxId::from_record(name)))
        .collect();
    for name in unknown {
        tracing::warn!(sandbox = name, "sweeping a pod sandbox without a record");
        if let Err(err) = sweep_pod(host, &name).await {
            tracing::error!(sandbox = name, error = cause(&err), "cannot sweep it");
        }
    }
    for container in strays {
        tracing::warn!(container = %container.id.short(), "sweeping a container without a sandbox");
        save(host, Batch::new().delete::<Container>(container.id.as_str())).await;
    }
    let containers: HashSet<String> = host
        .store()
        .load::<Container>()?
        .into_iter()
        .flat_map(|(id, container)| {
            let volumes = volumes::snapshot_ids(&container.id, &container.config);
            volumes.into_iter().chain([id])
        })
        .collect();
    // What cannot be swept costs space; a daemon that does not start costs the node.
    if let Err(err) = host.images.sweep_snapshots(&containers).await {
        tracing::error!(error = cause(&err), "cannot sweep snapshots of an earlier run");
    }
    let known: HashSet<String> = known.iter().map(SandboxId::to_string).collect();
    if let Err(err) = host.network.sweep(&known).await {
        tracing::error!(error = cause(&err), "cannot sweep networks of an earlier run");
    }
    Ok(())
}

/// A pod that only its folder or its cgroup tells of.
async fn sweep_pod(host: &Host, name: &str) -> Result<(), Error> {
    let sandbox = Sandbox {
        id: SandboxId::from_record(name),
        owner: Owner::default(),
        config: Arc::default(),
        handler: String::new(),
        created_at: 0,
        phase: SandboxPhase::NotReady,
        ips: Vec::new(),
        boot_id: host.boot_id.clone(),
        cgroup_parent: format!("{}/{name}", host.config.cgroup_root),
    };
    // The cgroup first: a supervisor does not end while its containers run.
    remove_cgroup(host, &sandbox.cgroup_parent, sandbox.label()).await?;
    tear_down(host, &sandbox, &[], None).await
}

fn folder_names(path: &std::path::Path) -> Result<Vec<String>, HostError> {
    let error = |source| HostError::Path { action: "read", path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(error)? {
        names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Only what looks like one of ours is swept.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: ContainerState = ContainerState::Running { pid: 7, started_at: 5 };

    #[test]
    fn an_exit_that_nobody_saw_is_255() {
        let ContainerState::Exited(exit) = agree(&RUNNING, None, None, REBOOTED) else {
            panic!("not exited")
        };
        assert_eq!((exit.code, exit.reason.as_str(), exit.started_at), (255, "Unknown", 5));
        assert_eq!(exit.message, REBOOTED);
    }

    #[test]
    fn the_supervisor_knows_the_true_exit_code() {
        let exit = ContainerExited { exit_code: 3, finished_at: 9, started_at: 5, ..Default::default() };
        let report = ContainerReport { state: State::Exited.into(), exit: Some(exit), ..Default::default() };
        let ContainerState::Exited(exit) = agree(&RUNNING, Some(&report), None, ORPHANED) else {
            panic!("not exited")
        };
        assert_eq!((exit.code, exit.finished_at), (3, 9));
    }

    #[test]
    fn an_exit_file_outlives_its_supervisor() {
        let left = ContainerExited { exit_code: 4, ..Default::default() };
        let ContainerState::Exited(exit) = agree(&RUNNING, None, Some(&left), ORPHANED) else {
            panic!("not exited")
        };
        assert_eq!(exit.code, 4);
    }

    #[test]
    fn a_start_that_was_not_recorded_is_learnt() {
        let report =
            ContainerReport { state: State::Running.into(), pid: 8, started_at: 6, ..Default::default() };
        assert_eq!(
            agree(&ContainerState::Created { pid: 8 }, Some(&report), None, ORPHANED),
            ContainerState::Running { pid: 8, started_at: 6 }
        );
    }

    #[test]
    fn a_recorded_exit_stays() {
        let ended = ContainerState::Exited(Exit::unseen(1, "x"));
        assert_eq!(agree(&ended, None, None, ORPHANED), ended);
    }
}
