//! What is in the files: bytes that compress about as well as programs and texts do, quickly made.

/// Bytes of each pool. Far more than the 32 kB that gzip looks back, so that a piece seldom meets itself again.
const POOL: usize = 16 << 20;

/// Pieces that files are put together from.
const PIECE: u64 = 4096;

/// xorshift64*: small, fast, the same everywhere.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        // Spread out; zero would stay zero.
        let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normally distributed, mean 0 and deviation 1, near enough: a sum of twelve.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.fraction()).sum::<f64>() - 6.0
    }
}

/// Where files come from.
#[derive(Debug)]
pub(super) struct Source {
    /// Words: about as compressible as source code and documentation.
    text: Vec<u8>,
    /// Words between bytes of no pattern: about as compressible as machine code.
    binary: Vec<u8>,
}

impl Source {
    pub(super) fn new() -> Source {
        let mut random = Random::new(1000);
        let words: Vec<Vec<u8>> = (0..2048)
            .map(|_| {
                let length = 2 + random.below(11);
                (0..length).map(|_| b'a' + random.below(26) as u8).chain([b' ']).collect()
            })
            .collect();
        let word = |random: &mut Random| {
            // Few words are frequent, as in any language.
            let at = random.fraction().powi(4) * words.len() as f64;
            words[at as usize].clone()
        };
        let (mut text, mut binary) = (Vec::with_capacity(POOL), Vec::with_capacity(POOL));
        while text.len() < POOL {
            text.extend(word(&mut random));
        }
        while binary.len() < POOL {
            binary.extend(word(&mut random));
            let noise = random.next().to_le_bytes();
            let length = random.below(4) as usize;
            binary.extend_from_slice(&noise[..length]);
        }
        Source { text, binary }
    }

    /// The next file: most have a few kilobytes, few have tens of megabytes, and those few hold much of all bytes.
    pub(super) fn file(&self, random: &mut Random) -> Vec<u8> {
        let size = match random.below(1500) {
            0 => 8_000_000 + random.below(32_000_000),
            // Median 4 kB, mean 26 kB.
            _ => (8.3 + 1.9 * random.normal()).exp().min(4e6) as u64,
        };
        let pool = if size > 64 * 1024 || random.below(4) == 0 { &self.binary } else { &self.text };
        let mut file = Vec::with_capacity(size as usize);
        while (file.len() as u64) < size {
            let length = PIECE.min(size - file.len() as u64);
            let at = random.below(pool.len() as u64 - length) as usize;
            file.extend_from_slice(&pool[at..at + length as usize]);
        }
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_every_time_and_most_are_small() {
        let source = Source::new();
        let sizes = |seed| {
            let mut random = Random::new(seed);
            (0..2000).map(|_| source.file(&mut random).len()).collect::<Vec<_>>()
        };
        let mut first = sizes(3);
        assert_eq!(first, sizes(3));
        assert_ne!(first, sizes(4));
        first.sort_unstable();
        assert!((2_000..8_000).contains(&first[1000]), "median {}", first[1000]);
    }
}
