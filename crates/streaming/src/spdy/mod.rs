//! SPDY/3.1 as Kubernetes' Go clients speak it (moby/spdystream), server's side.
//!
//! A connection is two tasks and a watch over its idleness. The reader decodes frames, answers what has an answer, and
//! sorts payload into its streams; the writer sends what streams and reader queue. Control frames have a queue of their
//! own that goes first: a reply must be out before the data of its stream, which Go's client throws away otherwise.

pub(crate) mod connection;
pub(crate) mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;

pub(crate) use connection::{Connection, STREAMS, Stream};
pub(crate) use headers::Headers;
