//! Where the time of a pod's start went.

use std::collections::HashMap;

use berth_cri::berth::v1::{PodTimeline, TimelineSpan, timeline_span::Kind as WireKind};
use berth_sandbox_manager::ContainerKind;
use berth_sandbox_manager::sequence::{Sequence, Stage};
use serde::{Deserialize, Serialize};

use crate::record::History;

/// Something that took time. Nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Empty: the pod's.
    pub(crate) container: String,
    pub(crate) began: i64,
    /// 0: it goes on.
    pub(crate) ended: i64,
    pub(crate) part_of: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Sandbox,
    Network,
    Pull,
    Layer,
    Create,
    Init,
    Startup,
    Readiness,
    Backoff,
    Other,
}

impl Span {
    pub(crate) fn of_sandbox(began: i64) -> Self {
        let (name, container) = ("sandbox".to_owned(), String::new());
        Self { name, kind: Kind::Sandbox, container, began, ended: 0, part_of: None }
    }
}

/// A pod that never gets ready costs no more memory than this many spans.
const MOST: usize = 256;

/// What took less is no time anybody waited for.
const NOTHING: i64 = 100_000;

/// Writes down what a pod waits for, until it is ready for the first time.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// The stage each container was last seen in, and its span.
    stages: HashMap<String, (Stage, Option<usize>)>,
}

impl Timeline {
    /// Begins a span; None when there are too many.
    pub(crate) fn begin(spans: &mut Vec<Span>, span: Span) -> Option<usize> {
        if spans.len() >= MOST {
            return None;
        }
        spans.push(span);
        Some(spans.len() - 1)
    }

    pub(crate) fn extend(spans: &mut Vec<Span>, more: Vec<Span>) {
        spans.extend(more.into_iter().take(MOST.saturating_sub(spans.len())));
    }

    /// Takes note of what became of each container.
    pub(crate) fn follow(&mut self, sequence: &Sequence, spans: &mut Vec<Span>, now: i64) {
        for current in sequence.current() {
            let before = self.stages.get(current.name).copied();
            if before.is_some_and(|(stage, _)| stage == current.stage) {
                continue;
            }
            if let Some((_, Some(open))) = before
                && let Some(span) = spans.get_mut(open)
            {
                span.ended = now;
            }
            let named = named(current.kind, current.name, current.stage);
            let open = named.and_then(|(kind, name)| {
                let container = current.name.to_owned();
                Self::begin(spans, Span { name, kind, container, began: now, ended: 0, part_of: None })
            });
            self.stages.insert(current.name.to_owned(), (current.stage, open));
        }
    }

    /// The span of a container's present stage.
    pub(crate) fn open(&self, container: &str) -> Option<usize> {
        self.stages.get(container).and_then(|(_, open)| *open)
    }
}

fn named(kind: ContainerKind, name: &str, stage: Stage) -> Option<(Kind, String)> {
    let of = match kind {
        ContainerKind::Init => "init",
        ContainerKind::Sidecar => "sidecar",
        ContainerKind::Standard => "container",
        // Nobody waits for it.
        ContainerKind::Ephemeral => return None,
    };
    let (kind, what) = match (stage, kind) {
        (Stage::Pulling, _) => (Kind::Pull, "image of"),
        (Stage::Creating, _) => (Kind::Create, "create"),
        (Stage::StartingUp, _) => (Kind::Startup, "start up"),
        (Stage::GettingReady, _) => (Kind::Readiness, "readiness of"),
        (Stage::Backoff, _) => (Kind::Backoff, "back-off of"),
        (Stage::Up, ContainerKind::Init) => (Kind::Init, "run"),
        (Stage::Turn | Stage::Up | Stage::Ending | Stage::Ended, _) => return None,
    };
    Some((kind, format!("{what} {of} {name}")))
}

/// Marks what the pod waited for: from its readiness backwards, always what ended last before. These spans follow one
/// another, and what is between them is berth's own.
fn waited_for(spans: &[Span], began: i64, until: i64) -> Vec<bool> {
    let mut waited = vec![false; spans.len()];
    let mut at = until;
    while at > began {
        let ended = |span: &Span| if span.ended == 0 { until } else { span.ended };
        let candidates = spans.iter().enumerate().filter(|(index, span)| {
            span.part_of.is_none()
                && !waited[*index]
                && span.began < at
                && ended(span) <= at
                && ended(span) - span.began >= NOTHING
        });
        let Some((index, span)) = candidates.max_by_key(|(_, span)| (ended(span), -span.began)) else {
            break;
        };
        waited[index] = true;
        at = span.began;
    }
    waited
}

/// As the service tells it. `now` stands for an end that has not come.
pub(crate) fn wire(history: &History, now: i64) -> PodTimeline {
    let History { began_at: began, ready_at: ready, ref spans, .. } = *history;
    let until = if ready > 0 { ready } else { now };
    let waited = waited_for(spans, began, until);
    let worth = |span: &Span| span.ended == 0 || span.ended - span.began >= NOTHING;
    // Leaving spans out moves the others: an index is one among those that are told.
    let mut told = HashMap::new();
    let mut wire = Vec::new();
    for (index, span) in spans.iter().enumerate().filter(|(_, span)| worth(span)) {
        let part_of = span.part_of.and_then(|parent| told.get(&parent).copied());
        told.insert(index, u32::try_from(wire.len()).unwrap_or(u32::MAX));
        wire.push(TimelineSpan {
            name: span.name.clone(),
            kind: kind(span.kind).into(),
            container: span.container.clone(),
            began: span.began,
            ended: span.ended,
            part_of,
            waited_for: waited[index],
        });
    }
    PodTimeline { began, ready, spans: wire }
}

fn kind(kind: Kind) -> WireKind {
    match kind {
        Kind::Sandbox => WireKind::Sandbox,
        Kind::Network => WireKind::Network,
        Kind::Pull => WireKind::Pull,
        Kind::Layer => WireKind::Layer,
        Kind::Create => WireKind::Create,
        Kind::Init => WireKind::Init,
        Kind::Startup => WireKind::Startup,
        Kind::Readiness => WireKind::Readiness,
        Kind::Backoff => WireKind::Backoff,
        Kind::Other => WireKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, began: i64, ended: i64) -> Span {
        let unit = 1_000_000;
        Span {
            name: name.to_owned(),
            kind: Kind::Other,
            container: String::new(),
            began: began * unit,
            ended: ended * unit,
            part_of: None,
        }
    }

    #[test]
    fn what_was_waited_for_is_one_after_another() {
        let spans = [
            span("sandbox", 0, 20),
            span("pull a", 20, 50),
            span("run init a", 55, 355),
            // Both start together: the slow one is what the pod waits for.
            span("pull b", 356, 400),
            span("pull c", 356, 500),
            span("create b", 400, 410),
            span("create c", 500, 520),
        ];
        let waited = waited_for(&spans, 0, 520_000_000);
        let names: Vec<_> = spans
            .iter()
            .zip(waited)
            .filter(|(_, waited)| *waited)
            .map(|(span, _)| span.name.as_str())
            .collect();
        assert_eq!(names, ["sandbox", "pull a", "run init a", "pull c", "create c"]);
    }
}
