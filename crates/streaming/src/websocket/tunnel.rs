//! A stream of bytes in binary messages, cut anywhere: what SPDY runs over where only WebSocket passes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::pipe::FRAME_BYTES;

#[derive(Debug)]
pub(crate) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    /// Of the message that is being read.
    rest: Bytes,
}

impl<S> Tunnel<S> {
    pub(crate) fn new(socket: WebSocketStream<S>) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => this.rest = bytes,
                // The close is answered by reading on, which then ends.
                Some(Ok(Message::Close(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "text in a tunnel of bytes",
                    )));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let length = this.rest.len().min(target.remaining());
        target.put_slice(&this.rest[..length]);
        this.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_ready(context)).map_err(broken)?;
        let length = data.len().min(FRAME_BYTES);
        let message = Message::Binary(Bytes::copy_from_slice(&data[..length]));
        Pin::new(&mut this.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(context).map_err(broken)
    }
}
