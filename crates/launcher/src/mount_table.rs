//! The kernel's list of mounts, as proc_pid_mountinfo(5) gives it.
//!
//! A mount point is any bytes but a NUL: one that is no UTF-8, made by whomever, must not keep the rest from being read.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The mounts of a mount namespace.
#[derive(Clone, Debug, Default)]
pub struct MountTable(Vec<u8>);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// What statx(2) calls `stx_mnt_id`.
    pub id: u64,
    /// "major:minor".
    pub device: &'a str,
    /// Whether what is mounted below it reaches others.
    pub shared: bool,
    /// The type of the file system.
    pub kind: &'a str,
    /// The file system's own options: those of cgroup v1 name its controllers.
    pub options: &'a str,
    point: &'a [u8],
}

impl MountTable {
    /// That of this process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        fs::read("/proc/self/mountinfo").map(Self)
    }

    /// That of another process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        fs::read(format!("/proc/{pid}/mountinfo")).map(Self)
    }

    /// All of them, a mount after the one that it lies on.
    pub fn mounts(&self) -> impl DoubleEndedIterator<Item = Mount<'_>> {
        self.0.split(|byte| *byte == b'\n').filter_map(Mount::parse)
    }

    /// The mount points at or below a folder, the oldest first.
    #[must_use]
    pub fn points_below(&self, folder: &Path) -> Vec<PathBuf> {
        self.mounts().map(|mount| mount.point()).filter(|point| point.starts_with(folder)).collect()
    }
}

impl From<&str> for MountTable {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let text = |field: &'a [u8]| str::from_utf8(field).unwrap_or_default();
        // id, parent, device, root, point, options, any number of tags, "-", type, source, the file system's options.
        let mut fields = line.split(|byte| *byte == b' ');
        let id = text(fields.next()?).parse().ok()?;
        let device = text(fields.nth(1)?);
        let point = fields.nth(1)?;
        let mut tags = fields.by_ref().skip(1).take_while(|field| *field != b"-");
        let shared = tags.any(|tag| tag.starts_with(b"shared:"));
        tags.for_each(drop);
        let kind = text(fields.next()?);
        let options = text(fields.nth(1).unwrap_or_default());
        Some(Self { id, device, shared, kind, options, point })
    }

    /// Where it is mounted. Blanks and backslashes are written as octal numbers.
    #[must_use]
    pub fn point(&self) -> PathBuf {
        let mut path = Vec::with_capacity(self.point.len());
        let mut rest = self.point;
        while let [byte, tail @ ..] = rest {
            let code =
                tail.get(..3).filter(|_| *byte == b'\\').and_then(|digits| str::from_utf8(digits).ok());
            match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                Some(escaped) => {
                    path.push(escaped);
                    rest = &tail[3..];
                }
                None => {
                    path.push(*byte);
                    rest = tail;
                }
            }
        }
        PathBuf::from(OsString::from_vec(path))
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    #[test]
    fn a_mount_is_read_whatever_its_path() {
        let mut table = MountTable::from(
            "22 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,errors=x\n\
             31 22 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             40 22 0:30 / /a\\040b\\134040 rw - tmpfs none rw\n41 22 0:31 / /",
        );
        table.0.extend(b"\xff/x rw - tmpfs \xfe rw\nnot a mount\n");
        let mounts: Vec<Mount<'_>> = table.mounts().collect();
        let [root, cgroup, blank, odd] = mounts[..] else { panic!("{mounts:?}") };
        assert_eq!((root.id, root.device, root.shared, root.kind), (22, "254:0", true, "ext4"));
        assert_eq!((root.options, root.point()), ("rw,errors=x", PathBuf::from("/")));
        assert_eq!((cgroup.shared, cgroup.kind, cgroup.options), (false, "cgroup", "rw,cpu,cpuacct"));
        assert_eq!(blank.point(), Path::new("/a b\\040"));
        assert_eq!(odd.point(), Path::new(OsStr::from_bytes(b"/\xff/x")));
        assert_eq!(table.points_below(Path::new("/a b\\040")), [blank.point()]);
    }

    #[test]
    fn this_process_has_a_root() {
        let table = MountTable::of_this_process().unwrap();
        assert!(table.mounts().any(|mount| mount.point() == Path::new("/")));
    }
}
