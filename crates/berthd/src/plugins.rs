//! NRI's place in the daemon: its socket, its beginning and its end.

use std::path::Path;
use std::sync::Arc;

use berth_nri::Nri;
use berth_sandbox_manager::SandboxManager;

use crate::socket::{self, BoundSocket, PLUGIN_MODE, SocketError, SocketFile};

/// Plugins, served.
#[derive(Debug)]
pub(crate) struct Plugins {
    nri: Nri,
    _file: SocketFile,
}

impl Plugins {
    /// Starts the installed plugins and serves the others.
    pub(crate) async fn start(nri: Nri, path: &Path, manager: SandboxManager) -> Result<Self, SocketError> {
        let bound = BoundSocket::bind(path, PLUGIN_MODE).await?;
        let (listener, file) = bound.listen()?;
        nri.start(Arc::new(manager), socket::incoming(listener)).await;
        tracing::info!(socket = %path.display(), "NRI plugins may connect");
        Ok(Self { nri, _file: file })
    }

    pub(crate) fn nri(&self) -> Nri {
        self.nri.clone()
    }

    pub(crate) async fn shutdown(self) {
        self.nri.shutdown().await;
    }
}
