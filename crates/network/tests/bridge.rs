//! The built-in network against the real kernel.
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as well as the test")]

mod common;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use berth_network::{AttachError, Mode, Protocol};
use common::*;

/// What the host has that berth could have put there.
fn traces() -> String {
    sh(
        "ip -o link | grep -v ' lo: \\| up0@' || true; nft list tables; ip -o addr | grep -v ' lo \\| up0 ' || true",
    )
}

#[test]
fn pods_reach_each_other_the_host_and_the_outside_in_both_families() {
    on_a_host(|| async {
        let far = outside();
        let host = Host::new();
        let network = host.network().await;
        assert_eq!(network.status().mode, Mode::BuiltIn);
        assert!(network.status().ready, "{:?}", network.status());
        let one = pod(&network, "one", vec![]).await;
        let two = pod(&network, "two", vec![]).await;
        assert_eq!(one.ips, [ip("10.85.0.2"), ip("fd00:85::2")]);
        let _server = Server::start(&two.netns, 80);
        let _far_server = Server::start(&far, 81);
        for (target, from) in [(two.v4(), one.v4()), (two.v6(), one.v6())] {
            assert_eq!(inside(&one.netns, || tcp(target, 80)), Ok(from.to_string()), "pod to pod");
            assert_eq!(inside(&two.netns, || tcp(target, 80)), Ok(target.to_string()), "pod to itself");
        }
        assert_eq!(tcp(two.v4(), 80), Ok("10.85.0.1".to_owned()), "host to pod");
        assert_eq!(tcp(two.v6(), 80), Ok("fd00:85::1".to_owned()), "host to pod");
        assert_eq!(
            inside(&one.netns, || tcp(ip("192.0.2.2"), 81)),
            Ok("192.0.2.1".to_owned()),
            "masqueraded"
        );
        assert_eq!(inside(&one.netns, || tcp(ip("2001:db8::2"), 81)), Ok("2001:db8::1".to_owned()));
        assert_eq!(inside(&one.netns, || udp(ip("192.0.2.2"), 81)), Ok("192.0.2.1".to_owned()));

        let inner = inside(&one.netns, || sh("ip -o link; ip -o addr; ip route; ip -6 route"));
        assert!(
            inner.contains("default via 10.85.0.1") && inner.contains("default via fd00:85::1"),
            "{inner}"
        );
        assert!(inner.contains("::1/128"), "loopback has its IPv6 address: {inner}");
        assert!(!inner.contains("tentative"), "no address waits for duplicate detection: {inner}");

        for id in ["one", "two", "two", "never there"] {
            network.detach(id).await.unwrap();
        }
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}

#[test]
fn host_ports_work_from_everywhere_and_end_with_the_pod() {
    on_a_host(|| async {
        let far = outside();
        let host = Host::new();
        let network = host.network().await;
        let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| port(protocol, "", 8080, 80));
        let web = pod(&network, "web", ports.to_vec()).await;
        let other = pod(&network, "other", vec![port(Protocol::Tcp, "", 0, 80)]).await;
        let _server = Server::start(&web.netns, 80);

        for (target, seen_outside) in [(ip("192.0.2.1"), "192.0.2.2"), (ip("2001:db8::1"), "2001:db8::2")] {
            for ask in [tcp, udp] {
                assert_eq!(
                    inside(&far, || ask(target, 8080)),
                    Ok(seen_outside.to_owned()),
                    "outside keeps its address"
                );
                ask(target, 8080).unwrap_or_else(|err| panic!("from the host at {target}: {err}"));
                inside(&other.netns, || ask(target, 8080))
                    .unwrap_or_else(|err| panic!("pod, {target}: {err}"));
                inside(&web.netns, || ask(target, 8080))
                    .unwrap_or_else(|err| panic!("itself, {target}: {err}"));
            }
        }
        for ask in [tcp, udp] {
            ask(ip("127.0.0.1"), 8080).unwrap_or_else(|err| panic!("at 127.0.0.1: {err}"));
        }
        let begin = Instant::now();
        tcp(ip("::1"), 8080).unwrap_err();
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "::1 is refused at once, so that clients turn to 127.0.0.1"
        );

        network.detach("web").await.unwrap();
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("web") && !rules.contains("8080"), "{rules}");
        tcp(ip("127.0.0.1"), 8080).unwrap_err();
        network.detach("other").await.unwrap();
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}

#[test]
fn pods_cannot_reach_the_hosts_loopback() {
    on_a_host(|| async {
        let host = Host::new();
        let network = host.network().await;
        let bad = pod(&network, "bad", vec![]).await;
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
        let _server = Server::start(&here, 6443);
        tcp(ip("127.0.0.1"), 6443).expect("the host itself does");
        inside(&bad.netns, || {
            // What a pod with NET_ADMIN could do, since the bridge has route_localnet on.
            sh("ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 10.85.0.1; \
                echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet");
            let target = std::net::SocketAddr::new(ip("127.0.0.1"), 6443);
            std::net::TcpStream::connect_timeout(&target, Duration::from_millis(500)).unwrap_err();
        });
        network.detach("bad").await.unwrap();
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_host_port_at_one_address_is_at_no_other() {
    on_a_host(|| async {
        let far = outside();
        sh("ip addr add 192.0.2.11/24 dev up0");
        let host = Host::new();
        let network = host.network().await;
        let one = pod(&network, "one", vec![port(Protocol::Tcp, "192.0.2.1", 8080, 80)]).await;
        let two = pod(&network, "two", vec![port(Protocol::Tcp, "192.0.2.11", 8080, 81)]).await;
        let six = pod(&network, "six", vec![port(Protocol::Tcp, "2001:db8::1", 8080, 82)]).await;
        let local = pod(&network, "local", vec![port(Protocol::Tcp, "127.0.0.1", 9090, 83)]).await;
        let _servers = [(&one, 80), (&two, 81), (&six, 82), (&local, 83)]
            .map(|(pod, port)| Server::start(&pod.netns, port));
        for target in ["192.0.2.1", "192.0.2.11", "2001:db8::1"] {
            inside(&far, || tcp(ip(target), 8080)).unwrap_or_else(|err| panic!("{target}: {err}"));
        }
        tcp(ip("127.0.0.1"), 9090).unwrap();
        tcp(ip("127.0.0.1"), 8080).unwrap_err();
        inside(&far, || tcp(ip("192.0.2.1"), 9090)).unwrap_err();

        let err =
            try_pod(&network, "three", vec![port(Protocol::Tcp, "0.0.0.0", 8080, 80)]).await.unwrap_err();
        assert!(matches!(err, AttachError::BuiltIn { .. }));
        assert!(chain(&err).contains("host port 8080/tcp is taken by pod sandbox"), "{}", chain(&err));
        for id in ["one", "two", "six", "local"] {
            network.detach(id).await.unwrap();
        }
        let three = pod(&network, "three", vec![port(Protocol::Tcp, "0.0.0.0", 8080, 80)]).await;
        network.detach(&three.id).await.unwrap();
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}

#[test]
fn one_port_at_two_addresses_goes_with_its_pod_at_both() {
    on_a_host(|| async {
        let _far = outside();
        sh("ip addr add 192.0.2.11/24 dev up0");
        let host = Host::new();
        let network = host.network().await;
        let at = |port_in_pod| {
            ["192.0.2.1", "192.0.2.11"].map(|address| port(Protocol::Tcp, address, 8080, port_in_pod))
        };
        let one = pod(&network, "one", at(80).to_vec()).await;
        let server = Server::start(&one.netns, 80);
        for address in ["192.0.2.1", "192.0.2.11"] {
            tcp(ip(address), 8080).unwrap_or_else(|err| panic!("{address}: {err}"));
        }
        drop(server);
        network.detach("one").await.unwrap();
        let left = sh("nft list ruleset");
        assert!(!left.contains("8080"), "{left}");
        // What had stayed would be in the way of another target.
        let two = pod(&network, "two", at(81).to_vec()).await;
        network.detach(&two.id).await.unwrap();
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}

#[test]
fn a_udp_sender_that_never_stops_follows_its_port_to_the_next_pod() {
    on_a_host(|| async {
        let far = outside();
        let host = Host::new();
        let network = host.network().await;
        let socket = inside(&far, || std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        let ask = || udp_with(&socket, ip("192.0.2.1"), 5353);
        // A pod is needed for connection tracking to be on before the port is there.
        let _early = pod(&network, "early", vec![]).await;
        ask().unwrap_err();
        for id in ["first", "second"] {
            let dns = pod(&network, id, vec![port(Protocol::Udp, "", 5353, 53)]).await;
            let _server = Server::start(&dns.netns, 53);
            // A busy machine may lose one question. An entry that was not forgotten would take all of them.
            let answer = (0..10).map(|_| ask()).find(Result::is_ok);
            assert_eq!(answer, Some(Ok("192.0.2.2".to_owned())), "{id}");
            network.detach(id).await.unwrap();
        }
        network.detach("early").await.unwrap();
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    on_a_host(|| async {
        let host = Host::new();
        let network = host.network().await;
        let keeper = pod(&network, "keeper", vec![port(Protocol::Tcp, "", 80, 80)]).await;
        let before = traces();
        let netns = network.create_netns().await.unwrap().into_fd();
        inside(&netns, || sh("ip link add eth0 type bridge"));
        let ports = vec![port(Protocol::Udp, "", 81, 81)];
        let err = network.attach(request("late", netns, ports.clone())).await.unwrap_err();
        assert!(chain(&err).contains("File exists"), "{}", chain(&err));
        assert_eq!(traces(), before);
        assert!(!sh("nft list ruleset").contains("late"));
        let again = pod(&network, "late", ports).await;
        let err =
            network.attach(request("late", again.netns.try_clone().unwrap(), vec![])).await.unwrap_err();
        assert!(matches!(err, AttachError::AlreadyAttached(_)));
        for id in ["late", &keeper.id] {
            network.detach(id).await.unwrap();
        }
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_restarted_daemon_keeps_leases_and_sweeps_what_nobody_knows() {
    on_a_host(|| async {
        let host = Host::new();
        let network = host.network().await;
        let kept = pod(&network, "kept", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
        let lost = pod(&network, "lost", vec![port(Protocol::Tcp, "", 8081, 80)]).await;
        let _server = Server::start(&kept.netns, 80);
        network.set_pod_cidr("10.99.0.0/24").await.unwrap();
        drop(network);

        let network = host.network().await;
        tcp(ip("127.0.0.1"), 8080).expect("nothing changes for running pods");
        // A crash between the link and the record; and another's port that is not ours to remove.
        sh(
            "ip link add vethleft type veth peer name vethright; ip link set vethleft master berth0 alias 'berth gone'; \
            ip link add guest type veth peer name friend; ip link set guest master berth0",
        );
        network.sweep(&HashSet::from(["kept".to_owned()])).await.unwrap();
        let after = format!("{}{}", sh("ip -o link"), sh("nft list ruleset"));
        assert!(!after.contains("lost") && !after.contains("8081") && !after.contains("vethleft"), "{after}");
        assert!(after.contains("guest") && after.contains("kept"), "{after}");
        tcp(ip("127.0.0.1"), 8080).expect("the known pod is as before");
        let err = try_pod(&network, "thief", vec![port(Protocol::Tcp, "", 8080, 80)]).await.unwrap_err();
        assert!(chain(&err).ends_with("is taken by pod sandbox kept"), "{}", chain(&err));

        let new = pod(&network, "new", vec![]).await;
        assert_eq!(
            new.ips,
            [ip("10.99.0.3")],
            "the pod CIDR outlives the restart, and the thief's try is not repeated"
        );
        inside(&new.netns, || tcp(kept.v4(), 80)).expect("across the two subnets");
        drop(lost);
        network.sweep(&HashSet::new()).await.unwrap();
        sh("ip link del guest");
        assert_eq!(traces(), "", "with no pod left the sweep takes the bridge and the table too");
    });
}

#[test]
fn what_others_delete_comes_back_with_the_next_attach() {
    on_a_host(|| async {
        let host = Host::new();
        let network = host.network().await;
        let web = pod(&network, "web", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
        let _server = Server::start(&web.netns, 80);
        sh("nft flush ruleset");
        pod(&network, "second", vec![]).await;
        tcp(ip("127.0.0.1"), 8080).unwrap();
        sh("ip link del berth0");
        pod(&network, "third", vec![]).await;
        tcp(ip("127.0.0.1"), 8080).unwrap();
        sh("ip link del berth0; nft flush ruleset");
        for id in ["web", "second", "third"] {
            network.detach(id).await.unwrap();
        }
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}

#[test]
fn an_interface_of_that_name_that_is_not_berths_is_left_alone() {
    on_a_host(|| async {
        sh("ip link add berth0 type bridge");
        let host = Host::new();
        let network = host.network().await;
        let err = try_pod(&network, "one", vec![]).await.unwrap_err();
        assert!(
            chain(&err).contains("interface berth0 exists and is not a bridge made by berth"),
            "{}",
            chain(&err)
        );
        network.sweep(&HashSet::new()).await.unwrap();
        network.shutdown().await.unwrap();
        assert!(sh("ip -o link").contains("berth0"));
    });
}

#[test]
fn many_pods_at_once_get_different_addresses() {
    on_a_host(|| async {
        let host = Host::new();
        let network = host.network().await;
        let pods = (0..20).map(|n| {
            let network = network.clone();
            tokio::spawn(async move {
                pod(&network, &format!("pod{n}"), vec![port(Protocol::Tcp, "", 9000 + n, 80)]).await
            })
        });
        let mut ips = HashSet::new();
        let mut alive = Vec::new();
        for task in pods.collect::<Vec<_>>() {
            let pod = task.await.unwrap();
            assert!(pod.ips.iter().all(|ip| ips.insert(*ip)), "{pod:?}");
            alive.push(pod);
        }
        let (first, last) = (&alive[0], &alive[19]);
        let _server = Server::start(&last.netns, 80);
        inside(&first.netns, || tcp(last.v4(), 80)).unwrap();
        let detaching: Vec<_> = alive
            .iter()
            .map(|pod| {
                let (network, id) = (network.clone(), pod.id.clone());
                tokio::spawn(async move { network.detach(&id).await })
            })
            .collect();
        for task in detaching {
            task.await.unwrap().unwrap();
        }
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}

#[test]
fn a_detach_after_the_namespace_is_gone_frees_everything() {
    on_a_host(|| async {
        let host = Host::new();
        let network = host.network().await;
        let gone = pod(&network, "gone", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
        drop(gone.netns);
        network.detach("gone").await.unwrap();
        network.shutdown().await.unwrap();
        assert_eq!(traces(), "");
    });
}
