//! The one thing the daemon asks of the C library by itself.
#![allow(unsafe_code)]

/// Makes the allocator give memory back: a pull needs tens of megabytes for some seconds, from many threads, and left
/// alone glibc keeps most of that in arenas of each thread for ever. To be called before there is a second thread.
pub fn return_memory() {
    // SAFETY: each call takes two integers, and there is no other thread yet that could be in the allocator.
    unsafe {
        // Blocks from this size on are mapped one by one, and unmapped when freed; set by hand it no longer grows.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
