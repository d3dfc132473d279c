//! What [`json_record!`](crate::json_record) expands to.

use serde::{Serialize, de::DeserializeOwned};

use crate::DecodeError;

/// The record as JSON text.
///
/// # Panics
/// When the type has a map with keys that are not strings, or its `Serialize` fails by itself: a fault in the type,
/// found by any test that stores it once.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record type serialises to JSON")
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`DecodeError::Damaged`] when the bytes are not such JSON.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(bytes).map_err(|err| DecodeError::Damaged(Box::new(err)))
}
