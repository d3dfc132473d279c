//! Doors for the fuzz targets: what strangers send, read as the server reads it.

use bytes::BytesMut;

use crate::spdy::frame::{Decoder, Frame};
use crate::spdy::headers::Deflater;
use crate::websocket::{Codec, Inbound, demux};

/// A client's headers, whose blocks depend on those before.
#[derive(Debug)]
pub struct Headers(Deflater);

impl Default for Headers {
    fn default() -> Self {
        Self(Deflater::new())
    }
}

impl Headers {
    pub fn deflate(&mut self, plain: &[u8]) -> Vec<u8> {
        self.0.deflate(plain)
    }
}

/// Reads `bytes` as a client's side of a SPDY connection, at once and in pieces of a length that their first one says,
/// and checks that both are the same. How many frames there were, if all were right.
///
/// # Panics
/// They are not the same.
pub fn spdy(bytes: &[u8]) -> Option<usize> {
    let (piece, bytes) = bytes.split_first()?;
    let whole = decode(bytes, bytes.len().max(1));
    let cut = decode(bytes, usize::from(*piece).max(1));
    assert_eq!(whole, cut, "frames depend on how they arrive");
    let (frames, right) = whole;
    right.then_some(frames.len())
}

/// Frames with the pieces of DATA joined, and whether it ended well.
fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::new();
    let mut input = BytesMut::new();
    let mut frames: Vec<Frame> = Vec::new();
    for part in bytes.chunks(piece) {
        input.extend_from_slice(part);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Frame::Data { id, payload, fin })) => match frames.last_mut() {
                    // Joined over the frames' borders too: the handler sees none.
                    Some(Frame::Data { id: before, payload: joined, fin: ended })
                        if *before == id && !*ended =>
                    {
                        joined.extend_from_slice(&payload);
                        *ended = fin;
                    }
                    _ => frames.push(Frame::Data { id, payload, fin }),
                },
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

/// Reads `message` by a protocol that its first byte chooses, and checks that data survives being written again.
///
/// # Panics
/// It does not.
pub fn websocket(message: &[u8]) {
    let Some((protocol, message)) = message.split_first() else { return };
    let codec = if protocol & 1 == 0 { Codec::Binary } else { Codec::Base64 };
    if let Ok(Inbound::Data { channel, payload }) = demux(message, codec, protocol & 2 == 2)
        && usize::from(channel) < codec.channels()
    {
        let again = codec.framing(channel).encode(&payload);
        let read = demux(&again, codec, true).expect("what was written can be read");
        assert_eq!(read, Inbound::Data { channel, payload });
    }
}
