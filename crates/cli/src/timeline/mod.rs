//! `berth timeline`: what a pod waited for while it started.

mod chart;
mod svg;

use berth_cri::berth::v1::{GetTimelineRequest, PodTimeline, timeline_span::Kind};
use serde_json::{Value, json};

use crate::args::{Format, Timeline};
use crate::client::Client;
use crate::error::Error;
use crate::output::{now, print};

pub(crate) async fn timeline(client: Client, args: Timeline) -> Result<u8, Error> {
    let pod = args.pod.reference();
    let title = format!("{}/{}", pod.namespace, pod.name);
    let request = GetTimelineRequest { pod: Some(pod) };
    let timeline = client.pods().get_timeline(request).await.map_err(client.failed())?.into_inner();
    let rows = Rows::of(&timeline, now());
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::draw(&title, &rows)).map_err(Error::file("write", path))?;
        println!("{} is written", path.display());
        return Ok(0);
    }
    match args.output.output {
        Format::Table => print!("{}", chart::draw(&title, &rows)),
        format => print(&value(&timeline), format)?,
    }
    Ok(0)
}

/// A timeline as it is drawn: parts below what they are a part of. Times in nanoseconds from the pod's beginning.
struct Rows {
    rows: Vec<Row>,
    /// Of the picture.
    until: i64,
    /// None: not yet.
    ready: Option<i64>,
    /// Of all that was waited for.
    waited: i64,
}

struct Row {
    name: String,
    kind: Kind,
    depth: usize,
    began: i64,
    ended: i64,
    goes_on: bool,
    waited_for: bool,
}

impl Rows {
    fn of(timeline: &PodTimeline, now: i64) -> Self {
        let ready = (timeline.ready > 0).then(|| timeline.ready - timeline.began);
        let end = |ended: i64| if ended == 0 { now } else { ended } - timeline.began;
        let last = timeline.spans.iter().map(|span| end(span.ended)).max().unwrap_or(0);
        let mut all =
            Self { rows: Vec::new(), until: ready.unwrap_or(last).max(last).max(1), ready, waited: 0 };
        all.add(timeline, None, 0, &end);
        let waited = all.rows.iter().filter(|row| row.waited_for);
        all.waited = waited.map(|row| row.ended - row.began).sum();
        all
    }

    fn add(&mut self, timeline: &PodTimeline, part_of: Option<u32>, depth: usize, end: &dyn Fn(i64) -> i64) {
        for (index, span) in timeline.spans.iter().enumerate().filter(|(_, span)| span.part_of == part_of) {
            self.rows.push(Row {
                name: span.name.clone(),
                kind: span.kind(),
                depth,
                began: span.began - timeline.began,
                ended: end(span.ended),
                goes_on: span.ended == 0,
                waited_for: span.waited_for,
            });
            self.add(timeline, u32::try_from(index).ok(), depth + 1, end);
        }
    }

    /// What the picture adds up to.
    fn sum(&self) -> String {
        use crate::output::duration;
        match self.ready {
            Some(ready) => {
                format!("{} of {} to Ready are in the marked spans", duration(self.waited), duration(ready))
            }
            None => format!("not ready after {}", duration(self.until)),
        }
    }
}

fn value(timeline: &PodTimeline) -> Value {
    let spans = timeline.spans.iter().map(|span| {
        json!({
            "name": span.name,
            "kind": span.kind().as_str_name(),
            "container": span.container,
            "began": span.began,
            "ended": span.ended,
            "partOf": span.part_of,
            "waitedFor": span.waited_for,
        })
    });
    json!({ "began": timeline.began, "ready": timeline.ready, "spans": spans.collect::<Vec<_>>() })
}

#[cfg(test)]
fn example() -> Rows {
    use berth_cri::berth::v1::TimelineSpan;
    let span = |name: &str, began: i64, ended: i64, part_of, waited_for| TimelineSpan {
        name: name.to_owned(),
        kind: Kind::Other.into(),
        began: 1_000_000_000 + began * 1_000_000,
        ended: if ended == 0 { 0 } else { 1_000_000_000 + ended * 1_000_000 },
        part_of,
        waited_for,
        ..TimelineSpan::default()
    };
    let timeline = PodTimeline {
        began: 1_000_000_000,
        ready: 2_000_000_000,
        spans: vec![
            span("sandbox", 0, 100, None, true),
            span("run init <fetch>", 100, 900, None, true),
            span("network", 10, 60, Some(0), false),
            span("create web", 900, 1000, None, true),
        ],
    };
    Rows::of(&timeline, 3_000_000_000)
}
