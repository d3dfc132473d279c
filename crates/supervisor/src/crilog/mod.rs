//! Container logs in CRI's format: `<RFC 3339 time> <stdout|stderr> <P|F> <content>\n`, as kubelet and crictl read
//! them (kubernetes `pkg/kubelet/kuberuntime/logs`, cri-api `constants.go`).
//!
//! [`Lines`] cuts a stream into records, [`Batch`] collects them, [`LogFile`] writes a batch with one write(2), so
//! that records of the two streams never mix, and a rotation falls between two records.

mod file;
mod lines;
mod stamp;

pub use file::LogFile;
pub use lines::{Batch, Lines, MAX_CONTENT, StreamName};
pub use stamp::{Stamp, now_nanos};
