//! Archives of images under libFuzzer; see `fuzz/run`.
#![no_main]

use berth_fuzz::{
    archive,
    shelf::{SEEDS, Shelf},
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

thread_local! {
    static SHELF: Shelf = Shelf::new().expect("there is room for a store");
}

fuzz_target!(|archive: &[u8]| {
    // Refused is as good as taken in.
    let _ = SHELF.with(|shelf| shelf.load(archive));
});

fuzz_mutator!(|data: &mut [u8], size: usize, limit: usize, seed: u32| {
    archive::mutate_in_place(&SEEDS, data, size, limit, seed, fuzzer_mutate)
});
