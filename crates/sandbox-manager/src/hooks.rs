//! OCI hooks of containers that the native launcher makes: those that run in the daemon's namespaces (runtime-spec,
//! runtime.md, "Lifecycle"). The others the container's own process runs; an external runtime runs all of its own.
//!
//! They are kept in the container's folder, for the moments of its life that come later.

use std::{fs, io, path::Path, time::Duration};

use berth_launcher::{
    compile,
    hook::{self, HookError},
};
use oci_spec::runtime::{Hook, Hooks as OciHooks, Spec};
use serde::{Deserialize, Serialize};

use crate::host::blocking;

/// A container's hooks, and what they are told of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hooks {
    hooks: OciHooks,
    state: String,
}

/// A moment with hooks of the daemon's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    Prestart,
    CreateRuntime,
    Poststart,
    Poststop,
}

/// The state of runtime.md that does not change; [`hook::run_all`] adds the rest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    bundle: &'a Path,
    annotations: Option<&'a std::collections::HashMap<String, String>>,
}

impl Hooks {
    /// Those of a spec; `None` when it has none.
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Result<Option<Self>, serde_json::Error> {
        let Some(hooks) = spec.hooks().clone().filter(|hooks| *hooks != OciHooks::default()) else {
            return Ok(None);
        };
        let annotations = spec.annotations().as_ref();
        let state = State { oci_version: spec.version(), id, bundle, annotations };
        let mut state = serde_json::to_string(&state)?;
        state.pop();
        Ok(Some(Self { hooks, state }))
    }

    /// What the container's own hooks are told.
    pub(crate) fn state(&self) -> &str {
        &self.state
    }

    /// Runs those of a moment, up to the first that fails.
    pub(crate) async fn run(&self, moment: Moment, pid: i32) -> Result<(), HookError> {
        let (list, status) = self.at(moment);
        let hooks = compile::hooks(list);
        if hooks.is_empty() {
            return Ok(());
        }
        let state = self.state.clone();
        blocking(move || hook::run_all(&hooks, &state, status, pid)).await
    }

    #[allow(deprecated, reason = "prestart hooks are deprecated, and still in use")]
    fn at(&self, moment: Moment) -> (&Option<Vec<Hook>>, &'static str) {
        match moment {
            Moment::Prestart => (self.hooks.prestart(), "creating"),
            Moment::CreateRuntime => (self.hooks.create_runtime(), "creating"),
            Moment::Poststart => (self.hooks.poststart(), "running"),
            Moment::Poststop => (self.hooks.poststop(), "stopped"),
        }
    }

    /// How long the container's process may take for its hooks before it is created.
    pub(crate) fn while_creating(&self) -> Duration {
        time(self.hooks.create_container())
    }

    /// How long it may take for those between its start and its program.
    pub(crate) fn while_starting(&self) -> Duration {
        time(self.hooks.start_container())
    }

    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// `None` when the container has none.
    pub(crate) fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }
}

fn time(list: &Option<Vec<Hook>>) -> Duration {
    compile::hooks(list).iter().map(|hook| Duration::from_secs(hook.timeout_seconds.into())).sum()
}
