//! The messages of `proto/nri/v1alpha1/nri.proto`.

// Generated code keeps its own style.
#[allow(clippy::all, missing_debug_implementations, unreachable_pub, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/nri.pkg.api.v1alpha1.rs"));
}

pub use generated::*;

/// What a key without its minus is, when it has one: what is to be taken away.
pub(crate) fn removed(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}
