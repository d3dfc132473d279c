//! URLs for commands and ports of this host, to try clients on:
//!
//! ```text
//! $ cargo run -p berth-streaming --example local
//! exec stdin,stdout,stderr tr a-z A-Z
//! http://127.0.0.1:40123/exec/…
//! forward
//! http://127.0.0.1:40123/portforward/…
//! ```

use std::error::Error;
use std::process::Stdio;

use berth_streaming::{ExecOutcome, RemoteStreams, StreamOptions, Streaming, StreamingConfig};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (streaming, server) = Streaming::start(StreamingConfig::default()).await?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("exec") => {
                let streams = words.next().unwrap_or_default();
                let has = |name| streams.split(',').any(|stream| stream == name);
                let options = StreamOptions {
                    stdin: has("stdin"),
                    stdout: has("stdout"),
                    stderr: has("stderr"),
                    tty: has("tty"),
                };
                let command: Vec<String> = words.collect();
                println!("{}", streaming.exec(options, move |streams| run(command, streams))?);
            }
            Some("forward") => {
                let connect = |port| TcpStream::connect(("127.0.0.1", port));
                println!("{}", streaming.port_forward(Vec::new(), connect)?);
            }
            _ => eprintln!("exec STREAMS COMMAND… | forward"),
        }
    }
    stop.cancel();
    running.await?;
    Ok(())
}

async fn run(command: Vec<String>, mut streams: RemoteStreams) -> ExecOutcome {
    let Some((program, arguments)) = command.split_first() else {
        return ExecOutcome::Failed("no command".to_owned());
    };
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return ExecOutcome::Failed(format!("cannot run {program}: {error}")),
    };
    let stdin = tokio::spawn(copy(streams.stdin.take(), child.stdin.take()));
    let stdout = copy(child.stdout.take(), streams.stdout.take());
    let stderr = copy(child.stderr.take(), streams.stderr.take());
    let sizes = async {
        while let Some(resize) = &mut streams.resize
            && let Some(size) = resize.next().await
        {
            eprintln!("{size:?}");
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let (status, (), ()) = tokio::join!(child.wait(), stdout, stderr);
        status
    };
    let outcome = tokio::select! {
        ended = ended => match ended {
            Ok(status) => ExecOutcome::Exited(status.code().unwrap_or(255)),
            Err(error) => ExecOutcome::Failed(error.to_string()),
        },
        () = sizes => unreachable!("never ends"),
        () = streams.gone.cancelled() => {
            eprintln!("the client is gone");
            ExecOutcome::Failed("the client is gone".to_owned())
        }
    };
    stdin.abort();
    outcome
}

async fn copy(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
