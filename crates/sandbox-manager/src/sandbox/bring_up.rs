//! Makes a sandbox: supervisor, namespaces, network, files.

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
    berth::v1::{MakeUserNamespace, PodSetup},
    runtime::v1::{PodSandboxConfig, Protocol as CriProtocol},
};
use berth_image::FirstIds;
use berth_network::{AttachRequest, Netns, PodIdentity, PortMapping, Protocol};
use berth_nri::Arriving;
use berth_store::Batch;
use berth_supervisor::client::{Events, Supervisor};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use super::{Sandbox, SandboxPhase, tear_down};
use crate::{
    Error, Timeline,
    error::cause,
    files::{self, PodDir},
    folders::place,
    host::{Host, blocking},
    plugins::{self, Plugins},
    user_namespace::PodIds,
};

/// Size of a pod's own /dev/shm, in bytes: what every runtime of the field gives.
const SHM_SIZE: &str = "67108864";

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
    let opened = supervisor.network_namespace();
    let netns = opened.map_err(Error::step(sandbox.label(), "open its network namespace"))?;
    let adopted = host.network.adopt_netns(netns).await;
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

#[cfg(test)]
mod tests {
    use super::*;

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
