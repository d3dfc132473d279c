//! `berth doctor`: whether pods can run on this machine, what is missing, and how to mend it. Needs no daemon.
//!
//! What can be tried is tried rather than read from a version: each trial is a short-lived process of its own
//! (`probe.rs`), so that one that hangs or breaks takes nothing with it.

mod cgroups;
mod daemon;
mod kernel;
mod neighbours;
mod network;
mod probe;
mod storage;

use serde_json::json;

use crate::args::{Doctor, Format};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Colour, coloured, print};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    area: &'static str,
    check: &'static str,
    verdict: Verdict,
    /// What there is.
    found: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Pods run, and something that some of them want is missing.
    Warn(Advice),
    /// No pod runs.
    Bad(Advice),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Advice {
    /// What it means for pods.
    means: String,
    /// What to do, as it is typed.
    mend: String,
}

impl Finding {
    fn good(area: &'static str, check: &'static str, found: impl Into<String>) -> Self {
        Self { area, check, verdict: Verdict::Good, found: found.into() }
    }

    fn warn(
        area: &'static str,
        check: &'static str,
        found: impl Into<String>,
        means: &str,
        mend: impl Into<String>,
    ) -> Self {
        let verdict = Verdict::Warn(Advice { means: means.to_owned(), mend: mend.into() });
        Self { verdict, ..Self::good(area, check, found) }
    }

    /// As a warning, and nothing works.
    fn bad(
        area: &'static str,
        check: &'static str,
        found: impl Into<String>,
        means: &str,
        mend: impl Into<String>,
    ) -> Self {
        let warning = Self::warn(area, check, found, means, mend);
        match warning.verdict {
            Verdict::Warn(advice) => Self { verdict: Verdict::Bad(advice), ..warning },
            Verdict::Good | Verdict::Bad(_) => warning,
        }
    }
}

pub(crate) async fn doctor(client: Client, args: Doctor) -> Result<u8, Error> {
    if let Some(name) = &args.probe {
        return probe::run(name, &args.root).await;
    }
    let mut findings = kernel::check().await;
    findings.extend(cgroups::check());
    findings.extend(storage::check(&args.root, &args.state).await);
    findings.extend(network::check().await);
    findings.extend(neighbours::check(&args.state));
    findings.extend(daemon::check(&client).await);
    let bad = findings.iter().filter(|one| matches!(one.verdict, Verdict::Bad(_))).count();
    let warned = findings.iter().filter(|one| matches!(one.verdict, Verdict::Warn(_))).count();
    match args.output.output {
        Format::Table => {
            print!("{}", page(&findings));
            println!("{} checks: {bad} failed, {warned} with a warning", findings.len());
        }
        format => print(&findings.iter().map(value).collect(), format)?,
    }
    Ok(u8::from(bad > 0 || (args.strict && warned > 0)))
}

fn page(findings: &[Finding]) -> String {
    let mut page = String::new();
    let mut area = "";
    for one in findings {
        if one.area != area {
            area = one.area;
            page.push_str(&format!("{area}\n"));
        }
        let (sign, advice) = match &one.verdict {
            Verdict::Good => (coloured("ok  ", Colour::Green), None),
            Verdict::Warn(advice) => (coloured("warn", Colour::Yellow), Some(advice)),
            Verdict::Bad(advice) => (coloured("FAIL", Colour::Red), Some(advice)),
        };
        page.push_str(&format!("  {sign}  {:<18} {}\n", one.check, one.found));
        if let Some(Advice { means, mend }) = advice {
            page.push_str(&format!("        {means}\n        to mend it: {mend}\n"));
        }
    }
    page
}

fn value(one: &Finding) -> serde_json::Value {
    let (verdict, advice) = match &one.verdict {
        Verdict::Good => ("ok", None),
        Verdict::Warn(advice) => ("warn", Some(advice)),
        Verdict::Bad(advice) => ("fail", Some(advice)),
    };
    json!({
        "area": one.area,
        "check": one.check,
        "verdict": verdict,
        "found": one.found,
        "means": advice.map(|advice| &advice.means),
        "mend": advice.map(|advice| &advice.mend),
    })
}

/// A file of /proc or /sys, trimmed; empty when it is not there.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
