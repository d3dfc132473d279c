//! What is printed: tables, times, colours on a terminal alone.

use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_cri::berth::v1::{Pod, PodContainer, pod::Phase, pod_container::State};
use serde_json::Value;

use crate::args::Format;
use crate::error::Error;

/// Whether standard output is looked at by a person who wants colours (no-color.org).
pub(crate) fn has_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
    Dim,
}

/// The text in a colour, where there are colours.
pub(crate) fn coloured(text: &str, colour: Colour) -> String {
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
        Colour::Dim => 2,
    };
    if has_colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A table whose columns are as wide as they have to be, two spaces between.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A value as it was asked for; tables are the caller's.
pub(crate) fn print(value: &Value, format: Format) -> Result<(), Error> {
    let text = match format {
        Format::Yaml => yaml_serde::to_string(value)
            .map_err(|error| Error::Failed(format!("cannot write YAML: {error}")))?,
        Format::Json | Format::Table => format!("{value:#}\n"),
    };
    print!("{text}");
    Ok(())
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339, to the second; empty for never.
pub(crate) fn rfc3339(nanos: i64) -> String {
    match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
        }
        _ => String::new(),
    }
}

/// How long something is ago, in at most two units, as kubectl writes it.
pub(crate) fn age(nanos: i64) -> String {
    let seconds = (now() - nanos).max(0) / 1_000_000_000;
    let units = |first: i64, a: &str, second: i64, b: &str| match second {
        0 => format!("{first}{a}"),
        second => format!("{first}{a}{second}{b}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => units(seconds / 60, "m", seconds % 60, "s"),
        600..10_800 => format!("{}m", seconds / 60),
        10_800..28_800 => units(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        28_800..172_800 => format!("{}h", seconds / 3600),
        172_800..691_200 => units(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Seconds or milliseconds, three digits.
pub(crate) fn duration(nanos: i64) -> String {
    let millis = nanos as f64 / 1e6;
    match millis {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 100_000.0 => format!("{:.2} s", ms / 1e3),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

/// 1024-based, as kubectl's tools have it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

pub(crate) fn phase(pod: &Pod) -> &'static str {
    match pod.phase() {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    }
}

/// What a person wants to know first: the phase, or what it hangs on, as in kubectl's STATUS.
pub(crate) fn status(pod: &Pod) -> String {
    if pod.stopping {
        return "Terminating".to_owned();
    }
    if !pod.reason.is_empty() {
        return pod.reason.clone();
    }
    let mut waits = pod.containers.iter().filter_map(|container| match &container.state {
        Some(State::Waiting(waiting)) => Some(waiting.reason.as_str()),
        _ => None,
    });
    let ordinary = ["PodInitializing", "ContainerCreating", ""];
    let bad = waits.rfind(|reason| !ordinary.contains(reason));
    bad.map_or_else(|| phase(pod).to_owned(), str::to_owned)
}

pub(crate) fn name(pod: &Pod) -> (String, String) {
    let reference = pod.pod.clone().unwrap_or_default();
    (reference.namespace, reference.name)
}

/// A container's state in a few words.
pub(crate) fn container_state(container: &PodContainer) -> String {
    match &container.state {
        Some(State::Running(running)) if !running.ending.is_empty() => format!("Ending: {}", running.ending),
        Some(State::Running(_)) if container.started => "Running".to_owned(),
        Some(State::Running(_)) => "Starting".to_owned(),
        Some(State::Waiting(waiting)) => match waiting.message.as_str() {
            "" => waiting.reason.clone(),
            message => format!("{}: {message}", waiting.reason),
        },
        Some(State::Terminated(ended)) => match ended.exit_code {
            0 => ended.reason.clone(),
            code => format!("{} ({code})", ended.reason),
        },
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["äöüäöü".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["NAME", "X"], &rows), "NAME    X\na       bb\näöüäöü  c\n");
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!([bytes(12), bytes(2048), bytes(5 << 20)], ["12 B", "2.0 KiB", "5.0 MiB"]);
        let second = 1_000_000_000;
        assert_eq!(
            [duration(2_500_000), duration(250_000_000), duration(3 * second)],
            ["2.5 ms", "250 ms", "3.00 s"]
        );
        let ages = [59, 150, 7200, 90_000].map(|seconds| age(now() - seconds * second));
        assert_eq!(ages, ["59s", "2m30s", "120m", "25h"]);
        assert_eq!((rfc3339(0), rfc3339(second)), (String::new(), "1970-01-01T00:00:01Z".to_owned()));
    }
}
