//! What pods and containers use.

mod cgroup;
mod clock;
mod disk;
mod file;
mod network;
mod parse;
mod process;
mod rate;

pub use cgroup::{
    CgroupFolders, Cpu, DeviceIo, HugePages, Io, Memory, MemoryMarks, Psi, PsiLine, Swap, Tasks, page_sizes,
};
pub use clock::{Clock, SystemClock};
pub use disk::{DiskUsage, FileSystem, LayerSettings, LayerUsage, Measured, file_system, log_usage, measure};
pub use network::{Interface, Interfaces, interfaces};
pub use process::{OpenFiles, open_files, open_files_limit};
pub use rate::CpuRates;
