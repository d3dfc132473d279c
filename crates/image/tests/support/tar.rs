//! Archives written by hand, so that they can be as wrong as a test wants.

/// An archive being written.
#[derive(Debug, Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
    pax: Vec<(String, Vec<u8>)>,
    mode: Option<u32>,
    owner: (u64, u64),
    mtime: u64,
}

impl Tar {
    pub fn new() -> Tar {
        Tar { mtime: 1_000_000_000, ..Tar::default() }
    }

    /// Mode of the next entry.
    pub fn mode(mut self, mode: u32) -> Tar {
        self.mode = Some(mode);
        self
    }

    /// Owner of the next entry.
    pub fn owner(mut self, uid: u64, gid: u64) -> Tar {
        self.owner = (uid, gid);
        self
    }

    /// A PAX record for the next entry.
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Tar {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Tar {
        self.entry(b'0', name.as_bytes(), "", content.as_ref(), 0o644, (0, 0))
    }

    pub fn dir(self, name: &str) -> Tar {
        self.entry(b'5', name.as_bytes(), "", b"", 0o755, (0, 0))
    }

    pub fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(b'2', name.as_bytes(), target, b"", 0o777, (0, 0))
    }

    pub fn hard_link(self, name: &str, target: &str) -> Tar {
        self.entry(b'1', name.as_bytes(), target, b"", 0o644, (0, 0))
    }

    pub fn char_device(self, name: &str, major: u32, minor: u32) -> Tar {
        self.entry(b'3', name.as_bytes(), "", b"", 0o666, (major, minor))
    }

    pub fn block_device(self, name: &str, major: u32, minor: u32) -> Tar {
        self.entry(b'4', name.as_bytes(), "", b"", 0o660, (major, minor))
    }

    pub fn fifo(self, name: &str) -> Tar {
        self.entry(b'6', name.as_bytes(), "", b"", 0o644, (0, 0))
    }

    /// Any header at all, with GNU long names when they do not fit.
    pub fn entry(
        mut self,
        kind: u8,
        name: &[u8],
        link: &str,
        content: &[u8],
        mode: u32,
        dev: (u32, u32),
    ) -> Tar {
        if !self.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in std::mem::take(&mut self.pax) {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length != rest + length.to_string().len() {
                    length = rest + length.to_string().len();
                }
                records.extend(format!("{length} {key}=").bytes());
                records.extend(value);
                records.push(b'\n');
            }
            self.raw(b'x', b"pax", b"", &records, 0o644, (0, 0));
        }
        if name.len() > 100 {
            self.raw(b'L', b"././@LongLink", b"", &[name, b"\0"].concat(), 0, (0, 0));
        }
        if link.len() > 100 {
            self.raw(b'K', b"././@LongLink", b"", &[link.as_bytes(), b"\0"].concat(), 0, (0, 0));
        }
        let mode = self.mode.take().unwrap_or(mode);
        let short = |text: &[u8]| text[..text.len().min(100)].to_vec();
        self.raw(kind, &short(name), &short(link.as_bytes()), content, mode, dev);
        self.owner = (0, 0);
        self
    }

    fn raw(&mut self, kind: u8, name: &[u8], link: &[u8], content: &[u8], mode: u32, dev: (u32, u32)) {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name);
        let mut octal = |at: usize, length: usize, value: u64| {
            let text = format!("{value:0width$o}", width = length - 1);
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        octal(100, 8, mode.into());
        octal(108, 8, self.owner.0);
        octal(116, 8, self.owner.1);
        octal(124, 12, content.len() as u64);
        octal(136, 12, self.mtime);
        octal(329, 8, dev.0.into());
        octal(337, 8, dev.1.into());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0u8; 1024]);
        self.bytes
    }
}
