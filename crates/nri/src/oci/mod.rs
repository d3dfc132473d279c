//! The OCI runtime spec as plugins see it, and their wishes as changes to it. Pure.
//!
//! What a spec can say is changed in it, whether or not the one who launches the container can do it: that is for the
//! launcher to say, by the field's name. What not even a spec can say is refused here.

mod adjust;
mod resources;
mod view;

pub use adjust::adjust;
pub use resources::{limits, seen};
pub use view::describe;

/// Why a wish cannot become part of a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdjustError {
    /// There is no such thing here.
    #[error("{0} cannot be changed by an NRI plugin: {1}")]
    Unsupported(&'static str, &'static str),
    /// It makes no sense.
    #[error("{field}, as NRI plugins want it: {why}")]
    Invalid {
        /// As the OCI spec calls it.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}
