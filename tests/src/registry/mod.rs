//! A real OCI distribution registry on loopback: HTTP/1.1, ranges, logins, and faults on demand.
//!
//! It runs on a thread of its own, so that a test blocked elsewhere never blocks it, and ends with its handle.

mod auth;
mod fault;
mod serve;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use tokio::{net::TcpListener, sync::oneshot};

pub use self::{auth::Access, fault::Fault};
use crate::image::{Blob, BuiltImage};

/// One request as it came and how it was answered.
#[derive(Debug, Clone)]
pub struct Logged {
    pub method: String,
    pub path: String,
    pub query: String,
    /// The `Range` header.
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub status: u16,
}

/// What the registry holds. Tests change it while it serves.
#[derive(Debug, Default)]
struct State {
    access: Access,
    /// By `repository@digest` and `repository:tag`.
    manifests: HashMap<String, Blob>,
    /// By digest.
    blobs: HashMap<String, Blob>,
    faults: fault::Plan,
    log: Vec<Logged>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has left whole entries behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running registry; dropping it ends it and its connections.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    shared: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Starts one on a free loopback port.
    pub fn start() -> Result<Registry> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry")
            .enable_all()
            .build()
            .context("starting the registry's runtime")?;
        // By std: the caller may itself be in a runtime, where blocking on another one is not allowed.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("binding the registry's port")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _runtime = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let shared = Shared::default();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = serve::accept(listener, address, shared) => {}
                        _ = stopped => {}
                    }
                });
                // Stalled connections must not hold the test up.
                runtime.shutdown_background();
            }
        });
        Ok(Registry { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// `127.0.0.1:<port>`, which is also the registry's name in references.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A reference to `repository` here, for pulls that name the registry outright.
    pub fn reference(&self, repository_and_tag: &str) -> String {
        format!("{}/{repository_and_tag}", self.address)
    }

    /// Puts an image under `repository:tag` and under its digest; the digest is returned.
    pub fn push(&self, repository: &str, tag: &str, image: &BuiltImage) -> String {
        let mut state = self.shared.lock();
        state.add(repository, image);
        state.tag(repository, tag, &image.manifest)
    }

    /// Puts an index and the images it names; the index's digest is returned.
    pub fn push_index(&self, repository: &str, tag: &str, index: &Blob, images: &[&BuiltImage]) -> String {
        let mut state = self.shared.lock();
        for image in images {
            state.add(repository, image);
        }
        state.tag(repository, tag, index)
    }

    /// From now on, who may read.
    pub fn require(&self, access: Access) {
        self.shared.lock().access = access;
    }

    /// The next request whose path contains `path_part` suffers `fault`, once. Faults for one path queue up.
    pub fn inject(&self, path_part: &str, fault: Fault) {
        self.shared.lock().faults.add(path_part, fault);
    }

    /// All requests so far, oldest first.
    pub fn requests(&self) -> Vec<Logged> {
        self.shared.lock().log.clone()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.shared.lock().log.clear();
    }

    /// How many requests with `method` had `path_part` in their path.
    pub fn count(&self, method: &str, path_part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == method && request.path.contains(path_part))
            .count()
    }
}

impl State {
    fn add(&mut self, repository: &str, image: &BuiltImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.blobs.insert(blob.digest.clone(), blob.clone());
        }
        self.manifests.insert(format!("{repository}@{}", image.manifest.digest), image.manifest.clone());
    }

    fn tag(&mut self, repository: &str, tag: &str, manifest: &Blob) -> String {
        self.manifests.insert(format!("{repository}@{}", manifest.digest), manifest.clone());
        self.manifests.insert(format!("{repository}:{tag}"), manifest.clone());
        manifest.digest.clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The receiver is gone only if the thread already ended.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
