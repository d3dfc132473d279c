//! Ids of sandboxes and containers: 64 hex digits, as every runtime of the field gives them.

use std::{borrow::Borrow, fmt, sync::Arc};

use rustix::rand::{GetRandomFlags, getrandom};

macro_rules! id {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A new random id.
            pub(crate) fn generate() -> Self {
                Self(random_hex().into())
            }

            /// An id read back from a record.
            pub(crate) fn from_record(id: &str) -> Self {
                Self(id.into())
            }

            /// The 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as crictl prints them: enough for messages.
            #[must_use]
            pub fn short(&self) -> &str {
                self.0.get(..13).unwrap_or(&self.0)
            }
        }

        // Ids compare as their digits do.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

id!(SandboxId, "Id of a pod sandbox.");
id!(ContainerId, "Id of a container.");

impl ContainerId {
    /// What an error is about.
    pub(crate) fn label(&self) -> String {
        format!("container {}", self.short())
    }

    /// Path of the container's cgroup below each hierarchy's root.
    pub(crate) fn cgroup_path(&self, cgroup_parent: &str) -> String {
        format!("{cgroup_parent}/{self}")
    }
}

fn random_hex() -> String {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // getrandom(2): without flags the call fails only with EFAULT, EINVAL or ENOSYS (before Linux 3.17).
            Err(err) => panic!("the kernel has no getrandom: {err}"),
        }
    }
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_digits_and_differ() {
        let (a, b) = (SandboxId::generate(), SandboxId::generate());
        assert_eq!(a.as_str().len(), 64);
        assert_ne!(a, b);
    }
}
