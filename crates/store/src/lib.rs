//! Typed durable records in one redb file.
//!
//! Owns the file, its locking, the moment a commit reaches the disk, and what happens to a record that can no longer
//! be read. Never knows what a record means.
//!
//! # What survives what
//!
//! A commit is in the kernel's page cache when [`Store::write`] returns, so it survives `kill -9` of the process in
//! both modes. With [`Durability::Flushed`] it is on the disk as well. With [`Durability::Background`] a thread
//! flushes soon after; a power loss in between may tear the file, which redb's checksums find at the next open: the
//! file is then set aside and an empty one takes its place. That is right for records of things that a power loss
//! ends anyway (pods), and wrong for everything else (images).
//!
//! # On disk
//!
//! One redb table per record type, key to `version byte ‖ payload`. Records that do not decode move to the table
//! `quarantine`, under `table/key`, where a person can look at them.

mod backend;
#[doc(hidden)]
pub mod json;
mod record;
mod store;

pub use record::{DecodeError, Record};
pub use store::{Batch, Durability, OpenError, Store, StoreError};
