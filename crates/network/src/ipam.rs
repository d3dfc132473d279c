//! Addresses of the built-in bridge's pods.
//!
//! A pod has one place in the subnets, the same offset in both families: place 5 is 10.85.0.5 and fd00:85::5. Place 0
//! is the network itself, 1 the gateway, the last IPv4 one the broadcast address. Places are given out in rotation, so
//! that an address comes back only after all others have been used: peers, connection tracking and ARP caches have
//! long forgotten the earlier pod by then.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::netlink::route::Mac;

/// Larger subnets are used up to this many places; a node runs a few hundred pods.
const MOST_PLACES: u128 = 1 << 20;

/// The subnets of new pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnets {
    pub(crate) v4: Option<Ipv4Net>,
    pub(crate) v6: Option<Ipv6Net>,
}

/// A subnet, or a text that should be one, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SubnetError {
    /// Not "address/length".
    #[error("{0:?} is not a CIDR")]
    NotACidr(String),
    /// None at all.
    #[error("no subnet is given")]
    None,
    /// Two of one family.
    #[error("{0} and {1} are of the same family; a pod has one address of each")]
    SameFamily(IpNet, IpNet),
    /// No room for a gateway and a pod.
    #[error("{0} is too small: it needs room for a network, a gateway and pods")]
    TooSmall(IpNet),
    /// Loopback, multicast or unspecified.
    #[error("{0} is not a unicast network")]
    NotUnicast(IpNet),
}

impl Subnets {
    /// Takes what the configuration says.
    pub(crate) fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Result<Self, SubnetError> {
        let subnets = Self { v4: v4.map(|net| net.trunc()), v6: v6.map(|net| net.trunc()) };
        for net in subnets.each() {
            let address = net.addr();
            if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
                return Err(SubnetError::NotUnicast(net));
            }
        }
        match subnets.smallest() {
            None => Err(SubnetError::None),
            Some((net, places)) if places < 3 => Err(SubnetError::TooSmall(net)),
            Some(_) => Ok(subnets),
        }
    }

    /// Reads kubelet's pod CIDR: one network, or one of each family with a comma between.
    pub(crate) fn parse(text: &str) -> Result<Self, SubnetError> {
        let (mut v4, mut v6) = (None, None);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.parse().map_err(|_| SubnetError::NotACidr(part.to_owned()))? {
                IpNet::V4(net) => match v4.replace(net) {
                    None => {}
                    Some(earlier) => return Err(SubnetError::SameFamily(earlier.into(), net.into())),
                },
                IpNet::V6(net) => match v6.replace(net) {
                    None => {}
                    Some(earlier) => return Err(SubnetError::SameFamily(earlier.into(), net.into())),
                },
            }
        }
        Self::new(v4, v6)
    }

    /// The networks, IPv4 first.
    pub(crate) fn each(&self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::from).into_iter().chain(self.v6.map(IpNet::from))
    }

    /// The network with the fewest places, and how many it has, its gateway and network address included.
    fn smallest(&self) -> Option<(IpNet, u128)> {
        let places = |net: IpNet| match net {
            // The last one is the broadcast address.
            IpNet::V4(net) => (1u128 << (32 - net.prefix_len())) - 1,
            IpNet::V6(net) => 1u128.checked_shl(u32::from(128 - net.prefix_len())).unwrap_or(u128::MAX),
        };
        self.each().map(|net| (net, places(net))).min_by_key(|(_, places)| *places)
    }

    fn at(&self, place: u32) -> Vec<IpNet> {
        self.each().map(|net| address_at(net, place)).collect()
    }
}

fn address_at(net: IpNet, place: u32) -> IpNet {
    let address = match net.network() {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().wrapping_add(place))),
        IpAddr::V6(network) => {
            IpAddr::V6(Ipv6Addr::from_bits(network.to_bits().wrapping_add(u128::from(place))))
        }
    };
    IpNet::new(address, net.prefix_len()).expect("the length comes from a network of the same family")
}

/// The bridge's own address in the network of `address`: the first one.
pub(crate) fn gateway_of(address: IpNet) -> IpNet {
    address_at(address.trunc(), 1)
}

/// A MAC address that follows from the pod's address, so that a later pod at the same address has the same one and no
/// neighbour cache can be wrong about it. Locally administered.
pub(crate) fn mac_of(address: IpAddr) -> Mac {
    let (second, [a, b, c, d]) = match address {
        IpAddr::V4(address) => (0x58, address.octets()),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            (0x59, [a, b, c, d])
        }
    };
    [0x0a, second, a, b, c, d]
}

/// Every address of the subnets is taken.
#[derive(Debug, thiserror::Error)]
#[error("no free address in {}: {taken} pods hold one", join(.subnets))]
pub struct Exhausted {
    subnets: Vec<IpNet>,
    taken: usize,
}

fn join(subnets: &[IpNet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// Who has which address.
#[derive(Debug)]
pub(crate) struct Addresses {
    subnets: Subnets,
    taken: HashMap<IpAddr, String>,
    /// All that new pods' or living pods' addresses are from.
    networks: BTreeSet<IpNet>,
    last: u32,
}

impl Addresses {
    pub(crate) fn new(subnets: Subnets) -> Self {
        Self { subnets, taken: HashMap::new(), networks: subnets.each().collect(), last: 1 }
    }

    pub(crate) fn subnets(&self) -> Subnets {
        self.subnets
    }

    /// The networks of new and of living pods.
    pub(crate) fn networks(&self) -> Vec<IpNet> {
        self.networks.iter().copied().collect()
    }

    /// New pods get their addresses here; the others keep theirs.
    pub(crate) fn set_subnets(&mut self, subnets: Subnets) {
        self.networks.extend(subnets.each());
        self.subnets = subnets;
        self.last = 1;
    }

    /// Takes addresses that were given out by an earlier daemon; the rotation goes on behind the highest.
    pub(crate) fn adopt(&mut self, owner: &str, addresses: &[IpNet]) {
        for address in addresses {
            self.taken.insert(address.addr(), owner.to_owned());
            self.networks.insert(address.trunc());
            if let (IpAddr::V4(taken), Some(net)) = (address.addr(), self.subnets.v4)
                && net.contains(&taken)
            {
                self.last = self.last.max(taken.to_bits() - net.network().to_bits());
            }
        }
    }

    /// One address of each family, with its network's length; IPv4 first.
    pub(crate) fn take(&mut self, owner: &str) -> Result<Vec<IpNet>, Exhausted> {
        let exhausted = || Exhausted { subnets: self.subnets.each().collect(), taken: self.owners() };
        let (_, places) = self.subnets.smallest().ok_or_else(exhausted)?;
        let places = u32::try_from(places.min(MOST_PLACES)).map_err(|_| exhausted())?;
        // The gateway of an earlier subnet that pods still use may lie in today's.
        let free = |address: &IpNet| {
            !self.taken.contains_key(&address.addr())
                && !self.networks.iter().any(|net| gateway_of(*net).addr() == address.addr())
        };
        let found = (1..=places)
            .map(|step| (self.last + step) % places)
            .filter(|place| *place > 1)
            .find(|place| self.subnets.at(*place).iter().all(free))
            .ok_or_else(exhausted)?;
        let addresses = self.subnets.at(found);
        self.last = found;
        for address in &addresses {
            self.taken.insert(address.addr(), owner.to_owned());
        }
        Ok(addresses)
    }

    /// Gives back what a sandbox has.
    pub(crate) fn release(&mut self, owner: &str) {
        self.taken.retain(|_, holder| holder != owner);
    }

    fn owners(&self) -> usize {
        self.taken.values().collect::<HashSet<_>>().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Addresses {
        Addresses::new(Subnets::parse(text).unwrap())
    }

    fn text(addresses: &[IpNet]) -> String {
        join(addresses)
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_given_out_and_the_end_is_an_error() {
        let mut pool = addresses("10.0.0.0/29,fd00::/64");
        let all: Vec<String> = (0..5).map(|n| text(&pool.take(&n.to_string()).unwrap())).collect();
        let expected = |n| format!("10.0.0.{n}/29 and fd00::{n}/64");
        assert_eq!(all, [2, 3, 4, 5, 6].map(expected));
        let err = pool.take("one more").unwrap_err();
        assert_eq!(err.to_string(), "no free address in 10.0.0.0/29 and fd00::/64: 5 pods hold one");
    }

    #[test]
    fn a_released_address_comes_back_last() {
        let mut pool = addresses("10.0.0.0/29");
        pool.take("a").unwrap();
        pool.release("a");
        let next: Vec<String> = (0..4).map(|n| text(&pool.take(&n.to_string()).unwrap())).collect();
        assert_eq!(next, [3, 4, 5, 6].map(|n| format!("10.0.0.{n}/29")));
        assert_eq!(text(&pool.take("b").unwrap()), "10.0.0.2/29");
    }

    #[test]
    fn adopted_addresses_stay_reserved_and_the_rotation_goes_on_behind_them() {
        let mut pool = addresses("10.0.0.0/24");
        pool.adopt("old", &["10.0.0.7/24".parse().unwrap()]);
        assert_eq!(text(&pool.take("new").unwrap()), "10.0.0.8/24");
    }

    #[test]
    fn after_a_change_of_subnet_both_kinds_of_address_are_respected() {
        let mut pool = addresses("10.0.1.0/30");
        pool.take("old").unwrap();
        pool.set_subnets(Subnets::parse("10.0.1.0/29").unwrap());
        assert_eq!(text(&pool.take("new").unwrap()), "10.0.1.3/29", "2 is the old pod's");
    }

    #[test]
    fn pod_cidrs_are_checked() {
        assert!(Subnets::parse("10.1.0.0/16, fd00::/112").is_ok());
        assert!(matches!(Subnets::parse(""), Err(SubnetError::None)));
        assert!(matches!(Subnets::parse("10.1.0.0"), Err(SubnetError::NotACidr(_))));
        assert!(matches!(Subnets::parse("10.1.0.0/31"), Err(SubnetError::TooSmall(_))));
        assert!(matches!(Subnets::parse("127.0.0.0/8"), Err(SubnetError::NotUnicast(_))));
        assert!(matches!(Subnets::parse("10.0.0.0/8,11.0.0.0/8"), Err(SubnetError::SameFamily(..))));
        assert_eq!(Subnets::parse("10.1.2.3/16").unwrap(), Subnets::parse("10.1.0.0/16").unwrap());
    }

    #[test]
    fn large_networks_do_not_overflow() {
        let mut pool = addresses("10.0.0.0/8,fd00::/8");
        assert_eq!(text(&pool.take("a").unwrap()), "10.0.0.2/8 and fd00::2/8");
    }
}
