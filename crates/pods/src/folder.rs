//! Static manifests: the pods of a folder's files run as long as the files are there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_manifest::{Source, Strictness};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::directory::Key;
use crate::node::blocking;
use crate::{Error, Pods, sys};

/// A file that is being written is read when nothing happened to the folder for so long.
const QUIET: Duration = Duration::from_millis(100);

/// The folder is looked at anew after this at the latest, as kubelet does it: it may not have been there, and what a link
/// leads to tells of no change.
const AT_LATEST: Duration = Duration::from_secs(20);

/// The same limit as for a manifest.
const MAX_TEXT: u64 = 4 << 20;

/// Follows a folder for ever.
pub(crate) async fn follow(pods: Pods, folder: PathBuf) {
    let mut follower = Follower {
        pods,
        folder,
        seen: BTreeMap::new(),
        busy: BTreeSet::new(),
        complaints: BTreeMap::new(),
        jobs: JoinSet::new(),
    };
    loop {
        let watch = watch(&follower.folder);
        follower.look().await;
        tokio::select! {
            () = changed(watch) => follower.try_again(),
            Some(done) = follower.jobs.join_next() => match done {
                Ok((path, followed)) => follower.done(path, followed),
                Err(error) => tracing::error!(%error, "following a static manifest panicked"),
            },
            () = sleep(AT_LATEST) => follower.try_again(),
        }
    }
}

/// A file and what came of following it.
type Done = (PathBuf, Result<(), Error>);

struct Follower {
    pods: Pods,
    folder: PathBuf,
    /// What was last made of each file.
    seen: BTreeMap<PathBuf, String>,
    /// Files whose pods are being changed.
    busy: BTreeSet<PathBuf>,
    /// What was said last of files that are not followed, and whether that may pass without a change of the file.
    complaints: BTreeMap<PathBuf, (String, bool)>,
    jobs: JoinSet<Done>,
}

impl Follower {
    /// Compares the folder with what was made of it.
    async fn look(&mut self) {
        let folder = self.folder.clone();
        let files = match blocking(move || read(&folder)).await {
            Ok(files) => files,
            // A folder that cannot be read is not an empty one.
            Err(error) => {
                let folder = self.folder.display();
                return tracing::warn!(%folder, %error, "cannot read the folder of static manifests");
            }
        };
        let known: BTreeSet<PathBuf> = self.pods.sources().into_iter().map(PathBuf::from).collect();
        for gone in known.iter().filter(|path| !files.contains_key(*path)) {
            self.seen.remove(gone);
            if self.busy.insert(gone.clone()) {
                self.jobs.spawn(apply(self.pods.clone(), gone.clone(), None));
            }
        }
        self.seen.retain(|path, _| files.contains_key(path));
        for (path, text) in files {
            let text = match text {
                Ok(text) => text,
                Err(error) => {
                    let path = path.display();
                    tracing::warn!(%path, %error, "cannot read a static manifest; its pods stay as they are");
                    continue;
                }
            };
            if self.busy.contains(&path) || self.seen.get(&path) == Some(&text) {
                continue;
            }
            self.seen.insert(path.clone(), text.clone());
            self.busy.insert(path.clone());
            self.jobs.spawn(apply(self.pods.clone(), path, Some(text)));
        }
    }

    fn done(&mut self, path: PathBuf, followed: Result<(), Error>) {
        self.busy.remove(&path);
        let Err(error) = followed else {
            self.complaints.remove(&path);
            // Another file's pod may have waited for that, for its name or its ports.
            return self.try_again();
        };
        let passes = !matches!(error, Error::Faults(_) | Error::Nothing(_));
        let complaint = (crate::work::text(&error), passes);
        if self.complaints.get(&path) != Some(&complaint) {
            tracing::error!(path = %path.display(), error = complaint.0, "a static manifest is not followed");
            self.pods.report_source(&path.to_string_lossy(), &error);
            self.complaints.insert(path, complaint);
        }
    }

    /// What did not work may work now.
    fn try_again(&mut self) {
        for (path, _) in self.complaints.iter().filter(|(_, (_, passes))| *passes) {
            self.seen.remove(path);
        }
    }
}

/// Makes the pods of a file be as it says; of one that is gone none.
async fn apply(pods: Pods, path: PathBuf, text: Option<String>) -> Done {
    let source = path.to_string_lossy();
    let result = match text {
        None => prune(&pods, &source, &[]).await,
        Some(text) => replace(&pods, &source, &text).await,
    };
    (path, result)
}

async fn replace(pods: &Pods, source: &str, text: &str) -> Result<(), Error> {
    let sources = [Source { name: source, text }];
    let manifests = Pods::check(&sources, Strictness::Strict)?;
    let mut kept = Vec::new();
    for pod in &manifests.pods {
        let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        if pods.differs(&key, source, pod, &manifests.configs) {
            pods.remove(&key, true).await?;
        }
        kept.push(key);
    }
    prune(pods, source, &kept).await?;
    pods.run(manifests, Some(source)).await.map(drop)
}

/// Removes the pods that a file does not have any more.
async fn prune(pods: &Pods, source: &str, kept: &[Key]) -> Result<(), Error> {
    for key in pods.of_source(source).into_iter().filter(|key| !kept.contains(key)) {
        pods.remove(&key, true).await?;
    }
    Ok(())
}

/// The manifests of a folder: `.yaml`, `.yml`, `.json`, and none that begins with a dot, which is an editor's.
fn read(folder: &Path) -> io::Result<BTreeMap<PathBuf, io::Result<String>>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let extension = path.extension().unwrap_or_default();
        if !hidden && ["yaml", "yml", "json"].iter().any(|known| extension == *known) {
            let text = read_file(&path);
            files.insert(path, text);
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    match metadata.is_file() && metadata.len() <= MAX_TEXT {
        true => std::fs::read_to_string(path),
        false => Err(io::Error::other(format!("is no file, or larger than {} MiB", MAX_TEXT >> 20))),
    }
}

/// None when the folder is not there, or the user's inotify instances are used up: then there is still the clock.
fn watch(folder: &Path) -> Option<AsyncFd<OwnedFd>> {
    let watch = || -> io::Result<_> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE;
        inotify::add_watch(&fd, folder, what)?;
        sys::await_readable(fd)
    };
    watch().ok()
}

async fn changed(watch: Option<AsyncFd<OwnedFd>>) {
    let Some(watch) = watch else { return std::future::pending().await };
    if watch.readable().await.is_ok() {
        // The watch is made anew before the folder is read, so what happens from here on is not lost.
        sleep(QUIET).await;
    }
}
