//! Programs of others that tests drive or compare with: found, or built from source at pinned versions, by the scripts in
//! `tests/tools`, once.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The folder with crictl.
pub fn cri() -> Result<PathBuf> {
    build("build", &[])
}

/// The same folder, with critest in it.
pub fn cri_with_critest() -> Result<PathBuf> {
    build("build", &["critest"])
}

/// The folder with kubelet.
pub fn kubernetes() -> Result<PathBuf> {
    build("kubernetes/build", &[])
}

/// The folder with containerd and what it needs.
pub fn peers() -> Result<PathBuf> {
    build("peers/build", &[])
}

/// The folder with the plugin of the tests of NRI.
pub fn nri_plugin() -> Result<PathBuf> {
    build("nri-plugin/build", &[])
}

/// runc at its pinned version, which is newer than Debian's.
pub fn runc() -> Result<PathBuf> {
    Ok(build("peers/build", &["runc"])?.join("runc"))
}

/// A criu that works on this kernel.
pub fn criu() -> Result<PathBuf> {
    build("criu", &[])
}

/// Runs a script, which prints the folder or the program.
fn build(script: &str, arguments: &[&str]) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(script);
    let output = Command::new(&script)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
    Ok(String::from_utf8(output.stdout).context("the folder's name")?.trim().into())
}
