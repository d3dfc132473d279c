//! What an NRI plugin sends under libFuzzer; see `fuzz/run`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| match input.split_first() {
    Some((0, bytes)) => berth_nri::fuzz::answer(bytes),
    Some((_, bytes)) => berth_nri::fuzz::stream(bytes),
    None => {}
});
