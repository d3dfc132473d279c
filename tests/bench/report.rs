//! What is printed: facts first, then one table with two columns for each runtime.

use std::time::Duration;

use crate::{
    calls::{Calls, EXEC},
    cgroup_move::Moves,
    crowd::Crowd,
    large_image::LargeImage,
    memory::Memory,
    pull::Pull,
    samples::{Samples, millis},
    timeline::Timelines,
};

/// Everything about one runtime.
#[derive(Debug)]
pub(crate) struct Measured {
    /// With its version.
    pub(crate) name: String,
    pub(crate) calls: Calls,
    pub(crate) timeline: Timelines,
    pub(crate) crowd: Option<Crowd>,
    pub(crate) pulls: Vec<Pull>,
}

const LABEL: usize = 64;
const COLUMN: usize = 12;

/// Two columns of a table.
type Cells = [String; 2];

pub(crate) fn print_moves(moves: &Moves) {
    println!();
    let title =
        format!("one move between two cgroups of v{}, {} hierarchies, ms", moves.version, moves.hierarchies);
    line(&title, [percentiles_heading()]);
    line("of a process, by its id in cgroup.procs", [percentiles(&moves.by_id)]);
    if let Some(samples) = &moves.by_itself {
        line("of a thread by itself, through tasks", [percentiles(samples)]);
    }
}

pub(crate) fn print_image(image: &LargeImage) {
    println!(
        "image      {} layers, {} files, {:.2} GB unpacked, {:.2} GB as gzip",
        image.image.layers.len(),
        image.files,
        image.unpacked as f64 / 1e9,
        image.packed() as f64 / 1e9,
    );
}

/// `one_move` is what ExecSync is compared with: the usual way into a container's cgroup.
pub(crate) fn print(all: &[Measured], one_move: &Samples) {
    let Some(first) = all.first() else { return };
    let column = |cells: &dyn Fn(&Measured) -> Cells| all.iter().map(cells).collect::<Vec<_>>();
    println!();
    line("", column(&|measured| [String::new(), measured.name.clone()]));
    line("calls, ms", column(&|_| percentiles_heading()));
    for (call, _) in first.calls.iter() {
        line(call, column(&|measured| measured.calls.of(call).map(percentiles).unwrap_or_default()));
    }
    line(
        "ExecSync beyond one move by cgroup.procs",
        column(&|measured| {
            let exec = measured.calls.of(EXEC).map(Samples::median).unwrap_or_default();
            [format!("{:.2}", millis(exec) - millis(one_move.median())), String::new()]
        }),
    );

    if let Some(crowd) = all.iter().find_map(|measured| measured.crowd.as_ref()) {
        let pods = crowd.pods;
        let crowds = |cells: &dyn Fn(&Crowd) -> Cells| {
            column(&|measured| measured.crowd.as_ref().map(cells).unwrap_or_default())
        };
        println!();
        line(
            &format!("{pods} pods started at once, until the last one runs, ms"),
            crowds(&|crowd| [format!("{:.0}", millis(crowd.start)), String::new()]),
        );
        line("memory, kB", column(&|_| ["Pss".to_owned(), "Rss".to_owned()]));
        line("what keeps a pod (berth-pod, shim)", crowds(&|crowd| kilobytes(crowd.keeper)));
        line(&format!("the daemon with {pods} pods"), crowds(&|crowd| kilobytes(crowd.daemon)));
    }

    let most = all.iter().map(|measured| measured.pulls.len()).max().unwrap_or_default();
    if most > 0 {
        println!();
        line("pulls, s", column(&|_| ["pull+unpack".to_owned(), "then sync".to_owned()]));
        for turn in 0..most {
            let pulls = |cells: &dyn Fn(&Pull) -> Cells| {
                column(&|measured| measured.pulls.get(turn).map(cells).unwrap_or_default())
            };
            let number = turn + 1;
            line(&format!("pull {number}"), pulls(&|pull| [seconds(pull.took), seconds(pull.sync)]));
            line("  the daemon's processor time", pulls(&|pull| [seconds(pull.cpu), String::new()]));
            line("  the daemon afterwards, Pss and Rss in kB", pulls(&|pull| kilobytes(pull.daemon)));
        }
    }
    all.iter().for_each(print_timeline);
}

fn print_timeline(measured: &Measured) {
    let steps = measured.timeline.in_order();
    if steps.is_empty() {
        return;
    }
    println!();
    let title = format!("where the time goes in {}, medians, ms", measured.name);
    line(&title, [["began".to_owned(), "took".to_owned()]]);
    for step in steps {
        let (began, took) = (millis(step.began.median()), millis(step.took.median()));
        line(&step.name, [[format!("{began:.2}"), format!("{took:.2}")]]);
    }
}

/// A line of the table. An empty left cell gives its room to the right one.
fn line(label: &str, columns: impl IntoIterator<Item = Cells>) {
    let mut text = format!("{label:LABEL$}");
    for [left, right] in columns {
        text += &match left.is_empty() {
            true => format!("{right:>width$}", width = 2 * COLUMN),
            false => format!("{left:>COLUMN$}{right:>COLUMN$}"),
        };
    }
    println!("{}", text.trim_end());
}

fn percentiles_heading() -> Cells {
    ["p50".to_owned(), "p99".to_owned()]
}

fn percentiles(samples: &Samples) -> Cells {
    [50, 99].map(|percent| format!("{:.2}", millis(samples.percentile(percent))))
}

fn kilobytes(memory: Memory) -> Cells {
    [memory.pss.to_string(), memory.rss.to_string()]
}

fn seconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64())
}
