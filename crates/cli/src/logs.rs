//! `berth logs`.

use std::io::Write as _;

use berth_cri::berth::v1::{LogLine, LogsRequest, log_line::Stream};

use crate::args::Logs;
use crate::client::Client;
use crate::error::Error;
use crate::output::now;

pub(crate) async fn logs(client: Client, args: Logs) -> Result<u8, Error> {
    let since = args.since.map(|since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    let request = LogsRequest {
        pod: Some(args.pod.reference()),
        container: args.container.container,
        follow: args.follow,
        since: since.map_or(0, |since| now().saturating_sub(since)),
        tail: args.tail,
        previous: args.previous,
    };
    print_all(&client, request, args.timestamps).await?;
    Ok(0)
}

/// Each stream's lines on the stream of the same name.
pub(crate) async fn print_all(client: &Client, request: LogsRequest, timestamps: bool) -> Result<(), Error> {
    let mut lines = client.pods().logs(request).await.map_err(client.failed())?.into_inner();
    while let Some(line) = lines.message().await.map_err(client.failed())? {
        let text = written(&line, timestamps);
        let result = match line.stream() {
            Stream::Stdout => std::io::stdout().lock().write_all(&text),
            Stream::Stderr => std::io::stderr().lock().write_all(&text),
        };
        result.map_err(Error::Terminal)?;
    }
    Ok(())
}

fn written(line: &LogLine, timestamps: bool) -> Vec<u8> {
    let mut text = Vec::new();
    if timestamps {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(u64::try_from(line.at).unwrap_or(0));
        text.extend(humantime::format_rfc3339_nanos(at).to_string().bytes());
        text.push(b' ');
    }
    text.extend(&line.text);
    if !line.partial {
        text.push(b'\n');
    }
    text
}
