//! The list of specs that must pass, one per line and sorted; one list for each version of cgroups, since a kernel with
//! version 1 lacks things that some specs want.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use berth_tests::host;

use crate::report::Spec;

fn file() -> PathBuf {
    let name = format!("critest/passed-cgroup{}.txt", host::cgroup_version());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The names in the list.
pub(crate) fn read() -> Result<BTreeSet<String>> {
    let file = file();
    let text = fs::read_to_string(&file)
        .with_context(|| format!("reading {}; --bless writes it", file.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Makes the list anew from what passed.
pub(crate) fn write(specs: &[Spec]) -> Result<PathBuf> {
    let file = file();
    let passed: BTreeSet<&str> =
        specs.iter().filter(|spec| spec.outcome.is_passed()).map(|spec| spec.name.as_str()).collect();
    let text: String = passed.iter().map(|name| format!("{name}\n")).collect();
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// What is in the list and did not pass. A spec that wasn't there counts only if all were to run.
pub(crate) fn missed(kept: &BTreeSet<String>, specs: &[Spec], all: bool) -> Vec<String> {
    let is_missed = |name: &&String| {
        let named: Vec<&Spec> = specs.iter().filter(|spec| spec.name == **name).collect();
        if named.is_empty() { all } else { !named.iter().all(|spec| spec.outcome.is_passed()) }
    };
    kept.iter().filter(is_missed).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Outcome;

    #[test]
    fn what_fails_or_is_skipped_is_missed_and_what_is_absent_only_from_a_whole_run() {
        let spec = |name: &str, outcome| Spec { name: name.to_owned(), outcome };
        let kept: BTreeSet<String> = ["a", "b", "c", "d"].map(str::to_owned).into();
        let specs = [
            spec("a", Outcome::Passed),
            spec("b", Outcome::Failed(String::new())),
            spec("c", Outcome::Skipped(String::new())),
            spec("new", Outcome::Failed(String::new())),
        ];
        assert_eq!(missed(&kept, &specs, false), ["b", "c"]);
        assert_eq!(missed(&kept, &specs, true), ["b", "c", "d"]);
    }
}
