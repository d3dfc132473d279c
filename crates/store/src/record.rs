//! What makes a type storable.

/// A durable record type: one table, versioned payload.
pub trait Record: Sized {
    /// Name of the redb table. Never reused for another type.
    const TABLE: &'static str;
    /// Version of the payload that [`encode`](Record::encode) writes.
    const VERSION: u8;

    /// The payload, without the version byte.
    fn encode(&self) -> Vec<u8>;

    /// Reads a payload that was written as `version`.
    ///
    /// # Errors
    /// When the version is unknown or the bytes are not such a record.
    fn decode(version: u8, bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// A stored record that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer berth.
    #[error("record version {0} is not known here")]
    UnknownVersion(u8),
    /// Not what was written.
    #[error("record is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Implements [`Record`] as JSON for a type with serde's traits.
///
/// `json_record!(Lease, "network-lease", 1);`
#[macro_export]
macro_rules! json_record {
    ($record:ty, $table:literal, $version:literal) => {
        impl $crate::Record for $record {
            const TABLE: &'static str = $table;
            const VERSION: u8 = $version;

            fn encode(&self) -> Vec<u8> {
                $crate::json::encode(self)
            }

            fn decode(version: u8, bytes: &[u8]) -> Result<Self, $crate::DecodeError> {
                match version {
                    $version => $crate::json::decode(bytes),
                    other => Err($crate::DecodeError::UnknownVersion(other)),
                }
            }
        }
    };
}
