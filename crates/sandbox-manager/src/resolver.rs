//! The node's resolver configuration, for pods that bring none of their own.

use std::{fs, io, net::IpAddr};

const NODES: &str = "/etc/resolv.conf";

/// Where systemd-resolved says which servers it asks itself (systemd-resolved.service(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// The text of resolv.conf(5) for a pod, as the node has it now; empty when the node has none.
///
/// A server on the node's loopback, as systemd-resolved is, cannot be reached from a pod's own network: such a pod gets
/// the servers behind it, where they are known.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn node_resolver(host_network: bool) -> io::Result<String> {
    let node = read(NODES)?;
    if host_network || !only_loopback(&node) {
        return Ok(node);
    }
    let behind = read(BEHIND_STUB)?;
    match only_loopback(&behind) {
        false => Ok(behind),
        true => {
            if servers(&node).next().is_some() {
                tracing::warn!(
                    "{NODES} names nothing but the node's loopback: pods will not reach their name server"
                );
            }
            Ok(node)
        }
    }
}

/// A file of the node's; one that is not there is empty.
pub(crate) fn read(path: &str) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())
    })
}

/// Also without any server: then the resolver asks its own machine.
fn only_loopback(text: &str) -> bool {
    servers(text).all(|server| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_on_the_nodes_loopback_is_known() {
        assert!(only_loopback(
            "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch a.b\n"
        ));
        assert!(only_loopback("nameserver ::1\n nameserver\t127.0.0.1\n"));
        assert!(only_loopback("search a.b\n"));
        assert!(!only_loopback("nameserver 127.0.0.53\nnameserver 10.0.0.2\n"));
        assert!(!only_loopback("nameserver fe80::1%eth0\n"));
    }
}
