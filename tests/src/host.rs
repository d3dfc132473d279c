//! What the host's kernel says and is told, without asking berth.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// One line of /proc/PID/mountinfo.
#[derive(Debug, Clone)]
pub struct Mount {
    pub mount_point: PathBuf,
    /// What of the source's filesystem is mounted.
    pub root: String,
    pub options: String,
    /// `shared:N`, `master:N`, …
    pub propagation: Vec<String>,
    pub fs_type: String,
    pub source: String,
    pub super_options: String,
}

/// All mounts a process sees; `"self"` is allowed.
pub fn mounts(pid: &str) -> Result<Vec<Mount>> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = fs::read(&path).with_context(|| format!("reading {path}"))?;
    parse_mounts(&String::from_utf8_lossy(&text))
}

/// Does something while a file system in memory is mounted on a new folder. Fails when it is still in use afterwards.
pub async fn with_tmpfs<T>(at: &Path, options: &str, body: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    fs::create_dir(at)?;
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status()?;
    ensure!(mounted.success(), "mount ended with {mounted}");
    let outcome = body().await;
    let unmounted = std::process::Command::new("umount").arg(at).status()?;
    ensure!(unmounted.success(), "{} is still in use", at.display());
    outcome
}

/// Parses mountinfo, wherever it was read.
pub fn parse_mounts(text: &str) -> Result<Vec<Mount>> {
    text.lines().map(|line| parse_mount(line).with_context(|| format!("mountinfo line {line:?}"))).collect()
}

fn parse_mount(line: &str) -> Result<Mount> {
    let fields: Vec<&str> = line.split(' ').collect();
    let dash = fields.iter().position(|field| *field == "-").context("no separator")?;
    ensure!(dash >= 6 && fields.len() >= dash + 4, "too few fields");
    Ok(Mount {
        root: fields[3].to_owned(),
        mount_point: PathBuf::from(fields[4].replace("\\040", " ")),
        options: fields[5].to_owned(),
        propagation: fields[6..dash].iter().map(|field| (*field).to_owned()).collect(),
        fs_type: fields[dash + 1].to_owned(),
        source: fields[dash + 2].to_owned(),
        super_options: fields[dash + 3].to_owned(),
    })
}

/// Ids of the processes whose cgroup, in any hierarchy, has `part` in its path; without those that are dead already and
/// wait for their parent to be told.
pub fn processes_in_cgroup(part: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for pid in processes()? {
        // A process may end between listing and reading.
        let there = fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(part));
        if there && status_field(pid, "State").is_ok_and(|state| !state.starts_with('Z')) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Ids of all processes.
pub fn processes() -> Result<Vec<i32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The supervisor of a sandbox, found by its command line.
pub fn supervisor(sandbox: &str) -> Result<i32> {
    let mut found = processes()?.into_iter().filter(|pid| {
        let line = command_line(*pid);
        line.contains("berth-pod") && line.contains(sandbox)
    });
    found.next().context("the pod has no supervisor")
}

/// Sends a signal to a process.
pub fn send(pid: i32, signal: nix::sys::signal::Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?)
}

/// The command line, spaces between its words; empty for a kernel thread or a process that is gone.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// A field of /proc/PID/status, trimmed.
pub fn status_field(pid: i32, field: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("{field} of process {pid}"))?.trim().to_owned())
}

/// Runs `work` on a thread inside a network namespace (`/proc/PID/ns/net`, `/run/netns/NAME`); sockets it makes stay
/// there and may be used from anywhere.
pub fn in_network<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = fs::File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread in {} panicked", namespace.display()))?
    })
}

/// The cgroup version that limits processes here. Version 2 mounted beside version 1's controllers counts as 1.
pub fn cgroup_version() -> u8 {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 }
}

/// Mount points of all cgroup hierarchies: controller name to folder; version 2's name is empty.
pub fn cgroup_hierarchies() -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for mount in mounts("self")? {
        match mount.fs_type.as_str() {
            "cgroup2" => drop(found.insert(String::new(), mount.mount_point)),
            "cgroup" => {
                for option in mount.super_options.split(',').filter(|option| *option != "rw") {
                    let name = option.strip_prefix("name=").unwrap_or(option);
                    found.insert(name.to_owned(), mount.mount_point.clone());
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Whether the kernel limits by this controller.
pub fn has_controller(name: &str) -> Result<bool> {
    match cgroup_version() {
        1 => Ok(cgroup_hierarchies()?.contains_key(name)),
        _ => Ok(fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?
            .split_whitespace()
            .any(|known| known == name)),
    }
}

/// A limit as the kernel has it: the file `v1` of `controller`, or the file `v2`, in the cgroup of process `pid`.
pub fn cgroup_value(pid: i32, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let version = cgroup_version();
    let (name, file) = if version == 1 { (controller, v1) } else { ("", v2) };
    let path = cgroup_folder(pid, name)?.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// The folder of a process's cgroup in one hierarchy; `""` is version 2's.
pub fn cgroup_folder(pid: i32, controller: &str) -> Result<PathBuf> {
    let hierarchy = cgroup_hierarchies()?;
    let mounted =
        hierarchy.get(controller).with_context(|| format!("controller {controller:?} is not mounted"))?;
    Ok(mounted.join(cgroup_path(pid, controller)?.trim_start_matches('/')))
}

/// The cgroup of a process in one hierarchy, from that hierarchy's root.
pub fn cgroup_path(pid: i32, controller: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(names), Some(path)) = (fields.next(), fields.next())
            && names.split(',').any(|name| name.trim_start_matches("name=") == controller)
        {
            return Ok(path.to_owned());
        }
    }
    bail!("process {pid} is in no cgroup of {controller:?}")
}

/// Runs ip(8).
pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
