//! Streams as channels.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tracing::debug;

use crate::hangup::{HungUp, Watch};
use crate::peer::{Activity, Peer};
use crate::pipe::{End, Feed, Framing, Out, SEND_QUEUE};

/// In front of a channel's number: the client sends no more on it.
const HALF_CLOSE: u8 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// The channel's number, then bytes.
    Binary,
    /// The channel as a digit, then base64: for clients that have only text.
    Base64,
}

impl Codec {
    pub(crate) fn framing(self, channel: u8) -> Framing {
        match self {
            Self::Binary => Framing::Binary(channel),
            Self::Base64 => Framing::Base64(channel),
        }
    }

    /// How many channels have a number (or a character of ASCII) of their own.
    pub(crate) fn channels(self) -> usize {
        match self {
            Self::Binary => usize::from(HALF_CLOSE),
            Self::Base64 => 128 - usize::from(b'0'),
        }
    }
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inbound<'a> {
    Data { channel: u8, payload: Cow<'a, [u8]> },
    HalfClose { channel: u8 },
    Nothing,
}

/// The client does not speak the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a channel's end is two bytes, not {0}")]
    HalfClose(usize),
    #[error("channel {channel} is not base64")]
    Base64 {
        channel: u8,
        #[source]
        source: base64::DecodeError,
    },
}

/// Reads a message.
///
/// # Errors
/// It is none of the protocol's, so that bytes of a stream would be missing.
pub(crate) fn demux(message: &[u8], codec: Codec, half_close: bool) -> Result<Inbound<'_>, Violation> {
    let Some((first, payload)) = message.split_first() else { return Ok(Inbound::Nothing) };
    if half_close && *first == HALF_CLOSE {
        return match payload {
            [channel] => Ok(Inbound::HalfClose { channel: *channel }),
            _ => Err(Violation::HalfClose(message.len())),
        };
    }
    match codec {
        Codec::Binary => Ok(Inbound::Data { channel: *first, payload: Cow::Borrowed(payload) }),
        Codec::Base64 => {
            let channel = first.wrapping_sub(b'0');
            let payload = STANDARD.decode(payload).map_err(|source| Violation::Base64 { channel, source })?;
            Ok(Inbound::Data { channel, payload: Cow::Owned(payload) })
        }
    }
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the socket")]
    Socket(#[from] tungstenite::Error),
    #[error("the protocol")]
    Protocol(#[from] Violation),
    #[error(transparent)]
    HungUp(#[from] HungUp),
}

/// Begins to speak on `socket`. `feeds` are the channels by number that the client may send on; what it sends on others is
/// thrown away. `queued` are the messages of all channels.
pub(crate) fn start<S>(
    socket: WebSocketStream<S>,
    codec: Codec,
    half_close: bool,
    feeds: Vec<Option<Feed>>,
    queued: mpsc::Receiver<Out>,
    watch: Watch,
    peer: &mut Peer,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, source) = socket.split();
    let (gone, activity) = (peer.gone.clone(), peer.activity.clone());
    let mut reader = Reader { source, codec, half_close, feeds, activity: activity.clone(), watch };
    peer.spawn(async move {
        let ended = tokio::select! {
            ended = reader.run() => ended,
            () = gone.cancelled() => Ok(()),
        };
        debug!(ended = ended.as_ref().err().map(tracing::field::debug), "a WebSocket client left");
    });
    let gone = peer.gone.clone();
    peer.spawn_half(async move {
        if let Err(error) = write(sink, codec, queued, activity).await {
            debug!(error = &error as &dyn Error, "cannot write to a WebSocket client");
            gone.cancel();
        }
    });
}

struct Reader<S> {
    source: SplitStream<WebSocketStream<S>>,
    codec: Codec,
    half_close: bool,
    feeds: Vec<Option<Feed>>,
    activity: Activity,
    watch: Watch,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    async fn run(&mut self) -> Result<(), ReadError> {
        while let Some(message) = self.source.next().await {
            self.activity.touch();
            match message? {
                Message::Binary(bytes) => self.take(&bytes).await?,
                // Whatever the codec: clients are not strict about the kind of message.
                Message::Text(text) => self.take(text.as_bytes()).await?,
                // The end of all it sends. Read on: that sends the answer, and ends by itself.
                Message::Close(_) => {
                    for feed in self.feeds.iter_mut().filter_map(Option::take) {
                        feed.end(End::Finished);
                    }
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: &[u8]) -> Result<(), ReadError> {
        match demux(message, self.codec, self.half_close)? {
            Inbound::Data { channel, payload } => {
                let Some(Some(feed)) = self.feeds.get(usize::from(channel)) else { return Ok(()) };
                self.watch.unless_gone(feed.deliver(&payload)).await?;
                Ok(())
            }
            Inbound::HalfClose { channel } => {
                if let Some(feed) = self.feeds.get_mut(usize::from(channel)).and_then(Option::take) {
                    feed.end(End::Finished);
                }
                Ok(())
            }
            Inbound::Nothing => Ok(()),
        }
    }
}

fn message(frame: Bytes, codec: Codec) -> Result<Message, tungstenite::Error> {
    match codec {
        Codec::Binary => Ok(Message::Binary(frame)),
        // ASCII, as it was encoded; checked again only because the type asks.
        Codec::Base64 => {
            let text = Utf8Bytes::try_from(frame)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Ok(Message::Text(text))
        }
    }
}

/// Writes until the goodbye. The socket stays open for as long as it is read.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    codec: Codec,
    mut queued: mpsc::Receiver<Out>,
    activity: Activity,
) -> Result<(), tungstenite::Error> {
    let mut outs = Vec::with_capacity(SEND_QUEUE);
    loop {
        let mut leaving = queued.recv_many(&mut outs, SEND_QUEUE).await == 0;
        for out in outs.drain(..) {
            match out {
                Out::Frame(frame) => sink.feed(message(frame, codec)?).await?,
                // A pong that nobody asked for has no answer.
                Out::Heartbeat => sink.feed(Message::Pong(Bytes::new())).await?,
                Out::Goodbye => leaving = true,
            }
            activity.touch();
        }
        if leaving {
            let goodbye = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
            return sink.send(Message::Close(Some(goodbye))).await;
        }
        sink.flush().await?;
        activity.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_is_the_channel() {
        let message = demux(b"\x00ls\n", Codec::Binary, false).unwrap();
        assert_eq!(message, Inbound::Data { channel: 0, payload: Cow::Borrowed(b"ls\n") });
        let message = demux(b"0bHMK", Codec::Base64, false).unwrap();
        assert_eq!(message, Inbound::Data { channel: 0, payload: Cow::Borrowed(b"ls\n") });
        assert_eq!(demux(b"", Codec::Binary, true).unwrap(), Inbound::Nothing);
        assert!(matches!(demux(b"0*", Codec::Base64, false), Err(Violation::Base64 { channel: 0, .. })));
    }

    #[test]
    fn only_v5_has_an_end_of_a_channel() {
        assert_eq!(demux(b"\xff\x00", Codec::Binary, true).unwrap(), Inbound::HalfClose { channel: 0 });
        assert!(matches!(demux(b"\xff\x00\x00", Codec::Binary, true), Err(Violation::HalfClose(3))));
        let message = demux(b"\xff\x00", Codec::Binary, false).unwrap();
        assert!(matches!(message, Inbound::Data { channel: 255, .. }));
    }

    #[test]
    fn what_is_framed_is_read_again() {
        for codec in [Codec::Binary, Codec::Base64] {
            for payload in [&b""[..], b"x", b"\0\xff\x80 and more"] {
                let frame = codec.framing(7).encode(payload);
                message(frame.clone(), codec).unwrap();
                let read = demux(&frame, codec, true).unwrap();
                assert_eq!(read, Inbound::Data { channel: 7, payload: Cow::Borrowed(payload) });
            }
        }
    }
}
