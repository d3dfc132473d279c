//! A timeline as a picture: SVG 1.1, by itself, readable on light and on dark ground.

use berth_cri::berth::v1::timeline_span::Kind;

use super::{Row, Rows};
use crate::output::duration;

/// Pixels.
const ROW: usize = 22;
const NAMES: usize = 320;
const BARS: usize = 640;
const TIMES: usize = 90;
const TOP: usize = 40;

pub(super) fn draw(title: &str, rows: &Rows) -> String {
    let width = NAMES + BARS + TIMES;
    let height = TOP + rows.rows.len() * ROW + 40;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>text {{ fill: #24292f }} .time {{ fill: #57606a }} \
         @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .time {{ fill: #9198a1 }} }}</style>\n\
         <text x=\"8\" y=\"24\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (index, row) in rows.rows.iter().enumerate() {
        svg.push_str(&drawn(row, TOP + index * ROW, rows.until));
    }
    if let Some(ready) = rows.ready {
        let x = NAMES + at(ready, rows.until);
        let bottom = height - 36;
        svg.push_str(&format!(
            "<line x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"#1a7f37\" stroke-dasharray=\"3 3\"/>\n"
        ));
    }
    svg.push_str(&format!("<text x=\"8\" y=\"{}\">{}</text>\n</svg>\n", height - 14, escaped(&rows.sum())));
    svg
}

fn drawn(row: &Row, y: usize, until: i64) -> String {
    let x = NAMES + at(row.began, until);
    let bar = (at(row.ended, until).saturating_sub(at(row.began, until))).max(1);
    let opacity = if row.waited_for { "1" } else { "0.45" };
    let thickness = if row.depth > 0 { 6 } else { 14 };
    format!(
        "<text x=\"{}\" y=\"{}\">{}</text>\n\
         <rect x=\"{x}\" y=\"{}\" width=\"{bar}\" height=\"{thickness}\" rx=\"2\" fill=\"{}\" opacity=\"{opacity}\"/>\n\
         <text class=\"time\" x=\"{}\" y=\"{}\">{}{}</text>\n",
        8 + row.depth * 16,
        y + 14,
        escaped(&row.name),
        y + (18 - thickness) / 2,
        colour(row.kind),
        NAMES + BARS + 8,
        y + 14,
        duration(row.ended - row.began),
        if row.goes_on { "…" } else { "" },
    )
}

fn at(time: i64, until: i64) -> usize {
    (time.clamp(0, until) as f64 / until as f64 * BARS as f64).round() as usize
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Sandbox | Kind::Network => "#8250df",
        Kind::Pull | Kind::Layer => "#0969da",
        Kind::Create => "#bf8700",
        Kind::Init => "#1a7f37",
        Kind::Startup | Kind::Readiness => "#2da44e",
        Kind::Backoff => "#cf222e",
        Kind::Other => "#6e7781",
    }
}

/// Names come from manifests.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn names_cannot_break_the_picture() {
        let svg = draw("default/web", &example());
        assert!(svg.contains("run init &lt;fetch&gt;") && !svg.contains("<fetch>"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 4);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
