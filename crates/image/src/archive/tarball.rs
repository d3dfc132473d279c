//! The archive as a list of files, read in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use super::LoadError;
use crate::digest::{Digest, Hasher};
use crate::layout::{DiskError, Layout, Temp};

/// More entries than any tool writes for the images of one archive.
const MAX_ENTRIES: usize = 100_000;
/// Of a document.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Links to links, as `docker save` wrote them for layers that images share.
const MAX_LINKS: usize = 8;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// An archive on the disk, uncompressed.
pub(super) struct Tarball {
    file: File,
    entries: HashMap<PathBuf, Entry>,
    /// The file's name goes with this.
    _spool: Option<Temp>,
}

enum Entry {
    File { at: u64, size: u64 },
    Link(PathBuf),
}

impl Tarball {
    /// Reads the list of entries; a compressed archive is inflated first.
    pub(super) fn open(file: File, layout: &Layout) -> Result<Self, LoadError> {
        let (mut file, spool) = inflated(file, layout)?;
        let mut entries = HashMap::new();
        file.rewind().map_err(LoadError::Read)?;
        let mut archive = tar::Archive::new(BufReader::new(&file));
        let faulty = |error: io::Error| LoadError::NotAnArchive(error.to_string());
        for entry in archive.entries_with_seek().map_err(faulty)? {
            let entry = entry.map_err(faulty)?;
            if entries.len() == MAX_ENTRIES {
                return Err(LoadError::Faulty(format!("it has more than {MAX_ENTRIES} entries")));
            }
            let name = plain(&entry.path().map_err(faulty)?)?;
            let kind = entry.header().entry_type();
            let link = entry.link_name().map_err(faulty)?;
            let found = match link {
                _ if kind.is_file() => Entry::File { at: entry.raw_file_position(), size: entry.size() },
                Some(to) if kind.is_hard_link() => Entry::Link(plain(&to)?),
                Some(to) if kind.is_symlink() => {
                    Entry::Link(plain(&name.parent().unwrap_or(Path::new("")).join(to))?)
                }
                _ => continue,
            };
            entries.insert(name, found);
        }
        drop(archive);
        Ok(Self { file, entries, _spool: spool })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(Path::new(name))
    }

    /// A document, whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let (at, size) = self.find(name)?;
        if size > MAX_DOCUMENT {
            return Err(LoadError::Faulty(format!("{name} has {size} bytes, and is no document")));
        }
        let mut bytes = Vec::new();
        self.section(at, size)?.read_to_end(&mut bytes).map_err(LoadError::Read)?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(LoadError::Faulty(format!("it ends in the middle of {name}"))),
        }
    }

    /// Copies a file to a place of its own, synced; its digest and size.
    pub(super) fn copy(&self, name: &str, layout: &Layout) -> Result<(Temp, Digest, u64), LoadError> {
        let (at, size) = self.find(name)?;
        let temp = layout.temp();
        let disk = |source| LoadError::Disk(DiskError::new("write", temp.path())(source));
        let mut file = File::create_new(temp.path()).map_err(disk)?;
        let mut section = self.section(at, size)?;
        let mut hasher = Hasher::default();
        let mut piece = vec![0; 256 << 10];
        let mut copied = 0;
        loop {
            let count = section.read(&mut piece).map_err(LoadError::Read)?;
            if count == 0 {
                break;
            }
            hasher.update(&piece[..count]);
            file.write_all(&piece[..count]).map_err(disk)?;
            copied += count as u64;
        }
        if copied != size {
            return Err(LoadError::Faulty(format!("it ends in the middle of {name}")));
        }
        file.sync_all().map_err(disk)?;
        Ok((temp, hasher.finish(), size))
    }

    fn find(&self, name: &str) -> Result<(u64, u64), LoadError> {
        let mut path = plain(Path::new(name))?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&path) {
                Some(Entry::File { at, size }) => return Ok((*at, *size)),
                Some(Entry::Link(to)) => path.clone_from(to),
                None => return Err(LoadError::Faulty(format!("{name} is missing"))),
            }
        }
        Err(LoadError::Faulty(format!("{name} is a link that leads nowhere")))
    }

    fn section(&self, at: u64, size: u64) -> Result<impl Read + '_, LoadError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at)).map_err(LoadError::Read)?;
        Ok(file.take(size))
    }
}

/// A name as a list of plain parts. What leads up is a fault: no tool writes it.
fn plain(path: &Path) -> Result<PathBuf, LoadError> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            // docker's links to a layer of another image: `../ID/layer.tar`.
            Component::ParentDir if plain.pop() => {}
            _ => return Err(LoadError::Faulty(format!("the name {} leads out of it", path.display()))),
        }
    }
    Ok(plain)
}

/// The archive without its compression; by the first bytes, since names lie.
fn inflated(mut file: File, layout: &Layout) -> Result<(File, Option<Temp>), LoadError> {
    let mut start = Vec::new();
    file.rewind().map_err(LoadError::Read)?;
    (&file).take(4).read_to_end(&mut start).map_err(LoadError::Read)?;
    file.rewind().map_err(LoadError::Read)?;
    let mut reader: Box<dyn Read> = if start.starts_with(GZIP) {
        Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file)))
    } else if start.starts_with(ZSTD) {
        Box::new(zstd::stream::read::Decoder::new(file).map_err(LoadError::Read)?)
    } else {
        return Ok((file, None));
    };
    let temp = layout.temp();
    let disk = |source| LoadError::Disk(DiskError::new("write", temp.path())(source));
    let mut whole =
        File::options().read(true).write(true).create_new(true).open(temp.path()).map_err(disk)?;
    io::copy(&mut reader, &mut whole).map_err(|error| LoadError::Faulty(error.to_string()))?;
    Ok((whole, Some(temp)))
}
