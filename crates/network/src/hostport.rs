//! Which pod has which port of the host.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::nft::Family;

/// A transport protocol of Kubernetes' `containerPort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in an IP header (IANA).
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The word that CNI's `portMappings` wants.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One entry of CRI's `PodSandboxConfig.port_mappings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The port of the host; 0 means none, and the entry is ignored.
    pub host_port: u16,
    /// The address of the host; `None`, `0.0.0.0` and `::` all mean any, of both families.
    pub host_ip: Option<IpAddr>,
}

/// A host port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// Another pod has it.
    #[error("host port {} is taken by pod sandbox {holder}", describe(.wanted))]
    Taken {
        /// What was asked for.
        wanted: PortMapping,
        /// The sandbox that holds it.
        holder: String,
    },
    /// The same port twice in one pod, leading to different places.
    #[error("host port {} is asked for twice", describe(.0))]
    Twice(PortMapping),
    /// `::1`: the kernel drops what would have to be translated.
    #[error("host port {}: ::1 cannot be forwarded to a pod, use 127.0.0.1", describe(.0))]
    LoopbackV6(PortMapping),
    /// The address's family has no subnet.
    #[error("host port {}: the pod has no address of that family", describe(.0))]
    NoPodAddress(PortMapping),
    /// Container port 0.
    #[error("host port {} leads to container port 0", describe(.0))]
    NoContainerPort(PortMapping),
}

fn describe(mapping: &PortMapping) -> String {
    let word = mapping.protocol.word();
    match mapping.host_ip {
        Some(address) => format!("{}/{word} at {address}", mapping.host_port),
        None => format!("{}/{word}", mapping.host_port),
    }
}

/// One translation: traffic to a host port goes to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) owner: String,
    pub(crate) protocol: Protocol,
    /// `None`: any address of the host.
    pub(crate) host_address: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) pod_address: IpAddr,
    pub(crate) pod_port: u16,
}

/// Of a pod with these addresses, what its mappings come to. Entries without a host port are left out.
pub(crate) fn forwards(
    owner: &str,
    mappings: &[PortMapping],
    pod: &[IpAddr],
) -> Result<Vec<Forward>, HostPortError> {
    let mut forwards: Vec<Forward> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let host_address = mapping.host_ip.filter(|address| !address.is_unspecified());
        if host_address == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            return Err(HostPortError::LoopbackV6(mapping.clone()));
        }
        if mapping.container_port == 0 {
            return Err(HostPortError::NoContainerPort(mapping.clone()));
        }
        let family = host_address.map(Family::of);
        let before = forwards.len();
        for pod_address in pod.iter().copied().filter(|ip| family.is_none_or(|f| f == Family::of(*ip))) {
            let forward = Forward {
                owner: owner.to_owned(),
                protocol: mapping.protocol,
                host_address,
                host_port: mapping.host_port,
                pod_address,
                pod_port: mapping.container_port,
            };
            match forwards.iter().find(|other| overlap(other, &forward)) {
                None => forwards.push(forward),
                Some(same)
                    if same.pod_port == forward.pod_port && same.host_address == forward.host_address => {}
                Some(_) => return Err(HostPortError::Twice(mapping.clone())),
            }
        }
        if before == forwards.len() && !pod.iter().any(|ip| family.is_none_or(|f| f == Family::of(*ip))) {
            return Err(HostPortError::NoPodAddress(mapping.clone()));
        }
    }
    Ok(forwards)
}

/// Whether one packet could be meant for both.
fn overlap(one: &Forward, other: &Forward) -> bool {
    Family::of(one.pod_address) == Family::of(other.pod_address)
        && (one.protocol, one.host_port) == (other.protocol, other.host_port)
        && (one.host_address.is_none()
            || other.host_address.is_none()
            || one.host_address == other.host_address)
}

/// The host ports in use, by protocol and port: a handful at most share one, at different addresses.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    taken: BTreeMap<(Protocol, u16), Vec<Forward>>,
}

impl HostPorts {
    /// Takes all of them or none.
    pub(crate) fn reserve(&mut self, wanted: &[Forward]) -> Result<(), HostPortError> {
        for forward in wanted {
            let sharing = self.taken.get(&(forward.protocol, forward.host_port)).into_iter().flatten();
            if let Some(holder) = sharing.into_iter().find(|other| overlap(other, forward)) {
                let wanted = PortMapping {
                    protocol: forward.protocol,
                    container_port: forward.pod_port,
                    host_port: forward.host_port,
                    host_ip: forward.host_address,
                };
                return Err(HostPortError::Taken { wanted, holder: holder.owner.clone() });
            }
        }
        for forward in wanted {
            self.taken.entry((forward.protocol, forward.host_port)).or_default().push(forward.clone());
        }
        Ok(())
    }

    /// Gives back all ports of a sandbox.
    pub(crate) fn release(&mut self, owner: &str) {
        self.taken.retain(|_, sharing| {
            sharing.retain(|forward| forward.owner != owner);
            !sharing.is_empty()
        });
    }

    /// The translations of one sandbox.
    pub(crate) fn of(&self, owner: &str) -> Vec<Forward> {
        self.taken.values().flatten().filter(|forward| forward.owner == owner).cloned().collect()
    }

    /// All translations.
    pub(crate) fn all(&self) -> Vec<Forward> {
        self.taken.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [IpAddr; 2] = [
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
    ];

    fn mapping(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
        PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip: host_ip.parse().ok() }
    }

    fn reserve(ports: &mut HostPorts, owner: &str, mapping: PortMapping) -> Result<(), HostPortError> {
        ports.reserve(&forwards(owner, &[mapping], &POD)?)
    }

    #[test]
    fn every_spelling_of_any_address_covers_both_families() {
        for any in ["", "0.0.0.0", "::"] {
            let forwards = forwards("a", &[mapping(any, 80, 8080)], &POD).unwrap();
            assert_eq!(forwards.len(), 2, "{any:?}");
            assert!(forwards.iter().all(|forward| forward.host_address.is_none()));
        }
    }

    #[test]
    fn a_conflict_names_the_holder_and_takes_nothing() {
        let mut ports = HostPorts::default();
        reserve(&mut ports, "first", mapping("", 80, 8080)).unwrap();
        let both = [mapping("", 81, 1), mapping("192.0.2.1", 80, 1)];
        let err = ports.reserve(&forwards("second", &both, &POD).unwrap()).unwrap_err();
        assert_eq!(err.to_string(), "host port 80/tcp at 192.0.2.1 is taken by pod sandbox first");
        reserve(&mut ports, "third", mapping("", 81, 1)).expect("81 was not kept by the failed one");
        ports.release("first");
        reserve(&mut ports, "second", mapping("192.0.2.1", 80, 1)).expect("released");
    }

    #[test]
    fn different_addresses_share_a_port() {
        let mut ports = HostPorts::default();
        reserve(&mut ports, "a", mapping("192.0.2.1", 80, 1)).unwrap();
        reserve(&mut ports, "b", mapping("192.0.2.2", 80, 1)).unwrap();
        reserve(&mut ports, "c", mapping("", 80, 1)).unwrap_err();
    }

    #[test]
    fn odd_mappings_are_ignored_merged_or_refused() {
        let count = |mappings: &[PortMapping]| forwards("a", mappings, &POD).map(|forwards| forwards.len());
        assert_eq!(count(&[mapping("", 0, 8080)]).unwrap(), 0, "no host port asked for");
        assert_eq!(count(&[mapping("", 80, 1), mapping("0.0.0.0", 80, 1)]).unwrap(), 2, "the same twice");
        assert!(matches!(count(&[mapping("", 80, 1), mapping("", 80, 2)]), Err(HostPortError::Twice(_))));
        assert!(matches!(count(&[mapping("::1", 80, 1)]), Err(HostPortError::LoopbackV6(_))));
        let v6_only = forwards("a", &[mapping("192.0.2.1", 80, 1)], &POD[1..]);
        assert!(matches!(v6_only, Err(HostPortError::NoPodAddress(_))));
    }
}
