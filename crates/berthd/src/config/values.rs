//! What a single value may be. Each function takes the text and answers with the value or with what would be right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use tracing_subscriber::EnvFilter;

/// Not the subnet of anything that commonly lives on a node: Docker takes 172.16.0.0/12 and 192.168.0.0/16, podman
/// 10.88 and up, CRI-O's sample 10.85, Kubernetes' services 10.96.0.0/12, flannel 10.244, k3s 10.42 and 10.43, Weave
/// 10.32.0.0/12, and clouds number their machines from 10.0 on.
pub(super) const IPV4_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 83, 0, 0), 16);

/// A unique local subnet (RFC 4193) whose 40 global bits were drawn once, at random. The same on every node, which
/// does no harm: addresses of the built-in bridge never leave their node unmasqueraded.
pub(super) const IPV6_SUBNET: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd5b, 0x8e41, 0x6c2a, 0, 0, 0, 0, 0), 64);

/// The largest message on the socket, either way; what kubelet's client takes.
pub const MESSAGE_BYTES: usize = 16 << 20;

/// `sun_path` holds 108 bytes, the last of them NUL (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

pub(super) fn absolute(text: impl Into<PathBuf>) -> Result<PathBuf, String> {
    let path = text.into();
    if !path.is_absolute() {
        return Err(format!("{:?} must be an absolute path", path.display().to_string()));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{:?} must not contain `..`", path.display().to_string()));
    }
    // Once more from its components: without doubled and trailing slashes.
    Ok(path.components().collect())
}

pub(super) fn socket(text: String) -> Result<PathBuf, String> {
    let path = match text.split_once("://") {
        Some(("unix", path)) => path,
        Some((scheme, _)) => {
            return Err(format!("scheme {scheme:?} is not served; write unix:///path/to.sock"));
        }
        None => text.as_str(),
    };
    let path = absolute(path)?;
    socket_length(&path)?;
    Ok(path)
}

pub(super) fn socket_length(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_BYTES {
        return Err(format!(
            "the socket's path {} has {length} bytes, the kernel takes {SOCKET_PATH_BYTES}",
            path.display()
        ));
    }
    Ok(())
}

/// `EnvFilter` takes any word for a module's name, so that `inof` would silently mean "trace what is called inof".
pub(super) fn log_level(text: String) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !LEVELS.contains(&level) {
            let levels = LEVELS.join(", ");
            return Err(format!(
                "{level:?} is not a level; write one of {levels}, or module=level with commas between"
            ));
        }
    }
    match EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{text:?} is no log filter: {error}")),
    }
}

pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("{text:?} must be {}", names.join(" or "))
    })
}

pub(super) fn cgroup_path(text: String) -> Result<String, String> {
    let parts = text.strip_prefix('/').ok_or_else(|| format!("{text:?} must begin with /"))?;
    if parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{text:?} must be a cgroup's path as in /berth or /machine/berth"));
    }
    Ok(text)
}

/// A RuntimeClass handler is a DNS label (RFC 1123).
pub(super) fn handler_name(text: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = !text.starts_with('-') && !text.ends_with('-');
    if (1..=63).contains(&text.len()) && text.bytes().all(fits) && edges {
        return Ok(());
    }
    Err(format!("{text:?} cannot name a RuntimeClass handler: use 1 to 63 of a-z, 0-9 and -"))
}

/// As plugins register, where the number in front is a field of its own.
pub(super) fn nri_plugin(name: String) -> Result<String, String> {
    berth_nri::check_name(&name)?;
    match name.split_once('-') {
        Some((index, rest)) if berth_nri::check_index(index).is_ok() => {
            Err(format!("write the name without its number: {rest:?}"))
        }
        _ => Ok(name),
    }
}

/// dev_valid_name() of the kernel.
pub(super) fn interface(text: String) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    if (1..=15).contains(&text.len()) && text.bytes().all(fits) && !matches!(text.as_str(), "." | "..") {
        return Ok(text);
    }
    Err(format!("{text:?} cannot name an interface: use 1 to 15 characters without space, / and :"))
}

pub(super) fn ipv4_subnet(text: String) -> Result<Ipv4Net, String> {
    let net: Ipv4Net =
        text.parse().map_err(|_| format!("{text:?} is not an IPv4 subnet as in {IPV4_SUBNET}"))?;
    if net.trunc() != net {
        return Err(format!("{net} has host bits set; write {}", net.trunc()));
    }
    if !(8..=29).contains(&net.prefix_len()) {
        return Err(format!("{net} must be a /8 to /29: a /30 has no room for pods"));
    }
    Ok(net)
}

pub(super) fn ipv6_subnet(text: String) -> Result<Option<Ipv6Net>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let net: Ipv6Net =
        text.parse().map_err(|_| format!("{text:?} is not an IPv6 subnet as in {IPV6_SUBNET}"))?;
    if net.trunc() != net {
        return Err(format!("{net} has host bits set; write {}", net.trunc()));
    }
    if !(48..=120).contains(&net.prefix_len()) {
        return Err(format!("{net} must be a /48 to /120"));
    }
    Ok(Some(net))
}

/// Loopback, and whatever port is free.
pub(super) const STREAMING_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(super) fn socket_address(text: String) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address with a port as in {STREAMING_ADDRESS}"))
}

pub(super) fn mtu(number: i64) -> Result<Option<NonZeroU32>, String> {
    match u32::try_from(number) {
        Ok(0) => Ok(None),
        // IPv6 does not work below 1280 (RFC 8200).
        Ok(mtu @ 1280..=65535) => Ok(NonZeroU32::new(mtu)),
        _ => Err(format!("{number} must be 0 (the default route's) or 1280 to 65535")),
    }
}

pub(super) fn count(number: i64, most: usize) -> Result<NonZeroUsize, String> {
    usize::try_from(number)
        .ok()
        .filter(|number| *number <= most)
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| format!("{number} must be 1 to {most}"))
}

/// Numbers with units in a row, as in `90s`, `5m` or `1h30m`; never zero.
pub(super) fn duration(text: String) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a duration; write a number and a unit (ms, s, m, h) as in \"5m\"");
    let mut rest = text.as_str();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let step = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(step).ok_or_else(wrong)?;
        rest = after;
    }
    if total.is_zero() {
        Err(format!("{text:?} must be longer than nothing, as in \"5m\""))
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_and_nonsense_is_refused() {
        assert_eq!(duration("1h30m".into()), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms".into()), Ok(Duration::from_millis(250)));
        for wrong in ["", "5", "m", "5x", "-5m", "0s", "5 m", "99999999999999999999s", "99999999999999999h"] {
            assert!(duration(wrong.into()).is_err(), "{wrong:?} passed");
        }
    }

    #[test]
    fn a_misspelt_log_level_is_not_taken_for_a_module() {
        assert!(log_level("info,berth_image=debug".into()).is_ok());
        assert!(log_level("off".into()).is_ok());
        for wrong in ["inof", "", "info,", "berth_image=loud"] {
            assert!(log_level(wrong.into()).is_err(), "{wrong:?} passed");
        }
    }

    #[test]
    fn paths_are_absolute_and_tidied() {
        assert_eq!(absolute("/var//lib/berth/"), Ok(PathBuf::from("/var/lib/berth")));
        assert!(absolute("var/lib").is_err() && absolute("/var/../etc").is_err());
    }

    #[test]
    fn a_socket_is_a_unix_url_or_a_path_that_the_kernel_takes() {
        assert_eq!(socket("unix:///run/a.sock".into()), Ok(PathBuf::from("/run/a.sock")));
        assert_eq!(socket("/run/a.sock".into()), Ok(PathBuf::from("/run/a.sock")));
        for wrong in
            ["tcp://127.0.0.1:80".to_owned(), "run/a.sock".to_owned(), format!("/{}", "x".repeat(107))]
        {
            assert!(socket(wrong.clone()).is_err(), "{wrong:?} passed");
        }
    }

    #[test]
    fn subnets_are_networks_with_room() {
        assert!(ipv4_subnet("10.0.0.0/16".into()).is_ok());
        for wrong in ["10.0.0.1/16", "10.0.0.0/30", "10.0.0.0", "fd00::/64"] {
            assert!(ipv4_subnet(wrong.into()).is_err(), "{wrong:?} passed");
        }
        assert_eq!(ipv6_subnet(String::new()), Ok(None));
        assert!(ipv6_subnet("fd00::1/64".into()).is_err());
    }
}
