//! Archives to begin with, and their changes.
//!
//! Blind changes to bytes would nearly all die at the checksum of a header. So an archive is cut at its headers,
//! changed by whole entries or by the engine's bytes, and given its checksums again. A finding is a real archive, which
//! `tar tv` lists.

use std::sync::LazyLock;

use crate::tar::Tar;

const BLOCK: usize = 512;
const NAME: usize = 0;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: usize = 157;
/// Length of a header's name and of its link target.
const TEXT: usize = 100;

/// Kinds of entries that the unpacker knows, and one that it does not.
const KINDS: &[u8] = b"01234567xgLKSV";

/// One archive for each thing that layers do, rightly or not.
pub static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds);

fn seeds() -> Vec<Vec<u8>> {
    let deep = "d/".repeat(60) + "f";
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archives = [
        Tar::new(),
        Tar::new().dir("d").file("d/f", "content").symlink("d/l", "f").hard_link("h", "d/f"),
        Tar::new().char_device("null", 1, 3).block_device("disk", 7, 0).mode(0o4755).owner(1, 2).fifo("p"),
        Tar::new().mode(0o1777).dir("./").file("a/b/c", "implied parents"),
        Tar::new().file("d", "a file").dir("d").file("d/f", "").symlink("d", "/"),
        Tar::new().file(&deep, "a long name").symlink("l", &deep).hard_link("h", &deep),
        Tar::new().dir("d").file("d/f", "").file("d/.wh.f", "").file("d/.wh..wh..opq", "").file(".wh.d", ""),
        Tar::new().file(".wh..wh.plnk/1.2", "").file(".wh...", "").file("a/.wh.", ""),
        Tar::new().pax("path", "name").pax("mtime", "-1.25").pax("uid", "7").pax("size", "2").file("f", "no"),
        Tar::new().pax("linkpath", "f").pax("SCHILY.xattr.user.note", "x").hard_link("h", ""),
        Tar::new().pax("SCHILY.xattr.security.capability", capability).file("f", ""),
        Tar::new().pax("SCHILY.xattr.trusted.overlay.opaque", "y").dir("d"),
        Tar::new()
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", "sparse")
            .pax("GNU.sparse.realsize", "9999")
            .file("f", [b"1\n100\n4\n".as_slice(), &[0; 504], b"data"].concat()),
        // Ways out, each of which is refused.
        Tar::new().file("../outside/secret", "x").dir("..").file("/outside/secret", "x"),
        Tar::new().symlink("l", "/box/outside").file("l/secret", "x").dir("l/d").fifo("l/p"),
        Tar::new().symlink("l", "../outside").file("l/.wh.secret", "").file("l/.wh..wh..opq", ""),
        Tar::new()
            .symlink("l", "../outside/secret")
            .file("l", "x")
            .hard_link("h", "l")
            .mode(0o777)
            .file("h", "x"),
        Tar::new().hard_link("h", "../outside/secret").hard_link("h", "/box/outside/secret"),
        Tar::new().symlink("l", "/proc/self/cwd").file("l/x", "").symlink("m", "/proc/self/fd/3").dir("m/x"),
    ];
    archives.into_iter().map(Tar::finish).collect()
}

/// What libFuzzer asks of a mutator: the archive in the first `size` bytes becomes another, of at most `limit` bytes, whose
/// length is the answer. `engine`: its own, which changes bytes.
pub fn mutate_in_place(
    seeds: &[Vec<u8>],
    data: &mut [u8],
    size: usize,
    limit: usize,
    seed: u32,
    engine: impl FnOnce(&mut [u8], usize, usize) -> usize,
) -> usize {
    let changed = mutate(seeds, &data[..size], limit, seed, |bytes, length| {
        let limit = bytes.len();
        engine(bytes, length, limit)
    });
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
}

/// Changes an archive into another of at most `limit` bytes. `seeds`: archives to take entries from. `bytes` is the engine's
/// own change of bytes in place: of the first so many of them into so many.
fn mutate(
    seeds: &[Vec<u8>],
    archive: &[u8],
    limit: usize,
    seed: u32,
    bytes: impl FnOnce(&mut [u8], usize) -> usize,
) -> Vec<u8> {
    let mut dice = Dice(seed.into());
    let mut entries: Vec<Vec<u8>> = cut(archive).map(<[u8]>::to_vec).collect();
    let known = entries.len();
    match dice.below(8) {
        kind if kind == 0 || known == 0 => {
            let (at, seed) = (dice.below(known + 1), dice.pick(seeds));
            entries.splice(at..at, cut(seed).map(<[u8]>::to_vec));
        }
        1 => entries.insert(dice.below(known + 1), entries[dice.below(known)].clone()),
        2 => drop(entries.remove(dice.below(known))),
        3 => {
            let moved = entries.remove(dice.below(known));
            entries.insert(dice.below(known), moved);
        }
        4 => {
            // What decides about ways out is how the names and targets of several entries go together.
            let (from, to) = (*dice.pick(&[NAME, LINK]), *dice.pick(&[NAME, LINK]));
            let text = dice.pick(&entries).get(from..from + TEXT).map(<[u8]>::to_vec);
            let entry = dice.below(known);
            if let (Some(text), Some(place)) = (text, entries[entry].get_mut(to..to + TEXT)) {
                place.copy_from_slice(&text);
            }
        }
        5 => {
            let entry = dice.below(known);
            if let Some(kind) = entries[entry].get_mut(KIND) {
                *kind = *dice.pick(KINDS);
            }
        }
        _ => {
            let mut whole = entries.concat();
            let length = whole.len().min(limit);
            whole.resize(limit, 0);
            let length = bytes(&mut whole, length);
            whole.truncate(length);
            entries = vec![whole];
        }
    }
    let mut changed = entries.concat();
    changed.truncate(limit);
    // Now and then a wrong checksum stays, as it must be refused too.
    if dice.below(64) != 0 {
        repair(&mut changed);
    }
    changed
}

/// The entries of an archive: a header with its content each, up to the zero block that ends it.
fn cut(archive: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = archive;
    std::iter::from_fn(move || {
        if rest.iter().take(BLOCK).all(|byte| *byte == 0) {
            return None;
        }
        let (entry, after) = rest.split_at(entry_length(rest).min(rest.len()));
        rest = after;
        Some(entry)
    })
}

fn entry_length(entry: &[u8]) -> usize {
    let has_content = entry.get(KIND).is_some_and(|kind| !(b'1'..=b'6').contains(kind));
    if has_content { BLOCK + size(entry).next_multiple_of(BLOCK) } else { BLOCK }
}

/// What the size field says; nothing when it says it in another way than octal.
fn size(header: &[u8]) -> usize {
    let digits = header.get(SIZE).unwrap_or_default().iter().take_while(|byte| (b'0'..=b'7').contains(*byte));
    let size = digits.fold(0u64, |sum, digit| sum * 8 + u64::from(digit - b'0'));
    usize::try_from(size).unwrap_or(usize::MAX / 2).min(usize::MAX / 2)
}

/// Gives every header the checksum that it must have.
fn repair(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[CHECKSUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        at = at.saturating_add(entry_length(&archive[at..]));
    }
}

/// SplitMix64: the same seed, the same change, so that the engine's runs can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_cut_at_its_headers_and_put_together_again() {
        for seed in SEEDS.iter() {
            let joined: Vec<u8> = cut(seed).flatten().copied().collect();
            assert_eq!(*seed, [joined.as_slice(), &[0; 2 * BLOCK]].concat());
        }
    }

    #[test]
    fn a_changed_archive_has_right_checksums_and_keeps_the_limit() {
        let mut archive = Vec::new();
        let mut broken = 0;
        for seed in 0..5_000 {
            archive = mutate(&SEEDS, &archive, 8192, seed, |bytes, length| {
                let at = seed as usize % length.max(1);
                bytes[at] ^= 1 << (seed % 8);
                length
            });
            assert!(archive.len() <= 8192);
            let mut repaired = archive.clone();
            repair(&mut repaired);
            broken += usize::from(repaired != archive);
        }
        assert!((1..500).contains(&broken), "{broken} archives have wrong checksums");
    }
}
