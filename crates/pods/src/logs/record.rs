//! One record of CRI's log format (kubernetes, `pkg/kubelet/kuberuntime/logs`): `<time> <stdout|stderr> <P|F> <content>`.

use std::time::UNIX_EPOCH;

use berth_cri::berth::v1::{LogLine, log_line::Stream};

use crate::clock;

/// None for what is no record: the end of one that a full disk has torn.
pub(super) fn parse(record: &[u8]) -> Option<LogLine> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let at = humantime::parse_rfc3339(time).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // More tags may follow the first one, after colons.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    let text = parts.next().unwrap_or_default().to_vec();
    Some(LogLine { at: clock::nanos(at), stream: stream.into(), text, partial })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_what_they_are() {
        let line = parse(b"1970-01-01T00:00:01.000000002Z stderr P a b ").unwrap();
        assert_eq!((line.at, line.stream(), line.partial), (1_000_000_002, Stream::Stderr, true));
        assert_eq!(line.text, b"a b ");
        let line = parse(b"2026-01-02T03:04:05.5Z stdout F:x ").unwrap();
        assert_eq!((line.text.len(), line.partial), (0, false));
        for bad in
            ["", "x", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z other F a", "5 stdout F a", "torn F a"]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
