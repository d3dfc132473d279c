//! Ginkgo's JSON report.

use anyhow::{Context, Result};
use serde_json::Value;

/// Lines of a failure that are printed at most; the rest is in critest's own output.
const LINES: usize = 12;

/// One spec, or a step around all of them that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Outcome {
    pub(crate) fn is_passed(&self) -> bool {
        matches!(self, Outcome::Passed)
    }

    pub(crate) fn is_failed(&self) -> bool {
        matches!(self, Outcome::Failed(_))
    }

    pub(crate) fn is_skipped(&self) -> bool {
        matches!(self, Outcome::Skipped(_))
    }

    pub(crate) fn why(&self) -> &str {
        match self {
            Outcome::Passed => "",
            Outcome::Failed(why) | Outcome::Skipped(why) => why,
        }
    }

    /// Its first lines, up to the insides of Go's error values, to stand below the spec's name.
    pub(crate) fn indented_why(&self) -> String {
        let telling = self.why().lines().take(LINES).take_while(|line| line.trim() != "{");
        let lines: Vec<String> = telling.map(|line| format!("    {line}")).collect();
        lines.join("\n")
    }
}

/// Above the rows.
pub(crate) const HEADING: &str = "                       passed  failed  skipped\n";

/// A line of the table: how many passed, failed, were skipped.
pub(crate) fn row(title: &str, specs: &[Spec]) -> String {
    let count = |wanted: fn(&Outcome) -> bool| specs.iter().filter(|spec| wanted(&spec.outcome)).count();
    let [passed, failed, skipped] =
        [count(Outcome::is_passed), count(Outcome::is_failed), count(Outcome::is_skipped)];
    format!("{title:<21}{passed:>8}{failed:>8}{skipped:>9}\n")
}

/// The specs that were chosen, in the order of their names. One that a filter left out has no reason and is no spec here.
pub(crate) fn parse(report: &str) -> Result<Vec<Spec>> {
    let suites: Value = serde_json::from_str(report).context("reading critest's report")?;
    let nodes =
        suites.as_array().into_iter().flatten().filter_map(|suite| suite["SpecReports"].as_array()).flatten();
    let mut specs: Vec<Spec> = nodes.filter_map(spec).collect();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(specs)
}

fn spec(node: &Value) -> Option<Spec> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let is_spec = node["LeafNodeType"] == "It";
    let mut names: Vec<String> =
        node["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text).collect();
    names.push(text(if is_spec { &node["LeafNodeText"] } else { &node["LeafNodeType"] }));
    let failure = &node["Failure"];
    let message = text(&failure["Message"]);
    let outcome = match node["State"].as_str().unwrap_or_default() {
        "passed" => Outcome::Passed,
        "skipped" | "pending" if message.is_empty() => return None,
        "skipped" | "pending" => Outcome::Skipped(message.lines().next().unwrap_or_default().to_owned()),
        state => {
            let place = &failure["Location"];
            let file = text(&place["FileName"]);
            let file = file.rsplit('/').next().unwrap_or_default();
            Outcome::Failed(format!("{state} at {file}:{}: {message}", place["LineNumber"]))
        }
    };
    // BeforeSuite and its kin are worth a word only when they fail.
    (is_spec || outcome.is_failed()).then(|| Spec { name: names.join(" "), outcome })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_its_specs_without_what_a_filter_left_out() {
        let node = |kind: &str, leaf: &str, state: &str, message: &str| {
            json!({
                "ContainerHierarchyTexts": if kind == "It" { json!(["[k8s.io] Pod", "runs"]) } else { json!(null) },
                "LeafNodeType": kind,
                "LeafNodeText": leaf,
                "State": state,
                "Failure": { "Message": message, "Location": { "FileName": "/a/b/pod.go", "LineNumber": 7 } },
            })
        };
        let report = json!([{ "SpecReports": [
            node("BeforeSuite", "", "passed", ""),
            node("It", "z", "passed", ""),
            node("It", "measured", "skipped", ""),
            node("It", "b", "skipped", "no AppArmor\nhere"),
            node("It", "a", "timedout", "a minute\npassed"),
            node("AfterSuite", "", "failed", "boom"),
        ] }]);
        let spec = |name: &str, outcome| Spec { name: name.to_owned(), outcome };
        assert_eq!(
            parse(&report.to_string()).unwrap(),
            [
                spec("AfterSuite", Outcome::Failed("failed at pod.go:7: boom".to_owned())),
                spec(
                    "[k8s.io] Pod runs a",
                    Outcome::Failed("timedout at pod.go:7: a minute\npassed".to_owned())
                ),
                spec("[k8s.io] Pod runs b", Outcome::Skipped("no AppArmor".to_owned())),
                spec("[k8s.io] Pod runs z", Outcome::Passed),
            ]
        );
    }
}
