//! The one way to undo a container, whatever there is of it.

use std::{fs, path::Path};

use berth_cri::berth::v1::failure::Kind;
use berth_store::Batch;
use berth_supervisor::client::{CallError, Supervisor};

use crate::{
    Container, ContainerId, Error, Sandbox,
    error::cause,
    folders::{absent_is_fine, remove_folder},
    hooks::{Hooks, Moment},
    host::{Host, blocking},
    sandbox::remove_cgroup,
    volumes,
};

/// Makes sure that no process and no cgroup of a container is left. The supervisor forgets it as well.
pub(crate) async fn end_processes(
    host: &Host,
    sandbox: &Sandbox,
    id: &ContainerId,
    supervisor: Option<&Supervisor>,
) -> Result<(), Error> {
    let label = id.label();
    if let Some(supervisor) = supervisor {
        match supervisor.delete(id.as_str()).await {
            Ok(()) | Err(CallError::Gone) => {}
            // It runs: its cgroup ends it below, and the supervisor is not asked to go on without it.
            Err(CallError::Failed(failure)) if failure.kind() == Kind::WrongState => {}
            Err(err) => return Err(Error::step(label, "end its processes")(err)),
        }
    }
    // Removing a cgroup kills what is in it first.
    remove_cgroup(host, &id.cgroup_path(&sandbox.cgroup_parent), label).await
}

/// The poststop hooks, once. What they cannot do keeps nobody from removing the container (runtime.md, "Lifecycle").
async fn run_last_hooks(path: &Path, label: &str) {
    let hooks = match Hooks::load(path) {
        Ok(None) => return,
        Ok(Some(hooks)) => hooks,
        Err(err) => {
            return tracing::warn!(container = label, error = cause(&err), "cannot read its hooks");
        }
    };
    if let Err(err) = hooks.run(Moment::Poststop, 0).await {
        tracing::warn!(container = label, error = cause(&err), "a poststop hook failed");
    }
    if let Err(err) = absent_is_fine(fs::remove_file(path)) {
        tracing::warn!(container = label, error = cause(&err), "cannot remove its hooks");
    }
}

/// Removes everything of a container, its record last. Each step may have been done before.
pub(crate) async fn discard(
    host: &Host,
    sandbox: &Sandbox,
    id: &ContainerId,
    supervisor: Option<&Supervisor>,
) -> Result<(), Error> {
    let label = id.label();
    end_processes(host, sandbox, id, supervisor).await?;
    run_last_hooks(&host.pod_dir(&sandbox.id).hooks(id), &label).await;
    let dir = host.pod_dir(&sandbox.id).container(id);
    blocking(move || remove_folder(&dir)).await.map_err(Error::step(&label, "remove its folder"))?;
    host.images.remove_snapshot(id.as_str()).await.map_err(Error::step(&label, "remove its snapshot"))?;
    volumes::discard(host, sandbox, id).await?;
    host.persist(Batch::new().delete::<Container>(id.as_str()))
        .await
        .map_err(Error::step(&label, "delete its record"))
}
