//! The built-in network: one bridge, a veth for each pod, addresses of both families, masquerade, host ports.
//!
//! The bridge and its nf_tables table ("the fabric") are made when the first pod needs them, checked at every attach
//! (both can be deleted under us: `nft flush ruleset`), and stay until [`Bridge::remove_if_unused`].
//!
//! Everything here blocks and runs on threads of [`crate::thread`]. Attach and detach share the fabric's lock and so
//! run side by side; only making and removing the fabric excludes them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use ipnet::IpNet;

use crate::{
    conntrack,
    hostport::{Forward, HostPortError, HostPorts, PortMapping, forwards},
    ipam::{Addresses, Exhausted, Subnets, gateway_of, mac_of},
    lease::BridgeLease,
    netlink::{
        NetlinkError, Socket, absent_is_fine,
        route::{self, Link, Veth},
    },
    nft::{self, Table},
    sysctl::{self, SysctlError},
    thread::{self, ThreadError},
};

/// The pod's interface; CNI plugins use the same name.
pub(crate) const POD_INTERFACE: &str = "eth0";
/// Ethernet's, when the host has no default route to learn from.
const DEFAULT_MTU: u32 = 1500;

/// The built-in network could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No address left.
    #[error("no address for the pod")]
    Exhausted(#[source] Exhausted),
    /// A host port cannot be had.
    #[error("no host port for the pod")]
    HostPort(#[source] HostPortError),
    /// The configured name belongs to something else.
    #[error("interface {0} exists and is not a bridge made by berth; configure another name")]
    NameTaken(String),
    /// The kernel refused.
    #[error("built-in network")]
    Netlink(#[source] NetlinkError),
    /// A setting.
    #[error("built-in network")]
    Sysctl(#[source] SysctlError),
    /// The pod's namespace.
    #[error("built-in network")]
    Thread(#[source] ThreadError),
    /// The pod's end of the cable went away: the namespace has another owner.
    #[error("the pod's network namespace has no {POD_INTERFACE} although it was made there")]
    NoPodInterface,
}

impl From<NetlinkError> for BridgeError {
    fn from(err: NetlinkError) -> Self {
        Self::Netlink(err)
    }
}

impl From<SysctlError> for BridgeError {
    fn from(err: SysctlError) -> Self {
        Self::Sysctl(err)
    }
}

#[derive(Debug)]
pub(crate) struct Bridge {
    name: String,
    mtu: Option<u32>,
    table: Table,
    pods: Mutex<Pods>,
    fabric: RwLock<Fabric>,
}

/// In memory only; the leases are durable.
#[derive(Debug)]
struct Pods {
    addresses: Addresses,
    ports: HostPorts,
    leases: HashMap<String, BridgeLease>,
    /// Being disconnected: a remake of the table must not bring their host ports back.
    leaving: HashSet<String>,
}

/// What this daemon knows of the bridge and the table.
#[derive(Debug)]
enum Fabric {
    /// Nothing, or that they are gone.
    Unknown,
    Ready {
        index: u32,
        mtu: u32,
        networks: Vec<IpNet>,
    },
}

impl Bridge {
    pub(crate) fn new(name: &str, mtu: Option<u32>, subnets: Subnets) -> Self {
        let pods = Pods {
            addresses: Addresses::new(subnets),
            ports: HostPorts::default(),
            leases: HashMap::new(),
            leaving: HashSet::new(),
        };
        Self {
            name: name.to_owned(),
            mtu,
            table: Table::of_bridge(name),
            pods: Mutex::new(pods),
            fabric: RwLock::new(Fabric::Unknown),
        }
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        // Nothing under this lock panics half-way through a change.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what an earlier daemon attached.
    pub(crate) fn adopt(&self, sandbox: &str, lease: BridgeLease) {
        let mut pods = self.pods();
        pods.addresses.adopt(sandbox, &lease.addresses);
        let ips: Vec<IpAddr> = lease.addresses.iter().map(IpNet::addr).collect();
        let taken = forwards(sandbox, &lease.ports, &ips).and_then(|forwards| pods.ports.reserve(&forwards));
        if let Err(err) = taken {
            // It was granted once; a record that says otherwise now was changed by hand.
            tracing::error!(sandbox, error = %err, "host port of a recorded pod is not kept");
        }
        pods.leases.insert(sandbox.to_owned(), lease);
    }

    pub(crate) fn subnets(&self) -> Subnets {
        self.pods().addresses.subnets()
    }

    pub(crate) fn set_subnets(&self, subnets: Subnets) {
        self.pods().addresses.set_subnets(subnets);
    }

    /// Takes addresses and host ports. Nothing on the host is touched yet.
    pub(crate) fn reserve(&self, sandbox: &str, ports: &[PortMapping]) -> Result<BridgeLease, BridgeError> {
        let mut pods = self.pods();
        let addresses = pods.addresses.take(sandbox).map_err(BridgeError::Exhausted)?;
        let ips: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
        let reserved = forwards(sandbox, ports, &ips).and_then(|forwards| pods.ports.reserve(&forwards));
        if let Err(err) = reserved {
            pods.addresses.release(sandbox);
            return Err(BridgeError::HostPort(err));
        }
        let lease = BridgeLease { addresses, veth: self.veth_name(sandbox), ports: ports.to_vec() };
        pods.leases.insert(sandbox.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Gives back what [`reserve`](Self::reserve) took, once nothing on the host uses it any more.
    pub(crate) fn release(&self, sandbox: &str) {
        let mut pods = self.pods();
        pods.addresses.release(sandbox);
        pods.ports.release(sandbox);
        pods.leases.remove(sandbox);
        pods.leaving.remove(sandbox);
    }

    /// Names are short (15 bytes) and ids long, so a hash of both names (FNV-1a).
    fn veth_name(&self, sandbox: &str) -> String {
        let hash = [&self.name, "/", sandbox]
            .iter()
            .flat_map(|part| part.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("veth{:011x}", hash >> 20)
    }

    /// Connects the namespace. The calling thread is inside it afterwards. On an error the caller disconnects.
    pub(crate) fn connect(
        &self,
        sandbox: &str,
        lease: &BridgeLease,
        netns: &OwnedFd,
    ) -> Result<(), BridgeError> {
        let mut host = Socket::route()?;
        let mut filter = Socket::netfilter()?;
        let fabric = self.fabric_for(&lease.addresses, &mut host, &mut filter)?;
        let Fabric::Ready { index, mtu, .. } = &*fabric else {
            return Err(BridgeError::NameTaken(self.name.clone()));
        };
        let first = lease.addresses.first().map_or(IpAddr::from([0, 0, 0, 0]), IpNet::addr);
        host.transact(&route::create_veth(&Veth {
            host_name: &lease.veth,
            bridge: *index,
            sandbox,
            pod_name: POD_INTERFACE,
            pod_netns: netns.as_fd(),
            pod_mac: mac_of(first),
            mtu: *mtu,
        }))?;
        let forwards = self.pods().ports.of(sandbox);
        self.table.add(&mut filter, &forwards)?;
        forget_connections(&mut filter, &forwards);

        thread::enter(netns).map_err(BridgeError::Thread)?;
        let mut pod = Socket::route()?;
        let interface = pod.link_named(POD_INTERFACE)?.ok_or(BridgeError::NoPodInterface)?;
        if lease.addresses.iter().any(|address| address.addr().is_ipv6()) {
            // Off in every new namespace of a kernel that was told to have it off (ipv6.disable_ipv6=1).
            sysctl::ensure(&format!("ipv6/conf/{POD_INTERFACE}/disable_ipv6"), "0")?;
        }
        let mut requests = vec![route::raise_link(interface.index)];
        let addresses = lease.addresses.iter();
        requests.extend(addresses.clone().map(|address| route::add_address(interface.index, *address, true)));
        requests.extend(
            addresses.map(|address| route::add_default_route(interface.index, gateway_of(*address).addr())),
        );
        Ok(pod.transact(&requests)?)
    }

    /// Undoes [`connect`](Self::connect), also half of it, and also when the namespace is gone. The addresses and ports
    /// stay reserved until [`release`](Self::release).
    pub(crate) fn disconnect(&self, sandbox: &str, lease: &BridgeLease) -> Result<(), BridgeError> {
        let mut host = Socket::route()?;
        let _fabric = self.fabric.read().unwrap_or_else(PoisonError::into_inner);
        let forwards = {
            let mut pods = self.pods();
            pods.leaving.insert(sandbox.to_owned());
            pods.ports.of(sandbox)
        };
        if !forwards.is_empty() {
            let mut filter = Socket::netfilter()?;
            self.table.remove(&mut filter, &forwards)?;
            forget_connections(&mut filter, &forwards);
        }
        absent_is_fine(host.transact(&[route::delete_link(&lease.veth)]))?;
        Ok(())
    }

    /// The fabric, whole and with gateways for these addresses.
    fn fabric_for(
        &self,
        addresses: &[IpNet],
        host: &mut Socket,
        filter: &mut Socket,
    ) -> Result<RwLockReadGuard<'_, Fabric>, BridgeError> {
        let fabric = self.fabric.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_whole(&fabric, addresses, host, filter)? {
            return Ok(fabric);
        }
        drop(fabric);
        let mut fabric = self.fabric.write().unwrap_or_else(PoisonError::into_inner);
        // Another attach may have been here first.
        if !self.is_whole(&fabric, addresses, host, filter)? {
            *fabric = Fabric::Unknown;
            *fabric = self.make_fabric(host, filter)?;
        }
        Ok(RwLockWriteGuard::downgrade(fabric))
    }

    fn is_whole(
        &self,
        fabric: &Fabric,
        addresses: &[IpNet],
        host: &mut Socket,
        filter: &mut Socket,
    ) -> Result<bool, BridgeError> {
        let Fabric::Ready { index, networks, .. } = fabric else { return Ok(false) };
        Ok(addresses.iter().all(|address| networks.contains(&address.trunc()))
            && host.link_named(&self.name)?.is_some_and(|link| link.index == *index && link.is_up)
            && self.table.exists(filter)?)
    }

    /// Makes what is missing of the bridge, and the table anew with everything that is reserved.
    fn make_fabric(&self, host: &mut Socket, filter: &mut Socket) -> Result<Fabric, BridgeError> {
        let (networks, forwards, veths) = {
            let pods = self.pods();
            let veths: Vec<String> = pods.leases.values().map(|lease| lease.veth.clone()).collect();
            let mut forwards = pods.ports.all();
            forwards.retain(|forward| !pods.leaving.contains(&forward.owner));
            (pods.addresses.networks(), forwards, veths)
        };
        let ipv6 = sysctl::has_ipv6();
        sysctl::enable_forwarding(ipv6)?;
        let bridge = match self.find(host)? {
            Some(bridge) => bridge,
            None => {
                let bridge = self.create(host, &networks, ipv6)?;
                // Pods of a bridge that someone deleted come back with it.
                for veth in veths {
                    absent_is_fine(host.transact(&[route::connect_to_bridge(&veth, bridge.index)]))?;
                }
                bridge
            }
        };
        let mut requests: Vec<_> =
            networks.iter().map(|net| route::add_address(bridge.index, gateway_of(*net), false)).collect();
        requests.push(route::raise_link(bridge.index));
        host.transact(&requests)?;
        self.table.replace(filter, &networks, &forwards)?;
        tracing::info!(bridge = self.name, mtu = bridge.mtu, ?networks, "built-in network is up");
        Ok(Fabric::Ready { index: bridge.index, mtu: bridge.mtu, networks })
    }

    fn find(&self, host: &mut Socket) -> Result<Option<Link>, BridgeError> {
        match host.link_named(&self.name)? {
            Some(link) if !link.is_bridge || !link.is_ours() => {
                Err(BridgeError::NameTaken(self.name.clone()))
            }
            other => Ok(other),
        }
    }

    fn create(&self, host: &mut Socket, networks: &[IpNet], ipv6: bool) -> Result<Link, BridgeError> {
        let mtu = match self.mtu {
            Some(mtu) => mtu,
            None => host.default_route_mtu()?.unwrap_or(DEFAULT_MTU),
        };
        let gateway = networks.first().map_or(IpAddr::from([0, 0, 0, 1]), |net| gateway_of(*net).addr());
        host.transact(&route::create_bridge(&self.name, mac_of(gateway), mtu))?;
        // 127.0.0.1 as the source of a packet to a pod; the table's guard chain keeps pods from using it backwards.
        sysctl::ensure(&format!("ipv4/conf/{}/route_localnet", self.name), "1")?;
        if ipv6 {
            for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")] {
                sysctl::ensure(&format!("ipv6/conf/{}/{name}", self.name), value)?;
            }
        }
        self.find(host)?.ok_or_else(|| BridgeError::NameTaken(self.name.clone()))
    }

    /// Removes what belongs to no lease: ports of the bridge and host ports, or everything when there is no lease.
    pub(crate) fn sweep(&self) -> Result<(), BridgeError> {
        if self.remove_if_unused()? {
            return Ok(());
        }
        let mut host = Socket::route()?;
        let mut filter = Socket::netfilter()?;
        let mut fabric = self.fabric.write().unwrap_or_else(PoisonError::into_inner);
        // Without a bridge there is nothing to sweep; it is not made for pods that may all be dead.
        let Some(bridge) = self.find_ours(&mut host)? else { return Ok(()) };
        for port in host.ports_of(bridge.index)? {
            if port.is_ours() && !self.pods().leases.values().any(|lease| lease.veth == port.name) {
                tracing::warn!(link = port.name, "removing a link that belongs to no pod");
                absent_is_fine(host.transact(&[route::delete_link(&port.name)]))?;
            }
        }
        *fabric = self.make_fabric(&mut host, &mut filter)?;
        Ok(())
    }

    /// The bridge, unless its name belongs to somebody else: then it is theirs, and nothing of ours to remove.
    fn find_ours(&self, host: &mut Socket) -> Result<Option<Link>, BridgeError> {
        match self.find(host) {
            Err(BridgeError::NameTaken(_)) => Ok(None),
            found => found,
        }
    }

    /// Removes bridge and table when no pod has a lease; says whether none had.
    pub(crate) fn remove_if_unused(&self) -> Result<bool, BridgeError> {
        let mut fabric = self.fabric.write().unwrap_or_else(PoisonError::into_inner);
        if !self.pods().leases.is_empty() {
            return Ok(false);
        }
        *fabric = Fabric::Unknown;
        let mut host = Socket::route()?;
        if let Some(bridge) = self.find_ours(&mut host)? {
            for port in host.ports_of(bridge.index)?.iter().filter(|port| port.is_ours()) {
                absent_is_fine(host.transact(&[route::delete_link(&port.name)]))?;
            }
            absent_is_fine(host.transact(&[route::delete_link(&self.name)]))?;
        }
        // A kernel without nf_tables has no table of ours either.
        if let Ok(mut filter) = Socket::netfilter()
            && nft::probe(&mut filter).is_ok()
        {
            self.table.delete(&mut filter)?;
        }
        Ok(true)
    }
}

/// Whether the kernel can do what the built-in network needs.
pub(crate) fn probe(subnets: &Subnets) -> Result<(), NetlinkError> {
    let mut filter = Socket::netfilter()?;
    nft::probe(&mut filter)?;
    nft::rehearse(&mut filter, &subnets.each().collect::<Vec<_>>())
}

/// A kernel without this (ctnetlink is an option) only makes a UDP sender wait for its old entry to time out.
fn forget_connections(filter: &mut Socket, forwards: &[Forward]) {
    if let Err(err) = conntrack::forget(filter, forwards)
        && !err.is_absent()
    {
        tracing::warn!(
            error = &err as &dyn std::error::Error,
            "stale UDP connections stay until they time out"
        );
    }
}
