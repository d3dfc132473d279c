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
    let changed = archive::mutate(&data[..size], limit, seed, |bytes, length| {
        let limit = bytes.len();
        fuzzer_mutate(bytes, length, limit)
    });
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
});
