//! What is wrong with a configuration: everything, each with its place.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file, from 1.
    Line(usize),
    /// A command-line flag.
    Flag(&'static str),
    /// Nobody gave it.
    Default,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub origin: Origin,
    /// Full path of the key, as in `network.mtu`; empty when the file is not TOML at this place.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Line(line) => write!(formatter, "line {line}: ")?,
            Origin::Flag(flag) => write!(formatter, "{flag}: ")?,
            Origin::Default => {}
        }
        if !self.key.is_empty() && !matches!(self.origin, Origin::Flag(_)) {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.problem)
    }
}

/// Every fault of one configuration, in the order of the file, those of flags last. Never empty.
#[derive(Debug, thiserror::Error)]
pub struct ConfigFaults {
    pub file: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, plural) = (self.faults.len(), if self.faults.len() == 1 { "" } else { "s" });
        write!(formatter, "{}: {count} fault{plural}", self.file.display())?;
        self.faults.iter().try_for_each(|fault| write!(formatter, "\n  {fault}"))
    }
}

/// Collects faults while a file is read.
#[derive(Debug)]
pub(super) struct Faults<'a> {
    text: &'a str,
    found: Vec<Fault>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, found: Vec::new() }
    }

    pub(super) fn origin(&self, span: Range<usize>) -> Origin {
        // A span may end at, but never beyond, the text.
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        Origin::Line(1 + before.iter().filter(|byte| **byte == b'\n').count())
    }

    pub(super) fn add(&mut self, origin: &Origin, key: impl Into<String>, problem: impl Into<String>) {
        self.found.push(Fault { origin: origin.clone(), key: key.into(), problem: problem.into() });
    }

    pub(super) fn into_vec(mut self) -> Vec<Fault> {
        // Stable: two faults of one line keep the order in which they were found.
        self.found.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.found.dedup();
        self.found
    }
}
