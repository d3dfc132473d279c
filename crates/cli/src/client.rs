//! The way to the daemon.

/// berthd's own default.
pub(crate) const DEFAULT_ADDRESS: &str = "unix:///run/berth/berth.sock";
