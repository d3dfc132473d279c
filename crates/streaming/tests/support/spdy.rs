//! SPDY/3.1 as a client writes and reads it, written apart from the server's code.

#![allow(unreachable_pub, reason = "a test's module is nobody's interface")]

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

#[allow(clippy::duplicate_mod, reason = "a file of words, which the server's own tests have twice")]
#[path = "../../src/spdy/dictionary.rs"]
mod dictionary;

use dictionary::DICTIONARY;

/// What a server sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32, u32),
    Ping(u32),
    GoAway(u32, u32),
    Settings,
}

/// One connection's state of compression.
#[derive(Debug)]
pub struct Wire {
    deflate: Compress,
    inflate: Decompress,
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

#[allow(dead_code, reason = "not all tests use all of it")]
impl Wire {
    pub fn new() -> Self {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&DICTIONARY).unwrap();
        Self { deflate, inflate: Decompress::new(true) }
    }

    pub fn syn_stream(&mut self, id: u32, headers: &[(&str, &str)], fin: bool) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() * 2 + 64);
        self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        let mut frame = vec![0x80, 3, 0, 1, u8::from(fin)];
        frame.extend(&u32::try_from(block.len() + 10).unwrap().to_be_bytes()[1..]);
        frame.extend(id.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0]);
        frame.extend(block);
        frame
    }

    pub fn data(id: u32, payload: &[u8], fin: bool) -> Vec<u8> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.push(u8::from(fin));
        frame.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        frame.extend(payload);
        frame
    }

    pub fn ping(id: u32) -> Vec<u8> {
        [&[0x80, 3, 0, 6, 0, 0, 0, 4][..], &id.to_be_bytes()].concat()
    }

    pub fn reset(id: u32) -> Vec<u8> {
        [&[0x80, 3, 0, 3, 0, 0, 0, 8][..], &id.to_be_bytes(), &[0, 0, 0, 5]].concat()
    }

    /// Takes one frame off the front of `input`, if it is all there.
    pub fn next(&mut self, input: &mut Vec<u8>) -> Option<Received> {
        let head: [u8; 8] = input.get(..8)?.try_into().unwrap();
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let body = input.get(8..8 + length)?.to_vec();
        input.drain(..8 + length);
        let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        if head[0] & 0x80 == 0 {
            let id = u32::from_be_bytes(head[..4].try_into().unwrap());
            return Some(Received::Data(id, body, head[4] & 1 == 1));
        }
        assert_eq!(head[..3], [0x80, 3, 0], "version 3");
        Some(match head[3] {
            2 => {
                assert_eq!(self.inflate(&body[4..]), [0; 4], "no headers");
                Received::Reply(word(0))
            }
            3 => Received::Reset(word(0), word(4)),
            4 => Received::Settings,
            6 => Received::Ping(word(0)),
            7 => Received::GoAway(word(0), word(4)),
            kind => panic!("a frame of type {kind}"),
        })
    }

    fn inflate(&mut self, block: &[u8]) -> Vec<u8> {
        let before = self.inflate.total_in();
        let mut plain = Vec::with_capacity(4096);
        if let Err(error) = self.inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync) {
            assert!(error.needs_dictionary().is_some(), "{error}");
            self.inflate.set_dictionary(&DICTIONARY).unwrap();
            let read = usize::try_from(self.inflate.total_in() - before).unwrap();
            self.inflate.decompress_vec(&block[read..], &mut plain, FlushDecompress::Sync).unwrap();
        }
        plain
    }
}
