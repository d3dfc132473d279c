//! Ends a sandbox.

use std::{sync::Arc, time::Duration};

use berth_supervisor::client::Supervisor;

use super::Sandbox;
use crate::{
    Container, Error,
    create::end_processes,
    error::cause,
    folders::remove_folder,
    host::{Host, blocking},
};

/// For a supervisor to say that it is there. What it does is about to be ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends whatever there is of a sandbox: processes, network, supervisor, mounts, folder, cgroup. Every step is tried,
/// each may have been done before, and the first failure is the answer: the caller may ask again.
///
/// Records and the containers' snapshots stay; they belong to the removal.
pub(crate) async fn tear_down(
    host: &Host,
    sandbox: &Sandbox,
    containers: &[Arc<Container>],
    supervisor: Option<Supervisor>,
) -> Result<(), Error> {
    let dir = host.pod_dir(&sandbox.id);
    let supervisor = match supervisor {
        Some(supervisor) => Some(supervisor),
        // Not started, or started by a daemon that died: then its socket answers.
        None => Supervisor::connect(dir.path(), PATIENCE).await.ok().map(|(supervisor, ..)| supervisor),
    };
    let mut first_failure = Ok(());
    let mut note = |result: Result<(), Error>| {
        if first_failure.is_ok() {
            first_failure = result;
        }
    };
    for container in containers {
        note(end_processes(host, sandbox, &container.id, supervisor.as_ref()).await);
    }
    note(
        host.network
            .detach(sandbox.id.as_str())
            .await
            .map_err(Error::step(sandbox.label(), "detach it from the network")),
    );
    if let Some(supervisor) = supervisor
        && let Err(err) = supervisor.shutdown().await
    {
        tracing::warn!(sandbox = %sandbox.id.short(), error = cause(&err), "supervisor does not end by itself; killing it");
        note(supervisor.kill().await.map_err(Error::step(sandbox.label(), "kill its supervisor")));
    }
    note(
        blocking(move || remove_folder(dir.path()))
            .await
            .map_err(Error::step(sandbox.label(), "remove its folder")),
    );
    if sandbox.owns_cgroup() {
        note(remove_cgroup(host, &sandbox.cgroup_parent, sandbox.label()).await);
    }
    first_failure
}

/// Removes a cgroup and everything below it from all hierarchies; an absent one is fine.
pub(crate) async fn remove_cgroup(host: &Host, path: &str, label: String) -> Result<(), Error> {
    let (cgroups, path) = (host.cgroups.clone(), path.to_owned());
    blocking(move || cgroups.remove_path(&path)).await.map_err(Error::step(label, "remove its cgroup"))
}
