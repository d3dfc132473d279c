//! Exec as kubectl does it: over WebSocket, which kubelet turns into SPDY towards the runtime.

use anyhow::{Context, Result, bail};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use super::{Kubelet, config::NAME, pod_name};
use crate::PATIENCE;

/// What a command wrote, and how it ended: a `Status` in JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub status: String,
}

impl Kubelet<'_> {
    /// Runs a command with these bytes and then the end on its standard input.
    pub async fn exec(&self, pod: &str, container: &str, command: &[&str], input: &[u8]) -> Result<Ran> {
        let (pod, port) = (pod_name(pod), self.address.port());
        let mut url = Url::parse(&format!("wss://{NAME}:{port}/exec/default/{pod}/{container}"))?;
        let streams = ["input", "output", "error"].map(|stream| (stream, "1"));
        let words = command.iter().map(|word| ("command", *word));
        url.query_pairs_mut().extend_pairs(streams.into_iter().chain(words));
        tokio::time::timeout(PATIENCE, self.converse(url.as_str(), input))
            .await
            .context("the command's streams did not end")?
    }

    async fn converse(&self, url: &str, input: &[u8]) -> Result<Ran> {
        let socket = TcpStream::connect(self.address).await?;
        let socket =
            TlsConnector::from(self.tls.clone()).connect(ServerName::try_from(NAME)?, socket).await?;
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse()?);
        let (mut socket, _) = client_async(request, socket).await.context("asking kubelet for exec")?;
        // A message begins with its channel; 255 closes one.
        socket.send(Message::binary([b"\x00", input].concat())).await?;
        socket.send(Message::binary(&b"\xff\x00"[..])).await?;
        let mut ran = Ran::default();
        while let Some(message) = socket.next().await {
            let Message::Binary(bytes) = message? else { continue };
            let Some((channel, content)) = bytes.split_first() else { continue };
            let content = std::str::from_utf8(content)?;
            match channel {
                1 => ran.stdout.push_str(content),
                2 => ran.stderr.push_str(content),
                3 => ran.status.push_str(content),
                other => bail!("kubelet sent something on channel {other}"),
            }
        }
        Ok(ran)
    }
}
