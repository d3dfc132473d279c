//! What is known of a call from its path alone.

/// A method by its gRPC path, `/runtime.v1.RuntimeService/RunPodSandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method<'a>(&'a str);

impl<'a> Method<'a> {
    pub(crate) fn of(path: &'a str) -> Self {
        Self(path)
    }

    /// `RunPodSandbox`. CRI's two services share no method name.
    pub(crate) fn name(self) -> &'a str {
        self.0.rsplit_once('/').map_or(self.0, |(_, name)| name)
    }

    /// Changes nothing. Such calls come several times a second, so they are logged at a lower level.
    pub(crate) fn is_read(self) -> bool {
        let name = self.name();
        name.starts_with("List")
            || name.starts_with("Get")
            || name.starts_with("Stream")
            || name.ends_with("Status")
            || name.ends_with("Stats")
            || matches!(
                name,
                "Version" | "RuntimeConfig" | "ImageFsInfo" | "Watch" | "Logs" | "Events" | "Usage"
            )
    }

    /// Answered however busy the daemon is: without them kubelet declares the node dead.
    pub(crate) fn is_vital(self) -> bool {
        matches!(self.name(), "Version" | "Status")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_that_change_nothing_are_reads() {
        let reads = ["Version", "Status", "ListContainers", "StreamImages", "ImageStatus", "PodSandboxStats"];
        let writes = [
            "RunPodSandbox",
            "ExecSync",
            "UpdateRuntimeConfig",
            "PullImage",
            "RemoveImage",
            "Exec",
            "StopContainer",
        ];
        assert!(reads.iter().all(|name| Method::of(name).is_read()));
        assert!(!writes.iter().any(|name| Method::of(name).is_read()));
    }

    #[test]
    fn the_vital_two_are_told_from_their_namesakes() {
        assert!(Method::of("/runtime.v1.RuntimeService/Status").is_vital());
        assert!(!Method::of("/runtime.v1.RuntimeService/ContainerStatus").is_vital());
    }
}
