//! Pods one after another, each through its whole life.

use anyhow::{Context, Result};

use crate::{
    calls::{Calls, Pod},
    timeline::Timelines,
    under_test::Runtime,
};

/// How often a running pod is looked at.
const LOOKS: usize = 5;

/// What the pods took.
pub(crate) struct Sequence {
    pub(crate) calls: Calls,
    pub(crate) timeline: Timelines,
}

/// Runs `count` pods after one that is not counted: the first finds caches cold, as no later one does.
pub(crate) async fn run_one_after_another(runtime: &dyn Runtime, count: u32) -> Result<Sequence> {
    let mut sequence = Sequence { calls: Calls::new(), timeline: Timelines::default() };
    live(runtime, "first", &mut sequence).await.context("in the first pod")?;
    let mut sequence = Sequence { calls: Calls::new(), timeline: Timelines::default() };
    for number in 0..count {
        let name = format!("pod-{number}");
        live(runtime, &name, &mut sequence).await.with_context(|| format!("in {name}"))?;
    }
    Ok(sequence)
}

async fn live(runtime: &dyn Runtime, name: &str, sequence: &mut Sequence) -> Result<()> {
    let mut pod = Pod::new(runtime, name)?;
    pod.start(&mut sequence.calls).await?;
    for _ in 0..LOOKS {
        pod.look(&mut sequence.calls).await?;
    }
    sequence.timeline.add(pod.timeline().await?);
    pod.end(&mut sequence.calls).await
}
