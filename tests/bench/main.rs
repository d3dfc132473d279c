//! Measures berth through CRI, as kubelet calls it, and on request other runtimes beside it.
//!
//! Every figure comes from the outside: calls on the socket, the kernel's accounting of memory. Only the timeline is
//! what berth says about itself. Every runtime is a private one, with a root, a socket, cgroups and a network of its
//! own; nothing of it is left afterwards.

mod calls;
mod cgroup_move;
mod crowd;
mod large_image;
mod machine;
mod memory;
mod peer;
mod pods;
mod pull;
mod report;
mod samples;
mod timeline;
mod under_test;

use std::process::ExitCode;

use anyhow::{Context, Result};
use berth_tests::{Node, Options, program};
use clap::{Parser, ValueEnum};

use self::{large_image::LargeImage, peer::Containerd, report::Measured, under_test::Runtime};

#[derive(Debug, Parser)]
#[command(name = "berth-bench", about = "Measures berth, and other runtimes beside it")]
struct Arguments {
    /// Measure every peer after berth
    #[arg(long)]
    peers: bool,
    /// Measure this peer and not berth
    #[arg(long, conflicts_with = "peers")]
    peer: Option<Peer>,
    /// Pods run one after another
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// Pods that run at once while memory is measured; 0 to leave this out
    #[arg(long, default_value_t = 20)]
    crowd: u32,
    /// Pulls of the large image; 0 to leave this out
    #[arg(long, default_value_t = 2)]
    pulls: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    Containerd,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread, so that the client takes as little as can be of the machine that is measured.
    program::run("berth-bench", tokio::runtime::Builder::new_current_thread(), async {
        run(&arguments).await?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn run(arguments: &Arguments) -> Result<()> {
    machine::print()?;
    println!(
        "runs       {} pods one after another, after one that is not counted; {} at once; {} pulls; of fewer than \
         100 samples p99 is the slowest",
        arguments.pods, arguments.crowd, arguments.pulls
    );
    let moves = cgroup_move::measure().context("moving a process between cgroups")?;
    report::print_moves(&moves);

    let image = match arguments.pulls {
        0 => None,
        _ => Some(LargeImage::build().await.context("building the large image")?),
    };
    image.iter().for_each(report::print_image);
    let mut all = Vec::new();
    let outcome = measure_all(arguments, image.as_ref(), &mut all).await;
    // What was measured before a failure is worth reading all the same.
    report::print(&all, &moves.by_id);
    outcome
}

async fn measure_all(
    arguments: &Arguments,
    image: Option<&LargeImage>,
    all: &mut Vec<Measured>,
) -> Result<()> {
    if arguments.peer.is_none() {
        let options = Options { log_level: "info".to_owned(), ..Options::default() };
        let node = Node::boot(options).await.context("booting berth")?;
        let measured = measure(&node, arguments, image).await;
        all.push(measured.with_context(|| format!("berth's log ends with:\n{}", node.log_tail()))?);
        node.finish().await.context("cleaning up after berth")?;
    }
    if arguments.peers || arguments.peer == Some(Peer::Containerd) {
        let peer = Containerd::boot().await.context("booting containerd")?;
        let measured = measure(&peer, arguments, image).await;
        all.push(measured.with_context(|| format!("containerd's log ends with:\n{}", peer.log_tail()))?);
        peer.finish().context("cleaning up after containerd")?;
    }
    Ok(())
}

async fn measure(
    runtime: &dyn Runtime,
    arguments: &Arguments,
    image: Option<&LargeImage>,
) -> Result<Measured> {
    let name = runtime.name().await?;
    let sequence = pods::run_one_after_another(runtime, arguments.pods).await?;
    let crowd = match arguments.crowd {
        0 => None,
        count => Some(crowd::run(runtime, count).await?),
    };
    let pulls = match image {
        None => Vec::new(),
        Some(image) => pull::measure(runtime, image, arguments.pulls).await?,
    };
    Ok(Measured { name, calls: sequence.calls, timeline: sequence.timeline, crowd, pulls })
}
