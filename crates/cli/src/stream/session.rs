//! One exec or attach, between the person's streams and the container's.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};

use super::keys::Keys;
use super::socket::Socket;
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
    pub(super) url: String,
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
        let mut socket = Socket::connect(&self.url, PROTOCOL).await?;
        let _raw = if self.tty && self.stdin { Some(Terminal::raw()?) } else { None };
        let mut resized = signal(SignalKind::window_change()).map_err(Error::Terminal)?;
        // The terminal is put back before the process ends.
        let mut ended = signal(SignalKind::terminate()).map_err(Error::Terminal)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(Error::Terminal)?;
        let mut input = stdin();
        let mut piece = vec![0; PIECE];
        let mut has_input = self.stdin;
        let mut code = 0;
        if self.tty {
            send_size(&mut socket).await?;
        }
        loop {
            // All of these are cancel safe.
            tokio::select! {
                message = socket.next() => match message? {
                    Some((STATUS, status)) => code = exit_code(&status)?,
                    Some((channel, content)) => write(channel, &content).await?,
                    None => return Ok(Ended::Exited(code)),
                },
                count = input.read(&mut piece), if has_input => match count.map_err(Error::Terminal)? {
                    0 => {
                        has_input = false;
                        socket.send(CLOSE, &[STDIN]).await?;
                    }
                    count => match self.typed(&piece[..count]) {
                        Some(typed) => socket.send(STDIN, &typed).await?,
                        None => {
                            socket.close().await;
                            return Ok(Ended::Detached);
                        }
                    },
                },
                _ = resized.recv(), if self.tty => send_size(&mut socket).await?,
                _ = ended.recv() => return Err(Error::Failed("ended by a signal".to_owned())),
                _ = hung_up.recv() => return Err(Error::Failed("the terminal is gone".to_owned())),
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

async fn send_size(socket: &mut Socket) -> Result<(), Error> {
    let Some((width, height)) = terminal::size() else { return Ok(()) };
    socket.send(RESIZE, json!({ "Width": width, "Height": height }).to_string().as_bytes()).await
}

async fn write(channel: u8, content: &[u8]) -> Result<(), Error> {
    let written = match channel {
        STDOUT => {
            let mut out = stdout();
            out.write_all(content).await.map(|()| out)
        }
        STDERR => {
            let mut err = tokio::io::stderr();
            return match err.write_all(content).await {
                Ok(()) => err.flush().await.map_err(Error::Terminal),
                Err(error) => Err(Error::Terminal(error)),
            };
        }
        _ => return Ok(()),
    };
    written.map_err(Error::Terminal)?.flush().await.map_err(Error::Terminal)
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
