//! A cgroup's numbers, v1 and v2 behind one face.
//!
//! The caller names the folders; nothing is searched and no tree walked. Each method reads the few files that its
//! answer needs and closes them. What the kernel does not tell (a controller that is not mounted, no swap
//! accounting, an older kernel) stays `None`; a cgroup that is gone gives `None` as a whole.

mod cpu;
mod hugetlb;
mod io;
mod memory;
mod pids;
mod psi;

use std::path::{Path, PathBuf};

pub use cpu::Cpu;
pub use hugetlb::HugePages;
pub use io::{DeviceIo, Io};
pub use memory::{Memory, MemoryMarks, Swap};
pub use pids::Tasks;
pub use psi::{Psi, PsiLine};

use crate::file::Folder;

/// Where one cgroup's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupFolders {
    /// One folder for each controller that is mounted; two controllers may share one.
    V1 {
        cpu: Option<PathBuf>,
        cpuacct: Option<PathBuf>,
        memory: Option<PathBuf>,
        blkio: Option<PathBuf>,
        hugetlb: Option<PathBuf>,
        pids: Option<PathBuf>,
    },
    /// The one folder.
    V2(PathBuf),
}

impl CgroupFolders {
    /// From v1 folders with the controllers of each (`["cpu", "cpuacct"]`). Controllers without numbers, such as
    /// "devices", are passed over.
    pub fn v1<I, C, S>(places: I) -> CgroupFolders
    where
        I: IntoIterator<Item = (PathBuf, C)>,
        C: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let (mut cpu, mut cpuacct, mut memory) = (None, None, None);
        let (mut blkio, mut hugetlb, mut pids) = (None, None, None);
        for (folder, controllers) in places {
            for controller in controllers {
                let slot = match controller.as_ref() {
                    "cpu" => &mut cpu,
                    "cpuacct" => &mut cpuacct,
                    "memory" => &mut memory,
                    "blkio" => &mut blkio,
                    "hugetlb" => &mut hugetlb,
                    "pids" => &mut pids,
                    _ => continue,
                };
                *slot = Some(folder.clone());
            }
        }
        CgroupFolders::V1 { cpu, cpuacct, memory, blkio, hugetlb, pids }
    }

    /// From the folders of one cgroup in all hierarchies, with the controllers of each; on v2 one folder with none.
    /// That is what the launcher's `Cgroup::hierarchies` gives.
    pub fn from_hierarchies(places: Vec<(PathBuf, Vec<String>)>) -> CgroupFolders {
        match places.as_slice() {
            [(folder, controllers)] if controllers.is_empty() => CgroupFolders::v2(folder),
            _ => CgroupFolders::v1(places),
        }
    }

    /// A v2 folder.
    pub fn v2(folder: impl Into<PathBuf>) -> CgroupFolders {
        CgroupFolders::V2(folder.into())
    }

    /// CPU time alone, which is all that stats need: one file on v1. On v2 as [`CgroupFolders::cpu`].
    pub fn cpu_time(&self) -> Option<Cpu> {
        match self {
            CgroupFolders::V1 { cpuacct, .. } => cpu::time_v1(cpuacct.as_deref()?),
            CgroupFolders::V2(_) => self.cpu(),
        }
    }

    /// CPU time, its parts, and what the quota held back; on v2 with pressure.
    pub fn cpu(&self) -> Option<Cpu> {
        match self {
            CgroupFolders::V1 { cpu, cpuacct, .. } => cpu::read_v1(cpu.as_deref(), cpuacct.as_deref()),
            CgroupFolders::V2(folder) => Folder::open(folder).and_then(|folder| cpu::read_v2(&folder)),
        }
    }

    /// Memory in use; on v2 with pressure.
    pub fn memory(&self) -> Option<Memory> {
        match self {
            CgroupFolders::V1 { memory, .. } => memory::read_v1(&open(memory)?),
            CgroupFolders::V2(folder) => memory::read_v2(&Folder::open(folder)?),
        }
    }

    /// Swap; `None` where the kernel does not account it. `memory` is what [`CgroupFolders::memory`] has just told:
    /// on v1 the use of swap stands in the same file.
    pub fn swap(&self, memory: &Memory) -> Option<Swap> {
        match self {
            CgroupFolders::V1 { memory: folder, .. } => memory::swap_v1(&open(folder)?, memory),
            CgroupFolders::V2(folder) => memory::swap_v2(&Folder::open(folder)?),
        }
    }

    /// High-water marks and counts of failure.
    pub fn memory_marks(&self) -> Option<MemoryMarks> {
        match self {
            CgroupFolders::V1 { memory, .. } => Some(memory::marks_v1(&open(memory)?)),
            CgroupFolders::V2(folder) => Some(memory::marks_v2(&Folder::open(folder)?)),
        }
    }

    /// Reads and writes of each block device; on v2 with pressure.
    pub fn io(&self) -> Option<Io> {
        match self {
            CgroupFolders::V1 { blkio, .. } => io::read_v1(&open(blkio)?),
            CgroupFolders::V2(folder) => io::read_v2(&Folder::open(folder)?),
        }
    }

    /// Pressure on block devices alone; v2 only.
    pub fn io_pressure(&self) -> Option<Psi> {
        match self {
            CgroupFolders::V1 { .. } => None,
            CgroupFolders::V2(folder) => psi::read(&Folder::open(folder)?, "io.pressure"),
        }
    }

    /// Huge pages of each size that the host has. Empty without the controller.
    pub fn huge_pages(&self) -> Vec<HugePages> {
        match self {
            CgroupFolders::V1 { hugetlb, .. } => open(hugetlb).map(|folder| hugetlb::read_v1(&folder)),
            CgroupFolders::V2(folder) => Folder::open(folder).map(|folder| hugetlb::read_v2(&folder)),
        }
        .unwrap_or_default()
    }

    /// Processes and threads.
    pub fn tasks(&self) -> Option<Tasks> {
        pids::read(&Folder::open(self.listing()?)?)
    }

    /// How many processes there are.
    pub fn process_count(&self) -> Option<usize> {
        Some(pids::processes(&Folder::open(self.listing()?)?)?.len())
    }

    /// Every hierarchy lists the processes; the first here also counts threads.
    fn listing(&self) -> Option<&Path> {
        match self {
            CgroupFolders::V1 { cpu, cpuacct, memory, blkio, hugetlb, pids } => {
                [pids, memory, cpuacct, cpu, blkio, hugetlb].into_iter().find_map(|folder| folder.as_deref())
            }
            CgroupFolders::V2(folder) => Some(folder),
        }
    }
}

fn open(folder: &Option<PathBuf>) -> Option<Folder> {
    Folder::open(folder.as_deref()?)
}

/// cgroup v1 has no word for "no limit" but a number near the top, rounded down to whole pages.
fn limit_v1(value: u64) -> Option<u64> {
    (value < 1 << 62).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_finds_its_folder_and_unknown_ones_are_passed_over() {
        let folders = CgroupFolders::v1([
            (PathBuf::from("/c/cpu,cpuacct/x"), vec!["cpu", "cpuacct"]),
            (PathBuf::from("/c/devices/x"), vec!["devices"]),
            (PathBuf::from("/c/memory/x"), vec!["memory"]),
        ]);
        let CgroupFolders::V1 { cpu, cpuacct, memory, blkio, .. } = &folders else { panic!("{folders:?}") };
        assert_eq!((cpu, blkio), (cpuacct, &None));
        assert_eq!(memory.as_deref(), Some(Path::new("/c/memory/x")));
    }

    #[test]
    fn one_hierarchy_without_controllers_is_v2() {
        let folder = PathBuf::from("/c/x");
        let v2 = CgroupFolders::from_hierarchies(vec![(folder.clone(), Vec::new())]);
        assert_eq!(v2, CgroupFolders::v2(&folder));
        let v1 = CgroupFolders::from_hierarchies(vec![(folder.clone(), vec!["memory".to_owned()])]);
        assert_eq!(v1, CgroupFolders::v1([(folder, ["memory"])]));
    }

    #[test]
    fn a_cgroup_that_is_gone_tells_nothing_and_fails_nothing() {
        let gone = PathBuf::from("/nonexistent/cgroup");
        let v1 = ["cpu", "cpuacct", "memory", "blkio", "hugetlb", "pids"].map(|name| (gone.clone(), [name]));
        for folders in [CgroupFolders::v1(v1), CgroupFolders::v2(gone)] {
            assert_eq!(folders.cpu(), None);
            assert_eq!(folders.cpu_time(), None);
            assert_eq!(folders.memory(), None);
            assert_eq!(folders.swap(&Memory::default()), None);
            assert_eq!(folders.memory_marks(), None);
            assert_eq!(folders.io(), None);
            assert_eq!(folders.tasks(), None);
            assert!(folders.huge_pages().is_empty());
        }
    }
}
