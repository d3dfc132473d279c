//! A pod's interfaces, from `/proc/PID/net/dev` of a process in its network namespace.

use std::path::PathBuf;

use crate::file;

/// More interfaces than a pod has reason for. One with CAP_NET_ADMIN can make thousands, each of which would become
/// eight series of every scrape.
const MOST: usize = 64;

/// One interface's totals since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// A pod's interfaces without the loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// The one that was asked for; if it is not there, the first.
    pub default: Interface,
    pub others: Vec<Interface>,
}

impl Interfaces {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Interface> {
        std::iter::once(&self.default).chain(&self.others)
    }
}

/// The interfaces that process `pid` sees. `None` when it is gone, or has no interface but the loopback.
pub fn interfaces(pid: i32, default: &str) -> Option<Interfaces> {
    choose(parse(&file::text(&PathBuf::from(format!("/proc/{pid}/net/dev")))?), default)
}

fn choose(mut found: Vec<Interface>, default: &str) -> Option<Interfaces> {
    let at = found.iter().position(|interface| interface.name == default).unwrap_or(0);
    if found.is_empty() {
        return None;
    }
    let default = found.remove(at);
    found.truncate(MOST - 1);
    Some(Interfaces { default, others: found })
}

fn parse(text: &str) -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    // Two lines of headings, which have no colon.
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let name = name.trim_ascii();
        let mut numbers = numbers.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        // Received: bytes packets errs drop fifo frame compressed multicast. Sent: bytes packets errs drop ...
        let (rx_bytes, rx_packets, rx_errors, rx_dropped) = (next(), next(), next(), next());
        let _ = (next(), next(), next(), next());
        let (tx_bytes, tx_packets, tx_errors, tx_dropped) = (next(), next(), next(), next());
        // Names that are no UTF-8 may look alike here, and a series that comes twice spoils a scrape.
        if name.is_empty() || name == "lo" || found.iter().any(|known| known.name == name) {
            continue;
        }
        found.push(Interface {
            name: name.to_owned(),
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 8643755224  197394    0    0    0     0          0         0 8643755224  197394    0    0    0     0       0          0
  net1:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
  eth0: 638293346   31656    1    2    0     0          0         9  2237913   21699    3    4    0     0       0          0
";

    #[test]
    fn the_default_is_apart_and_the_loopback_left_out() {
        let found = choose(parse(DEV), "eth0").unwrap();
        assert_eq!(
            found.default,
            Interface {
                name: "eth0".into(),
                rx_bytes: 638_293_346,
                rx_packets: 31_656,
                rx_errors: 1,
                rx_dropped: 2,
                tx_bytes: 2_237_913,
                tx_packets: 21_699,
                tx_errors: 3,
                tx_dropped: 4,
            }
        );
        assert_eq!(found.others.len(), 1);
        assert_eq!(found.all().count(), 2);
        let net1 = &found.others[0];
        assert_eq!((net1.rx_bytes, net1.tx_dropped), (1, 8));
    }

    #[test]
    fn without_the_default_the_first_stands_in_and_without_any_there_is_no_network() {
        assert_eq!(choose(parse(DEV), "ens5").unwrap().default.name, "net1");
        let lo = DEV.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(choose(parse(&lo), "eth0"), None);
    }

    #[test]
    fn the_default_is_kept_among_very_many() {
        let text: String =
            (0..1000).map(|at| format!("x{at}: 1 2\n")).chain(["eth0: 5".to_owned()]).collect();
        let found = choose(parse(&text), "eth0").unwrap();
        assert_eq!(
            (found.default.name.as_str(), found.default.rx_bytes, found.all().count()),
            ("eth0", 5, MOST)
        );
    }

    #[test]
    fn a_name_comes_once() {
        assert_eq!(parse("a: 1\na: 2\n b\u{fffd}:3\n").len(), 2);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert_eq!(interfaces(i32::MAX, "eth0"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "( {0,3}[a-z:]{0,6}:( {1,3}-?[0-9]{0,22}){0,18}\n){0,5}|\\PC*") {
            choose(parse(&text), "eth0");
        }
    }
}
