//! What is wrong in a manifest, and where.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, as the caller named it.
    pub source: String,
    /// Which document of the file, from 1.
    pub document: usize,
    /// Where in the document, such as `spec.containers[1].lifecycle.type`; empty for all of it.
    pub path: String,
    /// What, and what would be right.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if self.document > 1 {
            write!(f, ", document {}", self.document)?;
        }
        match self.path.as_str() {
            "" => write!(f, ": {}", self.problem),
            path => write!(f, ": {path}: {}", self.problem),
        }
    }
}

/// All that is wrong in what was read, in the order in which it stands there; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let line = if index == 0 { "" } else { "\n" };
            write!(f, "{line}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
