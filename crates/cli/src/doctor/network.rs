//! Pods' networks.

use std::net::Ipv4Addr;
use std::path::Path;

use super::{Finding, probe, read};

const AREA: &str = "network";

/// The built-in bridge's, unless configured otherwise.
const SUBNET: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 83, 0, 0), 16);
const BRIDGE: &str = "berth0";

pub(super) async fn check() -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match probe::attempt("links", Path::new("/")).await {
        Ok(()) => Finding::good(AREA, "interfaces", "a bridge and a veth can be made"),
        Err(why) => Finding::bad(
            AREA,
            "interfaces",
            why,
            "pods are connected by a veth to a bridge",
            "modprobe -a bridge veth",
        ),
    });
    findings.push(match probe::attempt("nftables", Path::new("/")).await {
        Ok(()) => Finding::good(AREA, "nftables", "answers"),
        Err(why) => Finding::warn(
            AREA,
            "nftables",
            why,
            "with the built-in bridge pods reach nothing beyond the node, and host ports lead nowhere",
            "modprobe nf_tables, or configure CNI",
        ),
    });
    findings.push(forwarding());
    findings.push(subnet(&read("/proc/net/route")));
    findings
}

/// berthd turns it on when it makes its bridge; something that turns it off again is what breaks pods.
fn forwarding() -> Finding {
    let (v4, v6) = (read("/proc/sys/net/ipv4/ip_forward"), read("/proc/sys/net/ipv6/conf/all/forwarding"));
    match (v4.as_str(), v6.as_str()) {
        ("1", "1") => Finding::good(AREA, "forwarding", "on for IPv4 and IPv6"),
        _ => Finding::good(AREA, "forwarding", "off; berthd turns it on with its bridge"),
    }
}

/// `/proc/net/route`: destination and mask as little-endian hexadecimal.
fn subnet(routes: &str) -> Finding {
    let check = "subnet";
    let (base, length) = SUBNET;
    let mask = u32::MAX << (32 - length);
    let taken = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?;
        let number = |text: Option<&str>| Some(u32::from_str_radix(text?, 16).ok()?.swap_bytes());
        let (to, of) = (number(fields.next())?, number(fields.nth(5))?);
        // The default route is everybody's.
        let overlaps = of != 0 && to & mask & of == u32::from(base) & mask & of;
        (overlaps && interface != BRIDGE).then(|| format!("{interface} routes to {}", Ipv4Addr::from(to)))
    });
    match taken {
        None => Finding::good(AREA, check, format!("{base}/{length} is free for the built-in bridge")),
        Some(taken) => Finding::warn(
            AREA,
            check,
            taken,
            "the built-in bridge's subnet 10.83.0.0/16 leads somewhere else already",
            "ipv4_subnet in [network] of berth.toml",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_subnet_that_is_taken_is_seen() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let with = |line: &str| subnet(&format!("{head}{line}\n")).verdict;
        assert_eq!(with("eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0"), Verdict::Good);
        assert_eq!(with("berth0\t0000530A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0"), Verdict::Good);
        assert!(matches!(
            with("vpn0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0"),
            Verdict::Warn(_)
        ));
        assert!(matches!(
            with("br0\t0001530A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"),
            Verdict::Warn(_)
        ));
    }
}
