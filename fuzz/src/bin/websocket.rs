//! Messages of the channel protocols under libFuzzer; see `fuzz/run`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| berth_streaming::fuzz::websocket(message));
