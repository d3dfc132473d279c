use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_sandbox_manager::Error as ManagerError;
use berth_supervisor::crilog::{Batch, LogFile, Stamp, StreamName};
use tempfile::TempDir;
use tokio::time::timeout;

use super::rotate::{Limits, RotateError};
use super::*;

const LONG: Duration = Duration::from_secs(20);

const NONE: [u32; 0] = [];

const ALL: Wanted = Wanted { previous: false, follow: false, since: 0, tail: None };

/// A container's log, written as berth-pod does it.
struct Container {
    dir: TempDir,
    attempt: u32,
    log: LogFile,
    written: u32,
}

impl Container {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile::open(&dir.path().join("0.log")).unwrap();
        Self { dir, attempt: 0, log, written: 0 }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.attempt))
    }

    /// The next numbers, a line each.
    fn write(&mut self, count: u32) {
        let mut batch = Batch::new(0);
        let mut lines = berth_supervisor::crilog::Lines::new(StreamName::Stdout);
        for _ in 0..count {
            let line = format!("{}\n", self.written);
            lines.push(line.as_bytes(), &Stamp::now(), &mut batch, &mut self.log);
            self.written += 1;
        }
        batch.flush(&mut self.log);
    }

    async fn rotate(&mut self, files: usize) -> bool {
        let (path, limits) = (self.path(), Limits { size: 1, files });
        let reopen = async || {
            self.log.reopen().unwrap();
            Ok(())
        };
        rotate::rotate_with(&path, limits, reopen).await.unwrap()
    }

    fn restart(&mut self) {
        self.attempt += 1;
        self.log = LogFile::open(&self.path()).unwrap();
    }

    async fn read(&self, wanted: Wanted) -> Vec<u32> {
        match Lines::open(self.dir.path().to_owned(), wanted, None).await.unwrap() {
            Some(lines) => numbers(lines).await,
            None => Vec::new(),
        }
    }
}

/// What follows a log, and the way to end it.
struct Follower {
    lines: Lines,
    over: Arc<AtomicBool>,
    told: watch::Sender<u64>,
}

impl Follower {
    async fn new(folder: &Path, wanted: Wanted) -> Self {
        let (over, told) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
        let seen = Arc::clone(&over);
        let until = Until { over: Box::new(move || seen.load(Ordering::SeqCst)), changes: told.subscribe() };
        let wanted = Wanted { follow: true, ..wanted };
        let lines = Lines::open(folder.to_owned(), wanted, Some(until)).await.unwrap().unwrap();
        Self { lines, over, told }
    }

    async fn next(&mut self) -> u32 {
        number(timeout(LONG, self.lines.next()).await.unwrap().unwrap())
    }

    /// The rest, now that nothing is written any more.
    async fn rest(self) -> Vec<u32> {
        self.over.store(true, Ordering::SeqCst);
        self.told.send_replace(1);
        numbers(self.lines).await
    }
}

fn number(line: Result<LogLine, Error>) -> u32 {
    String::from_utf8(line.unwrap().text).unwrap().parse().unwrap()
}

async fn numbers(mut lines: Lines) -> Vec<u32> {
    let mut all = Vec::new();
    while let Some(line) = timeout(LONG, lines.next()).await.unwrap() {
        all.push(number(line));
    }
    all
}

fn range(numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.collect()
}

#[tokio::test]
async fn rotated_files_are_read_as_one() {
    let mut container = Container::new();
    assert_eq!(container.read(ALL).await, NONE);
    for _ in 0..3 {
        container.write(5000);
        assert!(container.rotate(5).await);
    }
    container.write(7);
    assert!(container.read(ALL).await == range(0..15_007));
    for (tail, first) in
        [(0, 15_007), (3, 15_004), (7, 15_000), (8, 14_999), (9000, 6007), (15_007, 0), (99_999, 0)]
    {
        let wanted = Wanted { tail: Some(tail), ..ALL };
        assert!(container.read(wanted).await == range(first..15_007), "{tail}");
    }
}

#[tokio::test]
async fn lines_are_those_since_a_time_and_of_an_attempt() {
    let mut container = Container::new();
    container.write(3);
    std::thread::sleep(Duration::from_millis(2));
    let since = crate::clock::unix();
    container.write(2);
    assert_eq!(container.read(Wanted { since, ..ALL }).await, [3, 4]);
    let previous = Wanted { previous: true, ..ALL };
    assert_eq!(container.read(previous).await, NONE);
    container.restart();
    container.write(1);
    assert_eq!((container.read(ALL).await, container.read(previous).await), (vec![5], range(0..5)));
    files::remove_before(container.dir.path(), 1).unwrap();
    assert_eq!(fs::read_dir(container.dir.path()).unwrap().count(), 1);
}

/// The writer is always ahead of the reader, behind it, or in the middle of a rotation.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_misses_nothing_and_sees_nothing_twice() {
    let mut container = Container::new();
    container.write(10);
    let follower = Follower::new(container.dir.path(), Wanted { tail: Some(4), ..ALL }).await;
    let (mut lines, over, told) = (follower.lines, follower.over, follower.told);
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(line) = timeout(LONG, lines.next()).await.unwrap() {
            all.push(number(line));
        }
        all
    });
    for round in 0..200 {
        container.write(round % 37);
        match round % 10 {
            3 | 7 => drop(container.rotate(100).await),
            5 => container.restart(),
            2 => tokio::time::sleep(Duration::from_millis(2)).await,
            _ => tokio::task::yield_now().await,
        }
    }
    container.write(1);
    over.store(true, Ordering::SeqCst);
    told.send_replace(1);
    let read = reader.await.unwrap();
    let wrong = read.iter().zip(6..).find(|(read, written)| **read != *written);
    assert_eq!((wrong, read.len()), (None, container.written as usize - 6));
}

#[tokio::test]
async fn a_follower_may_come_before_the_first_line_and_waits() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("later");
    let mut follower = Follower::new(&folder, ALL).await;
    assert!(timeout(Duration::from_millis(100), follower.lines.next()).await.is_err());
    // A reader that was given up in the middle of a look is no reader any more.
    let mut follower = Follower::new(&folder, ALL).await;
    fs::create_dir(&folder).unwrap();
    let mut log = LogFile::open(&folder.join("0.log")).unwrap();
    let mut batch = Batch::new(0);
    let mut lines = berth_supervisor::crilog::Lines::new(StreamName::Stderr);
    lines.push(b"7\n", &Stamp::now(), &mut batch, &mut log);
    batch.flush(&mut log);
    assert_eq!(follower.next().await, 7);
    // Torn, and then whole.
    let mut file = fs::OpenOptions::new().append(true).open(folder.join("0.log")).unwrap();
    file.write_all(b"2026-01-02T03:04:05Z std").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    file.write_all(b"out F 8\nnonsense\n2026-01-02T03:04:05Z stdout F 9\n").unwrap();
    assert_eq!((follower.next().await, follower.next().await), (8, 9));
    assert_eq!(follower.rest().await, NONE);
}

#[tokio::test]
async fn the_newest_files_are_kept_and_a_rotation_that_failed_leaves_all_as_it_was() {
    let mut container = Container::new();
    for _ in 0..6 {
        container.write(10);
        assert!(container.rotate(3).await);
    }
    container.write(1);
    assert_eq!(fs::read_dir(container.dir.path()).unwrap().count(), 3);
    assert_eq!(container.read(ALL).await, range(40..61));
    let large = Limits { size: 1 << 20, files: 3 };
    let never = async || -> Result<(), ManagerError> { panic!("it is small") };
    assert!(!rotate::rotate_with(&container.path(), large, never).await.unwrap());

    let refused = async || Err(ManagerError::ContainerNotFound("x".to_owned()));
    let small = Limits { size: 1, files: 3 };
    let error = rotate::rotate_with(&container.path(), small, refused).await.unwrap_err();
    assert!(matches!(error, RotateError::Reopen { .. }), "{error}");
    container.write(1);
    assert_eq!(container.read(ALL).await, range(40..62));
    // A daemon that was killed in the middle.
    fs::rename(container.path(), files::rotated(&container.path(), crate::clock::unix())).unwrap();
    assert!(container.rotate(3).await && container.path().exists());
}
