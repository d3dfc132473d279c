//! The built-in network: addresses, reachability, masquerade, host ports.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, Options,
    cri::{Container, Pod, sleeper},
    host::{self, ip},
    on_node, on_node_with,
};
use k8s_cri::v1::{PortMapping, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket as TokioUdpSocket},
    task::JoinSet,
    time::timeout,
};

const PORT: u16 = 8080;

fn network_of(container: &Container<'_>) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}/ns/net", container.pid()?)))
}

/// Listens in a namespace and answers each connection with the address it came from. Ends when dropped.
fn answer_in(namespace: &Path, port: u16) -> Result<JoinSet<()>> {
    let listener = host::in_network(namespace, || Ok(TcpListener::bind(("::", port))?))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut connection, peer)) = listener.accept().await {
            // A client that has gone needs no answer.
            let _ = connection.write_all(format!("{}\n", peer.ip().to_canonical()).as_bytes()).await;
        }
    });
    Ok(tasks)
}

/// Asks from the host; the address that the other side saw.
async fn ask(address: SocketAddr) -> Result<IpAddr> {
    let asked = async {
        let mut text = String::new();
        TcpStream::connect(address).await?.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text =
        timeout(Duration::from_secs(5), asked).await.with_context(|| format!("asking {address}"))??;
    Ok(text.trim().parse()?)
}

/// Asks from inside a container; the address that the other side saw.
async fn ask_from(container: &Container<'_>, address: &str, port: u16) -> Result<IpAddr> {
    let text = container.sh(&format!("nc -w 5 {address} {port} < /dev/null")).await?;
    text.trim().parse().with_context(|| format!("{address} answered {text:?}"))
}

/// The primary address and the IPv6 one.
async fn addresses(pod: &Pod<'_>) -> Result<[IpAddr; 2]> {
    let found = pod.ips().await?.iter().map(|ip| ip.parse()).collect::<Result<Vec<IpAddr>, _>>()?;
    found.try_into().map_err(|found| anyhow::anyhow!("not two addresses: {found:?}"))
}

#[test]
fn a_pod_has_an_ipv4_and_an_ipv6_address_of_the_nodes_subnets() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let [v4, v6] = addresses(&pod).await?;
        let [begin4, begin6] = node.address_beginnings();
        ensure!(v4.to_string().starts_with(&begin4), "{v4} does not begin with {begin4}");
        ensure!(v6.to_string().starts_with(&begin6), "{v6} does not begin with {begin6}");
        let container = pod.run(sleeper("main")).await?;
        let seen = container.sh("ip -o addr show eth0; ip -o link show lo").await?;
        ensure!(seen.contains(&format!("{v4}/24")) && seen.contains(&format!("{v6}/64")), "{seen}");
        ensure!(seen.contains("lo: <LOOPBACK,UP"), "{seen}");
        // No waiting for duplicate address detection: usable at once.
        ensure!(!seen.contains("tentative"), "{seen}");
        Ok(())
    });
}

#[test]
fn pods_and_the_host_reach_each_other_without_translation() {
    on_node(async |node| {
        let (server, client) =
            (node.run_pod(node.pod("server")).await?, node.run_pod(node.pod("client")).await?);
        let main = server.run(sleeper("main")).await?;
        let _answering = answer_in(&network_of(&main)?, PORT)?;
        let from = client.run(sleeper("main")).await?;
        for (to, expected) in addresses(&server).await?.into_iter().zip(addresses(&client).await?) {
            ensure!(ask_from(&from, &to.to_string(), PORT).await? == expected, "the source was changed");
            ask((to, PORT).into()).await?;
        }
        // Containers of one pod meet on loopback.
        let beside = server.run(sleeper("beside")).await?;
        ensure!(ask_from(&beside, "127.0.0.1", PORT).await?.is_loopback());
        Ok(())
    });
}

/// Another machine, as far as the node's pods can tell: it knows the host's end of the link and no pod.
struct Outside {
    name: String,
}

impl Outside {
    fn new(node: &Node) -> Result<Outside> {
        let outside = Outside { name: format!("{}-out", node.tag()) };
        let addresses = node.outside();
        let (name, near, far) = (outside.name.as_str(), format!("{}-n", node.tag()), "far");
        for line in [
            format!("netns add {name}"),
            format!("link add {near} type veth peer name {far} netns {name}"),
            format!("address add {}/30 dev {near}", addresses.ipv4[0]),
            format!("address add {}/126 dev {near} nodad", addresses.ipv6[0]),
            format!("link set {near} up"),
            format!("-n {name} address add {}/30 dev {far}", addresses.ipv4[1]),
            format!("-n {name} address add {}/126 dev {far} nodad", addresses.ipv6[1]),
            format!("-n {name} link set {far} up"),
        ] {
            ip(&line)?;
        }
        Ok(outside)
    }

    fn network(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The link goes with the namespace, once no socket of ours is in it.
        let near = self.name.replace("-out", "-n");
        for line in [format!("link delete {near}"), format!("netns delete {}", self.name)] {
            let _ = ip(&line);
        }
    }
}

#[test]
fn what_leaves_the_node_carries_the_nodes_address() {
    on_node(async |node| {
        let outside = Outside::new(node)?;
        let _answering = answer_in(&outside.network(), PORT)?;
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let addresses = node.outside();
        for [near, far] in [addresses.ipv4, addresses.ipv6] {
            let seen = ask_from(&container, &far, PORT).await?;
            ensure!(seen == near.parse::<IpAddr>()?, "{far} saw {seen}");
        }
        Ok(())
    });
}

fn port(protocol: Protocol, container_port: u16, host_port: i32) -> PortMapping {
    PortMapping {
        protocol: protocol.into(),
        container_port: container_port.into(),
        host_port,
        ..PortMapping::default()
    }
}

#[test]
fn a_tcp_host_port_is_reached_from_the_host_from_outside_and_from_pods() {
    on_node(async |node| {
        let outside = Outside::new(node)?;
        let host_port = node.host_ports().start;
        let mut config = node.pod("server");
        config.port_mappings = vec![port(Protocol::Tcp, PORT, host_port)];
        let server = node.run_pod(config).await?;
        let main = server.run(sleeper("main")).await?;
        let _answering = answer_in(&network_of(&main)?, PORT)?;
        let host_port = u16::try_from(host_port)?;
        ask(([127, 0, 0, 1], host_port).into()).await?;
        let near = node.outside();
        for address in [&near.ipv4[0], &near.ipv6[0]] {
            let address: IpAddr = address.parse()?;
            ask((address, host_port).into()).await?;
            let mut from_outside = host::in_network(&outside.network(), || {
                Ok(std::net::TcpStream::connect_timeout(
                    &(address, host_port).into(),
                    Duration::from_secs(5),
                )?)
            })?;
            let mut text = String::new();
            std::io::Read::read_to_string(&mut from_outside, &mut text)?;
            let far = if address.is_ipv4() { &near.ipv4[1] } else { &near.ipv6[1] };
            ensure!(text.trim() == far, "the server saw {text:?} instead of the client {far}");
        }
        // Also from a pod, and from the very pod that serves.
        let client = node.run_pod(node.pod("client")).await?.run(sleeper("main")).await?;
        ask_from(&client, &near.ipv4[0], host_port).await?;
        ask_from(&main, &near.ipv4[0], host_port).await?;
        server.stop().await?;
        ensure!(ask(([127, 0, 0, 1], host_port).into()).await.is_err(), "the port outlived the pod");
        Ok(())
    });
}

#[test]
fn a_udp_host_port_reaches_the_pod() {
    on_node(async |node| {
        let host_port = node.host_ports().start;
        let mut config = node.pod("server");
        config.port_mappings = vec![port(Protocol::Udp, PORT, host_port)];
        let pod = node.run_pod(config).await?;
        let main = pod.run(sleeper("main")).await?;
        let server = host::in_network(&network_of(&main)?, || Ok(UdpSocket::bind(("::", PORT))?))?;
        server.set_nonblocking(true)?;
        let server = TokioUdpSocket::from_std(server)?;
        let client = TokioUdpSocket::bind("127.0.0.1:0").await?;
        client.connect(("127.0.0.1", u16::try_from(host_port)?)).await?;
        client.send(b"ping").await?;
        let mut buffer = [0; 16];
        let (length, peer) = timeout(Duration::from_secs(5), server.recv_from(&mut buffer)).await??;
        ensure!(&buffer[..length] == b"ping");
        server.send_to(b"pong", peer).await?;
        let length = timeout(Duration::from_secs(5), client.recv(&mut buffer)).await??;
        ensure!(&buffer[..length] == b"pong");
        Ok(())
    });
}

#[test]
fn an_sctp_host_port_is_in_the_rules() {
    // Kernels without SCTP can't send any, but translate it all the same.
    on_node(async |node| {
        let host_port = node.host_ports().start;
        let mut config = node.pod("server");
        config.port_mappings = vec![port(Protocol::Sctp, PORT, host_port)];
        let pod = node.run_pod(config).await?;
        let rules = || -> Result<String> {
            Ok(String::from_utf8(Command::new("nft").args(["list", "ruleset"]).output()?.stdout)?)
        };
        let wanted = format!("sctp . {host_port}");
        ensure!(rules()?.contains(&wanted), "{wanted} is not in {}", rules()?);
        pod.stop().await?;
        ensure!(!rules()?.contains(&wanted), "the rule outlived the pod");
        Ok(())
    });
}

#[test]
fn a_host_port_belongs_to_one_pod_at_a_time() {
    on_node(async |node| {
        let host_port = node.host_ports().start;
        let with_port = |name: &str| {
            let mut config = node.pod(name);
            config.port_mappings = vec![port(Protocol::Tcp, PORT, host_port)];
            config
        };
        let first = node.run_pod(with_port("first")).await?;
        let Err(error) = node.run_pod(with_port("second")).await else { bail!("it got the port too") };
        ensure!(format!("{error:#}").contains(&host_port.to_string()), "{error:#}");
        first.stop().await?;
        node.run_pod(with_port("second")).await?;
        Ok(())
    });
}

#[test]
fn a_port_without_a_host_port_maps_nothing() {
    on_node(async |node| {
        let mut config = node.pod("web");
        config.port_mappings = vec![port(Protocol::Tcp, PORT, 0)];
        node.run_pod(config).await?;
        Ok(())
    });
}

#[test]
fn a_stopped_pods_interface_is_gone_and_its_address_is_free() {
    // Room for five pods: 8 addresses less network, broadcast and the bridge's own.
    on_node_with(Options { ipv4_prefix: 29, ..Options::default() }, async |node| {
        for number in 0..12 {
            let pod = node.run_pod(node.pod(&format!("pod-{number}"))).await?;
            pod.stop().await?;
            let ports = std::fs::read_dir(format!("/sys/class/net/{}/brif", node.bridge()))?.count();
            ensure!(ports == 0, "{ports} interfaces are left");
        }
        for number in 0..5 {
            node.run_pod(node.pod(&format!("last-{number}"))).await?;
        }
        let Err(error) = node.run_pod(node.pod("too-many")).await else { bail!("it has an address") };
        ensure!(format!("{error:#}").contains("/29"), "{error:#}");
        Ok(())
    });
}
