//! What `berth-pod` has to say for people: lines on stderr, which is `supervisor.log` in the pod's directory.
//!
//! Bounded, since the directory is on a tmpfs and a fault may repeat for months.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::crilog::Stamp;

const LIMIT: usize = 64 * 1024;
static SAID: AtomicUsize = AtomicUsize::new(0);

pub(super) fn note(text: std::fmt::Arguments<'_>) {
    let line = format!("{:?} {text}\n", Stamp::now());
    let before = SAID.fetch_add(line.len(), Ordering::Relaxed);
    let line = match before {
        full if full > LIMIT => return,
        nearly if nearly + line.len() > LIMIT => "(this file is full)\n",
        _ => &line,
    };
    // There is nowhere left to complain to.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Says something in `supervisor.log`; arguments as for `format!`.
macro_rules! say {
    ($($argument:tt)*) => { $crate::pod::note::note(format_args!($($argument)*)) };
}
pub(super) use say;
