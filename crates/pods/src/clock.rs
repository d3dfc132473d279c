//! The two clocks: the one that sequences go by, and the one that people read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_sandbox_manager::sequence::Time;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME (clock_gettime(2)): does not jump, goes on while the machine sleeps and while no daemon runs.
pub(crate) fn boottime() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Nanoseconds since the epoch.
pub(crate) fn unix() -> i64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// When it was, or will be, by the clock on the wall.
pub(crate) fn to_unix(time: Time) -> i64 {
    let now = boottime();
    match time.checked_sub(now) {
        Some(ahead) => unix().saturating_add(nanos(ahead)),
        None => unix().saturating_sub(nanos(now.saturating_sub(time))),
    }
}

/// How long ago it was by the clock on the wall; nothing for what is yet to come.
pub(crate) fn since(unix_nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(unix().saturating_sub(unix_nanos)).unwrap_or_default())
}

pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
