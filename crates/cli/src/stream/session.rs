//! One exec or attach, between the person's streams and the container's.

use berth_cri::berth::v1::StreamUrl;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, stderr, stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};

use super::keys::Keys;
use super::socket::{self, Receiver, Sender};
use super::{Terminal, terminal};
use crate::error::Error;

/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;

/// The protocol with an end of input.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// Channels of that protocol.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub(super) struct Session {
    pub(super) url: StreamUrl,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    /// What leaves the container to itself.
    pub(super) detach: Option<Keys>,
}

pub(super) enum Ended {
    Exited(u8),
    Detached,
}

impl Session {
    pub(super) async fn run(mut self) -> Result<Ended, Error> {
        let (receiver, sender) = socket::connect(std::mem::take(&mut self.url), PROTOCOL).await?;
        let _raw = if self.tty && self.stdin { Some(Terminal::raw()?) } else { None };
        // The terminal is put back before the process ends.
        let mut ended = signal(SignalKind::terminate()).map_err(Error::Terminal)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(Error::Terminal)?;
        tokio::select! {
            ended = receive(receiver) => ended,
            detached = self.send(sender) => detached.map(|()| Ended::Detached),
            _ = ended.recv() => Err(Error::Failed("ended by a signal".to_owned())),
            _ = hung_up.recv() => Err(Error::Failed("the terminal is gone".to_owned())),
        }
    }

    /// Until the keys are pressed that leave the container to itself.
    async fn send(mut self, mut sender: Sender) -> Result<(), Error> {
        let mut resized = signal(SignalKind::window_change()).map_err(Error::Terminal)?;
        let mut input = stdin();
        let mut piece = vec![0; PIECE];
        if self.tty {
            send_size(&mut sender).await?;
        }
        loop {
            // Both are cancel safe.
            tokio::select! {
                count = input.read(&mut piece), if self.stdin => match count.map_err(Error::Terminal)? {
                    0 => {
                        self.stdin = false;
                        sender.send(CLOSE, &[STDIN]).await?;
                    }
                    count => match self.typed(&piece[..count]) {
                        Some(typed) => sender.send(STDIN, &typed).await?,
                        None => {
                            sender.close().await;
                            return Ok(());
                        }
                    },
                },
                Some(()) = resized.recv(), if self.tty => send_size(&mut sender).await?,
                else => std::future::pending().await,
            }
        }
    }

    fn typed(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        match &mut self.detach {
            Some(keys) => keys.pass(typed),
            None => Some(typed.to_vec()),
        }
    }
}

/// Until the process has ended and all that it wrote is written.
async fn receive(mut receiver: Receiver) -> Result<Ended, Error> {
    let mut code = 0;
    loop {
        match receiver.next().await? {
            Some((STATUS, status)) => code = exit_code(&status)?,
            Some((channel, content)) => write(channel, &content).await?,
            None => return Ok(Ended::Exited(code)),
        }
    }
}

async fn send_size(sender: &mut Sender) -> Result<(), Error> {
    let Some((width, height)) = terminal::size() else { return Ok(()) };
    sender.send(RESIZE, json!({ "Width": width, "Height": height }).to_string().as_bytes()).await
}

async fn write(channel: u8, content: &[u8]) -> Result<(), Error> {
    let written = match channel {
        STDOUT => all(stdout(), content).await,
        STDERR => all(stderr(), content).await,
        _ => Ok(()),
    };
    written.map_err(Error::Terminal)
}

async fn all(mut to: impl AsyncWrite + Unpin, content: &[u8]) -> std::io::Result<()> {
    to.write_all(content).await?;
    to.flush().await
}

/// From a v1 Status, as the API server's clients get it.
fn exit_code(status: &[u8]) -> Result<u8, Error> {
    let status: Value = serde_json::from_slice(status).map_err(|error| Error::Stream(error.to_string()))?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.and_then(|all| all.iter().find(|cause| cause["reason"] == "ExitCode"));
    match code.and_then(|cause| cause["message"].as_str()?.parse::<i32>().ok()) {
        Some(code) => Ok(u8::try_from(code & 0xff).unwrap_or(1)),
        None => Err(Error::Failed(status["message"].as_str().unwrap_or("the command failed").to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_an_exit_code_or_an_error() {
        assert!(matches!(exit_code(br#"{"status":"Success"}"#), Ok(0)));
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert!(matches!(exit_code(failed), Ok(42)));
        let error = exit_code(br#"{"status":"Failure","message":"no such file"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no such file");
    }
}
