//! Pulling a large image: from the call to an image that containers can be made from.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::cri::image_spec;
use k8s_cri::v1::{PullImageRequest, RemoveImageRequest};

use crate::{large_image::LargeImage, memory::Memory, under_test::Runtime};

const REPOSITORY: &str = "bench/large";

/// One pull.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) took: Duration,
    /// What sync(2) took right after: the part of the work that was only promised yet.
    pub(crate) sync: Duration,
    /// Processor time of the daemon.
    pub(crate) cpu: Duration,
    /// The daemon afterwards.
    pub(crate) daemon: Memory,
}

pub(crate) async fn measure(runtime: &dyn Runtime, image: &LargeImage, count: u32) -> Result<Vec<Pull>> {
    let registry = runtime.registry();
    registry.push(REPOSITORY, "latest", &image.image);
    let reference = registry.reference(&format!("{REPOSITORY}:latest"));
    let mut pulls = Vec::new();
    for _ in 0..count {
        registry.clear_log();
        pulls.push(pull(runtime, &reference).await?);
        let served = registry.count("GET", "/blobs/");
        ensure!(served >= image.image.layers.len(), "only {served} blobs were pulled; were some left over?");
        let request = RemoveImageRequest { image: Some(image_spec(&reference)) };
        runtime.images().remove_image(request).await.context("RemoveImage")?;
    }
    Ok(pulls)
}

async fn pull(runtime: &dyn Runtime, reference: &str) -> Result<Pull> {
    let daemon = runtime.daemon()?;
    // Nobody pays for what was written before.
    nix::unistd::sync();
    let cpu_before = cpu_time(daemon)?;
    let started = Instant::now();
    let request = PullImageRequest { image: Some(image_spec(reference)), ..Default::default() };
    runtime.images().pull_image(request).await.context("PullImage")?;
    let took = started.elapsed();
    let cpu = cpu_time(daemon)?.saturating_sub(cpu_before);
    let started = Instant::now();
    nix::unistd::sync();
    Ok(Pull { took, sync: started.elapsed(), cpu, daemon: Memory::of(daemon)? })
}

/// Of a process and those of its children that it waited for.
fn cpu_time(pid: i32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // proc_pid_stat(5): utime, stime, cutime, cstime are fields 14 to 17; the name before may hold anything.
    let (_, fields) = text.rsplit_once(") ").with_context(|| format!("{path} without a name"))?;
    let ticks: u64 = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on everything that Linux runs on today.
    Ok(Duration::from_millis(ticks * 10))
}
