//! Whose a pod is.

/// The service that made a pod, and that alone sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Whoever speaks CRI: kubelet, crictl.
    #[default]
    Cri,
    /// berth itself, from a manifest.
    Manifest,
}

/// Which pods a [`SandboxManager`](crate::SandboxManager) shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Of(Owner),
}

impl Scope {
    pub(crate) fn includes(self, owner: Owner) -> bool {
        self == Self::All || self == Self::Of(owner)
    }

    /// Whose a new pod is.
    pub(crate) fn owner(self) -> Owner {
        match self {
            Self::All => Owner::default(),
            Self::Of(owner) => owner,
        }
    }
}
