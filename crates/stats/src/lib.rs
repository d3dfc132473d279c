//! What pods and containers use.

mod cgroup;
mod file;
mod parse;

pub use cgroup::{
    CgroupFolders, Cpu, DeviceIo, HugePages, Io, Memory, MemoryMarks, Psi, PsiLine, Swap, Tasks, page_sizes,
};
