//! A pod's sandbox: what is known of it, how it is made, and the one way it is ended.

use std::{
    fs, io,
    net::IpAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::Path,
    sync::Arc,
};

use berth_cri::{
    berth::v1::{
        MakeUserNamespace, PodSetup, SandboxRecord,
        sandbox_record::{Owner as RecordOwner, Phase},
    },
    runtime::v1::{
        NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, Protocol as CriProtocol,
    },
};
use berth_image::FirstIds;
use berth_network::{AttachRequest, Netns, PodIdentity, PortMapping, Protocol};
use berth_nri::Arriving;
use berth_store::{Batch, DecodeError, Record};
use berth_supervisor::client::{Events, Supervisor};
use prost::Message as _;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::{
    Container, Error, Owner, SandboxId, Timeline, UnixNanos,
    create::end_processes,
    error::cause,
    files::{self, PodDir},
    host::Host,
    plugins::{self, Plugins},
    user_namespace::PodIds,
};

/// Size of a pod's own /dev/shm, in bytes: what every runtime of the field gives.
const SHM_SIZE: &str = "67108864";

/// A pod sandbox. Everything here is durable.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Who made it, and alone sees it.
    pub owner: Owner,
    /// As RunPodSandbox sent it; given back unchanged.
    pub config: Arc<PodSandboxConfig>,
    /// Name of the runtime handler; empty is the default one.
    pub handler: String,
    /// Grows with each sandbox of this daemon.
    pub created_at: UnixNanos,
    /// Where it is in its life.
    pub phase: SandboxPhase,
    /// Primary first; empty in the host's network.
    pub ips: Vec<IpAddr>,
    /// The boot it was made in.
    pub boot_id: String,
    /// Its containers' cgroups lie below this path of each hierarchy.
    pub cgroup_parent: String,
}

/// A sandbox's life, in the order it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxPhase {
    /// An intent on disk: being made, not listed.
    Creating,
    /// Its namespaces and network stand.
    Ready,
    /// Its processes are gone.
    NotReady,
}

impl SandboxPhase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready => "ready",
            Self::NotReady => "stopped",
        }
    }
}

impl Sandbox {
    /// Name, namespace, uid and attempt; empty ones when the config has none.
    #[must_use]
    pub fn metadata(&self) -> PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// The namespace options; CRI's defaults when the config has none.
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
    }

    /// Whether it lives in the node's own network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }

    pub(crate) fn host_ipc(&self) -> bool {
        self.namespaces().ipc() == NamespaceMode::Node
    }

    /// Its user and group ids, when it does not use the host's. What cannot be meant was refused before it was made.
    pub(crate) fn user_ids(&self) -> Option<PodIds> {
        PodIds::of(&self.config).ok().flatten()
    }

    /// Whether its containers share one pid namespace. Only an explicit namespace option says so: the enum's zero
    /// value is POD, but a pod without options has a pid namespace per container.
    pub(crate) fn shared_pid(&self) -> bool {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        security
            .and_then(|security| security.namespace_options.as_ref())
            .is_some_and(|options| options.pid() == NamespaceMode::Pod)
    }

    /// Whether berth made the cgroup that its containers lie in, and so has to remove it.
    fn owns_cgroup(&self) -> bool {
        self.cgroup_parent.ends_with(self.id.as_str())
    }

    /// "pod sandbox 0123456789abc (namespace/name)", for messages.
    pub(crate) fn label(&self) -> String {
        let meta = self.metadata();
        format!("pod sandbox {} ({}/{})", self.id.short(), meta.namespace, meta.name)
    }

    #[must_use]
    pub(crate) fn with_phase(&self, phase: SandboxPhase) -> Self {
        Self { phase, ..self.clone() }
    }
}

impl Record for Sandbox {
    const TABLE: &'static str = "sandbox";
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        let phase = match self.phase {
            SandboxPhase::Creating => Phase::Creating,
            SandboxPhase::Ready => Phase::Ready,
            SandboxPhase::NotReady => Phase::NotReady,
        };
        let owner = match self.owner {
            Owner::Cri => RecordOwner::Cri,
            Owner::Manifest => RecordOwner::Manifest,
        };
        SandboxRecord {
            id: self.id.to_string(),
            config: Some(PodSandboxConfig::clone(&self.config)),
            handler: self.handler.clone(),
            created_at: self.created_at,
            phase: phase.into(),
            ips: self.ips.iter().map(IpAddr::to_string).collect(),
            boot_id: self.boot_id.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            owner: owner.into(),
        }
        .encode_to_vec()
    }

    fn decode(version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        if version != Self::VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        let damaged = |err| DecodeError::Damaged(err);
        let record = SandboxRecord::decode(bytes).map_err(|err| damaged(err.into()))?;
        let phase = match record.phase() {
            Phase::Creating => SandboxPhase::Creating,
            Phase::Ready => SandboxPhase::Ready,
            Phase::NotReady => SandboxPhase::NotReady,
        };
        let ips = record.ips.iter().map(|ip| ip.parse()).collect::<Result<_, _>>();
        Ok(Self {
            id: SandboxId::from_record(&record.id),
            owner: match record.owner() {
                RecordOwner::Cri => Owner::Cri,
                RecordOwner::Manifest => Owner::Manifest,
            },
            config: Arc::new(record.config.ok_or_else(|| damaged("no config".into()))?),
            handler: record.handler,
            created_at: record.created_at,
            phase,
            ips: ips.map_err(|err| damaged(Box::new(err)))?,
            boot_id: record.boot_id,
            cgroup_parent: record.cgroup_parent,
        })
    }
}

/// What a sandbox that came up consists of.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) supervisor: Supervisor,
    pub(crate) events: Events,
    /// To be kept until readers see the pod.
    pub(crate) arriving: Option<Arriving>,
}

/// What has been begun and must be undone when a later step fails.
#[derive(Debug, Default)]
struct Begun {
    /// As soon as there is one: a new supervisor cannot be found by its socket yet.
    supervisor: Option<Supervisor>,
    /// Whether plugins may know of the pod.
    told: bool,
}

/// Makes the sandbox, and undoes everything when a step fails.
pub(crate) async fn bring_up(host: &Host, sandbox: &Arc<Sandbox>, timeline: &Timeline) -> Result<Up, Error> {
    let id = sandbox.id.as_str();
    // The intent comes first: should the daemon die in the middle, the next one finds what to undo.
    let intent = Batch::new().put(id, &**sandbox);
    host.persist(intent).await.map_err(Error::step(sandbox.label(), "write its record"))?;
    let mut begun = Begun::default();
    match timeline.step("sandbox", make(host, sandbox, timeline, &mut begun)).await {
        Ok(up) => Ok(up),
        Err(err) => {
            let undone = match tear_down(host, sandbox, &[], begun.supervisor).await {
                Ok(()) => host
                    .persist(Batch::new().delete::<Sandbox>(id))
                    .await
                    .map_err(Error::step(sandbox.label(), "delete its record")),
                Err(left) => Err(left),
            };
            if let Err(left) = undone {
                // The record stays as an intent, so the next start of the daemon tries again.
                tracing::error!(error = cause(&left), "cannot undo a failed pod sandbox");
            }
            if begun.told {
                // Nobody ever saw it.
                drop(Plugins::of(host, sandbox, None).remove_pod().await);
            }
            Err(err)
        }
    }
}

async fn make(host: &Host, sandbox: &Sandbox, timeline: &Timeline, begun: &mut Begun) -> Result<Up, Error> {
    let dir = host.pod_dir(&sandbox.id);
    let user_ids = sandbox.user_ids();
    let spawn = timeline.step("sandbox: supervisor", async {
        prepare_dir(&dir, sandbox).await?;
        let started = Supervisor::spawn(&host.supervisor, dir.path(), sandbox.id.as_str()).await;
        let (supervisor, events) = started.map_err(Error::step(sandbox.label(), "start its supervisor"))?;
        begun.supervisor = Some(supervisor.clone());
        Ok((supervisor, events))
    });
    let ((netns, ips), (supervisor, events)) = match user_ids {
        None => {
            let network = timeline.step("sandbox: network", async {
                match sandbox.host_network() {
                    true => Ok((None, Vec::new())),
                    false => {
                        let (netns, ips) = attach(host, sandbox, new_netns(host, sandbox).await?).await?;
                        Ok((Some(netns), ips))
                    }
                }
            });
            let (network, started) = tokio::join!(network, spawn);
            (network?, started?)
        }
        // The network namespace has to belong to the user namespace, and that is the supervisor's to make.
        Some(ids) => {
            let (supervisor, events) = spawn.await?;
            let network = timeline.step("sandbox: network", network_inside(host, sandbox, &supervisor, ids));
            ((None, network.await?), (supervisor, events))
        }
    };

    let setup = PodSetup {
        hostname: match sandbox.host_network() {
            true => String::new(),
            false => files::hostname(&sandbox.config, &host.facts.hostname),
        },
        host_ipc: sandbox.host_ipc(),
        shared_pid: sandbox.shared_pid(),
        sysctls: sandbox.config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default(),
    };
    timeline
        .step("sandbox: namespaces", supervisor.setup(setup, netns))
        .await
        .map_err(Error::step(sandbox.label(), "set up its namespaces"))?;

    let ready = Sandbox { ips, phase: SandboxPhase::Ready, ..sandbox.clone() };
    timeline
        .step("sandbox: files", async {
            let (config, node, ips) =
                (Arc::clone(&ready.config), host.facts.hostname.clone(), ready.ips.clone());
            let owner = user_ids.map(|ids| ids.first());
            blocking(move || files::write(&dir, &config, &node, &ips, owner))
                .await
                .map_err(Error::step(ready.label(), "write its files"))
        })
        .await?;
    let answer = Plugins::of(host, &ready, Some(&supervisor)).run_pod().await;
    begun.told = plugins::may_know(&answer);
    let arriving = answer?;
    timeline
        .step("sandbox: record", host.persist(Batch::new().put(ready.id.as_str(), &ready)))
        .await
        .map_err(Error::step(ready.label(), "write its record"))?;
    Ok(Up { sandbox: Arc::new(ready), supervisor, events, arriving })
}

async fn new_netns(host: &Host, sandbox: &Sandbox) -> Result<Netns, Error> {
    let made = host.network.create_netns().await;
    made.map_err(Error::step(sandbox.label(), "make its network namespace"))
}

/// Has the supervisor make the pod's user namespace, and connects the network namespace that came with it.
async fn network_inside(
    host: &Host,
    sandbox: &Sandbox,
    supervisor: &Supervisor,
    ids: PodIds,
) -> Result<Vec<IpAddr>, Error> {
    let request = MakeUserNamespace {
        ids: Some(ids.maps()),
        host_network: sandbox.host_network(),
        host_ipc: sandbox.host_ipc(),
    };
    let made = supervisor.make_user_namespace(request).await;
    made.map_err(Error::step(sandbox.label(), "make its user namespace"))?;
    if sandbox.host_network() {
        return Ok(Vec::new());
    }
    let opened = fs::File::open(format!("/proc/{}/ns/net", supervisor.pid()));
    let netns = opened.map_err(Error::step(sandbox.label(), "open its network namespace"))?;
    let adopted = host.network.adopt_netns(netns.into()).await;
    let netns = adopted.map_err(Error::step(sandbox.label(), "prepare its network namespace"))?;
    attach(host, sandbox, netns).await.map(|(_, ips)| ips)
}

async fn attach(host: &Host, sandbox: &Sandbox, netns: Netns) -> Result<(OwnedFd, Vec<IpAddr>), Error> {
    let id = sandbox.id.as_str();
    let meta = sandbox.metadata();
    let request = AttachRequest {
        sandbox_id: id.to_owned(),
        pod: PodIdentity { name: meta.name, namespace: meta.namespace, uid: meta.uid },
        netns: netns
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::step(sandbox.label(), "hand over its network namespace"))?,
        port_mappings: port_mappings(&sandbox.config)?,
        annotations: sandbox.config.annotations.clone(),
        cgroup_parent: Some(sandbox.cgroup_parent.clone()),
    };
    let attachment = host
        .network
        .attach(request)
        .await
        .map_err(Error::step(sandbox.label(), "attach it to the network"))?;
    Ok((netns.into_fd(), attachment.ips))
}

/// The mappings that name a host port; the others only declare a port.
fn port_mappings(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Error> {
    let invalid = |why: String| Error::Invalid { field: "config.port_mappings", why };
    let port =
        |number: i32| u16::try_from(number).map_err(|_| invalid(format!("{number} is not a port number")));
    let mut mappings = Vec::new();
    for mapping in config.port_mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid(format!("host_ip {text:?} is not an address")))?),
        };
        mappings.push(PortMapping {
            protocol: match mapping.protocol() {
                CriProtocol::Tcp => Protocol::Tcp,
                CriProtocol::Udp => Protocol::Udp,
                CriProtocol::Sctp => Protocol::Sctp,
            },
            container_port: port(mapping.container_port)?,
            host_port: port(mapping.host_port)?,
            host_ip,
        });
    }
    Ok(mappings)
}

async fn prepare_dir(dir: &PodDir, sandbox: &Sandbox) -> Result<(), Error> {
    let (theirs, host_ipc) = (dir.clone(), sandbox.host_ipc());
    let owner = sandbox.user_ids().map(|ids| ids.first());
    blocking(move || {
        fs::DirBuilder::new().mode(0o711).create(theirs.path())?;
        match host_ipc {
            true => Ok(()),
            false => mount_shm(&theirs.shm(), owner),
        }
    })
    .await
    .map_err(Error::step(sandbox.label(), "make its folder"))
}

fn mount_shm(at: &Path, owner: Option<FirstIds>) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(FirstIds { uid, gid }) = owner {
        fsconfig_set_string(context.as_fd(), "uid", uid.to_string())?;
        fsconfig_set_string(context.as_fd(), "gid", gid.to_string())?;
    }
    for (key, value) in [("source", "shm"), ("size", SHM_SIZE), ("mode", "1777")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    place(&mount, at)
}

/// Ends whatever there is of a sandbox: processes, network, supervisor, mounts, folder, cgroup. Every step is tried,
/// each may have been done before, and the first failure is the answer: the caller may ask again.
///
/// Records and the containers' snapshots stay; they belong to the removal.
pub(crate) async fn tear_down(
    host: &Host,
    sandbox: &Sandbox,
    containers: &[Arc<Container>],
    supervisor: Option<Supervisor>,
) -> Result<(), Error> {
    let dir = host.pod_dir(&sandbox.id);
    let supervisor = match supervisor {
        Some(supervisor) => Some(supervisor),
        // Not started, or started by a daemon that died: then its socket answers.
        None => Supervisor::connect(dir.path()).await.ok().map(|(supervisor, _events)| supervisor),
    };
    let mut first_failure = Ok(());
    let mut note = |result: Result<(), Error>| {
        if first_failure.is_ok() {
            first_failure = result;
        }
    };
    for container in containers {
        note(end_processes(host, sandbox, &container.id, supervisor.as_ref()).await);
    }
    note(
        host.network
            .detach(sandbox.id.as_str())
            .await
            .map_err(Error::step(sandbox.label(), "detach it from the network")),
    );
    if let Some(supervisor) = supervisor
        && let Err(err) = supervisor.shutdown().await
    {
        tracing::warn!(sandbox = %sandbox.id.short(), error = cause(&err), "supervisor does not end by itself; killing it");
        note(supervisor.kill().await.map_err(Error::step(sandbox.label(), "kill its supervisor")));
    }
    note(
        blocking(move || remove_folder(dir.path()))
            .await
            .map_err(Error::step(sandbox.label(), "remove its folder")),
    );
    if sandbox.owns_cgroup() {
        note(remove_cgroup(host, &sandbox.cgroup_parent, sandbox.label()).await);
    }
    first_failure
}

/// Removes a cgroup and everything below it from all hierarchies; an absent one is fine.
pub(crate) async fn remove_cgroup(host: &Host, path: &str, label: String) -> Result<(), Error> {
    let (cgroups, path) = (host.cgroups.clone(), path.to_owned());
    blocking(move || cgroups.remove_path(&path)).await.map_err(Error::step(label, "remove its cgroup"))
}

/// Gives a detached mount a path.
pub(crate) fn place(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    move_mount(mount.as_fd(), "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Unmounts what lies in a folder of ours and removes it; an absent one is fine.
pub(crate) fn remove_folder(dir: &Path) -> io::Result<()> {
    // Nothing can be mounted below what is not there, and the kernel's list is long where many pods run.
    if !fs::exists(dir)? {
        return Ok(());
    }
    unmount_all_below(dir)?;
    absent_is_fine(fs::remove_dir_all(dir))
}

/// Detaches every mount at or below a folder of ours, the newest first. Mount points come from the kernel's list, so
/// that also what a crashed daemon left is found.
fn unmount_all_below(dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        match unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone with a mount above it, or by somebody else's hand.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// proc_pid_mountinfo(5) writes blanks and backslashes as octal.
pub(crate) fn unescape(field: &str) -> String {
    const ESCAPES: [(&str, &str); 4] = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    ESCAPES.iter().fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Runs file system work off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Refuses sysctls that would change the node: only what a namespace of the pod's own holds may be set.
pub(crate) fn check_sysctls(
    config: &PodSandboxConfig,
    host_network: bool,
    host_ipc: bool,
) -> Result<(), Error> {
    /// ipc_namespaces(7), plus what the kernel keeps beside them.
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let Some(linux) = &config.linux else { return Ok(()) };
    for name in linux.sysctls.keys() {
        let dotted = match name.find(['.', '/']).map(|at| &name[at..=at]) {
            // sysctl(8): where a slash separates, dots and slashes change their places.
            Some("/") => name
                .chars()
                .map(|c| match c {
                    '/' => '.',
                    '.' => '/',
                    c => c,
                })
                .collect(),
            _ => name.clone(),
        };
        let namespace = match dotted.as_str() {
            ipc if IPC.contains(&ipc) || ipc.starts_with("fs.mqueue.") => Some(("ipc", host_ipc)),
            net if net.starts_with("net.") => Some(("network", host_network)),
            "kernel.domainname" => Some(("uts", host_network)),
            _ => None,
        };
        let why = match namespace {
            Some((_, false)) => continue,
            Some((namespace, true)) => {
                format!("{name} belongs to the {namespace} namespace, which is the node's")
            }
            None => format!("{name} belongs to the node, not to a pod"),
        };
        return Err(Error::Invalid { field: "config.linux.sysctls", why });
    }
    Ok(())
}

/// The cgroup that a pod's containers go below: what the config names, or one of the pod's own.
pub(crate) fn cgroup_parent(
    config: &PodSandboxConfig,
    id: &SandboxId,
    cgroup_root: &str,
) -> Result<String, Error> {
    let named = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    let invalid =
        |why: &str| Error::Invalid { field: "config.linux.cgroup_parent", why: format!("{named:?} {why}") };
    if named.is_empty() {
        return Ok(format!("{}/{id}", cgroup_root.trim_end_matches('/')));
    }
    if named.ends_with(".slice") {
        return Err(invalid("is a systemd slice, but the cgroup driver is cgroupfs"));
    }
    if named.split('/').any(|part| part == ".." || part == ".") {
        return Err(invalid("must not hold . or .."));
    }
    let parts: Vec<&str> = named.split('/').filter(|part| !part.is_empty()).collect();
    match parts.is_empty() {
        true => Err(invalid("is the root of the hierarchy")),
        false => Ok(format!("/{}", parts.join("/"))),
    }
}

#[cfg(test)]
mod tests {
    use berth_cri::runtime::v1::LinuxPodSandboxConfig;

    use super::*;

    fn parent_of(named: &str) -> Result<String, Error> {
        let linux = LinuxPodSandboxConfig { cgroup_parent: named.into(), ..Default::default() };
        let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
        cgroup_parent(&config, &SandboxId::from_record("abc"), "/berth")
    }

    #[test]
    fn a_pod_without_a_cgroup_parent_gets_its_own() {
        assert_eq!(parent_of("").unwrap(), "/berth/abc");
    }

    #[test]
    fn a_named_cgroup_parent_is_cleaned_up() {
        assert_eq!(parent_of("kubepods//burstable/pod1/").unwrap(), "/kubepods/burstable/pod1");
    }

    #[test]
    fn cgroup_parents_that_cannot_be_meant_are_refused() {
        for named in ["/kubepods.slice", "/a/../b", "/"] {
            assert!(matches!(parent_of(named), Err(Error::Invalid { .. })), "{named}");
        }
    }

    #[test]
    fn a_pod_sets_only_sysctls_of_namespaces_of_its_own() {
        let check = |name: &str, host_network, host_ipc| {
            let mut linux = LinuxPodSandboxConfig::default();
            linux.sysctls.insert(name.into(), "1".into());
            let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
            check_sysctls(&config, host_network, host_ipc)
        };
        for name in
            ["kernel.shm_rmid_forced", "fs.mqueue.msg_max", "net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/x"]
        {
            check(name, false, false).unwrap();
        }
        assert!(check("net.ipv4.ip_forward", true, false).is_err());
        assert!(check("kernel.sem", false, true).is_err());
        for name in ["kernel.panic", "vm.overcommit_memory", "kernel.hostname", "kernel/panic"] {
            assert!(check(name, false, false).unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn only_mappings_with_a_host_port_are_programmed() {
        let mapping = |host_port| berth_cri::runtime::v1::PortMapping {
            container_port: 80,
            host_port,
            ..Default::default()
        };
        let config =
            PodSandboxConfig { port_mappings: vec![mapping(0), mapping(8080)], ..Default::default() };
        let programmed = port_mappings(&config).unwrap();
        assert_eq!(programmed.iter().map(|mapping| mapping.host_port).collect::<Vec<_>>(), [8080]);
    }
}
