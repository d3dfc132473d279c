//! Many pods at once: how long until all run, and what they cost in memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::{PATIENCE, wait_until};
use futures::future::try_join_all;

use crate::{
    calls::{Calls, Pod},
    memory::Memory,
    under_test::Runtime,
};

/// What `pods` pods took.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub(crate) pods: u32,
    /// From the first call until the last container ran.
    pub(crate) start: Duration,
    pub(crate) daemon: Memory,
    /// The median of what the runtime keeps for a pod.
    pub(crate) keeper: Memory,
}

pub(crate) async fn run(runtime: &dyn Runtime, count: u32) -> Result<Crowd> {
    let mut pods =
        (0..count).map(|number| Pod::new(runtime, &format!("crowd-{number}"))).collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    try_join_all(pods.iter_mut().map(async |pod| pod.start(&mut Calls::new()).await)).await?;
    let start = started.elapsed();

    let keeper = median_keeper(runtime, pods.len()).await?;
    let daemon = Memory::of(runtime.daemon()?)?;

    try_join_all(pods.iter().map(async |pod| pod.end(&mut Calls::new()).await)).await?;
    Ok(Crowd { pods: count, start, daemon, keeper })
}

/// A process that only helped to start a pod may still be there.
async fn median_keeper(runtime: &dyn Runtime, pods: usize) -> Result<Memory> {
    wait_until("a process for every pod", PATIENCE, async || {
        let mut keepers: Vec<Memory> =
            runtime.keepers()?.into_iter().map(Memory::of).collect::<Result<_>>()?;
        ensure!(keepers.len() == pods, "{pods} pods are kept by {} processes", keepers.len());
        keepers.sort_by_key(|memory| memory.pss);
        Ok(keepers[pods / 2])
    })
    .await
}
