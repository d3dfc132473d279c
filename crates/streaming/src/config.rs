//! How the server is set up.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct StreamingConfig {
    /// Where to listen. Default 127.0.0.1, any port: kubelet proxies from the same node, and nobody else has business here.
    pub address: SocketAddr,
    /// Serve `https` with this. Default none.
    pub tls: Option<TlsConfig>,
    /// A connection on which no byte moves for this long is closed. Default 4 h, kubelet's own.
    pub idle_timeout: Duration,
    /// What a client may take to open the streams that it asked for. Default 30 s.
    pub stream_creation_timeout: Duration,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: None,
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            stream_creation_timeout: Duration::from_secs(30),
        }
    }
}

/// A certificate, its chain and its key, each as PEM.
#[derive(Clone)]
pub struct TlsConfig {
    pub certificates: Vec<u8>,
    pub key: Vec<u8>,
}

impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TlsConfig").finish_non_exhaustive()
    }
}

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} for streaming")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the streaming server's {what} as PEM")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("the streaming server's certificate has no PEM block")]
    NoCertificate,
    #[error("cannot serve with the streaming server's certificate and key")]
    Tls(#[from] rustls::Error),
}
