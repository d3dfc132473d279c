//! Frames of SPDY/3.1, as bytes.
//!
//! Reading is a state machine over whatever the socket gave: control frames are taken whole, DATA in the pieces it comes
//! in, so that a frame's length (up to 16 MiB) is nobody's memory.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{HeaderError, Headers, Inflater};

/// Of every frame: what it is, flags, length.
pub(crate) const HEADER: usize = 8;

const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
const ID: u32 = CONTROL - 1;
const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;

/// A control frame is a few headers. More would be held in memory before it can be looked at.
const CONTROL_BYTES: usize = 64 * 1024;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    ProtocolError = 1,
    RefusedStream = 3,
    Cancel = 5,
}

/// What came from the peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        /// We may not write.
        unidirectional: bool,
        headers: Headers,
    },
    /// A piece of a DATA frame; `fin` on the last one.
    Data {
        id: u32,
        payload: BytesMut,
        fin: bool,
    },
    Headers {
        id: u32,
        fin: bool,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Understood and of no meaning here: SETTINGS, WINDOW_UPDATE, a reply to what we never ask, types of later versions.
    Other,
}

/// The peer does not speak SPDY/3.1, or means harm. Ends the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a control frame of version {0}")]
    Version(u16),
    #[error("a control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("a frame of stream 0")]
    StreamZero,
    #[error("headers")]
    Headers(#[from] HeaderError),
}

#[derive(Debug)]
enum State {
    Head,
    Data {
        id: u32,
        left: usize,
        fin: bool,
    },
    /// Rest of a frame that nobody wants.
    Skip {
        left: usize,
    },
}

#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    inflater: Inflater,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, inflater: Inflater::new() }
    }

    /// The next frame in `input`, or none until there is more of it.
    ///
    /// # Errors
    /// Nothing after it can be read: the headers' compression has one state for the connection.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.state {
                State::Data { id, left, fin } => {
                    if input.is_empty() && left > 0 {
                        return Ok(None);
                    }
                    let payload = input.split_to(left.min(input.len()));
                    let left = left - payload.len();
                    self.state = if left == 0 { State::Head } else { State::Data { id, left, fin } };
                    return Ok(Some(Frame::Data { id, payload, fin: fin && left == 0 }));
                }
                State::Skip { left } => {
                    let now = left.min(input.len());
                    input.advance(now);
                    if now < left {
                        self.state = State::Skip { left: left - now };
                        return Ok(None);
                    }
                    self.state = State::Head;
                    return Ok(Some(Frame::Other));
                }
                State::Head => {
                    let Some(mut head) = input.get(..HEADER) else { return Ok(None) };
                    let (word, flags, length) = (head.get_u32(), head.get_u8(), head.get_uint(3) as usize);
                    if word & CONTROL == 0 {
                        if word == 0 {
                            return Err(FrameError::StreamZero);
                        }
                        input.advance(HEADER);
                        self.state = State::Data { id: word, left: length, fin: flags & FIN != 0 };
                        continue;
                    }
                    let (version, kind) = ((word & ID) >> 16, word & 0xffff);
                    let (version, kind) = (version as u16, kind as u16);
                    if version != VERSION {
                        return Err(FrameError::Version(version));
                    }
                    if !matches!(kind, SYN_STREAM | SYN_REPLY | RST_STREAM | PING | GOAWAY | HEADERS) {
                        input.advance(HEADER);
                        self.state = State::Skip { left: length };
                        continue;
                    }
                    if length > CONTROL_BYTES {
                        return Err(FrameError::Length { kind, length });
                    }
                    if input.len() < HEADER + length {
                        input.reserve(HEADER + length - input.len());
                        return Ok(None);
                    }
                    input.advance(HEADER);
                    let body = input.split_to(length);
                    return self.control(kind, flags, &body).map(Some);
                }
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Frame, FrameError> {
        let fixed = match kind {
            SYN_STREAM => 10,
            RST_STREAM | GOAWAY => 8,
            _ => 4,
        };
        if body.len() < fixed {
            return Err(FrameError::Length { kind, length: body.len() });
        }
        let id = body.get_u32() & ID;
        let fin = flags & FIN != 0;
        if id == 0 && !matches!(kind, PING | GOAWAY) {
            return Err(FrameError::StreamZero);
        }
        Ok(match kind {
            SYN_STREAM => {
                // The associated stream, priority and credential slot: no use here, where one task writes all.
                body.advance(fixed - 4);
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                Frame::SynStream { id, fin, unidirectional, headers: self.inflater.block(body)? }
            }
            SYN_REPLY => {
                // Inflated, or the headers that follow could not be.
                self.inflater.block(body)?;
                Frame::Other
            }
            HEADERS => {
                self.inflater.block(body)?;
                Frame::Headers { id, fin }
            }
            RST_STREAM => Frame::Reset { id },
            PING => Frame::Ping { id },
            _ => Frame::GoAway,
        })
    }
}

/// # Panics
/// Never for payload of up to [`crate::pipe::FRAME_BYTES`].
pub(crate) fn data_header(id: u32, length: usize, fin: bool) -> [u8; HEADER] {
    debug_assert!(length < 1 << 24 && id & CONTROL == 0, "fits the header");
    let word = u64::from(id) << 32 | u64::from(if fin { FIN } else { 0 }) << 24 | length as u64;
    word.to_be_bytes()
}

fn control(kind: u16, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEADER + length);
    frame.put_u16(VERSION | 1 << 15);
    frame.put_u16(kind);
    // No flags: their byte is the top of the length, which a control frame of ours never reaches.
    frame.put_u32(length as u32);
    frame
}

/// `headers` is the compressed block.
pub(crate) fn reply(id: u32, headers: &[u8]) -> Bytes {
    let mut frame = control(SYN_REPLY, 4 + headers.len());
    frame.put_u32(id);
    frame.put_slice(headers);
    frame.freeze()
}

pub(crate) fn reset(id: u32, status: Status) -> Bytes {
    let mut frame = control(RST_STREAM, 8);
    frame.put_u32(id);
    frame.put_u32(status as u32);
    frame.freeze()
}

pub(crate) fn ping(id: u32) -> Bytes {
    let mut frame = control(PING, 4);
    frame.put_u32(id);
    frame.freeze()
}

/// Settings, none. Go's client reads it and does nothing.
pub(crate) fn settings() -> Bytes {
    let mut frame = control(SETTINGS, 4);
    frame.put_u32(0);
    frame.freeze()
}

/// `last` is the last stream that was accepted.
pub(crate) fn goaway(last: u32, failed: bool) -> Bytes {
    let mut frame = control(GOAWAY, 8);
    frame.put_u32(last);
    frame.put_u32(u32::from(failed));
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Wire as Client;

    fn all(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
        let mut input = BytesMut::new();
        let mut frames = Vec::new();
        for part in bytes.chunks(piece) {
            input.extend_from_slice(part);
            while let Some(frame) = decoder.next(&mut input)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let mut client = Client::new();
        let mut bytes = Vec::new();
        bytes.extend(client.syn_stream(1, &[("streamtype", "error")], false));
        bytes.extend(client.syn_stream(3, &[("streamtype", "data"), ("port", "80")], true));
        bytes.extend(Client::data(1, b"hello", true));
        bytes.extend(ping(7));
        bytes.extend(reset(3, Status::Cancel));
        bytes.extend([0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0, 0]); // SETTINGS
        bytes.extend([0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 16, 0]); // WINDOW_UPDATE
        bytes.extend(goaway(0, false));
        for piece in [1, 2, 3, 7, 8, 64, bytes.len()] {
            let frames = all(&mut Decoder::new(), &bytes, piece).unwrap();
            let mut payload = Vec::new();
            let mut others = Vec::new();
            for frame in frames {
                match frame {
                    Frame::Data { id: 1, payload: part, .. } => payload.extend_from_slice(&part),
                    other => others.push(other),
                }
            }
            assert_eq!(payload, b"hello", "in pieces of {piece}");
            assert!(
                matches!(
                    &others[..],
                    [
                        Frame::SynStream { id: 1, fin: false, .. },
                        Frame::SynStream { id: 3, fin: true, headers, .. },
                        Frame::Ping { id: 7 },
                        Frame::Reset { id: 3 },
                        Frame::Other,
                        Frame::Other,
                        Frame::GoAway,
                    ] if headers.get("port") == Some("80")
                ),
                "in pieces of {piece}: {others:?}"
            );
        }
    }

    #[test]
    fn the_end_is_on_the_last_piece_only() {
        let bytes = Client::data(5, &[1; 100], true);
        let ends: Vec<bool> = all(&mut Decoder::new(), &bytes, 30)
            .unwrap()
            .iter()
            .map(|frame| matches!(frame, Frame::Data { fin: true, .. }))
            .collect();
        assert_eq!(ends.iter().filter(|end| **end).count(), 1);
        assert_eq!(ends.last(), Some(&true));
        let empty = all(&mut Decoder::new(), &Client::data(5, &[], true), 8).unwrap();
        assert!(matches!(&empty[..], [Frame::Data { id: 5, fin: true, .. }]), "{empty:?}");
    }

    #[test]
    fn nonsense_ends_the_connection() {
        let http = b"GET / HTTP/1.1\r\n\r\n";
        assert!(
            all(&mut Decoder::new(), http, 4)
                .unwrap()
                .iter()
                .all(|frame| matches!(frame, Frame::Data { .. }))
        );
        let version = [0x80, 2, 0, 1, 0, 0, 0, 0];
        assert!(matches!(all(&mut Decoder::new(), &version, 8), Err(FrameError::Version(2))));
        let long = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
        assert!(matches!(all(&mut Decoder::new(), &long, 8), Err(FrameError::Length { kind: 1, .. })));
        let short = [0x80, 3, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1];
        assert!(matches!(
            all(&mut Decoder::new(), &short, 8),
            Err(FrameError::Length { kind: 3, length: 4 })
        ));
        assert!(matches!(all(&mut Decoder::new(), &[0; 8], 8), Err(FrameError::StreamZero)));
    }
}
