//! The one door: who attaches, one change of a sandbox at a time, records before answers.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use berth_store::{Record, Store, StoreError};
use ipnet::IpNet;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    task::JoinHandle,
};
use tracing::Instrument;

use crate::{
    AttachError, AttachRequest, Attachment, CheckError, DetachError, Mode, Netns, NetnsError, NetworkConfig,
    NetworkStatus, PodCidrError, ShutdownError, StartError, SweepError, ThreadError,
    bridge::{self, Bridge},
    cni::{
        self, Cni,
        config::NetworkList,
        watch::{CniState, View, Watcher},
    },
    ipam::Subnets,
    lease::{BridgeLease, CniLease, Lease, POD_CIDR_KEY, PodCidr},
    netns, pin,
    status::chain,
    sysctl, thread,
};

/// The network of all pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

/// What a sandbox has; the lock admits one change at a time.
type Slot = Arc<AsyncMutex<Option<Lease>>>;

#[derive(Debug)]
struct Inner {
    store: Store,
    pins: PathBuf,
    bridge: Arc<Bridge>,
    /// Why the kernel cannot serve the built-in network, if so.
    built_in_fault: Option<String>,
    cni: Cni,
    view: View,
    watcher: JoinHandle<()>,
    sandboxes: Mutex<HashMap<String, Slot>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Network {
    /// Loads the records, examines the kernel, looks at the CNI folders and goes on watching them. Touches nothing on
    /// the host. Must be called in a tokio runtime; the network namespace of the calling thread is the host's.
    ///
    /// # Errors
    /// When the configuration makes no sense, or records or inotify are not to be had. A kernel without nf_tables and a
    /// broken CNI configuration are no errors here: [`status`](Self::status) tells.
    pub async fn start(config: NetworkConfig, store: Store) -> Result<Self, StartError> {
        if !is_interface_name(&config.bridge) {
            return Err(StartError::BridgeName(config.bridge));
        }
        let configured = Subnets::new(Some(config.ipv4_subnet), ipv6_if_possible(config.ipv6_subnet))
            .map_err(StartError::Subnets)?;
        let loading = store.clone();
        let loaded = blocking(move || Ok((loading.load::<PodCidr>()?, loading.load::<Lease>()?)))
            .await
            .map_err(StartError::Thread)?;
        let (pod_cidr, leases) = loaded.map_err(StartError::Store)?;
        let told =
            pod_cidr.into_iter().find(|(key, _)| key == POD_CIDR_KEY).map(|(_, record)| record.subnets);

        let bridge = Bridge::new(&config.bridge, config.mtu, told.unwrap_or(configured));
        let mut sandboxes = HashMap::new();
        for (sandbox, lease) in leases {
            if let Lease::BuiltIn(lease) = &lease {
                bridge.adopt(&sandbox, lease.clone());
            }
            sandboxes.insert(sandbox, Arc::new(AsyncMutex::new(Some(lease))));
        }
        let probed = thread::run("net-probe", move || bridge::probe(&configured)).await;
        let probed = probed.map_err(StartError::Thread)?;
        let built_in_fault = probed.err().map(|err| chain(&err));

        let cni = Cni::new(config.cni_bin_dirs);
        let (watcher, view) =
            Watcher::start(config.cni_conf_dir, cni.clone()).await.map_err(StartError::Watch)?;
        let watcher = tokio::spawn(watcher.run().instrument(tracing::info_span!("cni-watcher")));
        let inner = Inner {
            store,
            pins: config.state.join("netns"),
            bridge: Arc::new(bridge),
            built_in_fault,
            cni,
            view,
            watcher,
            sandboxes: Mutex::new(sandboxes),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether new pods can be attached, and by whom. Never waits; where CNI plugins can report their status (1.1.0), a
    /// call has them asked again for the next one.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        self.inner.view.ask();
        self.inner.status()
    }

    /// Waits until the status is as `wanted`, and gives it. Does not wait when it is so already; may wait for ever, so
    /// put a deadline around it.
    pub async fn status_until(&self, wanted: impl Fn(&NetworkStatus) -> bool) -> NetworkStatus {
        let mut state = self.inner.view.state.clone();
        loop {
            state.mark_unchanged();
            let status = self.inner.status();
            if wanted(&status) {
                return status;
            }
            // The watcher's end means that nothing changes any more.
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A new network namespace with its loopback up (IPv4 and IPv6). It has no name and no mount: it lives as long as
    /// someone holds the descriptor.
    ///
    /// # Errors
    /// When the kernel refuses; see [`NetnsError`].
    pub async fn create_netns(&self) -> Result<Netns, NetnsError> {
        netns::create().await
    }

    /// The same of a namespace that was made elsewhere, since it belongs to a pod's user namespace.
    ///
    /// # Errors
    /// When the kernel refuses; see [`NetnsError`].
    pub async fn adopt_netns(&self, netns: OwnedFd) -> Result<Netns, NetnsError> {
        netns::adopt(netns).await
    }

    /// Connects a sandbox. Once this has begun it runs to its end, also when the future is dropped: then call
    /// [`detach`](Self::detach), which waits for it.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing is left on the host.
    pub async fn attach(&self, request: AttachRequest) -> Result<Attachment, AttachError> {
        let inner = Arc::clone(&self.inner);
        let sandbox = request.sandbox_id.clone();
        let task = tokio::spawn(async move { inner.attach(request).await }.in_current_span());
        task.await.unwrap_or(Err(AttachError::Thread { sandbox, source: ThreadError::Lost }))
    }

    /// Takes a sandbox's network away. Nothing to take away is fine, and so is a namespace that is gone. Like attach it
    /// runs to its end once begun.
    ///
    /// # Errors
    /// See [`DetachError`]; what is left stays recorded, so calling again goes on.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), DetachError> {
        let inner = Arc::clone(&self.inner);
        let sandbox = sandbox_id.to_owned();
        let task = tokio::spawn(async move { inner.detach(&sandbox).await }.in_current_span());
        let sandbox = sandbox_id.to_owned();
        task.await.unwrap_or(Err(DetachError::Thread { sandbox, source: ThreadError::Lost }))
    }

    /// Asks the plugins that attached a sandbox whether its network is still right (CNI CHECK). Sandboxes of the
    /// built-in network and unknown ones are right.
    ///
    /// # Errors
    /// What the first dissatisfied plugin says.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), CheckError> {
        let slot = self.inner.slot(sandbox_id).await;
        let result = match &*slot {
            Some(Lease::Cni(lease)) => self.inner.cni.check(sandbox_id, lease).await,
            Some(Lease::BuiltIn(_)) | None => Ok(()),
        };
        self.inner.put_back(sandbox_id, slot);
        result.map_err(|source| CheckError { sandbox: sandbox_id.to_owned(), source })
    }

    /// Removes all that is berth's and belongs to none of these sandboxes: records with all they stand for, links,
    /// host ports, pins; the bridge and the table when no pod is left; and has CNI plugins collect garbage. After a
    /// reboot every sandbox is dead: sweep with an empty set, so that the dead hold no host ports.
    ///
    /// # Errors
    /// The first of what could not be removed, after everything else was; all are in the log.
    pub async fn sweep(&self, known: &HashSet<String>) -> Result<(), SweepError> {
        let mut first = None;
        let mut note = |err: SweepError| {
            tracing::warn!(error = chain(&err), "sweeping the network");
            first.get_or_insert(err);
        };
        let recorded = self.inner.recorded();
        for sandbox in recorded.iter().filter(|sandbox| !known.contains(*sandbox)) {
            tracing::info!(sandbox, "freeing the network of a sandbox that is gone");
            if let Err(err) = self.detach(sandbox).await {
                note(SweepError::Sandbox(err));
            }
        }
        let bridge = Arc::clone(&self.inner.bridge);
        match thread::run("net-sweep", move || bridge.sweep()).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => note(SweepError::BuiltIn(err)),
            Err(err) => note(SweepError::Thread(err)),
        }
        let living: HashSet<String> = self.inner.recorded().into_iter().collect();
        if let Err(err) = self.inner.sweep_pins(&living).await {
            note(err);
        }
        if let CniState::Ready(list) = self.inner.state() {
            let living: Vec<String> = living.into_iter().collect();
            if let Err(err) = self.inner.cni.gc(&list, &living).await {
                note(SweepError::Cni(err));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// kubelet's pod CIDR (UpdateRuntimeConfig): one network, or one of each family separated by a comma. From now on
    /// the built-in network takes new pods' addresses from there, and only of the families given; pods that have one
    /// keep it. It is kept across restarts, since kubelet does not repeat it. Empty means nothing was said.
    ///
    /// # Errors
    /// When it is no such thing, or cannot be recorded.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<(), PodCidrError> {
        if cidr.trim().is_empty() {
            return Ok(());
        }
        let invalid = |source| PodCidrError::Invalid { cidr: cidr.to_owned(), source };
        let mut subnets = Subnets::parse(cidr).map_err(invalid)?;
        if subnets.v4.is_some() {
            subnets = Subnets::new(subnets.v4, ipv6_if_possible(subnets.v6)).map_err(invalid)?;
        }
        if subnets == self.inner.bridge.subnets() {
            return Ok(());
        }
        let stored = self.inner.put(POD_CIDR_KEY, PodCidr { subnets }).await;
        stored.map_err(PodCidrError::Thread)?.map_err(PodCidrError::Store)?;
        tracing::info!(?subnets, "pod CIDR set");
        self.inner.bridge.set_subnets(subnets);
        Ok(())
    }

    /// What a clean stop of the daemon does last: with no pod left the host is as before berth; pods that run keep
    /// bridge, table and records.
    ///
    /// # Errors
    /// When the kernel refuses to delete the bridge or the table.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.inner.watcher.abort();
        let bridge = Arc::clone(&self.inner.bridge);
        let removed = thread::run("net-shutdown", move || bridge.remove_if_unused()).await;
        removed.map_err(ShutdownError::Thread)?.map_err(ShutdownError::BuiltIn).map(drop)
    }
}

impl Inner {
    fn state(&self) -> CniState {
        self.view.state.borrow().clone()
    }

    fn status(&self) -> NetworkStatus {
        match self.state() {
            CniState::Ready(list) => NetworkStatus::ready(Mode::Cni { name: list.name.clone() }),
            CniState::Broken { name, reason } => NetworkStatus::not_ready(Mode::Cni { name }, reason),
            CniState::Absent => match &self.built_in_fault {
                None => NetworkStatus::ready(Mode::BuiltIn),
                Some(fault) => NetworkStatus::not_ready(Mode::BuiltIn, fault.clone()),
            },
        }
    }

    fn sandboxes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recorded(&self) -> Vec<String> {
        self.sandboxes().keys().cloned().collect()
    }

    /// Waits until no one else changes this sandbox.
    async fn slot(&self, sandbox: &str) -> OwnedMutexGuard<Option<Lease>> {
        let slot = Arc::clone(self.sandboxes().entry(sandbox.to_owned()).or_default());
        slot.lock_owned().await
    }

    /// Ends a change; an empty slot that no one waits for is forgotten.
    fn put_back(&self, sandbox: &str, slot: OwnedMutexGuard<Option<Lease>>) {
        let mut sandboxes = self.sandboxes();
        let empty = slot.is_none();
        drop(slot);
        // Whoever waits has a count of its own, taken under this lock.
        if empty && sandboxes.get(sandbox).is_some_and(|slot| Arc::strong_count(slot) == 1) {
            sandboxes.remove(sandbox);
        }
    }

    async fn attach(&self, request: AttachRequest) -> Result<Attachment, AttachError> {
        let sandbox = request.sandbox_id.clone();
        let mut slot = self.slot(&sandbox).await;
        let result = match (&*slot, self.state()) {
            (Some(_), _) => Err(AttachError::AlreadyAttached(sandbox.clone())),
            (None, CniState::Ready(list)) => self.attach_cni(&mut slot, request, &list).await,
            (None, CniState::Absent) if self.built_in_fault.is_none() => {
                self.attach_built_in(&mut slot, request).await
            }
            (None, CniState::Broken { .. } | CniState::Absent) => {
                let reason = self.status().message;
                Err(AttachError::NotReady { sandbox: sandbox.clone(), reason })
            }
        };
        self.put_back(&sandbox, slot);
        result
    }

    async fn attach_built_in(
        &self,
        slot: &mut Option<Lease>,
        request: AttachRequest,
    ) -> Result<Attachment, AttachError> {
        let AttachRequest { sandbox_id: sandbox, netns, port_mappings, .. } = request;
        let lease = self
            .bridge
            .reserve(&sandbox, &port_mappings)
            .map_err(|source| AttachError::BuiltIn { sandbox: sandbox.clone(), source })?;
        *slot = Some(Lease::BuiltIn(lease.clone()));
        // Both at once: what a crash leaves without a record, the sweep finds by the bridge.
        let (bridge, id, its) = (Arc::clone(&self.bridge), sandbox.clone(), lease.clone());
        let connecting = thread::run("net-attach", move || bridge.connect(&id, &its, &netns));
        let recording = self.put(&sandbox, Lease::BuiltIn(lease.clone()));
        let (connected, recorded) = tokio::join!(connecting, recording);
        let ended = match (connected, recorded) {
            (Ok(Ok(())), Ok(Ok(()))) => {
                return Ok(Attachment { ips: lease.addresses.iter().map(IpNet::addr).collect() });
            }
            (Ok(Err(source)), _) => AttachError::BuiltIn { sandbox: sandbox.clone(), source },
            (_, Ok(Err(source))) => AttachError::Store { sandbox: sandbox.clone(), source },
            (Err(source), _) | (_, Err(source)) => AttachError::Thread { sandbox: sandbox.clone(), source },
        };
        self.undo(&sandbox, slot).await;
        Err(ended)
    }

    async fn attach_cni(
        &self,
        slot: &mut Option<Lease>,
        request: AttachRequest,
        list: &NetworkList,
    ) -> Result<Attachment, AttachError> {
        let sandbox = request.sandbox_id.clone();
        let mut lease = CniLease {
            list: list.source.clone(),
            netns: pin::path(&self.pins, &sandbox),
            arguments: cni::arguments(&request),
            capabilities: cni::of_request(&request),
            result: None,
        };
        *slot = Some(Lease::Cni(Box::new(lease.clone())));
        match self.add(&sandbox, &mut lease, list, request).await {
            Ok(ips) => {
                *slot = Some(Lease::Cni(Box::new(lease)));
                Ok(Attachment { ips })
            }
            Err(err) => {
                self.undo(&sandbox, slot).await;
                Err(err)
            }
        }
    }

    async fn add(
        &self,
        sandbox: &str,
        lease: &mut CniLease,
        list: &NetworkList,
        request: AttachRequest,
    ) -> Result<Vec<IpAddr>, AttachError> {
        let sandbox = || sandbox.to_owned();
        let lost = |source| AttachError::Thread { sandbox: sandbox(), source };
        let not_stored = |source| AttachError::Store { sandbox: sandbox(), source };
        // Before the plugins act: should the daemon die meanwhile, the next one knows to call DEL.
        let record = Lease::Cni(Box::new(lease.clone()));
        self.put(&sandbox(), record).await.map_err(lost)?.map_err(not_stored)?;
        let path = lease.netns.clone();
        blocking(move || pin::set(&path, &request.netns))
            .await
            .map_err(lost)?
            .map_err(|source| AttachError::Pin { sandbox: sandbox(), source })?;
        let (result, ips) = self
            .cni
            .add(list, &sandbox(), lease)
            .await
            .map_err(|source| AttachError::Cni { sandbox: sandbox(), source })?;
        lease.result = Some(result);
        let record = Lease::Cni(Box::new(lease.clone()));
        self.put(&sandbox(), record).await.map_err(lost)?.map_err(not_stored)?;
        Ok(ips)
    }

    /// After a failed attach. Failing here as well leaves the record for detach.
    async fn undo(&self, sandbox: &str, slot: &mut Option<Lease>) {
        if let Err(err) = self.free(sandbox, slot).await {
            tracing::error!(
                sandbox,
                error = chain(&err),
                "cannot undo a failed attach; detach will try again"
            );
        }
    }

    async fn detach(&self, sandbox: &str) -> Result<(), DetachError> {
        let mut slot = self.slot(sandbox).await;
        let result = self.free(sandbox, &mut slot).await;
        self.put_back(sandbox, slot);
        result
    }

    /// Host first, record second, memory last: what is freed in memory can be another pod's at once.
    async fn free(&self, sandbox: &str, slot: &mut Option<Lease>) -> Result<(), DetachError> {
        match slot {
            None => return Ok(()),
            Some(Lease::BuiltIn(lease)) => self.disconnect(sandbox, lease.clone()).await?,
            Some(Lease::Cni(lease)) => {
                self.cni
                    .del(sandbox, lease)
                    .await
                    .map_err(|source| DetachError::Cni { sandbox: sandbox.to_owned(), source })?;
                let path = lease.netns.clone();
                blocking(move || pin::remove(&path))
                    .await
                    .map_err(|source| DetachError::Thread { sandbox: sandbox.to_owned(), source })?
                    .map_err(|source| DetachError::Pin { sandbox: sandbox.to_owned(), source })?;
            }
        }
        let (store, key) = (self.store.clone(), sandbox.to_owned());
        blocking(move || store.delete::<Lease>(&key))
            .await
            .map_err(|source| DetachError::Thread { sandbox: sandbox.to_owned(), source })?
            .map_err(|source| DetachError::Store { sandbox: sandbox.to_owned(), source })?;
        self.bridge.release(sandbox);
        *slot = None;
        Ok(())
    }

    async fn disconnect(&self, sandbox: &str, lease: BridgeLease) -> Result<(), DetachError> {
        let (bridge, id) = (Arc::clone(&self.bridge), sandbox.to_owned());
        thread::run("net-detach", move || bridge.disconnect(&id, &lease))
            .await
            .map_err(|source| DetachError::Thread { sandbox: sandbox.to_owned(), source })?
            .map_err(|source| DetachError::BuiltIn { sandbox: sandbox.to_owned(), source })
    }

    async fn sweep_pins(&self, living: &HashSet<String>) -> Result<(), SweepError> {
        let (pins, living) = (self.pins.clone(), living.clone());
        let sweep = move || {
            for id in pin::list(&pins)?.iter().filter(|id| !living.contains(*id)) {
                pin::remove(&pin::path(&pins, id))?;
            }
            Ok(())
        };
        blocking(sweep).await.map_err(SweepError::Thread)?.map_err(SweepError::Pin)
    }

    async fn put<R: Record + Send + 'static>(
        &self,
        key: &str,
        record: R,
    ) -> Result<Result<(), StoreError>, ThreadError> {
        let (store, key) = (self.store.clone(), key.to_owned());
        blocking(move || store.put(&key, &record)).await
    }
}

/// On the runtime's pool: for work that stays in the host's namespace.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ThreadError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ThreadError::Lost)
}

/// A kernel booted without IPv6 serves IPv4 alone.
fn ipv6_if_possible(subnet: Option<ipnet::Ipv6Net>) -> Option<ipnet::Ipv6Net> {
    if subnet.is_some() && !sysctl::has_ipv6() {
        tracing::warn!("the kernel has no IPv6; pods get IPv4 addresses only");
        return None;
    }
    subnet
}

fn is_interface_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    (1..=15).contains(&name.len()) && name.chars().all(good) && !matches!(name, "." | "..")
}
