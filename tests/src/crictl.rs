//! The real crictl, built by `tests/tools/build`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;

/// The script that builds the tools once and prints where they are.
const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/build");

/// The folder with crictl.
pub fn tools() -> Result<&'static Path> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    if let Some(folder) = FOLDER.get() {
        return Ok(folder);
    }
    let folder = build(&[])?;
    Ok(FOLDER.get_or_init(|| folder))
}

/// The same folder, with critest in it.
pub fn tools_with_critest() -> Result<PathBuf> {
    build(&["critest"])
}

fn build(arguments: &[&str]) -> Result<PathBuf> {
    let output = Command::new(BUILD).args(arguments).output().context("running tests/tools/build")?;
    ensure!(output.status.success(), "tests/tools/build failed: {}", String::from_utf8_lossy(&output.stderr));
    let folder = String::from_utf8(output.stdout).context("tests/tools/build prints a path")?;
    Ok(PathBuf::from(folder.trim()))
}

/// crictl with a configuration file, ready to be started; killed when its handle is dropped.
pub(crate) fn command(config: &Path, arguments: &[&str]) -> Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(tools()?.join("crictl"));
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
