//! Hooks: those that the container's own process runs.

use berth_cri::berth::v1::{HookPlan, Hooks as HooksPlan};
use oci_spec::runtime::{Hook, Hooks, Spec};

use super::CompileError;

/// For a hook that names no limit: nothing here is waited for without one.
const DEFAULT_TIMEOUT: u32 = 30;
/// More than anybody waits for a container.
const MAX_TIMEOUT: i64 = 600;

/// The hooks of one moment, ready to be run.
pub fn hooks(list: &Option<Vec<Hook>>) -> Vec<HookPlan> {
    list.iter().flatten().map(hook).collect()
}

fn hook(hook: &Hook) -> HookPlan {
    let timeout = hook.timeout().map(|seconds| seconds.clamp(1, MAX_TIMEOUT));
    HookPlan {
        path: hook.path().to_string_lossy().into_owned(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout_seconds: timeout.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_TIMEOUT),
    }
}

/// `None` when the container's process has nothing to do with hooks.
pub(super) fn compile(spec: &Spec, state: Option<&str>) -> Result<Option<HooksPlan>, CompileError> {
    let Some(hooks) = spec.hooks() else { return Ok(None) };
    let plan = HooksPlan {
        root_path: spec
            .root()
            .as_ref()
            .map(|root| root.path().to_string_lossy().into_owned())
            .unwrap_or_default(),
        state: state.unwrap_or_default().to_owned(),
        hold: holds(hooks),
        create_container: self::hooks(hooks.create_container()),
        start_container: self::hooks(hooks.start_container()),
    };
    if !plan.hold && plan.create_container.is_empty() && plan.start_container.is_empty() {
        return Ok(None);
    }
    if state.is_none() {
        return Err(CompileError::Missing("the container's state, which its hooks read,"));
    }
    let paths = plan.create_container.iter().chain(&plan.start_container).map(|hook| &hook.path);
    if let Some(path) = paths.chain([&plan.root_path]).find(|path| !path.starts_with('/')) {
        return Err(CompileError::invalid("hooks", path, "is not an absolute path"));
    }
    Ok(Some(plan))
}

/// Whether hooks of the runtime's namespaces are to run in the middle of the creation.
#[allow(deprecated, reason = "prestart hooks are deprecated, and still in use")]
fn holds(hooks: &Hooks) -> bool {
    [hooks.prestart(), hooks.create_runtime()].into_iter().flatten().any(|list| !list.is_empty())
}
