//! How both services share one connection.
//!
//! Three layers, each a file: `mux` makes two streams of bytes out of one, `message` is ttrpc's framing in each of them,
//! `connection` makes calls and takes them.
//!
//! ttrpc is written down here rather than taken from the crate `ttrpc` because the two layers are not independent. The Go
//! module's reader of a stream takes a whole frame of the layer below into a buffer of 4096 bytes, or into what is still
//! missing of its message, and gives the connection up when the frame does not fit. So the cuts between frames have to
//! lie where Go's writer puts them, and only who knows the messages can do that. What NRI uses of ttrpc, a call with
//! one answer, is a header of ten bytes and two small messages.

pub(crate) mod connection;
pub(crate) mod message;
pub(crate) mod mux;

/// What a peer sent is not what the protocol has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame of {0} bytes")]
    Frame(u32),
    #[error("a message of {0} bytes")]
    Message(u32),
    #[error("a message that is no {0}")]
    Decode(&'static str),
}
