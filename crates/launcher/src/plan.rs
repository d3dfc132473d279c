//! The plan as bytes: a length-delimited [`PlanHeader`], then a [`LaunchPlan`] or an [`ExecPlan`].
//!
//! The header is apart because the supervisor needs it before the fork, and nothing else of the plan: a container's
//! environment may be megabytes, and memory that the supervisor has touched once stays in it.

use std::io;
use std::os::fd::BorrowedFd;

pub use berth_cri::berth::v1::plan_header::PidMode;
pub use berth_cri::berth::v1::{ExecPlan, LaunchPlan, PlanHeader};
use prost::Message;
use rustix::io::Errno;

/// The header is a cgroup path and a number: PATH_MAX and some.
const HEADER_LIMIT: usize = 4096 + 64;

/// Header and plan as one run of bytes, for a memfd.
pub fn encode(header: &PlanHeader, plan: &impl Message) -> Vec<u8> {
    let mut bytes = header.encode_length_delimited_to_vec();
    bytes.reserve(plan.encoded_len());
    plan.encode(&mut bytes).expect("a Vec grows as needed");
    bytes
}

/// Reads the header of the plan in `plan`, from its start.
///
/// # Errors
/// pread(2)'s; `InvalidData` when these are not the bytes of a plan.
pub fn read_header(plan: BorrowedFd<'_>) -> io::Result<PlanHeader> {
    let mut buffer = [0_u8; HEADER_LIMIT];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(plan, &mut buffer[..], 0))?;
    PlanHeader::decode_length_delimited(&buffer[..length]).map_err(invalid)
}

/// Reads the plan itself, past its header.
pub(crate) fn read<P: Message + Default>(plan: BorrowedFd<'_>) -> io::Result<P> {
    let size = usize::try_from(rustix::fs::fstat(plan)?.st_size).map_err(invalid)?;
    let mut bytes = vec![0_u8; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(plan, &mut bytes[filled..], filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut rest = &bytes[..];
    PlanHeader::decode_length_delimited(&mut rest).map_err(invalid)?;
    P::decode(rest).map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
