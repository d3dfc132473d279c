//! The hooks that a container's own process runs (runtime-spec, runtime.md, "Lifecycle").

use std::error::Error;

use berth_cri::berth::v1::{HookPlan, Hooks};
use rustix::fs::Mode;

use crate::error::{AtStep, StepError};
use crate::gate::Reporter;
use crate::{hook, sys};

/// `createContainer`: in the container's namespaces, with the host's files still there under their paths, and the
/// container's below its own. Waits before that for what the daemon does in the runtime's namespaces.
pub(super) fn before_pivot(hooks: &Hooks, reporter: &Reporter) -> Result<(), StepError> {
    if hooks.hold {
        reporter.held().step("report the end of the setup")?;
        if !reporter.wait().step("wait for the hooks")? {
            sys::exit_now(super::FAILED);
        }
    }
    // They are the host's programs, and write where the host's users can.
    let umask = rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let ran = run("createContainer", &hooks.create_container, &hooks.state, "creating");
    rustix::process::umask(umask);
    ran
}

/// `startContainer`: programs of the image's, which are not to be trusted more than the container itself.
pub(super) fn before_program(hooks: &Hooks) -> Result<(), StepError> {
    run("startContainer", &hooks.start_container, &hooks.state, "created")
}

fn run(moment: &str, hooks: &[HookPlan], state: &str, status: &str) -> Result<(), StepError> {
    hook::run_all(hooks, state, status, rustix::process::getpid().as_raw_nonzero().get()).map_err(|error| {
        let cause = error.source.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        StepError::refused(format!("{moment} {error}"), format!("{}{cause}", error.source))
    })
}
