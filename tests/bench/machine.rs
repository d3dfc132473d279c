//! What the figures were measured on.

use std::{fs, path::Path, thread};

use anyhow::{Context, Result};
use berth_tests::host;

pub(crate) fn print() -> Result<()> {
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("asking for the kernel's version")?;
    let cores = thread::available_parallelism().context("counting cores")?;
    let memory = fs::read_to_string("/proc/meminfo").context("asking for the memory's size")?;
    let memory_kb: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .context("/proc/meminfo without MemTotal")?;
    let temporary = std::env::temp_dir();
    println!(
        "machine    {}, Linux {}, {cores} cores, {:.1} GB memory, cgroup v{}, {} below {}",
        std::env::consts::ARCH,
        kernel.trim(),
        memory_kb as f64 * 1024.0 / 1e9,
        host::cgroup_version(),
        file_system(&temporary)?,
        temporary.display(),
    );
    Ok(())
}

/// The type of the file system that a folder is on, such as "ext4".
fn file_system(folder: &Path) -> Result<String> {
    let table = fs::read_to_string("/proc/self/mounts").context("reading the mount table")?;
    // The last that lies on the longest path.
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        folder.starts_with(place).then_some((place.len(), kind))
    });
    Ok(mounts.max_by_key(|(length, _)| *length).context("no mount is above the folder")?.1.to_owned())
}
