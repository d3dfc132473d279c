//! What the integration tests share: a node with the real daemon on it, a real registry, the real crictl, CRI clients
//! whose bindings nobody here wrote, and a check that nothing is left over.
//!
//! A test is one call of [`on_node`]: it boots a daemon on a root, bridge, cgroup and socket of its own, runs the body,
//! removes all pods and images over CRI, stops the daemon and fails if anything is left. Nodes share nothing, so tests
//! run side by side. Nothing here reaches into berth's crates: what isn't visible from outside isn't tested here.
//!
//! The binaries come from `$BERTH_BIN_DIR` (`make test` sets it), else from the folder cargo built the test in.

pub mod cri;
mod crictl;
pub mod host;
pub mod image;
pub mod kubelet;
mod leak;
pub mod manifest;
pub mod node;
pub mod nri;
pub mod program;
pub mod registry;
pub mod tools;
mod wait;

use std::panic::{AssertUnwindSafe, resume_unwind};

use anyhow::Result;
use futures::FutureExt;

pub use self::{
    leak::{marker_hierarchy, remove_cgroup},
    node::{Node, Options},
    wait::{PATIENCE, wait_until},
};

/// Runs `body` on a node that has the busybox image, and fails when it fails or leaves something over.
///
/// # Panics
/// When the test fails; the daemon's log is printed before.
pub fn on_node(body: impl AsyncFnOnce(&Node) -> Result<()>) {
    on_node_with(Options::default(), body);
}

/// [`on_node`] for a node that is set up in another way.
///
/// # Panics
/// As [`on_node`].
pub fn on_node_with(options: Options, body: impl AsyncFnOnce(&Node) -> Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime for the test starts");
    runtime.block_on(async {
        let node = match Node::boot(options).await {
            Ok(node) => node,
            Err(error) => panic!("the node did not boot: {error:#}"),
        };
        let outcome = AssertUnwindSafe(body(&node)).catch_unwind().await;
        let clean = match &outcome {
            Ok(Ok(())) => node.finish().await,
            _ => Ok(()),
        };
        let failed = clean.is_err() || !matches!(outcome, Ok(Ok(())));
        if failed {
            eprintln!("--- berthd's log ---\n{}--- end of berthd's log ---", node.log_tail());
        }
        drop(node);
        match outcome {
            Err(panic) => resume_unwind(panic),
            Ok(Err(error)) => panic!("{error:?}"),
            Ok(Ok(())) => {}
        }
        if let Err(error) = clean {
            panic!("{error:?}");
        }
    });
}
