//! Pressure stall information: how long tasks waited for a resource. cgroup v2 only.

use crate::file::Folder;

/// Pressure on one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    /// At least one task waited.
    pub some: PsiLine,
    /// All of them did. All zero where the kernel does not tell (CPU, before 5.13).
    pub full: PsiLine,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiLine {
    /// Since the cgroup was made.
    pub total_nanos: u64,
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last five minutes.
    pub avg300: f64,
}

pub(super) fn read(folder: &Folder, file: &str) -> Option<Psi> {
    parse(&folder.text(file)?)
}

fn parse(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    let mut found = false;
    for line in text.lines() {
        let Some((kind, rest)) = line.split_once(' ') else { continue };
        let slot = match kind {
            "some" => &mut psi.some,
            "full" => &mut psi.full,
            _ => continue,
        };
        found = true;
        for field in rest.split_ascii_whitespace() {
            let Some((name, value)) = field.split_once('=') else { continue };
            match name {
                // The kernel counts microseconds, CRI nanoseconds.
                "total" => slot.total_nanos = value.parse::<u64>().unwrap_or(0).saturating_mul(1000),
                "avg10" => slot.avg10 = per_cent(value),
                "avg60" => slot.avg60 = per_cent(value),
                "avg300" => slot.avg300 = per_cent(value),
                _ => {}
            }
        }
    }
    found.then_some(psi)
}

/// Rust reads "inf" and "NaN" as numbers; a scrape should not.
fn per_cent(text: &str) -> f64 {
    text.parse().ok().filter(|value: &f64| value.is_finite()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_lines_and_nanoseconds() {
        let text = "some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459\n\
                    full avg10=0.10 avg60=0.00 avg300=0.50 total=46123\n";
        let psi = parse(text).unwrap();
        assert_eq!(psi.some, PsiLine { total_nanos: 58_761_459_000, avg10: 0.22, avg60: 0.17, avg300: 1.11 });
        assert_eq!(psi.full, PsiLine { total_nanos: 46_123_000, avg10: 0.10, avg60: 0.0, avg300: 0.5 });
    }

    #[test]
    fn an_old_kernel_has_no_full_line_for_cpu() {
        let psi = parse("some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n").unwrap();
        assert_eq!((psi.some.total_nanos, psi.full), (5000, PsiLine::default()));
        assert_eq!(parse(""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "((some|full) ((avg10|total)=(NaN|inf|-?[0-9.]{0,24}) ?){0,4}\n){0,3}|\\PC*") {
            if let Some(psi) = parse(&text) {
                prop_assert!(psi.some.avg10.is_finite() && psi.full.avg10.is_finite());
            }
        }
    }
}
