use crate::seccomp::SeccompError;

/// Why no spec can be made of a request. Each names the CRI field at fault.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The request contradicts itself, the API's rules or the image: INVALID_ARGUMENT.
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    /// The request is in order, but this runtime or this host cannot do it: UNIMPLEMENTED.
    #[error("{field} is not supported: {reason}")]
    Unsupported { field: String, reason: String },
    #[error("seccomp profile cannot be used")]
    Seccomp(#[source] SeccompError),
}

impl SpecError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }
}
