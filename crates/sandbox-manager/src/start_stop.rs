//! Starting a container, and ending one: signal, grace, SIGKILL to all of it.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_cri::berth::v1::failure::Kind;
use berth_launcher::cgroup::CgroupError;
use berth_supervisor::client::{CallError, Supervisor};
use rustix::process::Signal;
use tokio::{sync::watch, time::timeout};

use crate::{
    Container, ContainerId, ContainerState, Error, PodView, UnixNanos,
    error::cause,
    hooks::{Hooks, Moment},
    host::{Host, blocking},
};

/// How long the kernel may take to end processes after SIGKILL before we say that it cannot. A process that hangs in a
/// device or a network file system takes for ever; everything else ends within milliseconds.
const AFTER_SIGKILL: Duration = Duration::from_secs(10);

/// How long a program may take from its start to its handler for the stop signal, and how often to look for that.
const LEARN: Duration = Duration::from_secs(5);
const LISTEN: Duration = Duration::from_millis(20);

/// Opens the exec gate; returns when the program was executed, and its poststart hooks have been run.
pub(crate) async fn start(
    host: &Host,
    supervisor: &Supervisor,
    container: &Container,
) -> Result<UnixNanos, Error> {
    let id = &container.id;
    let path = host.pod_dir(&container.sandbox_id).hooks(id);
    let hooks = blocking(move || Hooks::load(&path)).await;
    let hooks = hooks.map_err(Error::step(id.label(), "read its hooks"))?;
    let time = hooks.as_ref().map(Hooks::while_starting).unwrap_or_default();
    let started = supervisor.start(id.as_str(), time).await;
    let started = started.map_err(Error::refused(id, id.label(), "start it"))?;
    if let (Some(hooks), ContainerState::Created { pid }) = (hooks, &container.state)
        && let Err(err) = hooks.run(Moment::Poststart, *pid).await
    {
        // It runs by now; the lifecycle of OCI 1.0 goes on as if they had worked.
        tracing::warn!(container = id.short(), error = cause(&err), "a poststart hook failed");
    }
    Ok(started)
}

/// Ends a container: its stop signal, then SIGKILL to every process of it at the deadline. Returns when the exit is in
/// the pod's view and no process is left: without a pid namespace of its own, those that the first one started live on
/// after it. The deadline may be drawn nearer while this runs.
pub(crate) async fn stop(
    host: &Host,
    supervisor: &Supervisor,
    container: &Container,
    cgroup: &str,
    mut view: watch::Receiver<Arc<PodView>>,
    mut deadline: watch::Receiver<Instant>,
) -> Result<(), Error> {
    let id = &container.id;
    let running = matches!(container.state, ContainerState::Running { .. });
    // A process at the exec gate runs no program yet that could handle a signal.
    if running && *deadline.borrow_and_update() > Instant::now() {
        let began = Instant::now();
        let mut deaf = is_deaf(container);
        signal(supervisor, id, container.stop_signal, false).await?;
        let graceful = loop {
            let end = *deadline.borrow_and_update();
            tokio::select! {
                // Both may be dropped and asked again: nothing is lost.
                () = exited(&mut view, id) => break true,
                () = tokio::time::sleep_until(end.into()) => break false,
                Ok(()) = deadline.changed() => {}
                () = tokio::time::sleep(LISTEN), if deaf && began.elapsed() < LEARN => {
                    deaf = is_deaf(container);
                    if !deaf {
                        signal(supervisor, id, container.stop_signal, false).await?;
                    }
                }
            }
        };
        if graceful {
            return end_rest(host, id, cgroup).await;
        }
    }
    signal(supervisor, id, Signal::KILL.as_raw(), true).await?;
    match timeout(AFTER_SIGKILL, exited(&mut view, id)).await {
        Ok(()) => end_rest(host, id, cgroup).await,
        Err(_) => Err(Error::Unkillable { id: id.clone(), survivors: survivors(host, cgroup) }),
    }
}

/// Ends what is left in the cgroup of a container whose first process is gone.
async fn end_rest(host: &Host, id: &ContainerId, cgroup: &str) -> Result<(), Error> {
    let label = id.label();
    let place = host.cgroups.at(cgroup).map_err(Error::step(&label, "find its cgroup"))?;
    match blocking(move || place.kill_all()).await {
        Err(CgroupError::NotEmpty { .. }) => {
            Err(Error::Unkillable { id: id.clone(), survivors: survivors(host, cgroup) })
        }
        ended => ended.map_err(Error::step(label, "end its last processes")),
    }
}

/// Whether the kernel drops the stop signal: the first process of a pid namespace gets none that it has no handler for,
/// and a program that was started a moment ago may not have come to setting one.
fn is_deaf(container: &Container) -> bool {
    let ContainerState::Running { pid, .. } = container.state else { return false };
    // Gone, or not to be read: then the signal is all there is to do.
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let mask = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or(u64::MAX);
    let noticed = mask("SigBlk:") | mask("SigIgn:") | mask("SigCgt:");
    let ours =
        u32::try_from(container.stop_signal - 1).ok().and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or(0);
    field("NSpid:").split_whitespace().next_back() == Some("1") && noticed & ours == 0
}

async fn signal(supervisor: &Supervisor, id: &ContainerId, signal: i32, all: bool) -> Result<(), Error> {
    match supervisor.signal(id.as_str(), signal, all).await {
        // Gone in the meantime: the exit is on its way.
        Err(CallError::Failed(failure)) if matches!(failure.kind(), Kind::NotFound | Kind::WrongState) => {
            Ok(())
        }
        result => result.map_err(Error::step(id.label(), "signal it")),
    }
}

/// Waits until the pod's view shows the container as ended or no longer has it.
async fn exited(view: &mut watch::Receiver<Arc<PodView>>, id: &ContainerId) {
    let ended = |view: &Arc<PodView>| {
        !matches!(
            view.containers.get(id).map(|container| &container.state),
            Some(ContainerState::Created { .. } | ContainerState::Running { .. })
        )
    };
    // An error means that the pod's task is gone, and the pod with it.
    drop(view.wait_for(ended).await);
}

/// "pid 12 (dd, state D, waiting in nfs_wait)" for each process left in a cgroup.
fn survivors(host: &Host, cgroup: &str) -> String {
    let pids = host.cgroups.at(cgroup).and_then(|cgroup| cgroup.pids()).unwrap_or_default();
    let lines: Vec<String> = pids
        .iter()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let state = rest.trim_start().chars().next()?;
            let waits = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            Some(format!("pid {pid} ({name}, state {state}, waiting in {waits})"))
        })
        .collect();
    match lines.is_empty() {
        true => "the kernel shows no process of it any more; ask again".to_owned(),
        false => lines.join(", "),
    }
}
