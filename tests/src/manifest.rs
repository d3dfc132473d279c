//! Pods from manifests, through the Pods service.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_cri::berth::v1::{
    GetPodRequest, ListPodsRequest, LogsRequest, Manifest, Pod, PodContainer, PodRef, RemovePodRequest,
    RunRequest, StopPodRequest, pod::Phase, pod_container::State,
};

use crate::{Node, PATIENCE, wait_until};

/// A pod of the namespace `default`.
pub fn reference(name: &str) -> Option<PodRef> {
    Some(PodRef { namespace: "default".to_owned(), name: name.to_owned() })
}

/// The manifest of a pod with one container that runs until it is stopped. Ends with the container.
pub fn sleeping(name: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: {name} }} }}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: busybox
    command: [sh, -c, "trap 'exit 0' TERM; echo started; while :; do sleep 1000 & wait $!; done"]
"#
    )
}

impl Node {
    /// Runs the pods of a manifest.
    pub async fn run_manifest(&self, text: &str) -> Result<Vec<PodRef>> {
        let manifest = Manifest { name: "test.yaml".to_owned(), text: text.to_owned() };
        let request = RunRequest { manifests: vec![manifest], ..RunRequest::default() };
        Ok(self.pods().run(request).await.context("Run")?.into_inner().pods)
    }

    /// A pod as it is.
    pub async fn manifest_pod(&self, name: &str) -> Result<Pod> {
        Ok(self.pods().get(GetPodRequest { pod: reference(name) }).await.context("Get")?.into_inner())
    }

    /// Waits until a pod is as `check` wants it.
    pub async fn wait_pod(&self, name: &str, check: impl Fn(&Pod) -> Result<()>) -> Result<Pod> {
        self.wait_pod_for(name, PATIENCE, check).await
    }

    /// [`wait_pod`](Node::wait_pod), for longer.
    pub async fn wait_pod_for(
        &self,
        name: &str,
        limit: Duration,
        check: impl Fn(&Pod) -> Result<()>,
    ) -> Result<Pod> {
        wait_until(&format!("pod {name}"), limit, async || {
            let pod = self.manifest_pod(name).await?;
            check(&pod).with_context(|| format!("{pod:#?}"))?;
            Ok(pod)
        })
        .await
    }

    /// Waits until a pod is ready.
    pub async fn wait_ready(&self, name: &str) -> Result<Pod> {
        self.wait_pod(name, |pod| {
            ensure!(has(pod, "Ready"), "not ready");
            Ok(())
        })
        .await
    }

    /// Waits until a pod has ended, and how.
    pub async fn wait_over(&self, name: &str) -> Result<Phase> {
        let pod = self.wait_pod(name, |pod| {
            ensure!(pod.finished_at != 0, "not over");
            Ok(())
        });
        Ok(pod.await?.phase())
    }

    /// What a container wrote to both streams so far, in this attempt.
    pub async fn pod_log(&self, name: &str, container: &str) -> Result<String> {
        let request =
            LogsRequest { pod: reference(name), container: container.to_owned(), ..LogsRequest::default() };
        let mut lines = self.pods().logs(request).await.context("Logs")?.into_inner();
        let mut text = String::new();
        while let Some(line) = lines.message().await? {
            text.push_str(&String::from_utf8_lossy(&line.text));
            text.push('\n');
        }
        Ok(text)
    }

    pub async fn stop_manifest_pod(&self, name: &str) -> Result<()> {
        let request = StopPodRequest { pod: reference(name), grace_seconds: None };
        self.pods().stop(request).await.context("Stop")?;
        Ok(())
    }

    /// Removes all pods that came from manifests.
    pub(crate) async fn remove_manifest_pods(&self) -> Result<()> {
        let pods = self.pods().list(ListPodsRequest::default()).await?.into_inner().pods;
        for pod in pods {
            self.pods().stop(StopPodRequest { pod: pod.pod.clone(), grace_seconds: Some(0) }).await?;
            self.pods().remove(RemovePodRequest { pod: pod.pod, stop: false }).await?;
        }
        Ok(())
    }
}

/// Whether a condition holds.
pub fn has(pod: &Pod, condition: &str) -> bool {
    pod.conditions.iter().any(|one| one.r#type == condition && one.holds)
}

/// A container of a pod.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Result<&'a PodContainer> {
    pod.containers.iter().find(|one| one.name == name).with_context(|| format!("no container {name}"))
}

/// In one word: `waiting`, `running`, or `ended` with the exit code.
pub fn state(pod: &Pod, name: &str) -> Result<String> {
    Ok(match &container(pod, name)?.state {
        Some(State::Running(_)) => "running".to_owned(),
        Some(State::Terminated(ended)) => format!("ended {}", ended.exit_code),
        Some(State::Waiting(waiting)) => format!("waiting {}", waiting.reason),
        None => "nothing".to_owned(),
    })
}

/// When a container's present or last attempt began and ended; nanoseconds since the epoch.
pub fn times(pod: &Pod, name: &str) -> Result<(i64, i64)> {
    match &container(pod, name)?.state {
        Some(State::Terminated(ended)) => Ok((ended.started_at, ended.finished_at)),
        Some(State::Running(running)) => Ok((running.since, i64::MAX)),
        other => bail!("{name} is {other:?}"),
    }
}
