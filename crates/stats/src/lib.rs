//! What pods and containers use, read from the kernel and said in CRI's words.
//!
//! Owns: reading cgroup v1 and v2, `/proc` of containers' processes, interfaces of pods, sizes of writable layers; the
//! CPU rate; the messages of ListContainerStats, ListPodSandboxStats, ListMetricDescriptors and ListPodSandboxMetrics, and
//! these metrics as Prometheus reads them.
//! Never: which containers there are (the caller says, see [`ContainerFacts`] and [`PodFacts`]), gRPC, making or
//! changing a cgroup, writing anything.
//!
//! ```text
//! ContainerFacts, PodFacts ─▶ Stats ─┬▶ CgroupFolders ─▶ cpu memory swap io huge pages tasks, PSI on v2
//!                                    ├▶ CpuRates      ─▶ usage_nano_cores, from two samples
//!                                    ├▶ LayerUsage    ─▶ writable layer, measured in the background
//!                                    └▶ /proc/PID     ─▶ interfaces, open files, limits
//! ```
//!
//! # What is missing stays unset
//!
//! No read here fails a call. A container that ends in this moment, a controller that is not mounted, a kernel without
//! swap or pressure accounting: the field is `None`, and the rest is told. Only metrics, where each one has to have a
//! value, say 0 instead; of a container whose cgroup is gone they say nothing at all.
//!
//! # Cost
//!
//! Stats read five files a container on v1 and nine on v2, by name in a folder opened for the moment, and keep none
//! open. Metrics read some twenty, and a link for each open file of each process.

mod cgroup;
mod clock;
mod collector;
mod disk;
mod facts;
mod file;
mod metrics;
mod network;
mod parse;
mod process;
mod rate;

pub use cgroup::{
    CgroupFolders, Cpu, DeviceIo, HugePages, Io, Memory, MemoryMarks, Psi, PsiLine, Swap, Tasks,
};
pub use clock::{Clock, SystemClock};
pub use collector::Stats;
pub use disk::{DiskUsage, FileSystem, LayerSettings, LayerUsage, Measured, file_system, measure};
pub use facts::{ContainerFacts, PodFacts, PodNetwork, Strings, WritableLayer};
pub use metrics::{BASE_LABELS, Exposition, Kind, Metric, POD_AS_CONTAINER, Presence, descriptors};
pub use network::{Interface, Interfaces, interfaces};
pub use process::{OpenFiles, open_files, open_files_limit};
pub use rate::CpuRates;
