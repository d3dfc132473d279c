//! What the node adds to pods.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::available_parallelism;

use berth_manifest::DnsConfig;
use berth_manifest::cri::{Facts, Ids};
use berth_sandbox_manager::node_resolver;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::system::{sysinfo, uname};

/// As it is now: a node may get its name, addresses and resolver after the daemon's start, and others later.
#[derive(Debug)]
pub(crate) struct NodeFacts {
    name: String,
    ips: Vec<IpAddr>,
    memory: i64,
    cpus: u32,
    huge_page_sizes: Vec<String>,
    cgroup2: bool,
    resolver: DnsConfig,
    seccomp_profiles: PathBuf,
}

impl NodeFacts {
    /// `host_network` for a pod that has the node's.
    pub(crate) fn gather(seccomp_profiles: PathBuf, cgroup2: bool, host_network: bool) -> Self {
        let info = sysinfo();
        let memory = u64::from(info.mem_unit).saturating_mul(info.totalram);
        let resolver = node_resolver(host_network).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the node's resolver configuration; the pod gets none");
            String::new()
        });
        Self {
            name: uname().nodename().to_string_lossy().into_owned(),
            ips: addresses(),
            memory: i64::try_from(memory).unwrap_or(i64::MAX),
            cpus: available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            huge_page_sizes: huge_page_sizes(),
            cgroup2,
            resolver: resolver_of(&resolver),
            seccomp_profiles,
        }
    }

    /// With what is the pod's own.
    pub(crate) fn of<'a>(
        &'a self,
        uid: &'a str,
        pod_ips: &'a [IpAddr],
        log_directory: &'a str,
        ids: Option<Ids>,
    ) -> Facts<'a> {
        Facts {
            uid,
            node_name: &self.name,
            host_ips: &self.ips,
            pod_ips,
            memory: self.memory,
            cpus: self.cpus,
            huge_page_sizes: &self.huge_page_sizes,
            cgroup2: self.cgroup2,
            resolver: &self.resolver,
            seccomp_profiles: &self.seccomp_profiles,
            log_directory,
            ids,
        }
    }
}

/// The node's addresses that others can reach: v4 first, and of the default route's interface first, as kubelet chooses
/// them: others may be of bridges for pods.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let default = default_interface(&fs::read_to_string("/proc/net/route").unwrap_or_default());
    let up = InterfaceFlags::IFF_UP;
    let usable = interfaces
        .filter(|one| one.flags.contains(up) && !one.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|one| {
            let address = one.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
            Some((one.interface_name, ip))
        })
        .filter(|(_, ip)| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    let by_interface = |(name, ip): &(String, IpAddr)| (ip.is_ipv6(), Some(name) != default.as_ref());
    let mut all: Vec<(String, IpAddr)> = usable.collect();
    all.sort_by_key(by_interface);
    all.into_iter().map(|(_, ip)| ip).collect()
}

/// The interface of the default route (proc_net_route: an IPv4 route to 0.0.0.0/0).
fn default_interface(routes: &str) -> Option<String> {
    let routes = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut default =
        routes.filter(|fields| fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000"));
    default.next()?.first().map(|name| (*name).to_owned())
}

/// As CRI writes them: "2MB".
fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let sizes = names.filter_map(|name| {
        let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kilobytes {
            kb if kb % (1 << 20) == 0 => format!("{}GB", kb >> 20),
            kb if kb % (1 << 10) == 0 => format!("{}MB", kb >> 10),
            kb => format!("{kb}KB"),
        })
    });
    sizes.collect()
}

/// resolv.conf(5); of several `search` lines the last one holds.
fn resolver_of(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.nameservers.extend(words.next()),
            Some("search" | "domain") => config.searches = words.collect(),
            Some("options") => config.options.extend(words),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_has_an_interface() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            cni0\t0000550A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_interface(routes).as_deref(), Some("eth0"));
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn a_resolver_is_read() {
        let text = "# x\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch a.b c\noptions ndots:2 rotate\n";
        let config = resolver_of(text);
        assert_eq!(config.nameservers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!((config.searches, config.options.len()), (vec!["a.b".to_owned(), "c".to_owned()], 2));
    }
}
