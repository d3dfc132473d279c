//! Connections to a pod's own loopback, for port-forwarding.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

use crate::{ThreadError, thread};

/// Connects to `port` on the loopback of a network namespace (`None`: the daemon's own), by IPv4 and, where nothing
/// listens there, by IPv6.
///
/// # Errors
/// That of IPv4 when neither answers: it is the one that people expect to see.
pub async fn dial_loopback(netns: Option<OwnedFd>, port: u16) -> io::Result<TcpStream> {
    // A socket stays in the namespace it was made in, so only its making needs a thread inside.
    let made = match netns {
        None => sockets(),
        Some(netns) => {
            thread::run("dial", move || thread::enter(&netns).map_err(lost).and_then(|()| sockets()))
                .await
                .map_err(lost)?
        }
    };
    let (v4, v6) = made?;
    match connect(v4, (Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(connected) => Ok(connected),
        Err(refused) => match v6 {
            Some(v6) => connect(v6, (Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| refused),
            None => Err(refused),
        },
    }
}

/// One of each family; the kernel may be without IPv6.
fn sockets() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let make = |family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::STREAM, flags, None)
    };
    Ok((make(AddressFamily::INET)?, make(AddressFamily::INET6).ok()))
}

async fn connect(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

fn lost(error: ThreadError) -> io::Error {
    io::Error::other(error)
}
