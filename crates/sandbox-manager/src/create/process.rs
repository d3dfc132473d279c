//! The container's first process: made by berth's launcher, by an OCI runtime, or by CRIU from a checkpoint.

use std::{borrow::Cow, io, os::fd::OwnedFd, sync::Arc};

use berth_cri::berth::v1::{CreateProcess, ExternalRuntime};
use berth_launcher::{
    cgroup::{Cgroup, CgroupError},
    compile::{self, Compiled},
};
use berth_network::DeviceError;
use berth_oci::seccomp;
use berth_supervisor::client::NativeFds;
use oci_spec::runtime::Spec;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};

use super::{Creation, PidMode, log_path};
use crate::{
    Error,
    checkpoint::Restored,
    folders::place,
    hooks::{Hooks, Moment},
    host::{Handler, Host},
};

impl Creation {
    pub(super) async fn process(
        &self,
        spec: &Spec,
        cgroup: &Cgroup,
        rootfs: OwnedFd,
        pid: PidMode,
        restored: Option<Arc<Restored>>,
    ) -> Result<i32, Error> {
        let (host, sandbox) = (&self.host, &self.pod.sandbox);
        let dir = host.pod_dir(&sandbox.id);
        let mut request = CreateProcess {
            container_id: self.id.to_string(),
            log_path: log_path(&sandbox.config.log_directory, &self.config.log_path)?,
            stdin: self.config.stdin,
            stdin_once: self.config.stdin_once,
            tty: self.config.tty,
            target_container: match pid {
                PidMode::Target(container) => container.id.to_string(),
                PidMode::Own | PidMode::Host | PidMode::Pod => String::new(),
            },
            cgroup_dirs: cgroup.dirs().map(|dir| dir.to_string_lossy().into_owned()).collect(),
            external: None,
            restored: None,
        };
        let mut hooks = None;
        let spec = &*self.with_net_devices(spec).await?;
        let fds = match host.handler(&sandbox.handler)? {
            Handler::Native if restored.is_some() => {
                let at = dir.rootfs(&self.id);
                let step = "mount its root file system for CRIU";
                place(&rootfs, &at)
                    .and_then(|()| Ok(mount_change(&at, MountPropagationFlags::PRIVATE)?))
                    .map_err(self.step(step))?;
                let restored = restored.as_ref().map(|restored| restored.process(host, spec, cgroup, &at));
                request.restored = restored.transpose()?;
                None
            }
            Handler::Native => {
                hooks = self.hooks(spec).map_err(self.step("prepare its hooks"))?;
                let state = hooks.as_ref().map(Hooks::state);
                let compiled = plan(host, spec, cgroup, state).map_err(self.step("compile its OCI spec"))?;
                self.warn(compiled.warnings.into_iter().map(|warning| warning.0));
                let rootfs = match hooks {
                    None => rootfs,
                    Some(_) => {
                        self.shown(rootfs).map_err(self.step("mount its root file system for hooks"))?
                    }
                };
                Some(NativeFds { plan: compiled.plan, rootfs })
            }
            Handler::External { path } => {
                let at = dir.rootfs(&self.id);
                place(&rootfs, &at).map_err(self.step("mount its root file system for the OCI runtime"))?;
                request.external = Some(ExternalRuntime {
                    path: path.to_string_lossy().into_owned(),
                    bundle: dir.container(&self.id).to_string_lossy().into_owned(),
                    root: dir.runtime_root().to_string_lossy().into_owned(),
                    timeout_seconds: u32::try_from(host.config.external_timeout.as_secs())
                        .unwrap_or(u32::MAX),
                });
                None
            }
        };
        // External runtimes look for the program before the gate; the native launcher at it.
        let time = hooks.as_ref().map(Hooks::while_creating).unwrap_or_default();
        let created = self.supervisor.create(request, fds, time).await;
        let created = created.map_err(Error::refused(&self.id, self.label(), "set its process up"))?;
        if let Some(hooks) = hooks.filter(|_| created.held) {
            for moment in [Moment::Prestart, Moment::CreateRuntime] {
                hooks.run(moment, created.pid).await.map_err(self.step("run its hooks"))?;
            }
            let resumed = self.supervisor.resume(self.id.as_str(), time).await;
            resumed.map_err(Error::refused(&self.id, self.label(), "set its process up"))?;
        }
        Ok(created.pid)
    }

    /// Moves the interfaces that the spec names into the pod's network namespace, and takes them out of what the native
    /// launcher is to do: the namespace is none of its making. An OCI runtime does that itself.
    async fn with_net_devices<'a>(&self, spec: &'a Spec) -> Result<Cow<'a, Spec>, Error> {
        let devices = spec.linux().as_ref().and_then(|linux| linux.net_devices().clone()).unwrap_or_default();
        let sandbox = &self.pod.sandbox;
        if devices.is_empty() || matches!(self.host.handler(&sandbox.handler)?, Handler::External { .. }) {
            return Ok(Cow::Borrowed(spec));
        }
        if sandbox.host_network() {
            let why = "the pod is in the host's network, where they are already".to_owned();
            return Err(Error::Invalid { field: "linux.netDevices", why });
        }
        for (device, wanted) in devices {
            let name = wanted.name().clone().unwrap_or_else(|| device.clone());
            let netns = self.supervisor.network_namespace();
            let netns = netns.map_err(self.step("open its pod's network namespace"))?;
            let moved = berth_network::move_device(netns, device, name).await;
            moved.map_err(|err| match err {
                DeviceError::Missing(_) | DeviceError::Kept(_) | DeviceError::Taken(_) => {
                    Error::NodeLacks(format!("{}: {err}", self.label()))
                }
                err => self.step("give its pod an interface of the host's")(err),
            })?;
        }
        let mut spec = spec.clone();
        if let Some(linux) = spec.linux_mut() {
            linux.set_net_devices(None);
        }
        Ok(Cow::Owned(spec))
    }

    /// The hooks of a container of the native launcher, kept for later.
    fn hooks(&self, spec: &Spec) -> io::Result<Option<Hooks>> {
        let dir = self.host.pod_dir(&self.pod.sandbox.id);
        let hooks = Hooks::of(spec, self.id.as_str(), &dir.container(&self.id))?;
        if let Some(hooks) = &hooks {
            hooks.save(&dir.hooks(&self.id))?;
        }
        Ok(hooks)
    }

    /// Gives the root a path, which hooks find in the bundle, and makes another mount of it for the container.
    fn shown(&self, rootfs: OwnedFd) -> io::Result<OwnedFd> {
        place(&rootfs, &self.host.pod_dir(&self.pod.sandbox.id).rootfs(&self.id))?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(open_tree(rootfs, "", flags)?)
    }
}

/// A spec that the native launcher does not take.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("seccomp")]
    Seccomp(#[from] seccomp::SeccompError),
    #[error("spec")]
    Compile(#[from] compile::CompileError),
    #[error("cgroup")]
    Cgroup(#[from] CgroupError),
}

fn plan(host: &Host, spec: &Spec, cgroup: &Cgroup, hook_state: Option<&str>) -> Result<Compiled, PlanError> {
    let filter = seccomp_filter(host, spec)?;
    Ok(compile::compile(spec, host.compile_input(cgroup, filter.as_ref(), hook_state))?)
}

/// The compiled filter of a spec's seccomp profile.
pub(crate) fn seccomp_filter(
    host: &Host,
    spec: &Spec,
) -> Result<Option<Arc<seccomp::Filter>>, seccomp::SeccompError> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    profile.map(|profile| host.filters.get_or_compile(profile)).transpose()
}
