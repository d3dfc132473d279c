//! How the programs here start and end.

use std::process::ExitCode;

use anyhow::{Result, bail};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Does a program's work until it is done or SIGINT or SIGTERM comes. What is dropped half-way cleans up after itself.
pub fn run(name: &str, mut runtime: Builder, work: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    let outcome = runtime.enable_all().build().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = work => outcome,
                stopped = asked_to_stop() => stopped,
            }
        });
        runtime.shutdown_background();
        outcome
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        ExitCode::FAILURE
    })
}

async fn asked_to_stop<T>() -> Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    bail!("stopped by a signal")
}
