//! A timeline in the terminal: a row for each span, its bar where it was.

use super::{Row, Rows};
use crate::output::{Colour, coloured, duration};
use crate::stream::terminal;

/// When nobody says how wide the terminal is.
const WIDTH: usize = 100;

/// The bars get at least so much.
const LEAST: usize = 20;

pub(super) fn draw(title: &str, rows: &Rows) -> String {
    let label = |row: &Row| format!("{}{}", "  ".repeat(row.depth), row.name);
    let names = rows.rows.iter().map(|row| label(row).chars().count()).max().unwrap_or(0);
    let space = terminal::width().unwrap_or(WIDTH).saturating_sub(names + 14).max(LEAST);
    let mut page = format!("{title}\n");
    for row in &rows.rows {
        let (before, bar) = place(row, rows.until, space);
        let sign = if row.depth > 0 { "─" } else { "█" };
        let bar = coloured(&sign.repeat(bar), if row.waited_for { Colour::Green } else { Colour::Dim });
        let after = space - before - place(row, rows.until, space).1;
        let mark = if row.waited_for { "*" } else { " " };
        let goes_on = if row.goes_on { "…" } else { "" };
        page.push_str(&format!(
            "{mark} {:<names$} {}{bar}{} {:>8}{goes_on}\n",
            label(row),
            " ".repeat(before),
            " ".repeat(after),
            duration(row.ended - row.began),
        ));
    }
    page.push_str(&format!("{}\n", rows.sum()));
    page
}

/// Letters before the bar, and those of the bar: at least one, for what is too short to be seen.
fn place(row: &Row, until: i64, space: usize) -> (usize, usize) {
    let at = |time: i64| (time.clamp(0, until) as f64 / until as f64 * space as f64).round() as usize;
    let before = at(row.began).min(space - 1);
    (before, at(row.ended).saturating_sub(before).clamp(1, space - before))
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn bars_stand_where_the_time_went() {
        let rows = example();
        let places: Vec<_> = rows.rows.iter().map(|row| place(row, rows.until, 100)).collect();
        assert_eq!(places, [(0, 10), (1, 5), (10, 80), (90, 10)]);
        let chart = draw("default/web", &rows);
        assert!(chart.contains("* run init <fetch>") && chart.contains("    network"), "{chart}");
        assert!(chart.ends_with("1.00 s of 1.00 s to Ready are in the marked spans\n"), "{chart}");
    }
}
