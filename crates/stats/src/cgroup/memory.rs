//! `memory.*` of both versions. On v1 the `total_` lines count, which take in cgroups that the container made below.

use super::{Psi, limit_v1, psi};
use crate::{
    file::Folder,
    parse::{fill, pairs},
};

/// Memory in use now, in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// All that is charged, with the page cache.
    pub usage: Option<u64>,
    /// The cgroup's own limit; `None` without one.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache, shared memory with it.
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    /// File pages not used lately: what the kernel would give back first.
    pub inactive_file: Option<u64>,
    /// v2: memory of the kernel. v1 keeps it in a file of its own: [`MemoryMarks::kernel`].
    pub kernel: Option<u64>,
    /// v1: what is swapped out. v2 keeps it in a file of its own: [`Swap`].
    pub swap: Option<u64>,
    /// Page faults of this cgroup and those below.
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    /// v1: page faults of this cgroup alone. v2 does not tell them apart.
    pub own_page_faults: Option<u64>,
    pub own_major_page_faults: Option<u64>,
    pub psi: Option<Psi>,
}

impl Memory {
    /// Usage without [`inactive_file`](Self::inactive_file): what kubelet evicts by. The two are read one after the
    /// other, so they may cross; then it is 0.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file.unwrap_or(0)))
    }

    /// What is left up to the limit; `None` without a limit.
    pub fn available(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.working_set()?))
    }
}

/// Swap, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    pub usage: u64,
    /// `None` without a limit of its own.
    pub limit: Option<u64>,
}

impl Swap {
    /// What is left up to the limit; `None` without a limit.
    pub fn available(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.usage))
    }
}

/// What memory came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMarks {
    /// The most that was ever in use. v2: since Linux 5.19.
    pub max_usage: Option<u64>,
    /// How often a limit stood in the way. v1: the limit on memory or the one on memory with swap. When they are
    /// equal, as kubelet sets them, only the latter is ever hit, and recent kernels (seen on 6.18) do not count that.
    pub limit_hits: Option<u64>,
    /// Processes that the OOM killer ended. v1: since Linux 4.13.
    pub oom_kills: Option<u64>,
    /// v1: memory of the kernel.
    pub kernel: Option<u64>,
}

pub(super) fn read_v1(folder: &Folder) -> Option<Memory> {
    let mut memory = Memory { usage: folder.number("memory.usage_in_bytes"), ..Memory::default() };
    folder.text("memory.stat").inspect(|text| parse_v1(&mut memory, text));
    memory.usage?;
    memory.limit = folder.number("memory.limit_in_bytes").and_then(limit_v1);
    Some(memory)
}

pub(super) fn read_v2(folder: &Folder) -> Option<Memory> {
    let mut memory = Memory { usage: folder.number("memory.current"), ..Memory::default() };
    folder.text("memory.stat").inspect(|text| parse_v2(&mut memory, text));
    memory.usage?;
    memory.limit = folder.number("memory.max");
    memory.psi = psi::read(folder, "memory.pressure");
    Some(memory)
}

pub(super) fn swap_v1(folder: &Folder, memory: &Memory) -> Option<Swap> {
    let usage = memory.swap?;
    // One limit is on memory and swap together, so what it leaves above the memory limit is swap's.
    let together = folder.number("memory.memsw.limit_in_bytes").and_then(limit_v1);
    let limit = together.zip(memory.limit).map(|(together, memory)| together.saturating_sub(memory));
    Some(Swap { usage, limit })
}

pub(super) fn swap_v2(folder: &Folder) -> Option<Swap> {
    Some(Swap { usage: folder.number("memory.swap.current")?, limit: folder.number("memory.swap.max") })
}

pub(super) fn marks_v1(folder: &Folder) -> MemoryMarks {
    MemoryMarks {
        max_usage: folder.number("memory.max_usage_in_bytes"),
        limit_hits: folder
            .number("memory.failcnt")
            .map(|hits| hits.saturating_add(folder.number("memory.memsw.failcnt").unwrap_or(0))),
        oom_kills: folder.text("memory.oom_control").and_then(|text| value_of(&text, "oom_kill")),
        kernel: folder.number("memory.kmem.usage_in_bytes"),
    }
}

pub(super) fn marks_v2(folder: &Folder) -> MemoryMarks {
    let events = folder.text("memory.events").unwrap_or_default();
    MemoryMarks {
        max_usage: folder.number("memory.peak"),
        limit_hits: value_of(&events, "max"),
        oom_kills: value_of(&events, "oom_kill"),
        kernel: None,
    }
}

fn value_of(text: &str, wanted: &str) -> Option<u64> {
    pairs(text).find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

fn parse_v1(memory: &mut Memory, text: &str) {
    let slots = [
        ("total_rss", &mut memory.rss),
        ("total_cache", &mut memory.cache),
        ("total_mapped_file", &mut memory.mapped_file),
        ("total_inactive_file", &mut memory.inactive_file),
        ("total_swap", &mut memory.swap),
        ("total_pgfault", &mut memory.page_faults),
        ("total_pgmajfault", &mut memory.major_page_faults),
        ("pgfault", &mut memory.own_page_faults),
        ("pgmajfault", &mut memory.own_major_page_faults),
    ];
    fill(text, slots);
}

fn parse_v2(memory: &mut Memory, text: &str) {
    let (mut stack, mut tables, mut percpu, mut slab) = (None, None, None, None);
    let slots = [
        ("anon", &mut memory.rss),
        ("file", &mut memory.cache),
        ("file_mapped", &mut memory.mapped_file),
        ("inactive_file", &mut memory.inactive_file),
        ("kernel", &mut memory.kernel),
        ("pgfault", &mut memory.page_faults),
        ("pgmajfault", &mut memory.major_page_faults),
        ("kernel_stack", &mut stack),
        ("pagetables", &mut tables),
        ("percpu", &mut percpu),
        ("slab", &mut slab),
    ];
    fill(text, slots);
    // The sum stands in the file since 5.18.
    let parts = [stack, tables, percpu, slab];
    if memory.kernel.is_none() && parts.iter().any(Option::is_some) {
        memory.kernel = Some(parts.into_iter().flatten().fold(0, u64::saturating_add));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const V1_STAT: &str = "cache 4096\nrss 8192\nrss_huge 0\nshmem 0\nmapped_file 0\ndirty 0\nwriteback 0\n\
        workingset_refault_anon 0\nworkingset_refault_file 0\nswap 0\nswapcached 0\npgpgin 300\npgpgout 20\n\
        pgfault 120\npgmajfault 1\ninactive_anon 0\nactive_anon 8192\ninactive_file 0\nactive_file 4096\n\
        unevictable 0\nhierarchical_memory_limit 67108864\nhierarchical_memsw_limit 67108864\n\
        total_cache 1081344\ntotal_rss 405504\ntotal_rss_huge 0\ntotal_shmem 0\ntotal_mapped_file 540672\n\
        total_dirty 0\ntotal_writeback 0\ntotal_workingset_refault_anon 0\ntotal_workingset_refault_file 0\n\
        total_swap 20480\ntotal_swapcached 0\ntotal_pgpgin 900\ntotal_pgpgout 537\ntotal_pgfault 1188\n\
        total_pgmajfault 3\ntotal_inactive_anon 0\ntotal_active_anon 405504\ntotal_inactive_file 811008\n\
        total_active_file 270336\ntotal_unevictable 0\n";

    const V2_STAT: &str = "anon 421888\nfile 1351680\nkernel 270336\nkernel_stack 49152\npagetables 73728\n\
        sec_pagetables 0\npercpu 1440\nsock 0\nvmalloc 0\nshmem 0\nzswap 0\nzswapped 0\nfile_mapped 811008\n\
        file_dirty 0\nfile_writeback 0\nswapcached 0\nanon_thp 0\nfile_thp 0\nshmem_thp 0\ninactive_anon 417792\n\
        active_anon 4096\ninactive_file 1081344\nactive_file 270336\nunevictable 0\nslab_reclaimable 90112\n\
        slab_unreclaimable 55904\nslab 146016\nworkingset_refault_anon 0\npgfault 2207\npgmajfault 12\n";

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let open = Folder::open(folder.path()).unwrap();
        (folder, open)
    }

    #[test]
    fn v1_takes_in_what_is_below() {
        let (_kept, folder) = folder(&[
            ("memory.stat", V1_STAT),
            ("memory.usage_in_bytes", "1900544\n"),
            ("memory.limit_in_bytes", "67108864\n"),
            ("memory.memsw.limit_in_bytes", "83886080\n"),
            ("memory.max_usage_in_bytes", "2097152\n"),
            ("memory.failcnt", "2\n"),
            ("memory.memsw.failcnt", "3\n"),
            ("memory.kmem.usage_in_bytes", "303104\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ]);
        let memory = read_v1(&folder).unwrap();
        assert_eq!(memory.rss, Some(405_504));
        assert_eq!(memory.cache, Some(1_081_344));
        assert_eq!(memory.mapped_file, Some(540_672));
        assert_eq!(memory.working_set(), Some(1_900_544 - 811_008));
        assert_eq!(memory.available(), Some(67_108_864 - (1_900_544 - 811_008)));
        assert_eq!((memory.page_faults, memory.major_page_faults), (Some(1188), Some(3)));
        assert_eq!((memory.own_page_faults, memory.own_major_page_faults), (Some(120), Some(1)));
        let swap = swap_v1(&folder, &memory).unwrap();
        assert_eq!(swap, Swap { usage: 20_480, limit: Some(16 << 20) });
        assert_eq!(swap.available(), Some((16 << 20) - 20_480));
        let marks = marks_v1(&folder);
        assert_eq!(
            marks,
            MemoryMarks {
                max_usage: Some(2_097_152),
                limit_hits: Some(5),
                oom_kills: Some(2),
                kernel: Some(303_104)
            }
        );
    }

    #[test]
    fn v1_without_a_limit_or_swap_accounting_leaves_both_unset() {
        let (_kept, folder) = folder(&[
            ("memory.stat", "total_rss 1\ntotal_inactive_file 0\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let memory = read_v1(&folder).unwrap();
        assert_eq!((memory.limit, memory.available()), (None, None));
        assert_eq!(swap_v1(&folder, &memory), None);
        assert_eq!(marks_v1(&folder), MemoryMarks::default());
    }

    #[test]
    fn v2_file_by_file() {
        let (_kept, folder) = folder(&[
            ("memory.stat", V2_STAT),
            ("memory.current", "2072576\n"),
            ("memory.max", "67108864\n"),
            ("memory.peak", "2600960\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("memory.swap.current", "4096\n"),
            ("memory.swap.max", "0\n"),
            ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\nfull total=2\n"),
        ]);
        let memory = read_v2(&folder).unwrap();
        assert_eq!(memory.rss, Some(421_888));
        assert_eq!(memory.cache, Some(1_351_680));
        assert_eq!(memory.mapped_file, Some(811_008));
        assert_eq!(memory.kernel, Some(270_336));
        assert_eq!(memory.working_set(), Some(2_072_576 - 1_081_344));
        assert_eq!(memory.psi.unwrap().some.total_nanos, 3000);
        assert_eq!(swap_v2(&folder).unwrap().available(), Some(0));
        let marks = marks_v2(&folder);
        assert_eq!((marks.max_usage, marks.limit_hits, marks.oom_kills), (Some(2_600_960), Some(9), Some(1)));
    }

    #[test]
    fn v2_of_an_older_kernel_sums_the_kernels_parts_and_knows_no_peak() {
        let (_kept, folder) = folder(&[
            ("memory.stat", "anon 1\nkernel_stack 10\npercpu 20\nslab 30\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
        ]);
        let memory = read_v2(&folder).unwrap();
        assert_eq!((memory.kernel, memory.limit), (Some(60), None));
        assert_eq!(swap_v2(&folder), None);
        assert_eq!(marks_v2(&folder), MemoryMarks::default());
    }

    #[test]
    fn inactive_pages_beyond_the_usage_make_an_empty_working_set() {
        let memory = Memory { usage: Some(10), inactive_file: Some(20), ..Memory::default() };
        assert_eq!(memory.working_set(), Some(0));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "((anon|slab|total_rss|percpu) -?[0-9]{0,22}\n){0,8}|\\PC*") {
            let mut memory = Memory::default();
            parse_v1(&mut memory, &text);
            parse_v2(&mut memory, &text);
            let _ = (memory.working_set(), memory.available(), value_of(&text, "max"));
        }
    }
}
