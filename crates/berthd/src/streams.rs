//! Bytes between the streaming server's clients and the processes of pods.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;

use berth_sandbox_manager::{Attachment, Command, FdStream, SandboxManager, Streams, Terminal, Wanted};
use berth_streaming::{ExecOutcome, Input, Output, RemoteStreams, Resize, StreamOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;

use crate::error::Chain;

/// How long to wait for more output after a command has ended, while something it left behind holds its streams open:
/// what it wrote itself can be read at once.
const DRAIN: Duration = Duration::from_millis(250);

/// Bytes that are moved at once.
const PIECE: usize = 64 * 1024;

/// An exec: starts the command now that the client's streams stand, and returns when it has ended and all its output is
/// with the client. A command whose client is gone is killed.
pub(crate) async fn exec(
    manager: SandboxManager,
    container: String,
    command: Vec<String>,
    options: StreamOptions,
    client: RemoteStreams,
) -> ExecOutcome {
    match manager.exec(&container, &command, wanted(options)).await {
        Err(error) => ExecOutcome::Failed(Chain(&error).to_string()),
        Ok(command) => run(command, client).await,
    }
}

fn wanted(options: StreamOptions) -> Wanted {
    Wanted { stdin: options.stdin, stdout: options.stdout, stderr: options.stderr, tty: options.tty }
}

async fn run(mut command: Command, client: RemoteStreams) -> ExecOutcome {
    let RemoteStreams { stdin, stdout, stderr, resize, gone } = client;
    let ours = std::mem::take(&mut command.streams);
    let ended = CancellationToken::new();
    let mut output = pin!(async {
        tokio::join!(pump_output(ours.stdout, stdout, &ended), pump_output(ours.stderr, stderr, &ended))
    });
    let mut towards = pin!(async {
        tokio::join!(pump_input(stdin, ours.stdin), follow_size(resize, ours.terminal));
        // Input that has ended ends nothing else.
        std::future::pending::<Infallible>().await
    });
    let exit = async {
        let code = command.exit_code().await;
        ended.cancel();
        code
    };
    let code = tokio::select! {
        (code, _) = async { tokio::join!(exit, &mut output) } => code,
        never = &mut towards => match never {},
        () = gone.cancelled() => {
            if let Err(error) = command.kill().await {
                tracing::warn!(error = %Chain(&error), "a command whose client went away may still run");
            }
            return ExecOutcome::Failed("the client went away".to_owned());
        }
    };
    match code {
        Ok(code) => ExecOutcome::Exited(code),
        Err(error) => ExecOutcome::Failed(Chain(&error).to_string()),
    }
}

/// An attachment: output from now on, until the container ends or the client goes.
pub(crate) async fn attach(
    manager: SandboxManager,
    container: String,
    options: StreamOptions,
    client: RemoteStreams,
) -> ExecOutcome {
    match manager.attach(&container, wanted(options)).await {
        Err(error) => ExecOutcome::Failed(Chain(&error).to_string()),
        Ok(mut attachment) => {
            let gone = client.gone.clone();
            let ours = std::mem::take(&mut attachment.streams);
            let has_input = client.stdin.is_some() && ours.stdin.is_some();
            let looked = gone.run_until_cancelled(look(&attachment, ours, client)).await;
            if has_input && looked.is_none() {
                end_input(&attachment).await;
            }
            ExecOutcome::Exited(0)
        }
    }
}

async fn end_input(attachment: &Attachment) {
    if let Err(error) = attachment.input_ended().await {
        tracing::warn!(error = %Chain(&error), "a container's stdin stays open");
    }
}

async fn look(attachment: &Attachment, ours: Streams, client: RemoteStreams) {
    let RemoteStreams { stdin, stdout, stderr, resize, gone } = client;
    let has_input = stdin.is_some() && ours.stdin.is_some();
    let output = async {
        // The supervisor closes both at the container's end, after the last byte.
        tokio::join!(pump_output(ours.stdout, stdout, &gone), pump_output(ours.stderr, stderr, &gone))
    };
    let towards = async {
        tokio::join!(
            async {
                pump_input(stdin, ours.stdin).await;
                if has_input {
                    end_input(attachment).await;
                }
            },
            follow_size(resize, ours.terminal)
        );
        std::future::pending::<()>().await
    };
    tokio::select! {
        _ = async { tokio::join!(attachment.ended(), output) } => {}
        () = towards => {}
    }
}

/// Until the process's stream ends, or stays silent after the process has `ended`. Output that nobody wants, or that the
/// client does not take any more, is read all the same: the process must not wait for it.
async fn pump_output(from: Option<FdStream>, to: Option<Output>, ended: &CancellationToken) {
    let Some(mut from) = from else { return };
    let mut to = to;
    let mut piece = vec![0; PIECE];
    loop {
        let silence = async {
            ended.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let read = tokio::select! {
            biased;
            // Cancel safe: what was not read is still in the pipe.
            read = from.read(&mut piece) => read,
            () = silence => return,
        };
        match read {
            Ok(0) => return,
            Ok(count) => {
                if let Some(client) = &mut to
                    && client.write_all(&piece[..count]).await.is_err()
                {
                    to = None;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read what a process wrote");
                return;
            }
        }
    }
}

/// Until the client's input ends, which the process then reads as its own end, or until the process reads no more. For
/// ever when the client is lost: that is no end of input, by which a command might end well before it is killed.
async fn pump_input(from: Option<Input>, to: Option<FdStream>) {
    let (Some(from), Some(mut to)) = (from, to) else { return };
    match tokio::io::copy_buf(&mut BufReader::with_capacity(PIECE, from), &mut to).await {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => std::future::pending().await,
        // A process that does not read its input is nobody's fault.
        Ok(_) | Err(_) => {}
    }
}

async fn follow_size(sizes: Option<Resize>, terminal: Option<Terminal>) {
    let (Some(mut sizes), Some(terminal)) = (sizes, terminal) else { return };
    while let Some(size) = sizes.next().await {
        if let Err(error) = terminal.resize(size.width, size.height) {
            tracing::debug!(%error, "cannot resize a terminal");
        }
    }
}
