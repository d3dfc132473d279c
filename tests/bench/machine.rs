//! What the figures were measured on.

use std::{fs, thread};

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
    println!(
        "machine    {}, Linux {}, {cores} cores, {:.1} GB memory, cgroup v{}",
        std::env::consts::ARCH,
        kernel.trim(),
        memory_kb as f64 * 1024.0 / 1e9,
        host::cgroup_version(),
    );
    Ok(())
}
