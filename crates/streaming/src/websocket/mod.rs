//! WebSocket: several streams as numbered channels (the first byte of each message), or SPDY inside of messages.
//!
//! Framing and handshake are tungstenite's. Channels have no end of their own in the server's direction, and only v5's
//! have one in the client's.

mod channels;
mod tunnel;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

pub(crate) use channels::{Codec, start};
#[doc(hidden)]
pub(crate) use channels::{Inbound, demux};
pub(crate) use tunnel::Tunnel;

/// The largest message: what other servers take. It is held whole.
const MESSAGE_BYTES: usize = 32 * 1024 * 1024;

/// A subprotocol of exec and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommandProtocol {
    pub(crate) codec: Codec,
    /// The status is an object.
    pub(crate) json: bool,
    /// The client can finish a channel.
    pub(crate) half_close: bool,
}

/// Where the client names none.
pub(crate) const BARE_COMMAND: CommandProtocol =
    CommandProtocol { codec: Codec::Binary, json: false, half_close: false };

pub(crate) const COMMAND_PROTOCOLS: [(&str, CommandProtocol); 5] = [
    ("v5.channel.k8s.io", CommandProtocol { codec: Codec::Binary, json: true, half_close: true }),
    ("v4.channel.k8s.io", CommandProtocol { codec: Codec::Binary, json: true, half_close: false }),
    ("v4.base64.channel.k8s.io", CommandProtocol { codec: Codec::Base64, json: true, half_close: false }),
    ("channel.k8s.io", BARE_COMMAND),
    ("base64.channel.k8s.io", CommandProtocol { codec: Codec::Base64, json: false, half_close: false }),
];

/// A subprotocol of port-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardProtocol {
    Channels(Codec),
    Tunnel,
}

pub(crate) const FORWARD_PROTOCOLS: [(&str, ForwardProtocol); 3] = [
    ("SPDY/3.1+portforward.k8s.io", ForwardProtocol::Tunnel),
    ("v4.channel.k8s.io", ForwardProtocol::Channels(Codec::Binary)),
    ("v4.base64.channel.k8s.io", ForwardProtocol::Channels(Codec::Base64)),
];

/// Takes over a socket whose handshake was answered.
pub(crate) async fn accept<S>(socket: S) -> WebSocketStream<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES)).max_frame_size(Some(MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await
}
