//! What has no safe wrapper.
#![allow(unsafe_code)]

/// `berth ps | head -1` is to end quietly when head does. Rust's runtime has SIGPIPE ignored, and then printing panics.
pub(crate) fn end_with_a_closed_pipe() {
    // SAFETY: nothing else runs yet, and the default disposition calls no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
