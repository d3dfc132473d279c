//! OCI hooks: programs that somebody else has put into a container's life (runtime-spec, config.md, "POSIX-platform
//! Hooks"; runtime.md, "Lifecycle").
//!
//! `createContainer` and `startContainer` are run by the container's own process ([`crate::container`]), all others by
//! the daemon, whose namespaces are the runtime's.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_cri::berth::v1::HookPlan;

use crate::run::{RunError, run};

/// For a hook without an environment of its own, since many are scripts.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[error("hook {}", path.display())]
pub struct HookError {
    path: PathBuf,
    #[source]
    pub source: RunError,
}

/// Runs hooks one after another, up to the first that fails. Blocks.
///
/// # Arguments
/// * `state`: the container's state as JSON (runtime.md, "State"), without status, pid and the closing brace.
/// * `status`: "creating", "created", "running" or "stopped".
/// * `pid`: the first process, as the hooks see it.
///
/// # Errors
/// [`HookError`] of the one that failed.
pub fn run_all(hooks: &[HookPlan], state: &str, status: &str, pid: i32) -> Result<(), HookError> {
    let state = format!("{state},\"status\":\"{status}\",\"pid\":{pid}}}");
    hooks.iter().try_for_each(|hook| run_one(hook, state.as_bytes()))
}

fn run_one(hook: &HookPlan, state: &[u8]) -> Result<(), HookError> {
    let path = Path::new(&hook.path);
    let mut command = Command::new(path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let default = [DEFAULT_PATH.to_owned()];
    let environment = if hook.env.is_empty() { &default[..] } else { &hook.env };
    command.env_clear().envs(environment.iter().filter_map(|entry| entry.split_once('=')));
    let after = Duration::from_secs(hook.timeout_seconds.into());
    run(command, state, after).map_err(|source| HookError { path: path.to_owned(), source })
}
