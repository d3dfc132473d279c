//! The layer unpacker under libFuzzer; see `fuzz/run`.
#![no_main]

use berth_fuzz::{archive, jail::Jail};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

thread_local! {
    static JAIL: Jail = Jail::new().expect("fuzzing needs root");
}

fuzz_target!(|archive: &[u8]| {
    // Refused is as good as unpacked.
    let _ = JAIL.with(|jail| jail.unpack(archive));
});

fuzz_mutator!(|data: &mut [u8], size: usize, limit: usize, seed: u32| {
    archive::mutate_in_place(&archive::SEEDS, data, size, limit, seed, fuzzer_mutate)
});
