//! A tar writer that refuses nothing: tests need archives no sound tool would make (`..`, absolute names, links to
//! outside). POSIX ustar headers, with a PAX header before an entry that needs one.

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Kind {
    File(Vec<u8>),
    Dir,
    Symlink(String),
    /// To an earlier entry of the same archive, by its name there.
    Hardlink(String),
    /// Character device: major, minor.
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One entry of a layer, exactly as it will stand in the archive.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: String,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: u64,
    /// Full names (`user.key`, `security.capability`).
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub fn new(path: &str, kind: Kind, mode: u32) -> Entry {
        Entry { path: path.to_owned(), kind, mode, uid: 0, gid: 0, mtime: 1_700_000_000, xattrs: Vec::new() }
    }

    fn link_target(&self) -> &str {
        match &self.kind {
            Kind::Symlink(target) | Kind::Hardlink(target) => target,
            _ => "",
        }
    }

    fn content(&self) -> &[u8] {
        match &self.kind {
            Kind::File(content) => content,
            _ => &[],
        }
    }

    fn type_flag(&self) -> u8 {
        match self.kind {
            Kind::File(_) => b'0',
            Kind::Hardlink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::Char(..) => b'3',
            Kind::Block(..) => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
        }
    }

    /// PAX records for what a ustar header can't hold.
    fn pax(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if needs_pax(&self.path) {
            pax_record(&mut records, "path", self.path.as_bytes());
        }
        if needs_pax(self.link_target()) {
            pax_record(&mut records, "linkpath", self.link_target().as_bytes());
        }
        for (name, value) in &self.xattrs {
            pax_record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        records
    }
}

/// The whole archive, end marker included.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        append(&mut out, entry);
    }
    finish(&mut out);
    out
}

/// Adds one entry; for archives too large to hold, which are written piece by piece.
pub fn append(out: &mut Vec<u8>, entry: &Entry) {
    let pax = entry.pax();
    if !pax.is_empty() {
        let header =
            Entry::new("PaxHeaders/entry", Kind::File(Vec::new()), 0o644).header(b'x', pax.len() as u64);
        out.extend_from_slice(&header);
        append_padded(out, &pax);
    }
    let content = entry.content();
    out.extend_from_slice(&entry.header(entry.type_flag(), content.len() as u64));
    append_padded(out, content);
}

/// Adds the end marker.
pub fn finish(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 1024]);
}

impl Entry {
    fn header(&self, type_flag: u8, size: u64) -> [u8; 512] {
        let mut header = [0; 512];
        put(&mut header, 0, 100, self.path.as_bytes());
        octal(&mut header, 100, 8, self.mode.into());
        octal(&mut header, 108, 8, self.uid.into());
        octal(&mut header, 116, 8, self.gid.into());
        octal(&mut header, 124, 12, size);
        octal(&mut header, 136, 12, self.mtime);
        header[156] = type_flag;
        put(&mut header, 157, 100, self.link_target().as_bytes());
        put(&mut header, 257, 8, b"ustar\x0000");
        if let Kind::Char(major, minor) | Kind::Block(major, minor) = self.kind {
            octal(&mut header, 329, 8, major.into());
            octal(&mut header, 337, 8, minor.into());
        }
        // The checksum counts its own field as spaces.
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header, 148, 7, sum);
        header
    }
}

fn needs_pax(text: &str) -> bool {
    text.len() > 100 || !text.is_ascii()
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn put(header: &mut [u8; 512], at: usize, room: usize, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(room)];
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

fn octal(header: &mut [u8; 512], at: usize, room: usize, value: u64) {
    put(header, at, room, format!("{value:0width$o}\0", width = room - 1).as_bytes());
}

fn append_padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    /// GNU tar's verbose listing of our archive.
    fn listed_by_gnu_tar(archive: &[u8]) -> String {
        let mut tar = Command::new("tar")
            .args(["--numeric-owner", "--full-time", "--utc", "-tvf", "-"])
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn gnu_tar_reads_every_kind_of_entry() {
        let deep = format!("{}/é", "d".repeat(150));
        let mut owned = Entry::new("bin/tool", Kind::File(b"hello".to_vec()), 0o4755);
        (owned.uid, owned.gid) = (1000, 2000);
        owned.xattrs.push(("user.key".to_owned(), b"value".to_vec()));
        let listing = listed_by_gnu_tar(&archive(&[
            owned,
            Entry::new("bin/other", Kind::Hardlink("bin/tool".to_owned()), 0o755),
            Entry::new("etc/", Kind::Dir, 0o755),
            Entry::new("link", Kind::Symlink("../outside".to_owned()), 0o777),
            Entry::new("dev/null", Kind::Char(1, 3), 0o666),
            Entry::new("pipe", Kind::Fifo, 0o600),
            Entry::new(&deep, Kind::File(Vec::new()), 0o644),
        ]));
        let lines: Vec<&str> = listing.lines().collect();
        assert!(lines[0].starts_with("-rwsr-xr-x 1000/2000") && lines[0].contains(" 5 "), "{listing}");
        assert!(lines[1].contains("bin/other link to bin/tool"), "{listing}");
        assert!(lines[2].starts_with("drwxr-xr-x"), "{listing}");
        assert!(lines[3].contains("link -> ../outside"), "{listing}");
        assert!(lines[4].starts_with("crw-rw-rw- 0/0") && lines[4].contains("1,3"), "{listing}");
        assert!(lines[5].starts_with("prw-------"), "{listing}");
        assert!(lines[6].ends_with('é'), "{listing}");
        assert_eq!(lines.len(), 7);
    }
}
