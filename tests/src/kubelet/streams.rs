//! Exec, attach and port-forward as kubectl does them: over WebSocket, which kubelet passes on to the runtime.

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
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
        let words = command.iter().map(|word| ("command", *word));
        let streams = ["input", "output", "error"].map(|stream| (stream, "1"));
        let url =
            self.stream(&["exec", "default", &pod_name(pod), container], streams.into_iter().chain(words))?;
        within("the command", self.converse(&url, input)).await
    }

    /// Gives these bytes and then the end to a container's standard input; all that it writes from now on.
    pub async fn attach(&self, pod: &str, container: &str, input: &[u8]) -> Result<Ran> {
        let streams = [("input", "1"), ("output", "1"), ("error", "1")];
        let url = self.stream(&["attach", "default", &pod_name(pod), container], streams)?;
        within("the attachment", self.converse(&url, input)).await
    }

    /// Sends bytes to a port of a pod; all that comes back.
    pub async fn port_forward(&self, pod: &str, port: u16, request: &[u8]) -> Result<String> {
        let number = port.to_string();
        let url = self.stream(&["portForward", "default", &pod_name(pod)], [("port", number.as_str())])?;
        within("the connection", self.ask(&url, port, request)).await
    }

    fn stream<'q>(
        &self,
        path: &[&str],
        query: impl IntoIterator<Item = (&'q str, &'q str)>,
    ) -> Result<String> {
        let mut url = Url::parse(&format!("wss://{NAME}:{}/{}", self.address.port(), path.join("/")))?;
        url.query_pairs_mut().extend_pairs(query);
        Ok(url.into())
    }

    async fn connect(&self, url: &str, protocol: &str) -> Result<WebSocketStream<TlsStream<TcpStream>>> {
        let socket = TcpStream::connect(self.address).await?;
        let socket =
            TlsConnector::from(self.tls.clone()).connect(ServerName::try_from(NAME)?, socket).await?;
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse()?);
        Ok(client_async(request, socket).await.with_context(|| format!("asking kubelet for {url}"))?.0)
    }

    async fn converse(&self, url: &str, input: &[u8]) -> Result<Ran> {
        let mut socket = self.connect(url, "v5.channel.k8s.io").await?;
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

    async fn ask(&self, url: &str, port: u16, request: &[u8]) -> Result<String> {
        let mut socket = self.connect(url, "v4.channel.k8s.io").await?;
        socket.send(Message::binary([b"\x00", request].concat())).await?;
        // Data and errors, each of which begins with the port's number.
        let mut channels = [Vec::new(), Vec::new()];
        while let Some(message) = socket.next().await {
            let Message::Binary(bytes) = message? else { continue };
            let Some((channel, content)) = bytes.split_first() else { continue };
            channels.get_mut(usize::from(*channel)).context("another channel")?.extend_from_slice(content);
        }
        let [data, error] = channels;
        let [data, error] = [&data, &error].map(|channel| channel.strip_prefix(&port.to_le_bytes()));
        ensure!(error == Some(&[]), "{}", error.map(String::from_utf8_lossy).unwrap_or_default());
        Ok(String::from_utf8(data.context("no port's number")?.to_vec())?)
    }
}

async fn within<T>(what: &str, streams: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, streams).await.with_context(|| format!("{what} did not end"))?
}
