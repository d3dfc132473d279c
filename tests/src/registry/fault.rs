//! What may go wrong between a registry and its client, ordered by a test.

use std::collections::VecDeque;

/// One fault, suffered by one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes after this many bytes of the body.
    DropAfter(u64),
    /// After this many bytes nothing more comes, and the connection stays open.
    StallAfter(u64),
    /// The right length, but one byte of the body is another.
    Corrupt,
    /// This status instead of an answer. 429 and 503 carry `Retry-After: 0`.
    Status(u16),
}

/// Faults still to come, first in first out.
#[derive(Debug, Default)]
pub(super) struct Plan(VecDeque<(String, Fault)>);

impl Plan {
    pub(super) fn add(&mut self, path_part: &str, fault: Fault) {
        self.0.push_back((path_part.to_owned(), fault));
    }

    /// Takes the fault meant for this path, if there is one.
    pub(super) fn take(&mut self, path: &str) -> Option<Fault> {
        let at = self.0.iter().position(|(part, _)| path.contains(part))?;
        self.0.remove(at).map(|(_, fault)| fault)
    }
}
