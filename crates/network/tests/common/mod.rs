//! A host of one's own: each test runs in a network and a mount namespace that stand for the host, on a thread that ends
//! with them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::BTreeMap,
    fs::File,
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use berth_network::{AttachRequest, Network, NetworkConfig, PodIdentity, PortMapping, Protocol};
use berth_store::{Durability, Store};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a test as if on a host without any interface but its loopback. Everything spawned from it inherits that host.
/// What a test that fails has pinned or made goes with the namespaces.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let (temporary, flags) = (std::env::temp_dir(), MsFlags::empty());
            mount(Some("host"), &temporary, Some("tmpfs"), flags, None::<&str>).unwrap();
            sh("ip link set lo up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        };
        let result = thread::Builder::new().spawn_scoped(scope, run).unwrap().join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A shell command in the calling thread's namespace; its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread inside a namespace.
pub(crate) fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let run = || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(run).join().expect("the work inside panicked")
    })
}

/// A namespace of the test's own, not made by berth.
pub(crate) fn make_netns() -> OwnedFd {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    };
    thread::spawn(make).join().unwrap()
}

/// Another machine on the host's network: the host is 192.0.2.1 and 2001:db8::1, it is .2 and ::2, and it knows no way
/// to the pods.
pub(crate) fn outside() -> OwnedFd {
    let netns = make_netns();
    let host = File::open("/proc/thread-self/ns/net").unwrap();
    let host = OwnedFd::from(host);
    let target = netns.try_clone().unwrap();
    sh("ip link add up0 type veth peer name down0");
    move_link("down0", &target);
    sh("ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up");
    inside(&netns, || {
        sh(
            "ip addr add 192.0.2.2/24 dev down0; ip addr add 2001:db8::2/64 dev down0 nodad; ip link set down0 up",
        );
    });
    drop(host);
    netns
}

fn move_link(name: &str, netns: &OwnedFd) {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
    sh(&format!("ip link set {name} netns {path}"));
}

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: NetworkConfig,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = NetworkConfig {
            state: dir.path().join("state"),
            cni_conf_dir: dir.path().join("etc/cni/net.d"),
            cni_bin_dirs: vec!["/usr/lib/cni".into()],
            bridge: "berth0".to_owned(),
            ipv4_subnet: "10.85.0.0/24".parse().unwrap(),
            ipv6_subnet: Some("fd00:85::/64".parse().unwrap()),
            mtu: None,
        };
        Self { dir, config }
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.dir.path().join("pods.redb"), Durability::Background).unwrap()
    }

    pub(crate) async fn network(&self) -> Network {
        Network::start(self.config.clone(), self.store()).await.unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: OwnedFd,
    pub(crate) ips: Vec<IpAddr>,
}

impl Pod {
    pub(crate) fn v4(&self) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv4()).unwrap()
    }

    pub(crate) fn v6(&self) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv6()).unwrap()
    }
}

pub(crate) fn request(id: &str, netns: OwnedFd, port_mappings: Vec<PortMapping>) -> AttachRequest {
    AttachRequest {
        sandbox_id: id.to_owned(),
        pod: PodIdentity {
            name: format!("{id}-name"),
            namespace: "default".into(),
            uid: format!("{id}-uid"),
        },
        netns,
        port_mappings,
        annotations: BTreeMap::new(),
        cgroup_parent: None,
    }
}

pub(crate) async fn try_pod(
    network: &Network,
    id: &str,
    ports: Vec<PortMapping>,
) -> Result<Pod, berth_network::AttachError> {
    let netns = network.create_netns().await.unwrap().into_fd();
    let attached = network.attach(request(id, netns.try_clone().unwrap(), ports)).await?;
    Ok(Pod { id: id.to_owned(), netns, ips: attached.ips })
}

pub(crate) async fn pod(network: &Network, id: &str, ports: Vec<PortMapping>) -> Pod {
    try_pod(network, id, ports).await.unwrap_or_else(|err| panic!("{}", chain(&err)))
}

pub(crate) fn port(protocol: Protocol, host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: host_ip.parse().ok() }
}

pub(crate) fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}

/// Serves connections in a namespace for as long as it lives: each gets the peer's address as the server sees it.
pub(crate) struct Server {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    wake: Vec<Box<dyn Fn() + Send>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    /// TCP and UDP, both families, on one port.
    pub(crate) fn start(netns: &OwnedFd, number: u16) -> Self {
        use std::sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = inside(netns, || {
            let any = SocketAddr::new("::".parse().unwrap(), number);
            (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
        });
        let here = SocketAddr::new("::1".parse().unwrap(), number);
        let mut threads = Vec::new();
        let flag = Arc::clone(&stop);
        threads.push(thread::spawn(move || {
            while let Ok((mut connection, peer)) = tcp.accept() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                let _ = connection.write_all(text(peer).as_bytes());
            }
        }));
        let flag = Arc::clone(&stop);
        threads.push(thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                let _ = udp.send_to(text(peer).as_bytes(), peer);
            }
        }));
        let ns = netns.try_clone().unwrap();
        let wake: Box<dyn Fn() + Send> = Box::new(move || {
            inside(&ns, || {
                let _ = TcpStream::connect(here);
                let _ = UdpSocket::bind("[::]:0").and_then(|socket| socket.send_to(b"", here));
            });
        });
        Self { stop, wake: vec![wake], threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        self.wake.iter().for_each(|wake| wake());
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn text(peer: SocketAddr) -> String {
    peer.ip().to_canonical().to_string()
}

/// Connects from the calling thread's namespace; the address the server saw, or why not.
pub(crate) fn tcp(to: IpAddr, number: u16) -> Result<String, String> {
    let target = SocketAddr::new(to, number);
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).map_err(|err| err.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).map_err(|err| err.to_string())?;
    Ok(seen)
}

pub(crate) fn udp(to: IpAddr, number: u16) -> Result<String, String> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    udp_with(&UdpSocket::bind(any).unwrap(), to, number)
}

pub(crate) fn udp_with(socket: &UdpSocket, to: IpAddr, number: u16) -> Result<String, String> {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(b"?", SocketAddr::new(to, number)).map_err(|err| err.to_string())?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).map_err(|err| err.to_string())?;
    assert_eq!(from.ip(), to, "the answer comes from where the question went");
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
