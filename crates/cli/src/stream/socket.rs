//! A WebSocket to the streaming server, whose messages begin with the number of a channel.

use std::net::SocketAddr;

use berth_cri::berth::v1::StreamUrl;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::tls;
use crate::error::Error;

/// The server's connection, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Socket = WebSocketStream<Box<dyn Io>>;

/// Opens a connection. Its two ends are used side by side: who sends must not wait with reading, or both sides wait for
/// each other once what is on its way fills every buffer.
pub(super) async fn connect(
    StreamUrl { url, certificate, .. }: StreamUrl,
    protocol: &'static str,
) -> Result<(Receiver, Sender), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Stream(format!("{url}: {error}"));
    let (_, rest) = url.split_once("://").ok_or_else(|| failed(&"is no URL"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let address: SocketAddr = authority.parse().map_err(|error| failed(&error))?;
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let stream: Box<dyn Io> = match certificate.is_empty() {
        true => Box::new(stream),
        false => {
            let connector = tls::connector(certificate).map_err(|error| failed(&error))?;
            let name = address.ip().into();
            Box::new(connector.connect(name, stream).await.map_err(|error| failed(&error))?)
        }
    };
    // The connection is what it is; here the scheme says only that a WebSocket is asked for.
    let request = format!("ws://{rest}").into_client_request();
    let mut request = request.map_err(|error| failed(&error))?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(protocol));
    match client_async(request, stream).await {
        Ok((socket, _)) => {
            let (sink, stream) = socket.split();
            Ok((Receiver(stream), Sender(sink)))
        }
        Err(WsError::Http(answer)) => {
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            Err(Error::Stream(format!("{}: {}", answer.status(), body.trim())))
        }
        Err(error) => Err(Error::Stream(error.to_string())),
    }
}

/// What comes from the server.
pub(super) struct Receiver(SplitStream<Socket>);

impl Receiver {
    /// The next message's channel and content; None at the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, Error> {
        loop {
            match self.0.next().await {
                None | Some(Ok(Message::Close(_))) | Some(Err(WsError::ConnectionClosed)) => return Ok(None),
                Some(Ok(Message::Binary(message))) => match message.split_first() {
                    Some((channel, content)) => return Ok(Some((*channel, content.to_vec()))),
                    None => continue,
                },
                // Pings are answered below us.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Error::Stream(error.to_string())),
            }
        }
    }
}

/// What goes to the server.
pub(super) struct Sender(SplitSink<Socket, Message>);

impl Sender {
    pub(super) async fn send(&mut self, channel: u8, content: &[u8]) -> Result<(), Error> {
        let message = [&[channel], content].concat();
        self.0.send(Message::Binary(message.into())).await.map_err(|error| Error::Stream(error.to_string()))
    }

    pub(super) async fn close(mut self) {
        // Whoever is gone already knows.
        let _ = self.0.close().await;
    }
}
