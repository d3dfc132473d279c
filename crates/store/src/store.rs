//! The store: open, load, write.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
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
    database: Arc<Database>,
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
#[error("store: cannot {action}")]
pub struct StoreError {
    action: &'static str,
    #[source]
    source: Box<redb::Error>,
}

impl StoreError {
    fn at<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |err| Self { action, source: Box::new(err.into()) }
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
        match Self::open_once(path, durability) {
            Ok(database) => Ok(Self { database: Arc::new(database) }),
            Err(OpenError::Database { source, .. }) if is_damage(&source) => {
                let aside = set_aside(path)?;
                tracing::error!(
                    store = %path.display(), kept_as = %aside.display(), error = %source,
                    "store is damaged; starting with an empty one"
                );
                Ok(Self { database: Arc::new(Self::open_once(path, durability)?) })
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
        let read = self.database.begin_read().map_err(StoreError::at("begin reading"))?;
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

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(StoreError::at("begin writing"))?;
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
