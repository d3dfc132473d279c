//! `berth port-forward`: each local connection is one to the pod, with a WebSocket of its own, so what happens to one is
//! nothing to the others.

use std::net::SocketAddr;

use berth_cri::berth::v1::{PodRef, PortForwardToPodRequest, StreamUrl};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::socket::{self, Receiver, Sender};
use crate::args::PortForward;
use crate::client::Client;
use crate::error::Error;

/// Channels come in pairs, of which there is one: the port is named when the URL is asked for.
const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// The server's first message on each channel is the port's number.
const PORT_BYTES: usize = 2;

const PIECE: usize = 32 * 1024;

pub(crate) async fn port_forward(client: Client, args: PortForward) -> Result<u8, Error> {
    let pod = args.pod.reference();
    let mut forwards = JoinSet::new();
    for text in &args.ports {
        let (local, remote) = ports(text)?;
        // Whether there is such a pod is to be known before anybody connects.
        url(&client, &pod, remote).await?;
        let address = SocketAddr::new(args.listen, local);
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.map_err(|error| Error::Failed(format!("cannot listen on {address}: {error}")))?;
        let local = listener.local_addr().map_err(Error::Terminal)?;
        println!("forwarding {local} to port {remote} of {}/{}", pod.namespace, pod.name);
        forwards.spawn(serve(client.clone(), pod.clone(), listener, remote));
    }
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(0),
        Some(ended) = forwards.join_next() => match ended {
            Ok(error) => Err(error),
            Err(error) => Err(Error::Failed(error.to_string())),
        },
    }
}

/// `LOCAL:REMOTE`, `:REMOTE` for any local one, or one number for both.
fn ports(text: &str) -> Result<(u16, u16), Error> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let local = if local.is_empty() { Ok(0) } else { local.parse() };
    match (local, remote.parse()) {
        (Ok(local), Ok(remote)) if remote != 0 => Ok((local, remote)),
        _ => Err(Error::Usage(format!("{text}: must be LOCAL:REMOTE, or a port from 1 to 65535"))),
    }
}

async fn url(client: &Client, pod: &PodRef, port: u16) -> Result<StreamUrl, Error> {
    let request = PortForwardToPodRequest { pod: Some(pod.clone()), ports: vec![port.into()] };
    Ok(client.pods().port_forward(request).await.map_err(client.failed())?.into_inner())
}

/// Ends only with an error.
async fn serve(client: Client, pod: PodRef, listener: TcpListener, port: u16) -> Error {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return Error::Failed(format!("cannot take connections: {error}")),
        };
        let (client, pod) = (client.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = forward(&client, &pod, stream, port).await {
                eprintln!("berth: port {port}: {error}");
            }
        });
    }
}

async fn forward(client: &Client, pod: &PodRef, mut stream: TcpStream, port: u16) -> Result<(), Error> {
    let url = url(client, pod, port).await?;
    let (receiver, sender) = socket::connect(url, PROTOCOL).await?;
    let (from, to) = stream.split();
    tokio::select! {
        ended = receive(receiver, to) => ended,
        lost = send(from, sender) => lost,
    }
}

/// Until the pod's side ends, or the one who connected is gone.
async fn receive(mut receiver: Receiver, mut to: WriteHalf<'_>) -> Result<(), Error> {
    let mut first = [true, true];
    while let Some((channel, content)) = receiver.next().await? {
        let Some(first) = first.get_mut(usize::from(channel)) else { continue };
        let greeting = std::mem::replace(first, false);
        let content = if greeting { content.get(PORT_BYTES..).unwrap_or_default() } else { &content };
        if channel == ERROR && !content.is_empty() {
            return Err(Error::Failed(String::from_utf8_lossy(content).trim().to_owned()));
        }
        if channel == DATA && to.write_all(content).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Until the one who connected is gone. The protocol has no end of input: after it, what the pod still says is waited for.
async fn send(mut from: ReadHalf<'_>, mut sender: Sender) -> Result<(), Error> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await {
            Ok(0) => std::future::pending().await,
            Ok(count) => sender.send(DATA, &piece[..count]).await?,
            Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two_numbers() {
        assert_eq!(ports("8080:80").ok(), Some((8080, 80)));
        assert_eq!(ports("80").ok(), Some((80, 80)));
        assert_eq!(ports(":80").ok(), Some((0, 80)));
        assert!(ports("a:80").is_err() && ports("80:0").is_err() && ports("70000").is_err());
    }
}
