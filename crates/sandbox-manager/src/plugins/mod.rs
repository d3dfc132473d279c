//! What plugins (Node Resource Interface) are told of a pod, and what they make of it.
//!
//! Every function here does nothing on a node without plugins. What they answer is in `berth_nri`'s hands; here is what
//! they see of a pod (`view`), and how their wishes are carried out (`runtime`).

mod runtime;
mod view;

use berth_nri::{
    Arriving, Container as PluginContainer, ContainerAdjustment, ContainerState as PluginState, Event,
    Leaving, LinuxResources, Nri, PodSandbox, Refused,
};
use berth_oci::cdi::DeviceName;
use berth_supervisor::client::Supervisor;
use oci_spec::runtime::Spec;

pub(crate) use self::view::to_cri;
use crate::{Container, ContainerState, Error, Sandbox, cdi, error::cause, host::Host};

/// One pod, for its plugins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plugins<'a> {
    host: &'a Host,
    sandbox: &'a Sandbox,
    pid: Option<i32>,
}

/// A container that is being taken away, as plugins knew it.
#[derive(Debug)]
pub(crate) struct Remembered(Option<PluginContainer>);

impl<'a> Plugins<'a> {
    pub(crate) fn of(host: &'a Host, sandbox: &'a Sandbox, supervisor: Option<&Supervisor>) -> Self {
        Self { host, sandbox, pid: supervisor.map(Supervisor::pid) }
    }

    /// The plugins, when one of them wants to hear of this.
    fn listening(&self, event: Event) -> Option<&'a Nri> {
        self.host.nri.as_ref().filter(|nri| nri.listens(event))
    }

    fn pod(&self) -> PodSandbox {
        view::pod(self.sandbox, self.pid)
    }

    async fn container(&self, container: &Container) -> PluginContainer {
        view::container(self.host, container).await
    }

    fn refused(&self, object: String) -> impl FnOnce(Refused) -> Error {
        |source| Error::Plugin { object, source }
    }

    // --- The pod

    /// It stands, and is about to be shown. The answer is to be kept until it is.
    pub(crate) async fn run_pod(&self) -> Result<Option<Arriving>, Error> {
        let Some(nri) = &self.host.nri else { return Ok(None) };
        nri.run_pod(&self.pod()).await.map(Some).map_err(self.refused(self.sandbox.label()))
    }

    /// All its containers have ended, and nothing else of it.
    pub(crate) async fn stop_pod(&self) {
        if let Some(nri) = self.listening(Event::StopPodSandbox) {
            nri.stop_pod(&self.pod()).await;
        }
    }

    /// It is gone. The answer is to be kept until readers do not see it any more.
    pub(crate) async fn remove_pod(&self) -> Option<Leaving> {
        let nri = self.host.nri.as_ref()?;
        Some(nri.remove_pod(&self.pod()).await)
    }

    /// Its limits are about to be changed to what `self` has.
    pub(crate) async fn update_pod(&self) -> Result<(), Error> {
        let Some(nri) = self.listening(Event::UpdatePodSandbox) else { return Ok(()) };
        let (overhead, resources) = view::pod_resources(self.sandbox);
        nri.update_pod(&self.pod(), overhead.unwrap_or_default(), resources.unwrap_or_default())
            .await
            .map_err(self.refused(self.sandbox.label()))
    }

    /// They are changed.
    pub(crate) async fn updated_pod(&self) {
        if let Some(nri) = self.listening(Event::PostUpdatePodSandbox) {
            nri.updated_pod(&self.pod()).await;
        }
    }

    // --- Its containers

    /// One is about to be made from this spec: what plugins make of that. The last of the answer is to be kept until
    /// the container is shown.
    pub(crate) async fn create(
        &self,
        container: &Container,
        spec: Spec,
    ) -> Result<(Spec, LinuxResources, Option<Arriving>), Error> {
        let Some(nri) = &self.host.nri else { return Ok((spec, LinuxResources::default(), None)) };
        let mut asked = view::known(container);
        berth_nri::oci::describe(&spec, &mut asked);
        let answer = nri.create_container(&self.pod(), asked).await;
        let (wanted, arriving) = answer.map_err(self.refused(container.id.label()))?;
        let resources = wanted.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        let spec = self.adjusted(spec, wanted).await?;
        Ok((spec, resources, Some(arriving)))
    }

    async fn adjusted(&self, mut spec: Spec, wanted: ContainerAdjustment) -> Result<Spec, Error> {
        if wanted == ContainerAdjustment::default() {
            return Ok(spec);
        }
        let invalid = |why: String| Error::Invalid { field: "adjustment", why };
        let devices = wanted.cdi_devices.iter().map(|device| device.name.parse::<DeviceName>());
        let devices: Vec<_> =
            devices.collect::<Result<_, _>>().map_err(|error| invalid(error.to_string()))?;
        berth_nri::oci::adjust(&mut spec, wanted, self.host.facts.swap)
            .map_err(|error| invalid(error.to_string()))?;
        cdi::add(self.host, devices, spec).await
    }

    /// It waits to be started.
    pub(crate) async fn created(&self, container: &Container) {
        if let Some(nri) = self.listening(Event::PostCreateContainer) {
            nri.created_container(&self.pod(), &self.container(container).await).await;
        }
    }

    /// It could not be made after all, although plugins may have been told so.
    pub(crate) async fn not_created(&self, container: &Container) {
        let Some(nri) = &self.host.nri else { return };
        let mut container = view::known(container);
        container.state = PluginState::ContainerStopped.into();
        nri.stop_container(&self.pod(), &container).await;
        // Nobody ever saw it.
        drop(nri.remove_container(&self.pod(), &container).await);
    }

    /// Its program is about to be executed.
    pub(crate) async fn start(&self, container: &Container) -> Result<(), Error> {
        let Some(nri) = self.listening(Event::StartContainer) else { return Ok(()) };
        let started = nri.start_container(&self.pod(), &self.container(container).await).await;
        started.map_err(self.refused(container.id.label()))
    }

    /// It was executed.
    pub(crate) async fn started(&self, container: &Container, started_at: i64) {
        let Some(nri) = self.listening(Event::PostStartContainer) else { return };
        let pid = container.pid().unwrap_or_default();
        let running = container.with_state(ContainerState::Running { pid, started_at });
        nri.started_container(&self.pod(), &self.container(&running).await).await;
    }

    /// Its limits are about to be changed: to what.
    pub(crate) async fn update(
        &self,
        container: &Container,
        limits: LinuxResources,
    ) -> Result<LinuxResources, Error> {
        let Some(nri) = self.listening(Event::UpdateContainer) else { return Ok(limits) };
        let asked = nri.update_container(&self.pod(), &self.container(container).await, limits).await;
        asked.map_err(self.refused(container.id.label()))
    }

    /// They are changed.
    pub(crate) async fn updated(&self, container: &Container) {
        if let Some(nri) = self.listening(Event::PostUpdateContainer) {
            nri.updated_container(&self.pod(), &self.container(container).await).await;
        }
    }

    /// It has ended, and is shown so.
    pub(crate) async fn ended(&self, container: &Container) {
        if let Some(nri) = self.listening(Event::StopContainer) {
            nri.stop_container(&self.pod(), &self.container(container).await).await;
        }
    }

    /// What to tell plugins of a container once nothing of it is left.
    pub(crate) async fn remember(&self, container: &Container) -> Remembered {
        Remembered(match self.listening(Event::RemoveContainer) {
            Some(_) => Some(self.container(container).await),
            None => self.host.nri.is_some().then(|| view::known(container)),
        })
    }

    /// It is gone. The answer is to be kept until readers do not see it any more.
    pub(crate) async fn removed(&self, container: Remembered) -> Option<Leaving> {
        let (nri, container) = self.host.nri.as_ref().zip(container.0)?;
        Some(nri.remove_container(&self.pod(), &container).await)
    }
}

/// Whether plugins may have been told of what they were to be told.
pub(crate) fn may_know<T>(answer: &Result<T, Error>) -> bool {
    !matches!(answer, Err(Error::Plugin { source: Refused::Missing(_), .. }))
}

/// A container's spec; `None` once its pod is stopped.
async fn spec_of(host: &Host, container: &Container) -> Option<Spec> {
    match host.spec_of(container).await {
        Ok(spec) => Some(spec),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => None,
        Err(err) => {
            tracing::warn!(container = %container.id.short(), error = cause(&err), "cannot read its OCI spec");
            None
        }
    }
}
