//! Several streams over one: frames of a stream's number, a length (both 32 bits, big endian) and so many bytes.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{WireError, message::MAX_MESSAGE};

/// The stream on which the plugin serves and the runtime calls.
pub(crate) const PLUGIN_SERVICE: u32 = 1;
/// The stream on which the runtime serves and the plugin calls.
pub(crate) const RUNTIME_SERVICE: u32 = 2;

const HEADER: usize = 8;
/// What the buffer of a Go reader holds.
const FIRST_FRAME: usize = 4096;

/// The frames of one message. The first is as long as a reader's buffer, the second is the rest: see [`super`].
pub(crate) fn frames(stream: u32, message: &[u8]) -> Bytes {
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME));
    let mut frames = BytesMut::with_capacity(message.len() + 2 * HEADER);
    for payload in [first, rest].into_iter().filter(|payload| !payload.is_empty()) {
        frames.put_u32(stream);
        frames.put_u32(u32::try_from(payload.len()).expect("messages are far below 4 GiB"));
        frames.put_slice(payload);
    }
    frames.freeze()
}

/// Takes frames out of what was received, whatever its pieces.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    received: BytesMut,
}

impl Frames {
    /// Where to read into.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// The next whole frame: its stream and its bytes.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Bytes)>, WireError> {
        let Some(mut header) = self.received.get(..HEADER) else { return Ok(None) };
        let (stream, length) = (header.get_u32(), header.get_u32());
        let payload = length as usize;
        if payload > MAX_MESSAGE {
            return Err(WireError::Frame(length));
        }
        if self.received.len() < HEADER + payload {
            self.received.reserve(HEADER + payload - self.received.len());
            return Ok(None);
        }
        self.received.advance(HEADER);
        Ok(Some((stream, self.received.split_to(payload).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], piece: usize) -> Vec<(u32, Bytes)> {
        let mut frames = Frames::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            frames.buffer().put_slice(piece);
            while let Some(frame) = frames.next().unwrap() {
                found.push(frame);
            }
        }
        found
    }

    #[test]
    fn what_was_cut_into_frames_comes_together_again_however_it_arrives() {
        let message: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        let sent = frames(PLUGIN_SERVICE, &message);
        for piece in [1, 7, 4096, sent.len()] {
            let found = all(&sent, piece);
            assert!(found.iter().all(|(stream, _)| *stream == PLUGIN_SERVICE));
            assert_eq!(found.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [4096, 10_000 - 4096]);
            assert_eq!(found.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect::<Vec<_>>(), message);
        }
    }

    #[test]
    fn a_frame_longer_than_any_message_is_an_error_before_it_is_waited_for() {
        let mut frames = Frames::default();
        frames.buffer().put_u32(1);
        frames.buffer().put_u32(u32::MAX);
        assert_eq!(frames.next(), Err(WireError::Frame(u32::MAX)));
    }
}
