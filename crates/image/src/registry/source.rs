//! A blob's bytes, whatever happens to the connections they come over.
//!
//! Below the decoder: when a connection breaks, the next one continues at the byte where it broke, and
//! whoever inflates the stream notices nothing.

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::client::Session;
use super::{RegistryError, RegistryErrorKind};
use crate::digest::Digest;
use crate::pieces::Pieces;

/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;
const BACK_OFF: Duration = Duration::from_millis(250);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
/// A connection that is silent for this long is given up for a new one.
const STALL: Duration = Duration::from_secs(30);

/// Sends all `size` bytes of a blob to `sink`, once each, in order. Ends early without an error when the
/// other end of `sink` is gone: it knows why.
///
/// `patience` bounds the time without any progress, over all attempts.
///
/// Cancel safe: dropping the future ends the download.
pub(crate) async fn fetch(
    session: &Session,
    digest: &Digest,
    size: u64,
    patience: Duration,
    sink: &Pieces,
) -> Result<(), RegistryError> {
    let stall = STALL.min(patience);
    let mut progress = Progress { at: 0, since: Instant::now() };
    let mut etag = None;
    let mut failures = 0;
    loop {
        let before = progress.at;
        let error = match attempt(session, digest, size, stall, &mut etag, &mut progress, sink).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        failures = if progress.at > before { 1 } else { failures + 1 };
        let waited = progress.since.elapsed();
        if waited >= patience {
            return Err(RegistryError { kind: RegistryErrorKind::Timeout(waited), ..error });
        }
        if failures >= ATTEMPTS || !error.kind.is_passing() {
            return Err(error);
        }
        let back_off = (BACK_OFF * 2u32.pow(failures - 1)).min(LONGEST_BACK_OFF);
        tracing::info!(blob = %digest, at = progress.at, %error, ?back_off, "download broke off; continuing");
        sleep(back_off.min(patience - waited)).await;
    }
}

/// How far a download has come, and when it last moved.
struct Progress {
    at: u64,
    since: Instant,
}

async fn attempt(
    session: &Session,
    digest: &Digest,
    size: u64,
    stall: Duration,
    etag: &mut Option<HeaderValue>,
    progress: &mut Progress,
    sink: &Pieces,
) -> Result<(), RegistryError> {
    let headers = range_headers(progress.at, etag.as_ref());
    let (mut answer, origin) = session.open_blob(digest, &headers, stall).await?;
    let protocol = |why: String| origin.error(RegistryErrorKind::Protocol(why), None);
    let mut skip = match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            let start = range_start(&answer);
            if start != Some(progress.at) {
                return Err(protocol(format!("asked for the bytes from {}, got another range", progress.at)));
            }
            0
        }
        // The server does not do ranges, or the blob behind the name changed: the digest will tell.
        _ => progress.at,
    };
    if progress.at == 0 {
        *etag = answer.headers().get(ETAG).filter(|value| !value.as_bytes().starts_with(b"W/")).cloned();
    }
    loop {
        let piece = timeout(stall, answer.chunk())
            .await
            .map_err(|_| origin.error(RegistryErrorKind::Timeout(stall), None))?
            .map_err(|error| {
                let why = format!("the connection broke after {} of {size} bytes", progress.at);
                origin.error(RegistryErrorKind::Unavailable(why), Some(error.without_url()))
            })?;
        let Some(mut piece) = piece else { break };
        if skip > 0 {
            let skipped = piece.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            drop(piece.split_to(skipped));
        }
        if piece.is_empty() {
            continue;
        }
        progress.at += piece.len() as u64;
        // The wait for the disk behind this is not the registry's.
        let sent = sink.send(piece).await;
        progress.since = Instant::now();
        // Too long a blob is the receiver's to refuse; it hangs up then.
        if sent.is_err() || progress.at > size {
            return Ok(());
        }
    }
    if progress.at < size {
        let why = format!("the answer ended after {} of {size} bytes", progress.at);
        return Err(origin.error(RegistryErrorKind::Unavailable(why), None));
    }
    Ok(())
}

fn range_headers(at: u64, etag: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if at > 0 {
        let range = HeaderValue::from_str(&format!("bytes={at}-")).expect("digits are a header value");
        headers.insert(RANGE, range);
        if let Some(etag) = etag {
            headers.insert(IF_RANGE, etag.clone());
        }
    }
    headers
}

/// N of `Content-Range: bytes N-M/L`.
fn range_start(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
