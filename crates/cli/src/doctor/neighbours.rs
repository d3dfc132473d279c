//! Others on this machine that do what berth does, and tools that berth uses when they are there.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Finding, read};

const AREA: &str = "neighbours";

/// Sockets of other runtimes.
const RUNTIMES: [(&str, &str); 4] = [
    ("containerd", "/run/containerd/containerd.sock"),
    ("CRI-O", "/run/crio/crio.sock"),
    ("dockerd", "/run/docker.sock"),
    ("cri-dockerd", "/run/cri-dockerd.sock"),
];

pub(super) fn check(state: &Path) -> Vec<Finding> {
    vec![runtimes(), kubelet(state), cni(), tools()]
}

/// A socket file alone may be left over.
fn runtimes() -> Finding {
    let running: Vec<_> = RUNTIMES
        .iter()
        .filter(|(_, path)| UnixStream::connect(path).is_ok())
        .map(|(name, _)| *name)
        .collect();
    match running.is_empty() {
        true => Finding::good(AREA, "runtimes", "no other answers"),
        false => Finding::warn(
            AREA,
            "runtimes",
            format!("{} answers", running.join(", ")),
            "they and berth do not see each other's pods, and share the node's memory, ports and CNI networks",
            format!(
                "systemctl disable --now {}, once nothing runs there any more",
                running.join(" ").to_lowercase()
            ),
        ),
    }
}

/// Whether a kubelet here talks to somebody else.
fn kubelet(state: &Path) -> Finding {
    let check = "kubelet";
    let Some(line) = command_lines().find(|line| line.first().is_some_and(|name| name.ends_with("kubelet")))
    else {
        return Finding::good(AREA, check, "none runs");
    };
    let config = line.iter().find_map(|word| word.strip_prefix("--config=")).map(read).unwrap_or_default();
    let flag = line.iter().find_map(|word| word.strip_prefix("--container-runtime-endpoint="));
    let set = config.lines().find_map(|line| line.trim().strip_prefix("containerRuntimeEndpoint:"));
    let endpoint = flag.or(set).unwrap_or("its default, containerd's").trim().trim_matches('"').to_owned();
    let ours = format!("unix://{}", state.join("berth.sock").display());
    match endpoint == ours {
        true => Finding::good(AREA, check, format!("uses {ours}")),
        false => Finding::warn(
            AREA,
            check,
            format!("uses {endpoint}"),
            "its pods are run by somebody else",
            format!("containerRuntimeEndpoint: {ours} in its configuration, then restart it"),
        ),
    }
}

fn command_lines() -> impl Iterator<Item = Vec<String>> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| {
        let text = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&text).split('\0').map(str::to_owned).collect())
    })
}

/// CNI takes the place of the built-in bridge as soon as there is a configuration.
fn cni() -> Finding {
    let files = std::fs::read_dir("/etc/cni/net.d").into_iter().flatten().flatten();
    let mut names: Vec<_> = files
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)))
        .collect();
    names.sort();
    match names.as_slice() {
        [] => Finding::good(AREA, "CNI", "not configured: the built-in bridge makes pods' networks"),
        [one] => Finding::good(AREA, "CNI", format!("{one} makes pods' networks")),
        [first, ..] => Finding::warn(
            AREA,
            "CNI",
            names.join(", "),
            "only the first file counts, in the order of their names",
            format!("remove those from /etc/cni/net.d that are not meant, and keep {first}"),
        ),
    }
}

/// Nobody needs them to run pods.
fn tools() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let there = |name: &&str| folders.iter().any(|folder| folder.join(name).is_file());
    let found: Vec<_> = ["criu", "crun", "runc"].into_iter().filter(|name| there(name)).collect();
    let found = if found.is_empty() { "none of criu, crun, runc".to_owned() } else { found.join(", ") };
    Finding::good(AREA, "tools", format!("{found} (for checkpoints and further handlers)"))
}
