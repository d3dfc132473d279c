//! Keeps an eye on the CNI folders. Plugins' installers drop their files there at any time, often long after berth's
//! start; kubelet sees NetworkReady turn true at its next look.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::inotify;
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, watch},
};

use super::{
    Cni,
    config::{Choice, NetworkList, choose},
};
use crate::{status::chain, sys};

/// STATUS of spec 1.1.0 is asked at most this often, and only when someone asks berth; kubelet does every 5 s.
const STATUS_AGE: Duration = Duration::from_secs(5);

/// What the folders come to.
#[derive(Clone, Debug)]
pub(crate) enum CniState {
    /// No configuration: the built-in network serves.
    Absent,
    /// Pods are attached by this list.
    Ready(Arc<NetworkList>),
    /// There is a configuration, and it does not work. The built-in network does not step in: an operator who
    /// configured a network wants that one.
    Broken {
        /// The network's name, or nothing when not even that can be read.
        name: String,
        /// The whole chain of causes.
        reason: String,
    },
}

/// The watcher's own side.
#[derive(Debug)]
pub(crate) struct Watcher {
    directory: PathBuf,
    cni: Cni,
    events: Events,
    state: watch::Sender<CniState>,
    asked: Arc<Notify>,
}

/// The other side: the latest state, and a way to say that someone looks.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) state: watch::Receiver<CniState>,
    asked: Arc<Notify>,
}

impl View {
    /// Someone looks at the state: have it looked at again when it may have aged. Does not wait.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }
}

impl Watcher {
    /// Looks once, so that the first status is already right.
    pub(crate) async fn start(directory: PathBuf, cni: Cni) -> io::Result<(Self, View)> {
        let events = Events::new()?;
        // Watched before it is read: what changes in between is an event.
        events.watch(std::iter::once(&directory).chain(cni.directories()));
        let (state, view) = watch::channel(look(&directory, &cni).await);
        let asked = Arc::new(Notify::new());
        let view = View { state: view, asked: Arc::clone(&asked) };
        Ok((Self { directory, cni, events, state, asked }, view))
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut looked = Instant::now();
        loop {
            // Both arms can lose safely: events stay queued in the kernel, and a permit of the Notify is kept.
            tokio::select! {
                result = self.events.next() => if let Err(err) = result {
                    tracing::error!(error = %err, "CNI folders are no longer watched");
                    return;
                },
                () = self.asked.notified() => {
                    if !self.ages() || looked.elapsed() < STATUS_AGE {
                        continue;
                    }
                }
            }
            self.events.watch(std::iter::once(&self.directory).chain(self.cni.directories()));
            let state = look(&self.directory, &self.cni).await;
            looked = Instant::now();
            self.state.send_if_modified(|current| {
                let changed = !same(current, &state);
                if changed {
                    tracing::info!(?state, "CNI configuration changed");
                }
                *current = state;
                changed
            });
        }
    }

    /// Whether the state can change without a file changing.
    fn ages(&self) -> bool {
        match &*self.state.borrow() {
            CniState::Absent => false,
            CniState::Ready(list) => list.version.has_status(),
            CniState::Broken { .. } => true,
        }
    }
}

async fn look(directory: &Path, cni: &Cni) -> CniState {
    let directory = directory.to_owned();
    let chosen = tokio::task::spawn_blocking(move || choose(&directory)).await;
    let (list, faults) = match chosen {
        Ok(Choice::None) => return CniState::Absent,
        Ok(Choice::List(list, faults)) => (Arc::new(*list), faults),
        Ok(Choice::Broken(err)) => return broken(String::new(), &err),
        Err(err) => return broken(String::new(), &err),
    };
    for fault in &faults {
        tracing::warn!(used = list.name, error = chain(fault), "CNI configuration passed over");
    }
    match cni.status(&list).await {
        Ok(()) => CniState::Ready(list),
        Err(err) => broken(list.name.clone(), &err),
    }
}

fn broken(name: String, err: &(dyn std::error::Error + 'static)) -> CniState {
    CniState::Broken { name, reason: chain(err) }
}

fn same(one: &CniState, other: &CniState) -> bool {
    match (one, other) {
        (CniState::Absent, CniState::Absent) => true,
        (CniState::Ready(one), CniState::Ready(other)) => one == other,
        (CniState::Broken { reason: one, .. }, CniState::Broken { reason: other, .. }) => one == other,
        _ => false,
    }
}

/// inotify over folders that need not exist yet.
#[derive(Debug)]
struct Events {
    fd: AsyncFd<OwnedFd>,
}

impl Events {
    fn new() -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        Ok(Self { fd: sys::await_readable(fd)? })
    }

    /// Watches each folder, and the nearest existing one above it: that is where an absent one will appear and where
    /// an existing one is moved away. Watching a folder again changes nothing.
    fn watch<'a>(&self, folders: impl Iterator<Item = &'a PathBuf>) {
        use inotify::WatchFlags as Watch;
        let changes = Watch::CREATE
            | Watch::CLOSE_WRITE
            | Watch::DELETE
            | Watch::MOVED_FROM
            | Watch::MOVED_TO
            | Watch::ATTRIB
            | Watch::DELETE_SELF
            | Watch::MOVE_SELF
            | Watch::ONLYDIR;
        let appearances =
            Watch::CREATE | Watch::MOVED_TO | Watch::MOVED_FROM | Watch::DELETE_SELF | Watch::ONLYDIR;
        let add = |path: &Path, events| match inotify::add_watch(&self.fd, path, events | Watch::MASK_ADD) {
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(errno) => {
                tracing::warn!(folder = %path.display(), error = %errno, "CNI folder is not watched");
            }
        };
        for folder in folders {
            let nearest = || folder.ancestors().skip(1).find(|path| path.is_dir());
            let mut above = nearest();
            while let Some(path) = above {
                add(path, appearances);
                // Something between may have appeared before the watch was there.
                above = nearest().filter(|now| *now != path);
            }
            add(folder, changes);
        }
    }

    /// Waits for a change and takes all that are queued: whatever they say, the folders are read anew.
    async fn next(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut ready = self.fd.readable().await?;
        loop {
            match rustix::io::read(ready.get_inner(), &mut buffer) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
