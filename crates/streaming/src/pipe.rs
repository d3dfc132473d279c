//! The two halves of a stream, whatever carries it.
//!
//! ```text
//! socket ─▶ connection's reader ─▶ Feed ─[buffer, bounded]─▶ Input ─▶ handler
//! handler ─▶ Output / Sink ─[queue of frames, bounded, one a connection]─▶ connection's writer ─▶ socket
//! ```
//!
//! Arriving bytes are copied out of the socket's buffer, so that what waits for a slow reader is counted exactly: a
//! slice would keep the whole of the buffer it came in.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::PollSender;

use crate::spdy::frame;

/// Bytes that may wait for one stream's reader. A few times what a pipe holds, so that a reader that is scheduled now and
/// then finds enough to do.
pub(crate) const STREAM_BUFFER: usize = 256 * 1024;

/// Bytes that may wait on one connection, however many streams it has.
pub(crate) const CONNECTION_BUFFER: usize = 8 * 1024 * 1024;

/// Payload of one frame that is sent: what a pipe holds.
pub(crate) const FRAME_BYTES: usize = 64 * 1024;

/// Frames that wait for a socket. With [`FRAME_BYTES`], 2 MiB a connection; small frames (keystrokes) are sent many at once.
pub(crate) const SEND_QUEUE: usize = 32;

/// What the streams of a connection hold in common: how much waits, and the reader that waits for room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    used: AtomicUsize,
    freed: Notify,
}

impl Room {
    fn free(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        // One waiter, the connection's reader. Should it not wait yet, it finds the permit.
        self.freed.notify_one();
    }
}

/// How a stream's input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said that it sends no more.
    Finished,
    /// The stream was reset, or its connection lost.
    Lost,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: BytesMut,
    end: Option<End>,
    reader: Option<Waker>,
    /// Nobody will read: what arrives is thrown away.
    unread: bool,
}

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Buffer>,
    room: Arc<Room>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        // Nothing in the lock can panic half-way through a change.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's input, both ends.
pub(crate) fn input(room: &Arc<Room>) -> (Feed, Input) {
    let shared = Arc::new(Shared { buffer: Mutex::default(), room: Arc::clone(room) });
    (Feed(Arc::clone(&shared)), Input(shared))
}

/// The connection's end of an [`Input`]. Dropped before [`Feed::end`], the input is lost.
#[derive(Debug)]
pub(crate) struct Feed(Arc<Shared>);

impl Feed {
    /// Leaves `data` for the reader and waits while it has too much already. Cancel safe only in that the rest of `data`
    /// is lost: for use where cancelling ends the connection.
    pub(crate) async fn deliver(&self, mut data: &[u8]) {
        loop {
            let taken = self.offer(data);
            data.advance(taken);
            if data.is_empty() {
                return;
            }
            self.0.room.freed.notified().await;
        }
    }

    /// How much of `data` there was room for.
    fn offer(&self, data: &[u8]) -> usize {
        let mut buffer = self.0.lock();
        if buffer.unread || buffer.end.is_some() {
            return data.len();
        }
        let used = self.0.room.used.load(Ordering::Relaxed);
        let room =
            STREAM_BUFFER.saturating_sub(buffer.bytes.len()).min(CONNECTION_BUFFER.saturating_sub(used));
        let taken = data.len().min(room);
        if taken > 0 {
            self.0.room.used.fetch_add(taken, Ordering::Relaxed);
            buffer.bytes.extend_from_slice(&data[..taken]);
            wake(&mut buffer);
        }
        taken
    }

    pub(crate) fn end(&self, end: End) {
        let mut buffer = self.0.lock();
        if buffer.end.is_none() {
            buffer.end = Some(end);
            wake(&mut buffer);
        }
    }

    /// Whether the reader is gone.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.lock().unread
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end(End::Lost);
    }
}

fn wake(buffer: &mut Buffer) {
    if let Some(reader) = buffer.reader.take() {
        reader.wake();
    }
}

/// What a client sends on one stream. Ends where the client said so; a client that vanished or reset the stream is
/// [`io::ErrorKind::ConnectionReset`], after the bytes that came before.
///
/// Drop it to have the rest thrown away. Held and not read, it stops the connection once its buffer is full.
#[derive(Debug)]
pub struct Input(Arc<Shared>);

impl Input {
    /// All that waits, or nothing when the stream has ended.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<BytesMut>> {
        std::future::poll_fn(|context| {
            let mut buffer = self.0.lock();
            if !ready!(buffer.poll(context))? {
                return Poll::Ready(Ok(None));
            }
            let bytes = std::mem::take(&mut buffer.bytes);
            drop(buffer);
            self.0.room.free(bytes.len());
            Poll::Ready(Ok(Some(bytes)))
        })
        .await
    }
}

impl Buffer {
    /// Whether there are bytes; false at the end.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.bytes.is_empty() {
            return Poll::Ready(Ok(true));
        }
        match self.end {
            Some(End::Finished) => Poll::Ready(Ok(false)),
            Some(End::Lost) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                self.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = self.0.lock();
        if target.remaining() == 0 || !ready!(buffer.poll(context))? {
            return Poll::Ready(Ok(()));
        }
        let length = buffer.bytes.len().min(target.remaining());
        target.put_slice(&buffer.bytes[..length]);
        buffer.bytes.advance(length);
        if buffer.bytes.is_empty() && buffer.bytes.capacity() > FRAME_BYTES {
            // An idle stream does not keep what a burst once took.
            buffer.bytes = BytesMut::new();
        }
        drop(buffer);
        self.0.room.free(length);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut buffer = self.0.lock();
        buffer.unread = true;
        let bytes = std::mem::take(&mut buffer.bytes).len();
        drop(buffer);
        self.0.room.free(bytes);
    }
}

/// What a connection's writer does next.
#[derive(Debug)]
pub(crate) enum Out {
    /// A frame, complete (SPDY), or a message without its envelope (WebSocket).
    Frame(Bytes),
    /// Send something that means nothing and has no answer.
    Heartbeat,
    /// Say goodbye. Nothing follows.
    Goodbye,
}

/// How payload becomes a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// DATA of this stream.
    Spdy(u32),
    /// A message with this channel's number in front.
    Binary(u8),
    /// A message of text: the channel as a digit, then base64.
    Base64(u8),
}

impl Framing {
    pub(crate) fn encode(self, payload: &[u8]) -> Bytes {
        let mut frame = self.start(payload.len());
        match self {
            Self::Spdy(_) | Self::Binary(_) => frame.put_slice(payload),
            Self::Base64(_) => frame.put_slice(STANDARD.encode(payload).as_bytes()),
        }
        self.seal(frame)
    }

    /// A frame with room for `length` bytes of payload, none in it yet.
    fn start(self, length: usize) -> BytesMut {
        let mut frame = BytesMut::with_capacity(length + frame::HEADER);
        match self {
            Self::Spdy(id) => frame.put_slice(&frame::data_header(id, 0, false)),
            Self::Binary(channel) => frame.put_u8(channel),
            Self::Base64(channel) => frame.put_u8(b'0' + channel),
        }
        frame
    }

    /// Writes the length where the frame has one.
    fn seal(self, mut frame: BytesMut) -> Bytes {
        if let Self::Spdy(id) = self {
            let header = frame::data_header(id, frame.len() - frame::HEADER, false);
            frame[..frame::HEADER].copy_from_slice(&header);
        }
        frame.freeze()
    }

    fn finish(self) -> Option<Bytes> {
        match self {
            Self::Spdy(id) => Some(Bytes::copy_from_slice(&frame::data_header(id, 0, true))),
            // The server's half of a channel has no end but the connection's.
            Self::Binary(_) | Self::Base64(_) => None,
        }
    }
}

const OPEN: u8 = 0;
const FINISHED: u8 = 1;
const RESET: u8 = 2;

/// Whether a stream may still be written to; known to its writers and to the connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writable(Arc<AtomicU8>);

impl Writable {
    pub(crate) fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) == OPEN
    }

    /// The client wants no more, or never did.
    pub(crate) fn reset(&self) {
        self.0.store(RESET, Ordering::Release);
    }

    /// True for the one who is to say so on the wire.
    fn finish(&self) -> bool {
        self.0.compare_exchange(OPEN, FINISHED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// True for the one who is to say so on the wire, also behind a finish: that ended the server's half only.
    fn cut(&self) -> bool {
        self.0.swap(RESET, Ordering::AcqRel) != RESET
    }
}

/// The connection is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub(crate) struct Gone;

/// The server's own way to write to a stream.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    frames: mpsc::Sender<Out>,
    framing: Framing,
    writable: Writable,
}

impl Sink {
    pub(crate) fn new(frames: mpsc::Sender<Out>, framing: Framing) -> Self {
        Self { frames, framing, writable: Writable::default() }
    }

    pub(crate) fn writable(&self) -> Writable {
        self.writable.clone()
    }

    /// Whether its end can be told apart from the connection's.
    pub(crate) fn has_end(&self) -> bool {
        self.framing.finish().is_some()
    }

    /// The same stream, for a handler.
    pub(crate) fn output(&self) -> Output {
        Output {
            frames: PollSender::new(self.frames.clone()),
            framing: self.framing,
            writable: self.writable(),
        }
    }

    /// Sends all of `payload`, an empty one too. Nothing happens on a stream that is finished.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn send(&self, payload: &[u8]) -> Result<(), Gone> {
        let mut parts = payload.chunks(FRAME_BYTES);
        let mut part = parts.next().unwrap_or_default();
        loop {
            if !self.writable.is_open() {
                return Ok(());
            }
            self.frames.send(Out::Frame(self.framing.encode(part))).await.map_err(|_| Gone)?;
            match parts.next() {
                Some(next) => part = next,
                None => return Ok(()),
            }
        }
    }

    /// Reads what `source` has now right into a frame and sends it; `None` when it had nothing after all.
    ///
    /// # Errors
    /// Of `source`, or [`io::ErrorKind::BrokenPipe`] when the stream takes no more.
    pub(crate) async fn send_from(
        &self,
        source: impl FnOnce(&mut BytesMut) -> io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let slot = self.frames.reserve().await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        if !self.writable.is_open() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Base64 cannot be written in place.
        let in_place = !matches!(self.framing, Framing::Base64(_));
        let mut frame =
            if in_place { self.framing.start(FRAME_BYTES) } else { BytesMut::with_capacity(FRAME_BYTES) };
        match source(&mut frame) {
            Ok(0) => Ok(Some(0)),
            Ok(length) => {
                let frame = if in_place { self.framing.seal(frame) } else { self.framing.encode(&frame) };
                slot.send(Out::Frame(frame));
                Ok(Some(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says that nothing more comes on this stream, unless that was said.
    pub(crate) async fn finish(&self) {
        if self.writable.finish()
            && let Some(frame) = self.framing.finish()
        {
            let _ = self.frames.send(Out::Frame(frame)).await;
        }
    }

    /// Ends the stream both ways, behind what was sent on it.
    pub(crate) async fn reset(&self) {
        let Framing::Spdy(id) = self.framing else { return };
        if self.writable.cut() {
            let _ = self.frames.send(Out::Frame(frame::reset(id, frame::Status::Cancel))).await;
        }
    }
}

/// What a client receives on one stream. A write is done when the frame is queued, and waits while the client's socket
/// takes no more. [`io::ErrorKind::BrokenPipe`] when the client is gone or wants no more of this stream.
#[derive(Debug)]
pub struct Output {
    frames: PollSender<Out>,
    framing: Framing,
    writable: Writable,
}

impl Output {
    fn poll_slot(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.writable.is_open() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.frames.poll_reserve(context).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn send(&mut self, frame: Bytes) -> io::Result<()> {
        self.frames.send_item(Out::Frame(frame)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_slot(context))?;
        let length = data.len().min(FRAME_BYTES);
        let frame = this.framing.encode(&data[..length]);
        this.send(frame)?;
        Poll::Ready(Ok(length))
    }

    /// Nothing to do: frames leave by themselves.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(frame) = this.framing.finish()
            && this.writable.is_open()
        {
            ready!(this.poll_slot(context))?;
            if this.writable.finish() {
                this.send(frame)?;
            } else {
                this.frames.abort_send();
            }
        }
        this.writable.finish();
        Poll::Ready(Ok(()))
    }
}

/// Frames that can be written with one call.
pub(crate) type Batch = VecDeque<Bytes>;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_not_read_is_bounded_and_what_is_dropped_is_free() {
        let room = Arc::new(Room::default());
        let (feed, mut input) = super::input(&room);
        let more = vec![7; STREAM_BUFFER];
        feed.deliver(&more).await;
        assert_eq!(feed.offer(b"x"), 0, "full");
        assert_eq!(input.read(&mut [0; 1000]).await.unwrap(), 1000);
        assert_eq!(feed.offer(&more), 1000);
        assert_eq!(room.used.load(Ordering::Relaxed), STREAM_BUFFER);
        assert_eq!(input.chunk().await.unwrap().unwrap().len(), STREAM_BUFFER);
        assert_eq!(room.used.load(Ordering::Relaxed), 0);
        feed.deliver(&more).await;
        drop(input);
        assert_eq!(room.used.load(Ordering::Relaxed), 0);
        assert!(feed.is_unread());
        assert_eq!(feed.offer(&more), more.len(), "thrown away");
    }

    #[tokio::test]
    async fn a_connections_streams_share_their_room() {
        let room = Arc::new(Room::default());
        let streams: Vec<_> = (0..64).map(|_| super::input(&room)).collect();
        let more = vec![7; STREAM_BUFFER];
        let taken: usize = streams.iter().map(|(feed, _)| feed.offer(&more)).sum();
        assert_eq!(taken, CONNECTION_BUFFER);
    }

    #[tokio::test]
    async fn the_end_comes_behind_the_bytes() {
        let room = Arc::new(Room::default());
        let (feed, mut input) = super::input(&room);
        feed.deliver(b"rest").await;
        feed.end(End::Finished);
        drop(feed);
        let mut text = String::new();
        input.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "rest");
        let (feed, mut input) = super::input(&room);
        feed.deliver(b"rest").await;
        drop(feed);
        let error = input.read_to_string(&mut text).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_stream_is_finished_once_and_may_be_reset_behind_that() {
        let (frames, mut queued) = mpsc::channel(SEND_QUEUE);
        let sink = Sink::new(frames, Framing::Spdy(5));
        let mut output = sink.output();
        output.write_all(b"hi").await.unwrap();
        output.shutdown().await.unwrap();
        output.shutdown().await.unwrap();
        assert_eq!(output.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        sink.finish().await;
        sink.send(b"more").await.unwrap();
        sink.reset().await;
        sink.reset().await;
        drop((sink, output));
        let mut sent = Vec::new();
        while let Some(Out::Frame(frame)) = queued.recv().await {
            sent.push(frame);
        }
        let reset = frame::reset(5, frame::Status::Cancel);
        assert_eq!(sent, [&b"\0\0\0\x05\0\0\0\x02hi"[..], b"\0\0\0\x05\x01\0\0\0", &reset]);
    }
}
