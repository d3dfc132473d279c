//! Pods coming up, as a person follows it: on a terminal the picture is drawn anew in its place, elsewhere each change is
//! a line.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};

use berth_cri::berth::v1::{ImagePull, LayerPull, Pod, PodContainer, layer_pull, pod_container::State};

use crate::output::{Colour, bytes, coloured, container_state, duration, name, phase};

/// Letters of a bar.
const BAR: usize = 24;

pub(crate) struct Progress {
    mode: Mode,
    pods: BTreeMap<(String, String), Pod>,
    /// Of each container, what was last said.
    said: BTreeMap<String, String>,
    screen: Screen,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines,
    Picture,
}

impl Progress {
    pub(crate) fn new(silent: bool) -> Self {
        let mode = match (silent, std::io::stdout().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Picture,
            (false, false) => Mode::Lines,
        };
        Self { mode, pods: BTreeMap::new(), said: BTreeMap::new(), screen: Screen::default() }
    }

    /// Shows a pod as it is now.
    pub(crate) fn show(&mut self, pod: &Pod) {
        match self.mode {
            Mode::Silent => {}
            Mode::Lines => self.say(pod),
            Mode::Picture => {
                self.pods.insert(name(pod), pod.clone());
                let lines = self.pods.values().flat_map(picture);
                self.screen.draw(lines);
            }
        }
        if self.mode == Mode::Lines {
            self.pods.insert(name(pod), pod.clone());
        }
    }

    /// Says how it ended.
    pub(crate) fn finish(&mut self) {
        if self.mode == Mode::Silent {
            return;
        }
        for pod in self.pods.values() {
            println!("{}", ending(pod));
        }
    }

    fn say(&mut self, pod: &Pod) {
        let (namespace, pod_name) = name(pod);
        let mut say = |about: String, text: String| {
            if !text.is_empty() && self.said.insert(about.clone(), text.clone()).as_ref() != Some(&text) {
                println!("{about}: {text}");
            }
        };
        if !pod.message.is_empty() {
            say(format!("{namespace}/{pod_name}"), format!("{}: {}", pod.reason, pod.message));
        }
        for pull in &pod.pulls {
            say(format!("{namespace}/{pod_name}: image {}", pull.image), "pulling".to_owned());
        }
        for container in &pod.containers {
            say(format!("{namespace}/{pod_name}: {}", container.name), container_state(container));
        }
    }
}

fn picture(pod: &Pod) -> Vec<String> {
    let (namespace, pod_name) = name(pod);
    let mut lines = vec![format!("{namespace}/{pod_name}  {}", phase(pod))];
    if !pod.message.is_empty() {
        lines.push(format!("  {} {}", coloured(&pod.reason, Colour::Yellow), pod.message));
    }
    lines.extend(pod.containers.iter().map(|container| format!("  {}", container_line(container))));
    lines.extend(pod.pulls.iter().flat_map(pull_lines));
    lines
}

/// Where a picture takes the place of the one before it.
#[derive(Default)]
pub(crate) struct Screen {
    /// Lines of the picture that is there.
    drawn: usize,
}

impl Screen {
    pub(crate) fn draw(&mut self, lines: impl Iterator<Item = String>) {
        // A line that wraps would be two, and the next picture would be drawn at the wrong place.
        let width = crate::stream::terminal::width().unwrap_or(80);
        let mut page = String::new();
        if self.drawn > 0 {
            // Up to the first line of the last picture, and clear from there (ECMA-48).
            page.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        self.drawn = 0;
        for line in lines {
            page.push_str(&cut(&line, width));
            page.push('\n');
            self.drawn += 1;
        }
        let mut out = std::io::stdout().lock();
        // A terminal that is gone is told of by the next line that matters.
        let _ = out.write_all(page.as_bytes()).and_then(|()| out.flush());
    }
}

fn container_line(container: &PodContainer) -> String {
    let (sign, colour) = match &container.state {
        Some(State::Running(_)) if container.ready => ("●", Colour::Green),
        Some(State::Running(_)) => ("◐", Colour::Yellow),
        Some(State::Terminated(ended)) if ended.exit_code == 0 => ("✓", Colour::Green),
        Some(State::Terminated(_)) => ("✗", Colour::Red),
        Some(State::Waiting(waiting)) if waiting.message.is_empty() => ("○", Colour::Dim),
        Some(State::Waiting(_)) => ("!", Colour::Red),
        None => ("○", Colour::Dim),
    };
    format!("{} {:<20} {}", coloured(sign, colour), container.name, container_state(container))
}

/// An image on its way: its name, and a bar for each layer.
pub(crate) fn pull_lines(pull: &ImagePull) -> Vec<String> {
    let mut lines = vec![format!("  pulling {}", pull.image)];
    lines.extend(pull.layers.iter().map(layer_line));
    lines
}

fn layer_line(layer: &LayerPull) -> String {
    let digest = layer.digest.rsplit(':').next().unwrap_or_default();
    let what = match layer.state() {
        layer_pull::State::Waiting => "waiting".to_owned(),
        layer_pull::State::Fetching => format!("{} of {}", bytes(layer.fetched), bytes(layer.size)),
        layer_pull::State::Unpacking => "unpacking".to_owned(),
        layer_pull::State::Done => "done".to_owned(),
    };
    format!("    {}  {}  {what}", digest.get(..12).unwrap_or(digest), bar(layer.fetched, layer.size))
}

fn bar(done: u64, all: u64) -> String {
    let full = (done * BAR as u64).checked_div(all).unwrap_or(0);
    let full = usize::try_from(full).unwrap_or(BAR).min(BAR);
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

/// To so many letters; what colours take does not count.
fn cut(line: &str, width: usize) -> String {
    let mut kept = String::new();
    let mut seen = 0;
    let mut in_code = false;
    for letter in line.chars() {
        in_code |= letter == '\x1b';
        if !in_code {
            seen += 1;
        }
        if in_code || seen < width {
            kept.push(letter);
        }
        in_code &= letter != 'm';
    }
    kept
}

fn ending(pod: &Pod) -> String {
    let (namespace, pod_name) = name(pod);
    let took = |until: i64| duration(until - pod.created_at);
    if pod.finished_at != 0 {
        let why = if pod.message.is_empty() { String::new() } else { format!(": {}", pod.message) };
        let how = phase(pod).to_lowercase();
        return format!("{namespace}/{pod_name} {how} after {}{why}", took(pod.finished_at));
    }
    let ready = pod.conditions.iter().find(|one| one.r#type == "Ready" && one.holds);
    let ready = ready.map(|one| took(one.since)).unwrap_or_default();
    format!("{namespace}/{pod_name} is ready after {ready} (berth timeline {pod_name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_without_its_colours_being_counted() {
        assert_eq!(cut("\x1b[32mab\x1b[0mcdef", 4), "\x1b[32mab\x1b[0mc");
        assert_eq!(cut("abc", 80), "abc");
    }

    #[test]
    fn a_bar_is_as_full_as_the_layer() {
        assert_eq!(bar(0, 0), format!("[{}]", " ".repeat(24)));
        assert_eq!(bar(5, 10), format!("[{}{}]", "=".repeat(12), " ".repeat(12)));
        assert_eq!(bar(20, 10), format!("[{}]", "=".repeat(24)));
    }
}
