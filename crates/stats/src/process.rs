//! What a container's processes hold: open files, sockets, limits.
//!
//! These are the dear ones: a link of `/proc` has to be read for each open file to tell a socket. They are asked for by
//! a metrics scrape only, and there is a most that one container can cost.

use std::{ffi::CStr, path::PathBuf};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, readlinkat, readlinkat_raw, statat},
};

use crate::file;

/// How many open files of one container are looked at one by one, about 20 ms of work. Beyond, files are still
/// counted where the kernel does so itself (Linux 6.2), and sockets are not.
const MOST_LINKS: u64 = 16_384;

/// Open files of a group of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFiles {
    pub descriptors: u64,
    pub sockets: u64,
}

/// Counts the open files of these processes; one that ends meanwhile counts as far as it was seen. `None` when not
/// one of them could be looked at.
pub fn open_files(pids: &[i32]) -> Option<OpenFiles> {
    let mut total = OpenFiles::default();
    let mut links_left = MOST_LINKS;
    let mut seen = false;
    for pid in pids {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(folder) = openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty()) else { continue };
        seen = true;
        let told =
            statat(&folder, "", AtFlags::EMPTY_PATH).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        let found = if links_left == 0 { OpenFiles::default() } else { count(&folder, &mut links_left) };
        // Zero also where the kernel does not tell.
        total.descriptors += told.filter(|count| *count > 0).unwrap_or(found.descriptors);
        total.sockets += found.sockets;
    }
    seen.then_some(total)
}

fn count(folder: &OwnedFd, links_left: &mut u64) -> OpenFiles {
    let mut found = OpenFiles::default();
    let Ok(mut entries) = Dir::read_from(folder) else { return found };
    // "socket:[12345]" always fits; of anything longer the start is enough.
    let mut target = [0_u8; 64];
    while let Some(Ok(entry)) = entries.next() {
        if !entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        found.descriptors += 1;
        if *links_left == 0 {
            continue;
        }
        *links_left -= 1;
        if link_starts_with(folder.as_fd(), entry.file_name(), &mut target, b"socket:") {
            found.sockets += 1;
        }
    }
    found
}

fn link_starts_with(folder: impl AsFd, name: &CStr, space: &mut [u8; 64], start: &[u8]) -> bool {
    readlinkat_raw(folder, name, &mut space[..]).is_ok_and(|length| space[..length].starts_with(start))
}

/// The soft limit on open files of process `pid`; `None` when it is unlimited or the process gone.
pub fn open_files_limit(pid: i32) -> Option<u64> {
    soft_limit(&file::text(&PathBuf::from(format!("/proc/{pid}/limits")))?, "Max open files")
}

/// `Max open files            1024                 4096                 files`.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// How device `major:minor` is called, such as "/dev/sda"; its number where it has no name.
pub(crate) fn device_name(major: u32, minor: u32) -> String {
    let target = readlinkat(CWD, format!("/sys/dev/block/{major}:{minor}"), Vec::new()).ok();
    let target = target.and_then(|target| target.into_string().ok());
    match target.as_deref().and_then(|target| target.rsplit('/').next()) {
        // sysfs writes "!" for a slash: /dev/cciss/c0d0.
        Some(name) if !name.is_empty() => format!("/dev/{}", name.replace('!', "/")),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, process};

    use proptest::prelude::*;

    use super::*;

    fn own() -> i32 {
        i32::try_from(process::id()).unwrap()
    }

    #[test]
    fn our_own_files_and_sockets_are_counted() {
        // Other tests open files at the same time, but never fewer than these.
        let sockets: Vec<_> = (0..20).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let found = open_files(&[own(), i32::MAX]).unwrap();
        assert!(found.sockets >= 20 && found.descriptors >= 23, "{found:?}");
        assert!(found.descriptors < 1000, "{found:?}");
        drop(sockets);
        assert_eq!(open_files(&[i32::MAX]), None);
        assert_eq!(open_files(&[]), None);
    }

    #[test]
    fn the_soft_limit_stands_first() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max open files            20000                40000                files     \n";
        assert_eq!(soft_limit(text, "Max open files"), Some(20_000));
        assert_eq!(soft_limit(text, "Max cpu time"), None);
        assert_eq!(soft_limit(text, "Max nice priority"), None);
        assert!(open_files_limit(own()).is_some_and(|limit| limit > 0));
    }

    #[test]
    fn a_device_without_a_name_keeps_its_number() {
        assert_eq!(device_name(4_000_000, 1), "4000000:1");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(Max open files {0,3}[0-9a-z]{0,22}\n){0,3}|\\PC*") {
            soft_limit(&text, "Max open files");
        }
    }
}
