//! Is anything left over? Looks only at what carries a node's own names, since other tests run at the same time.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Node, host, wait_until};

/// Time for what may happen after the answer (freeing a removed image's layers).
const SETTLE: Duration = Duration::from_secs(5);

/// Where the marker cgroups are: version 2's hierarchy, which limits nothing where version 1 does, else any other.
pub fn marker_hierarchy() -> Result<PathBuf> {
    let hierarchies = host::cgroup_hierarchies()?;
    let any = hierarchies.get("").or_else(|| hierarchies.get("pids"));
    any.cloned().context("no cgroup hierarchy is mounted")
}

/// With the daemon running and all pods and images removed: no mount, interface, rule, cgroup, process or file of a pod
/// or an image is left.
pub(crate) async fn expect_nothing_left(node: &Node, files_at_boot: &BTreeSet<PathBuf>) -> Result<()> {
    wait_until("the removed pods and images to be gone", SETTLE, async || {
        let mut left = mounts_below(node.dir())?;
        left.extend(bridge_ports(node));
        left.extend(firewall_entries(node)?);
        left.extend(pod_cgroups(node)?);
        left.extend(files_since(node, files_at_boot)?);
        let daemon = node.pid()?;
        left.extend(node_processes(node)?.into_iter().filter(|pid| *pid != daemon).map(describe_process));
        ensure!(left.is_empty(), "left over:\n  {}", left.join("\n  "));
        Ok(())
    })
    .await
}

/// With the daemon stopped: no process of the node at all.
pub(crate) async fn expect_nothing_runs(node: &Node) -> Result<()> {
    let left: Vec<String> = node_processes(node)?.into_iter().map(describe_process).collect();
    ensure!(left.is_empty(), "still running after the daemon ended:\n  {}", left.join("\n  "));
    let mounts = mounts_below(node.dir())?;
    ensure!(mounts.is_empty(), "still mounted after the daemon ended:\n  {}", mounts.join("\n  "));
    Ok(())
}

/// Kills and removes everything that carries the node's names, by whatever means.
pub(crate) fn sweep(node: &Node) -> Result<()> {
    for _ in 0..100 {
        let left = node_processes(node)?;
        if left.is_empty() {
            break;
        }
        for pid in left {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut below: Vec<PathBuf> = host::mounts("self")?
        .into_iter()
        .map(|mount| mount.mount_point)
        .filter(|path| path.starts_with(node.dir()))
        .collect();
    below.reverse();
    for path in below {
        umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", path.display()))?;
    }
    // Veths went with their namespaces.
    run_quietly("ip", &["link", "delete", &node.bridge()]);
    for table in firewall_tables(node)? {
        let words: Vec<&str> = table.split(' ').collect();
        run_quietly("nft", &[&["delete"], words.as_slice()].concat());
    }
    for folder in host::cgroup_hierarchies()?.values() {
        remove_cgroup(&folder.join(node.cgroup_root().trim_start_matches('/')))?;
    }
    remove_cgroup(&node.marker_cgroup()?)
}

/// Every path below these folders; what a folder can't be read for any more (just removed) is left out.
pub(crate) fn files_below(folders: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = folders.to_vec();
    while let Some(folder) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("listing {}", folder.display())),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    Ok(found)
}

fn files_since(node: &Node, files_at_boot: &BTreeSet<PathBuf>) -> Result<Vec<String>> {
    let now = files_below(&[node.root(), node.state()])?;
    Ok(now.difference(files_at_boot).map(|path| format!("file {}", path.display())).collect())
}

fn mounts_below(dir: &Path) -> Result<Vec<String>> {
    let mounts = host::mounts("self")?;
    let below = mounts.iter().filter(|mount| mount.mount_point.starts_with(dir));
    Ok(below.map(|mount| format!("{} mounted at {}", mount.fs_type, mount.mount_point.display())).collect())
}

fn bridge_ports(node: &Node) -> Vec<String> {
    // No bridge, no ports.
    let Ok(ports) = fs::read_dir(format!("/sys/class/net/{}/brif", node.bridge())) else { return Vec::new() };
    ports.flatten().map(|port| format!("interface {}", port.file_name().to_string_lossy())).collect()
}

/// `table FAMILY NAME` of the packet filter tables that are the node's, whose names end with the bridge's.
fn firewall_tables(node: &Node) -> Result<Vec<String>> {
    let output = Command::new("nft").args(["list", "tables"]).output().context("running nft")?;
    let own = |line: &&str| line.ends_with(&format!("-{}", node.bridge()));
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter(own).map(str::to_owned).collect())
}

/// Map and set elements in the node's tables: host ports of pods.
fn firewall_entries(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for table in firewall_tables(node)? {
        let words: Vec<&str> = table.split(' ').collect();
        let output = Command::new("nft").arg("list").args(&words).output().context("running nft")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let filled = text.lines().filter(|line| line.contains("elements"));
        found.extend(filled.map(|line| format!("{table}: {}", line.trim())));
    }
    Ok(found)
}

fn pod_cgroups(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for folder in host::cgroup_hierarchies()?.values() {
        let own = folder.join(node.cgroup_root().trim_start_matches('/'));
        let Ok(entries) = fs::read_dir(&own) else { continue };
        let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(children.map(|child| format!("cgroup {}", child.path().display())));
    }
    Ok(found)
}

/// The daemon, its supervisors and helpers by the marker cgroup, containers by the pods' cgroup, and whatever names
/// the node's folder.
fn node_processes(node: &Node) -> Result<BTreeSet<i32>> {
    let own = std::process::id();
    let mut found: BTreeSet<i32> = BTreeSet::new();
    for part in [format!("/{}-daemon", node.tag()), format!("{}/", node.cgroup_root())] {
        found.extend(host::processes_in_cgroup(&part)?);
    }
    let dir = node.dir().display().to_string();
    found.extend(host::processes()?.into_iter().filter(|pid| host::command_line(*pid).contains(&dir)));
    Ok(found.into_iter().filter(|pid| u32::try_from(*pid) != Ok(own)).collect())
}

fn describe_process(pid: i32) -> String {
    format!("process {pid}: {}", host::command_line(pid))
}

/// Removes a cgroup and those below it.
pub fn remove_cgroup(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for child in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroup(&child.path())?;
    }
    for attempt in 0.. {
        match fs::remove_dir(path) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            // The kernel counts a killed process until it has been reaped.
            Err(_) if attempt < 100 => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
        }
    }
    Ok(())
}

/// For clean-up of what may not be there.
fn run_quietly(program: &str, arguments: &[&str]) {
    let _ = Command::new(program).args(arguments).output();
}
