//! Frames of SPDY under libFuzzer, written by order and as they come; see `fuzz/run`.
#![no_main]

use berth_fuzz::spdy::connection;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    berth_streaming::fuzz::spdy(&connection(input));
    berth_streaming::fuzz::spdy(input);
});
