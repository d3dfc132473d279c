//! What every call passes on its way to a handler, so that no handler repeats it.

mod admission;
mod around;
mod deadline;
mod method;
mod pieces;
mod subject;
mod trace;
mod unbuilt;

pub use self::admission::Admission;
pub use self::around::AroundLayer;
pub use self::deadline::Deadline;
pub(crate) use self::method::Method;
pub(crate) use self::pieces::{Messages, in_pieces};
pub use self::subject::{Subject, received};
pub use self::trace::Trace;
pub(crate) use self::unbuilt::unbuilt;
