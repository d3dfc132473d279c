//! The daemon's socket: bound by hand, because the file is the access control.
//!
//! Order: a living process on the path is refused, a dead one's file is replaced; the file gets its mode before
//! anyone can connect, since a socket that is bound and does not listen refuses everybody.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::stream::{self, Stream};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tracing::{info, warn};

use crate::lock;

/// CRI's: root's, and its group's.
pub const MODE: u32 = 0o660;

/// Of the one that NRI plugins connect to, who may change any container: root's.
pub const PLUGIN_MODE: u32 = 0o600;

/// kubelet and crictl together hold a handful of connections; a burst of crictl calls waits here.
const BACKLOG: u32 = 128;

/// How long to leave the kernel alone when it has no descriptor for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process answers there.
    #[error("{} is served by {holder}", path.display())]
    InUse {
        path: PathBuf,
        /// Pid and command line.
        holder: String,
    },
    /// Something that nobody should remove unasked.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    /// A step of the kernel's.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Bound with its mode set, and not listening yet.
#[derive(Debug)]
pub struct BoundSocket {
    socket: UnixSocket,
    file: SocketFile,
}

/// The socket's file; removed with this.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl BoundSocket {
    /// Takes the path, after making its folder when it is missing.
    ///
    /// Two daemons that start at the same instant with different roots and the same socket may still race; their
    /// folders' locks do not meet.
    ///
    /// # Errors
    /// [`SocketError::InUse`] names the process that serves there.
    pub async fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let io = |action| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        if let Some(folder) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(io("create the folder of"))?;
        }
        make_room(path).await?;
        let socket = UnixSocket::new_stream().map_err(io("make a socket for"))?;
        socket.bind(path).map_err(io("bind"))?;
        let file = SocketFile { path: path.to_owned() };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io("set the mode of"))?;
        // Also in a folder that hands its group down.
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        chown(path, Some(user.as_raw()), Some(group.as_raw())).map_err(io("set the owner of"))?;
        Ok(Self { socket, file })
    }

    /// From here on callers can connect.
    ///
    /// # Errors
    /// The kernel's answer to listen(2).
    pub fn listen(self) -> Result<(UnixListener, SocketFile), SocketError> {
        let path = self.file.path.clone();
        let listener = self.socket.listen(BACKLOG);
        let listener = listener.map_err(|source| SocketError::Io { action: "listen on", path, source })?;
        Ok((listener, self.file))
    }
}

/// Removes what a dead daemon left, refuses everything else.
async fn make_room(path: &Path) -> Result<(), SocketError> {
    let io = |action, source| SocketError::Io { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at", error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(stream) => {
            // The pid that called listen(2); unix(7), SO_PEERCRED.
            let pid =
                getsockopt(&stream, PeerCredentials).ok().and_then(|peer| u32::try_from(peer.pid()).ok());
            let holder = pid.map_or_else(|| "another process".to_owned(), lock::describe);
            Err(SocketError::InUse { path: path.to_owned(), holder })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            info!(path = %path.display(), "replacing the socket of a daemon that has gone");
            fs::remove_file(path).map_err(|source| io("remove the stale", source))
        }
        Err(error) => Err(io("find out who serves", error)),
    }
}

/// The connections that arrive, for ever; an error of accept(2) is never the end.
///
/// tonic retries accept at once and in silence. With no descriptor left that is a busy loop nobody hears of, so here
/// it waits a moment, and says when it began and how often it failed.
pub fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    stream::unfold(listener, |listener| async move {
        let mut failures: Option<(u64, Instant)> = None;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some((count, since)) = failures {
                        info!(failures = count, after = ?since.elapsed(), "accepting connections again");
                    }
                    return Some((Ok(stream), listener));
                }
                Err(error) => {
                    let (count, since) = failures.unwrap_or((0, Instant::now()));
                    if count == 0 {
                        warn!(%error, "cannot accept a connection; trying on");
                    }
                    failures = Some((count + 1, since));
                    if lacks_resources(&error) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    })
}

/// accept(2) would fail again at once: the connection stays in the queue.
fn lacks_resources(error: &io::Error) -> bool {
    let wait = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| wait.contains(&Errno::from_raw(code)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_gets_its_folder_its_mode_and_is_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/berth.sock");
        let bound = BoundSocket::bind(&path, MODE).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
        assert!(UnixStream::connect(&path).await.is_err(), "nobody gets in before it listens");
        let (_listener, file) = bound.listen().unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind, as a killed daemon does");
        let living = BoundSocket::bind(&path, MODE).await.unwrap().listen().unwrap();

        let refused = BoundSocket::bind(&path, MODE).await.unwrap_err();
        assert!(matches!(refused, SocketError::InUse { .. }));
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(living);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "text").unwrap();
        let refused = BoundSocket::bind(&path, MODE).await.unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
