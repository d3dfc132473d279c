//! The one way to undo a container, whatever there is of it.

use std::{fs, path::Path};

use berth_cri::berth::v1::failure::Kind;
use berth_store::Batch;
use berth_supervisor::client::{CallError, Supervisor};

use crate::{
    Container, ContainerId, Error, Sandbox,
    error::cause,
    hooks::{Hooks, Moment},
    host::Host,
    sandbox::{absent_is_fine, blocking, remove_cgroup, remove_folder},
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
    let path = format!("{}/{id}", sandbox.cgroup_parent);
    // Removing a cgroup kills what is in it first.
    remove_cgroup(host, &path, label).await
}

/// The poststop hooks, once. What they cannot do keeps nobody from removing the container (runtime.md, "Lifecycle").
async fn run_last_hooks(path: &Path, label: &str) {
    let loaded = Hooks::load(path);
    if let Ok(Some(hooks)) = &loaded
        && let Err(err) = hooks.run(Moment::Poststop, 0).await
    {
        tracing::warn!(container = label, error = cause(&err), "a poststop hook failed");
    }
    if let Err(err) = loaded.and_then(|_| absent_is_fine(fs::remove_file(path))) {
        tracing::warn!(container = label, error = cause(&err), "cannot read or remove its hooks");
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
