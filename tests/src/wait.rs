//! Waiting for a level: something that, once true, stays true until the test changes it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time between two looks. Only tests poll; the product gets told.
const PAUSE: Duration = Duration::from_millis(10);

/// Long enough for a machine that compiles and tests at once; a passing test never waits it out.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `look` until it succeeds, for at most `limit`. The error says what was awaited and what the last look saw.
pub async fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(unmet) if Instant::now() >= deadline => {
                return Err(unmet).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
