//! The steps of a pod's start, as the daemon tells them in its verbose status.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::samples::Samples;

/// One step of one pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    name: String,
    began: Duration,
    took: Duration,
}

impl Step {
    /// `{"steps": [{"name", "began_ms", "took_ms"}, …]}`; steps that have not ended are left out.
    pub(crate) fn parse_all(json: &str) -> Result<Vec<Step>> {
        let value: Value = serde_json::from_str(json)?;
        let mut steps = Vec::new();
        for step in value["steps"].as_array().context("it has no steps")? {
            let millis = |key: &str| step[key].as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
            let Some(took) = millis("took_ms") else { continue };
            steps.push(Step {
                name: step["name"].as_str().context("a step without a name")?.to_owned(),
                began: millis("began_ms").context("a step without its beginning")?,
                took,
            });
        }
        Ok(steps)
    }
}

/// The steps of all pods by name.
#[derive(Debug, Default)]
pub(crate) struct Timelines(Vec<Steps>);

/// One step of many pods.
#[derive(Debug)]
pub(crate) struct Steps {
    pub(crate) name: String,
    pub(crate) began: Samples,
    pub(crate) took: Samples,
}

impl Timelines {
    pub(crate) fn add(&mut self, pod: Vec<Step>) {
        for step in pod {
            let at = self.0.iter().position(|known| known.name == step.name).unwrap_or_else(|| {
                self.0.push(Steps { name: step.name, began: Samples::default(), took: Samples::default() });
                self.0.len() - 1
            });
            self.0[at].began.add(step.began);
            self.0[at].took.add(step.took);
        }
    }

    /// In the order in which they begin.
    pub(crate) fn in_order(&self) -> Vec<&Steps> {
        let mut steps: Vec<&Steps> = self.0.iter().collect();
        steps.sort_by_key(|step| step.began.median());
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_put_together_by_name_and_in_order() {
        let mut all = Timelines::default();
        for (began, took) in [(2.0, 4.5), (3.0, 5.5)] {
            let json = format!(
                r#"{{"steps":[{{"name":"process","began_ms":{began},"took_ms":{took}}},
                    {{"name":"network","began_ms":0.5,"took_ms":1}},
                    {{"name":"open","began_ms":9,"took_ms":null}}]}}"#
            );
            all.add(Step::parse_all(&json).unwrap());
        }
        let steps = all.in_order();
        let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["network", "process"]);
        assert_eq!(steps[1].took.percentile(99), Duration::from_micros(5500));
        assert!(Step::parse_all("{}").is_err());
    }
}
