//! Generated messages and services: CRI v1 as kubelet and crictl speak it, and berth's own protocols.
//!
//! Everything here comes from `proto/` at build time; a test holds the CRI part against a table of names, numbers
//! and types. The crate owns nothing else: no conversions, no checks, no defaults. Those live with the code that
//! needs them.
//!
//! Three shapes, chosen by features:
//!
//! | features | content | linked |
//! | --- | --- | --- |
//! | none | the messages | prost |
//! | `server` (default) | and the server traits | tonic |
//! | `client` | and the clients | tonic |
//!
//! Maps are `BTreeMap`, so that whatever is made from a message comes out in the same order every time.

use std::fmt;

/// Kubernetes' Container Runtime Interface, `proto/runtime/v1/api.proto`.
pub mod runtime {
    /// The only version there is (`v1alpha2` died with Kubernetes 1.26).
    // Generated code keeps its own style.
    #[allow(clippy::all, missing_debug_implementations, unreachable_pub, rustdoc::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    }
}

/// berth's own protocols, `proto/berth`.
pub mod berth {
    /// Daemon and supervisor (`supervisor.proto`), what is launched (`launch.proto`), what is kept (`records.proto`).
    // Generated code keeps its own style.
    #[allow(clippy::all, missing_debug_implementations, unreachable_pub, rustdoc::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/berth.v1.rs"));
    }
}

/// The compiled `proto/`, an encoded `google.protobuf.FileDescriptorSet`: for the tests and for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// How a secret stands in a log: whether there is one, never what it is.
struct Redacted(bool);

impl fmt::Debug for Redacted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0 { "<redacted>" } else { "<empty>" })
    }
}

impl fmt::Debug for runtime::v1::AuthConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &Redacted(!self.password.is_empty()))
            .field("auth", &Redacted(!self.auth.is_empty()))
            .field("server_address", &self.server_address)
            .field("identity_token", &Redacted(!self.identity_token.is_empty()))
            .field("registry_token", &Redacted(!self.registry_token.is_empty()))
            .finish()
    }
}

/// An environment variable: its value is a secret more often than not.
impl fmt::Debug for runtime::v1::KeyValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KeyValue")
            .field("key", &self.key)
            .field("value", &Redacted(!self.value.is_empty()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::runtime::v1::{AuthConfig, KeyValue};

    #[test]
    fn no_secret_is_ever_printed() {
        let auth = AuthConfig {
            username: "ana".into(),
            password: "s3cret-a".into(),
            auth: "s3cret-b".into(),
            identity_token: "s3cret-c".into(),
            ..AuthConfig::default()
        };
        let env = KeyValue { key: "TOKEN".into(), value: b"s3cret-d".to_vec() };

        let printed = format!("{auth:?} {env:?}");
        assert!(!printed.contains("s3cret"), "{printed}");
        assert!(printed.contains("ana") && printed.contains("TOKEN"), "{printed}");
        assert!(printed.contains("registry_token: <empty>"), "what is absent is said to be: {printed}");
    }
}
