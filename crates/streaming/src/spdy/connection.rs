//! A SPDY connection: its streams, its reader and its writer.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;

use super::frame::{self, Decoder, Frame, FrameError, Status};
use super::headers::{Deflater, Headers};
use crate::hangup::{Hangup, HungUp, Watch};
use crate::peer::{Activity, Peer};
use crate::pipe::{self, Batch, End, Feed, Framing, Input, Out, Room, SEND_QUEUE, Sink, Writable};

/// Streams of one connection at a time: a thousand forwarded connections have two each.
pub(crate) const STREAMS: usize = 2048;

/// Streams that wait for the protocol to look at them, which it does at once.
const BACKLOG: usize = 64;

/// Answers that wait for the socket. A peer that asks more before it reads is not read any further.
const ANSWERS: usize = 256;

/// Read at a time, once the client sends much.
const READ_BYTES: usize = 64 * 1024;

/// Room that a connection has for what its client may type.
const IDLE_BYTES: usize = 4 * 1024;

/// A stream that the client opened, and that was answered.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(crate) input: Input,
    pub(crate) sink: Sink,
}

/// Dropped, it ends at once and its socket is closed.
#[derive(Debug)]
pub(crate) struct Connection {
    /// In the order they were opened. None more: the client is gone.
    pub(crate) streams: mpsc::Receiver<Stream>,
    pub(crate) peer: Peer,
}

impl Connection {
    /// Begins to speak on a socket whose handshake is done; `early` is what was read off it already.
    pub(crate) fn start(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        early: Bytes,
        hangup: Option<Hangup>,
        idle: Duration,
    ) -> Self {
        let (frames, queued) = mpsc::channel(SEND_QUEUE);
        let (answers, answering) = mpsc::channel(ANSWERS);
        let (opened, streams) = mpsc::channel(BACKLOG);
        let last = Arc::new(AtomicU32::new(0));
        let mut peer = Peer::new(frames.clone(), idle);
        let reader = Reader {
            source: reader,
            decoder: Decoder::new(),
            deflater: Deflater::new(),
            streams: HashMap::new(),
            last: Arc::clone(&last),
            leaving: false,
            room: Arc::default(),
            opened: Some(opened),
            answers,
            activity: peer.activity.clone(),
            watch: peer.watch(hangup),
        };
        let writer = Writer { target: writer, last, activity: peer.activity.clone() };
        peer.spawn(async move {
            let ended = reader.run(early).await;
            debug!(ended = ended.as_ref().err().map(tracing::field::debug), "a SPDY client left");
        });
        let gone = peer.gone.clone();
        peer.spawn_half(async move {
            match writer.run(queued, answering).await {
                // Kept until the client leaves: a client that sees the end of the socket before it has taken everything
                // off its own queues may lose some of it.
                Ok(target) => {
                    gone.cancelled().await;
                    drop(target);
                }
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "cannot write to a SPDY client");
                    gone.cancel();
                }
            }
        });
        Self { streams, peer }
    }
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the socket")]
    Socket(#[from] io::Error),
    #[error("the protocol")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    HungUp(#[from] HungUp),
}

struct Entry {
    /// None when the client has finished its half.
    feed: Option<Feed>,
    writable: Writable,
}

impl Entry {
    /// Nothing will happen on it that anybody would see.
    fn is_over(&self) -> bool {
        !self.writable.is_open() && self.feed.as_ref().is_none_or(Feed::is_unread)
    }
}

struct Reader<R> {
    source: R,
    decoder: Decoder,
    deflater: Deflater,
    streams: HashMap<u32, Entry>,
    /// The highest stream opened so far.
    last: Arc<AtomicU32>,
    /// The client said GOAWAY.
    leaving: bool,
    room: Arc<Room>,
    /// None once the protocol takes no more.
    opened: Option<mpsc::Sender<Stream>>,
    answers: mpsc::Sender<Bytes>,
    activity: Activity,
    watch: Watch,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self, early: Bytes) -> Result<(), ReadError> {
        // Dropping `self` at the end loses all inputs.
        let _told = self.watch.gone.clone().drop_guard();
        let mut input = BytesMut::from(&early[..]);
        let mut room = IDLE_BYTES;
        loop {
            loop {
                match self.decoder.next(&mut input) {
                    Ok(Some(frame)) => self.take(frame).await?,
                    Ok(None) => break,
                    Err(error) => {
                        let goodbye = frame::goaway(self.last.load(Ordering::Relaxed), true);
                        // It may not read, and is not to be waited for.
                        let _ = self.answers.try_send(goodbye);
                        return Err(error.into());
                    }
                }
            }
            if input.is_empty() && input.capacity() > room {
                input = BytesMut::new();
            }
            input.reserve(room);
            let read = self.source.read_buf(&mut input).await?;
            if read == 0 {
                return Ok(());
            }
            room = if read < IDLE_BYTES { IDLE_BYTES } else { READ_BYTES };
            self.activity.touch();
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), ReadError> {
        match frame {
            Frame::SynStream { id, fin, unidirectional, headers } => {
                self.open(id, fin, unidirectional, headers).await?;
            }
            Frame::Data { id, payload, fin } => {
                // Unknown streams are those that were reset here or there while the data was under way.
                let Some(entry) = self.streams.get_mut(&id) else { return Ok(()) };
                if let Some(feed) = &entry.feed {
                    self.watch.unless_gone(feed.deliver(&payload)).await?;
                }
                if fin {
                    self.finish(id);
                }
            }
            Frame::Headers { id, fin: true } => self.finish(id),
            Frame::Reset { id } => {
                if let Some(entry) = self.streams.remove(&id) {
                    entry.writable.reset();
                }
            }
            // Odd ones are the client's; an even one would answer ours, and we ask none.
            Frame::Ping { id } if id % 2 == 1 => self.answer(frame::ping(id)).await?,
            Frame::GoAway => self.leaving = true,
            Frame::Ping { .. } | Frame::Headers { fin: false, .. } | Frame::Other => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, mute: bool, headers: Headers) -> Result<(), ReadError> {
        if id.is_multiple_of(2) || id <= self.last.load(Ordering::Relaxed) {
            return self.answer(frame::reset(id, Status::ProtocolError)).await;
        }
        self.last.store(id, Ordering::Relaxed);
        self.streams.retain(|_, entry| !entry.is_over());
        let frames = self.watch.frames.upgrade();
        let (Some(opened), Some(frames), false) =
            (&self.opened, frames, self.leaving || self.streams.len() >= STREAMS)
        else {
            return self.answer(frame::reset(id, Status::RefusedStream)).await;
        };
        let (feed, input) = pipe::input(&self.room);
        let sink = Sink::new(frames, Framing::Spdy(id));
        if mute {
            sink.writable().reset();
        }
        if fin {
            feed.end(End::Finished);
        }
        self.streams.insert(id, Entry { feed: (!fin).then_some(feed), writable: sink.writable() });
        let reply = frame::reply(id, &self.deflater.empty());
        // First the answer, so that data of a quick handler cannot overtake it.
        let _ = self.watch.unless_gone(self.answers.send(reply)).await?;
        let stream = Stream { id, headers, input, sink };
        if self.watch.unless_gone(opened.send(stream)).await?.is_err() {
            self.opened = None;
            self.streams.remove(&id);
            return self.answer(frame::reset(id, Status::RefusedStream)).await;
        }
        Ok(())
    }

    fn finish(&mut self, id: u32) {
        if let Some(feed) = self.streams.get_mut(&id).and_then(|entry| entry.feed.take()) {
            feed.end(End::Finished);
        }
    }

    async fn answer(&mut self, frame: Bytes) -> Result<(), ReadError> {
        let _ = self.watch.unless_gone(self.answers.send(frame)).await?;
        Ok(())
    }
}

struct Writer<W> {
    target: W,
    last: Arc<AtomicU32>,
    activity: Activity,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes until the goodbye. Control frames first.
    async fn run(
        mut self,
        mut queued: mpsc::Receiver<Out>,
        mut answers: mpsc::Receiver<Bytes>,
    ) -> io::Result<W> {
        let mut batch = Batch::new();
        let mut outs = Vec::with_capacity(SEND_QUEUE);
        let mut answering = true;
        loop {
            let mut leaving = false;
            tokio::select! {
                biased;
                answer = answers.recv(), if answering => match answer {
                    Some(answer) => {
                        batch.push_back(answer);
                        while let Ok(answer) = answers.try_recv() {
                            batch.push_back(answer);
                        }
                    }
                    None => answering = false,
                },
                count = queued.recv_many(&mut outs, SEND_QUEUE) => {
                    // None left who could write: the same as a goodbye.
                    leaving = count == 0;
                    // What was answered while these were queued is still to go first.
                    while let Ok(answer) = answers.try_recv() {
                        batch.push_back(answer);
                    }
                    for out in outs.drain(..) {
                        match out {
                            Out::Frame(frame) => batch.push_back(frame),
                            Out::Heartbeat => batch.push_back(frame::settings()),
                            Out::Goodbye => leaving = true,
                        }
                    }
                }
            }
            if leaving {
                batch.push_back(frame::goaway(self.last.load(Ordering::Relaxed), false));
            }
            self.write(&mut batch).await?;
            if leaving {
                return Ok(self.target);
            }
        }
    }

    async fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        while !batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); SEND_QUEUE];
            let count = batch.len().min(SEND_QUEUE);
            for (slice, frame) in slices.iter_mut().zip(batch.iter()) {
                *slice = IoSlice::new(frame);
            }
            let mut written = self.target.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.activity.touch();
            while let Some(frame) = batch.front_mut() {
                if written < frame.len() {
                    frame.advance(written);
                    break;
                }
                written -= frame.len();
                batch.pop_front();
            }
        }
        self.target.flush().await
    }
}
