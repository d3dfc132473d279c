//! Huge pages.

use std::{fs, sync::OnceLock};

use crate::file::Folder;

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// As the cgroup's files spell it: "2MB".
    pub size: String,
    /// Bytes.
    pub usage: u64,
    /// The most there ever were, bytes. v1 only.
    pub max_usage: Option<u64>,
}

/// The sizes that this kernel has, as the cgroup's files spell them. They do not change while it runs.
fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut kilobytes: Vec<u64> = names.filter_map(|name| kilobytes(&name)).collect();
        kilobytes.sort_unstable();
        kilobytes.into_iter().map(spelled).collect()
    })
}

/// `hugepages-2048kB`.
fn kilobytes(name: &str) -> Option<u64> {
    name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
}

/// As the kernel's hugetlb_cgroup does: whole gigabytes, else whole megabytes, else kilobytes.
fn spelled(kilobytes: u64) -> String {
    match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    }
}

pub(super) fn read_v1(folder: &Folder) -> Vec<HugePages> {
    read(folder, "usage_in_bytes", Some("max_usage_in_bytes"))
}

pub(super) fn read_v2(folder: &Folder) -> Vec<HugePages> {
    read(folder, "current", None)
}

fn read(folder: &Folder, now: &str, most: Option<&str>) -> Vec<HugePages> {
    let of = |size: &String| {
        Some(HugePages {
            size: size.clone(),
            usage: folder.number(&format!("hugetlb.{size}.{now}"))?,
            max_usage: most.and_then(|most| folder.number(&format!("hugetlb.{size}.{most}"))),
        })
    };
    page_sizes().iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_spelled_as_the_files_are() {
        let spelled: Vec<_> = ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other"]
            .into_iter()
            .filter_map(kilobytes)
            .map(spelled)
            .collect();
        assert_eq!(spelled, ["1GB", "2MB", "64KB"]);
    }

    #[test]
    fn a_folder_without_the_controller_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_v2(&Folder::open(folder.path()).unwrap()).is_empty());
    }
}
