//! Fuzzing of what strangers send.
//!
//! Image layers: archives that are nearly right, unpacked where every step outside would be seen. [`archive`] has the
//! archives to begin with and turns one into another; [`jail`] unpacks and looks. Archives of images: [`shelf`] takes them
//! in, and nothing of them may be left. Clients of the streaming server: frames of [`spdy`], which have to be written before
//! they can be wrong, and messages of WebSocket. NRI plugins: frames, messages and answers. The engine is libFuzzer, and
//! `fuzz/run` builds targets together with it. What the crate does without an engine is tested like any other code.

pub mod archive;
pub mod jail;
pub mod shelf;
pub mod spdy;
#[path = "../../crates/image/tests/support/tar.rs"]
pub mod tar;
