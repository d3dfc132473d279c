//! The daemon's ends of pipes and terminals, as asynchronous readers and writers.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use berth_supervisor::client::watch;
use rustix::termios::Winsize;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// A pipe's end or a terminal's master. A terminal whose other side nobody has open any more is at its end.
#[derive(Debug)]
pub struct FdStream(AsyncFd<OwnedFd>);

impl FdStream {
    /// Takes a descriptor that does not block.
    pub(crate) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        Ok(Self(watch(fd, interest)?))
    }

    /// Takes a descriptor and makes it not block, for everybody who shares it.
    pub(crate) fn nonblocking(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::new(fd, interest)
    }
}

impl AsyncRead for FdStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), buffer.initialize_unfilled())?));
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing to do: the other side reads the end when this is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A terminal, for its size.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    pub(crate) fn of(master: &impl AsFd) -> io::Result<Self> {
        Ok(Self(master.as_fd().try_clone_to_owned()?))
    }

    /// Tells the programs in it how large it is now.
    ///
    /// # Errors
    /// ioctl_tty(2)'s; none is expected.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(&self.0, size)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_through_a_pipe_and_its_end_is_read() {
        let (reader, writer) = io::pipe().unwrap();
        let mut reader = FdStream::nonblocking(reader.into(), Interest::READABLE).unwrap();
        let mut writer = FdStream::nonblocking(writer.into(), Interest::WRITABLE).unwrap();
        // More than a pipe holds.
        let sent = vec![7; 1 << 20];
        let copy = sent.clone();
        let writing = tokio::spawn(async move { writer.write_all(&copy).await.unwrap() });
        let mut got = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), reader.read_to_end(&mut got)).await.unwrap().unwrap();
        writing.await.unwrap();
        assert_eq!(got, sent);
    }
}
