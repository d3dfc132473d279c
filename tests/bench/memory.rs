//! Memory of processes, as the kernel shares it out.

use std::fs;

use anyhow::{Context, Result};

/// In kB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    /// Each page divided by the number of processes that have it.
    pub(crate) pss: u64,
}

impl Memory {
    /// From /proc/PID/smaps_rollup.
    pub(crate) fn of(pid: i32) -> Result<Memory> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        parse(&text).with_context(|| format!("{path} without Rss or Pss"))
    }
}

fn parse(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Memory { rss: field("Rss:")?, pss: field("Pss:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_read() {
        let text = "5581-7fff ---p 00000000 00:00 0    [rollup]\nRss:     1744 kB\nPss:      301 kB\nPss_Dirty: 9 kB\n";
        let memory = parse(text).unwrap();
        assert_eq!((memory.rss, memory.pss), (1744, 301));
    }
}
