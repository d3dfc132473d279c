//! The signals that end the daemon.

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::AppError;

/// Resolves at the first SIGTERM or SIGINT. The handlers are in place when this returns.
///
/// # Errors
/// The kernel takes no handler.
pub fn shutdown() -> Result<impl Future<Output = ()>, AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    Ok(async move {
        // Both are cancel safe: a signal that loses the race is not needed any more.
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "ending; pods stay as they are");
    })
}
