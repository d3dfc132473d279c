//! The store: open, load, write.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use crate::{DecodeError, Record, backend::FileBackend};

/// Records are small and read once at start; the rest is served from the owners' memory.
const CACHE_BYTES: usize = 512 * 1024;

const QUARANTINE: &str = "quarantine";

/// When a commit reaches the disk. Either way it survives `kill -9` of the process once the call has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `fdatasync` before the call returns: survives a power loss.
    Flushed,
    /// Page cache now, flushed soon after by a thread. A power loss may cost the whole file (see the crate's page).
    Background,
}

/// One redb file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    durability: Durability,
    /// Absent when it had to be closed and could not be opened again yet.
    database: RwLock<Option<Database>>,
}

/// The file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds it.
    #[error("store {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The file system said no.
    #[error("cannot open store {}", path.display())]
    Io {
        /// The store's file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// redb said no, for another reason than damage.
    #[error("cannot open store {}", path.display())]
    Database {
        /// The store's file.
        path: PathBuf,
        /// redb's answer.
        #[source]
        source: Box<DatabaseError>,
    },
}

/// A read or a write failed; nothing of the batch was stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// redb's answer.
    #[error("store: cannot {action}")]
    Failed {
        /// "begin writing", "commit".
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<redb::Error>,
    },
    /// There is no store at the moment; each write tries to open it again.
    #[error("the store was closed when there was no space left, and could not be opened again")]
    Closed,
}

impl StoreError {
    /// There was no space for it.
    fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let Self::Failed { source, .. } = self else { return false };
        matches!(&**source, redb::Error::Io(err) if matches!(err.kind(), StorageFull | QuotaExceeded))
    }

    fn at<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |err| Self::Failed { action, source: Box::new(err.into()) }
    }
}

/// Changes that are stored together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    table: &'static str,
    key: String,
    /// Version byte and payload; `None` deletes.
    value: Option<Vec<u8>>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a record.
    #[must_use]
    pub fn put<R: Record>(mut self, key: &str, record: &R) -> Self {
        let mut value = vec![R::VERSION];
        value.extend(record.encode());
        self.changes.push(Change { table: R::TABLE, key: key.to_owned(), value: Some(value) });
        self
    }

    /// Deletes a record; an absent one is fine.
    #[must_use]
    pub fn delete<R: Record>(mut self, key: &str) -> Self {
        self.changes.push(Change { table: R::TABLE, key: key.to_owned(), value: None });
        self
    }
}

impl Store {
    /// Opens the file, or makes it. A file that redb finds damaged is renamed to `<name>.damaged-<seconds>` and an
    /// empty store takes its place, with an error in the log.
    ///
    /// # Errors
    /// When another process holds the file, or the file system or redb refuse for another reason than damage.
    pub fn open(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        let store = |database| {
            let database = RwLock::new(Some(database));
            Self { inner: Arc::new(Inner { path: path.to_owned(), durability, database }) }
        };
        match Self::open_once(path, durability) {
            Ok(database) => Ok(store(database)),
            Err(OpenError::Database { source, .. }) if is_damage(&source) => {
                let aside = set_aside(path)?;
                tracing::error!(
                    store = %path.display(), kept_as = %aside.display(), error = %source,
                    "store is damaged; starting with an empty one"
                );
                Ok(store(Self::open_once(path, durability)?))
            }
            Err(err) => Err(err),
        }
    }

    fn open_once(path: &Path, durability: Durability) -> Result<Database, OpenError> {
        let io_error = |source| OpenError::Io { path: path.to_owned(), source };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error)?;
        let backend = FileBackend::new(file, durability).map_err(|err| match err.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse(path.to_owned()),
            _ => io_error(err),
        })?;
        redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            // Otherwise a damaged page is met later, by whoever reads it.
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(|source| OpenError::Database { path: path.to_owned(), source: Box::new(source) })
    }

    /// All records of a type, by key. Those that do not decode are moved to the quarantine table and logged.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load<R: Record>(&self) -> Result<Vec<(String, R)>, StoreError> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        self.each(R::TABLE, |key, value| match decode::<R>(value) {
            Ok(record) => good.push((key.to_owned(), record)),
            Err(err) => bad.push((key.to_owned(), value.to_owned(), err)),
        })?;
        for (key, value, err) in bad {
            tracing::error!(table = R::TABLE, key, error = %err, "record set aside");
            self.commit(&[
                Change { table: QUARANTINE, key: format!("{}/{key}", R::TABLE), value: Some(value) },
                Change { table: R::TABLE, key, value: None },
            ])?;
        }
        Ok(good)
    }

    fn each(&self, table: &str, mut visit: impl FnMut(&str, &[u8])) -> Result<(), StoreError> {
        let database = self.inner.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(StoreError::Closed)?;
        let read = database.begin_read().map_err(StoreError::at("begin reading"))?;
        let table = match read.open_table(definition(table)) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(err) => return Err(StoreError::at("open a table")(err)),
        };
        for row in table.iter().map_err(StoreError::at("read a table"))? {
            let (key, value) = row.map_err(StoreError::at("read a record"))?;
            visit(key.value(), value.value());
        }
        Ok(())
    }

    /// Stores one record.
    ///
    /// # Errors
    /// As [`write`](Store::write).
    pub fn put<R: Record>(&self, key: &str, record: &R) -> Result<(), StoreError> {
        self.write(Batch::new().put(key, record))
    }

    /// Deletes one record; an absent one is fine.
    ///
    /// # Errors
    /// As [`write`](Store::write).
    pub fn delete<R: Record>(&self, key: &str) -> Result<(), StoreError> {
        self.write(Batch::new().delete::<R>(key))
    }

    /// Stores a batch. Blocks for a tenth of a millisecond, or for a disk flush with [`Durability::Flushed`].
    ///
    /// # Errors
    /// When the file cannot be written; then nothing of the batch is stored.
    pub fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.commit(&batch.changes)
    }

    /// redb takes nothing more after a failed write. Where it failed for want of space, the file is opened anew, so that
    /// there is a store again when there is space again.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let committed = {
            let database = self.inner.database.read().unwrap_or_else(PoisonError::into_inner);
            match &*database {
                Some(database) => Self::commit_to(database, changes),
                None => Err(StoreError::Closed),
            }
        };
        let Err(err) = committed else { return Ok(()) };
        if !(err.is_full() || matches!(err, StoreError::Closed)) {
            return Err(err);
        }
        match (self.reopen(), &err) {
            (Ok(()), StoreError::Closed) => self.commit(changes),
            (Ok(()), StoreError::Failed { .. }) => Err(err),
            (Err(again), _) => {
                tracing::error!(store = %self.inner.path.display(), error = %again, "cannot open the store again");
                Err(err)
            }
        }
    }

    fn reopen(&self) -> Result<(), OpenError> {
        let mut database = self.inner.database.write().unwrap_or_else(PoisonError::into_inner);
        // It holds the file's lock.
        drop(database.take());
        *database = Some(Self::open_once(&self.inner.path, self.inner.durability)?);
        Ok(())
    }

    fn commit_to(database: &Database, changes: &[Change]) -> Result<(), StoreError> {
        let write = database.begin_write().map_err(StoreError::at("begin writing"))?;
        for change in changes {
            let mut table =
                write.open_table(definition(change.table)).map_err(StoreError::at("open a table"))?;
            let key = change.key.as_str();
            match &change.value {
                Some(value) => table.insert(key, value.as_slice()).map(drop),
                None => table.remove(key).map(drop),
            }
            .map_err(StoreError::at("change a record"))?;
        }
        write.commit().map_err(StoreError::at("commit"))
    }
}

fn definition(table: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(table)
}

fn decode<R: Record>(value: &[u8]) -> Result<R, DecodeError> {
    match value.split_first() {
        Some((version, payload)) => R::decode(*version, payload),
        None => Err(DecodeError::Damaged("empty value".into())),
    }
}

/// Whether redb refused because of what is in the file.
fn is_damage(err: &DatabaseError) -> bool {
    match err {
        DatabaseError::RepairAborted | DatabaseError::Storage(redb::StorageError::Corrupted(_)) => true,
        // A file too short for what its header says, or without redb's magic number.
        DatabaseError::Storage(redb::StorageError::Io(err)) => {
            matches!(err.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{seconds}"));
    let aside = PathBuf::from(name);
    fs::rename(path, &aside).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        io::Write as _,
        process::{Command, Stdio},
    };

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pod {
        name: String,
    }
    crate::json_record!(Pod, "pod", 1);

    /// The same table, read by a berth that knows only version 2.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct PodOfTomorrow {
        name: String,
    }
    crate::json_record!(PodOfTomorrow, "pod", 2);

    fn pod(name: &str) -> Pod {
        Pod { name: name.to_owned() }
    }

    fn open(path: &Path) -> Store {
        Store::open(path, Durability::Background).unwrap()
    }

    #[test]
    fn records_are_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let store = open(&path);
        store.write(Batch::new().put("a", &pod("web")).put("b", &pod("db"))).unwrap();
        store.delete::<Pod>("b").unwrap();
        store.delete::<Pod>("never there").unwrap();
        drop(store);
        assert_eq!(open(&path).load::<Pod>().unwrap(), [("a".to_owned(), pod("web"))]);
    }

    #[test]
    fn a_second_opener_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let _held = open(&path);
        assert!(matches!(Store::open(&path, Durability::Flushed), Err(OpenError::InUse(_))));
    }

    #[test]
    fn an_unreadable_record_goes_to_quarantine_and_the_others_load() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("pods.redb"));
        store.put("old", &pod("web")).unwrap();
        store.put("new", &PodOfTomorrow { name: "db".to_owned() }).unwrap();
        assert_eq!(store.load::<Pod>().unwrap(), [("old".to_owned(), pod("web"))]);
        let mut kept = Vec::new();
        store.each(QUARANTINE, |key, _| kept.push(key.to_owned())).unwrap();
        assert_eq!(kept, ["pod/new"]);
        assert_eq!(store.load::<PodOfTomorrow>().unwrap(), [], "taken out of its table");
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let store = open(&path);
        store.put("a", &pod("web")).unwrap();
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        bytes[..4096].fill(0x5a);
        fs::write(&path, bytes).unwrap();
        assert_eq!(open(&path).load::<Pod>().unwrap(), []);
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "the damaged file is kept: {names:?}");
    }

    #[test]
    fn a_page_damaged_after_a_clean_end_is_found_at_the_next_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let store = open(&path);
        for number in 0..200 {
            store.put(&format!("{number:03}"), &pod("web")).unwrap();
        }
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        bytes[4096..].fill(0x5a);
        fs::write(&path, bytes).unwrap();
        assert_eq!(open(&path).load::<Pod>().unwrap(), []);
    }

    /// A file system of so many bytes, gone again at the end of the test.
    struct TinyDisk(PathBuf);

    impl TinyDisk {
        fn mount(at: &Path, bytes: u32) -> Self {
            let size = format!("size={bytes}");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tiny"]).arg(at).status();
            assert!(mounted.unwrap().success());
            Self(at.to_owned())
        }
    }

    impl Drop for TinyDisk {
        fn drop(&mut self) {
            assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
        }
    }

    #[test]
    fn a_full_disk_is_an_error_until_there_is_space_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = TinyDisk::mount(dir.path(), 2 << 20);
        let path = dir.path().join("pods.redb");
        let store = open(&path);
        store.put("first", &pod("web")).unwrap();
        let ballast = dir.path().join("ballast");
        while fs::File::options().create(true).append(true).open(&ballast).unwrap().write(&[1; 4096]).is_ok()
        {
        }
        let long = pod(&"x".repeat(4096));
        let refused = (0..10_000)
            .find_map(|number| store.put(&format!("{number:05}"), &long).err().map(|err| (number, err)));
        let (stored, err) = refused.expect("the disk was full");
        assert!(err.is_full(), "{err:?}");
        // Nor is anything wrong with what is there.
        assert_eq!(store.load::<Pod>().unwrap().len(), stored + 1);
        fs::remove_file(&ballast).unwrap();
        store.delete::<Pod>("first").unwrap();
        store.put("last", &pod("db")).unwrap();
        assert_eq!(store.load::<Pod>().unwrap().len(), stored + 1);
        drop(store);
        drop(disk);
    }

    #[test]
    fn records_are_deleted_on_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = TinyDisk::mount(dir.path(), 2 << 20);
        let store = open(&dir.path().join("pods.redb"));
        for number in 0..100 {
            store.put(&format!("{number:05}"), &pod(&"x".repeat(1000))).unwrap();
        }
        let ballast = dir.path().join("ballast");
        while fs::File::options().create(true).append(true).open(&ballast).unwrap().write(&[1; 4096]).is_ok()
        {
        }
        for number in 0..100 {
            store.delete::<Pod>(&format!("{number:05}")).unwrap();
        }
        assert_eq!(store.load::<Pod>().unwrap(), []);
        drop(store);
        drop(disk);
    }

    /// The child half of the next test: writes until it is killed, saying after each commit what it has stored.
    #[test]
    #[ignore = "run by committed_records_survive_sigkill in a process of its own"]
    fn write_until_killed() {
        let path = env::var_os("BERTH_STORE_TEST").expect("set by the parent test");
        let store = open(Path::new(&path));
        for number in 0..u32::MAX {
            store.put(&format!("{number:010}"), &pod("web")).unwrap();
            println!("stored {number}");
        }
    }

    #[test]
    fn committed_records_survive_sigkill() {
        use std::io::{BufRead, BufReader};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "store::tests::write_until_killed", "--nocapture"])
            .env("BERTH_STORE_TEST", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said = lines
            .by_ref()
            .filter_map(|line| line.rsplit_once("stored ").map(|(_, n)| n.parse::<usize>().unwrap()));
        let last = said.take(200).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let records = open(&path).load::<Pod>().unwrap();
        assert!(records.len() > last, "{} records, {last} was acknowledged", records.len());
    }
}
