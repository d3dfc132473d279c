//! The real crictl.

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::OnceLock,
};

use anyhow::{Context, Result};

use crate::{PATIENCE, tools};

/// The folder with crictl; asked for once, since asking starts Go.
fn folder() -> Result<&'static Path> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    if let Some(folder) = FOLDER.get() {
        return Ok(folder);
    }
    let folder = tools::cri()?;
    Ok(FOLDER.get_or_init(|| folder))
}

/// crictl with a configuration file, ready to be started; killed when its handle is dropped.
pub(crate) fn command(config: &Path, arguments: &[&str]) -> Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(folder()?.join("crictl"));
    command.arg("--config").arg(config).args(arguments).kill_on_drop(true);
    Ok(command)
}

/// Runs crictl. It must end by itself in good time, whatever its status.
pub(crate) async fn run(config: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = command(config, arguments)?;
    tokio::time::timeout(2 * PATIENCE, command.output())
        .await
        .with_context(|| format!("crictl {arguments:?} did not end"))?
        .with_context(|| format!("running crictl {arguments:?}"))
}
