//! One plugin: how it becomes one, and what it may call.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::{net::UnixStream, sync::oneshot, time::timeout};

use crate::{
    CallError, ConfigureRequest, ConfigureResponse, Empty, PluginInfo, RegisterPluginRequest,
    UpdateContainersRequest,
    event::Events,
    shared::Shared,
    wire::{
        connection::{self, Connection, Role, Service},
        message::{INVALID_ARGUMENT, Status, UNKNOWN},
    },
};

/// What plugins are told of the version of the interface.
const NRI_VERSION: &str = "v0.12.2";

/// A registered and configured plugin.
#[derive(Debug)]
pub(crate) struct Plugin {
    /// NN-NAME.
    pub(crate) name: String,
    /// NN.
    pub(crate) index: String,
    /// NAME.
    pub(crate) base: String,
    pub(crate) pid: Option<i32>,
    pub(crate) installed: bool,
    pub(crate) events: Events,
    pub(crate) connection: Connection,
}

/// Who a plugin is, where the daemon knows it beforehand.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) index: String,
    pub(crate) base: String,
    pub(crate) config: String,
    /// Of the process, which the socket does not tell of one that was given it.
    pub(crate) pid: Option<u32>,
}

/// Why a connection did not become a plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("it did not register within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Closed(String),
    #[error("it cannot be configured")]
    Configure(#[source] CallError),
    #[error("it subscribes to events that there are not ({0:#x})")]
    Events(i32),
    #[error("it cannot be synchronised")]
    Synchronize(#[source] CallError),
    #[error("it cannot take pods and containers in pieces, and there are too many for one message")]
    Pieces,
}

impl Plugin {
    /// Waits for RegisterPlugin and configures who made it.
    pub(crate) async fn register(
        nri: &Arc<Shared>,
        stream: UnixStream,
        known: Option<Known>,
    ) -> Result<Self, RegisterError> {
        let pid = match &known {
            Some(known) => known.pid.and_then(|pid| i32::try_from(pid).ok()),
            None => stream.peer_cred().ok().and_then(|peer| peer.pid()),
        };
        let (registered, name) = oneshot::channel();
        let service = Arc::new(RuntimeService {
            nri: Arc::downgrade(nri),
            known: known.clone(),
            registered: Mutex::new(Some(registered)),
            name: OnceLock::new(),
        });
        let (connection, running) = connection::open(stream, Role::Runtime, service);
        nri.tasks.spawn(running);
        let closing = CloseOnDrop(Some(connection));
        let connection = closing.connection();
        let limit = nri.config.registration_timeout;
        let registration = async {
            tokio::select! {
                // A name that was sent in time is lost with the connection, and rightly.
                Ok(name) = name => Ok(name),
                () = connection.ended() => Err(RegisterError::Closed(connection.why())),
            }
        };
        let (index, base) =
            timeout(limit, registration).await.map_err(|_| RegisterError::Timeout(limit))??;
        let request = ConfigureRequest {
            config: known.as_ref().map(|known| known.config.clone()).unwrap_or_default(),
            runtime_name: nri.runtime_name.clone(),
            runtime_version: nri.runtime_version.clone(),
            registration_timeout: milliseconds(limit),
            request_timeout: milliseconds(nri.config.request_timeout),
            nri_version: NRI_VERSION.to_owned(),
        };
        let answer: ConfigureResponse = connection
            .call("Configure", &request, nri.config.request_timeout)
            .await
            .map_err(RegisterError::Configure)?;
        let events = Events::subscribed(answer.events).ok_or(RegisterError::Events(answer.events))?;
        let name = format!("{index}-{base}");
        Ok(Self { name, index, base, pid, installed: known.is_some(), events, connection: closing.keep() })
    }

    pub(crate) fn info(&self) -> PluginInfo {
        PluginInfo {
            name: self.name.clone(),
            pid: self.pid,
            installed: self.installed,
            events: self.events.names(),
        }
    }
}

/// A connection whose future would otherwise go on without anybody who looks at it.
struct CloseOnDrop(Option<Connection>);

impl CloseOnDrop {
    fn connection(&self) -> Connection {
        self.0.clone().expect("it is taken out only with the guard")
    }

    fn keep(mut self) -> Connection {
        self.0.take().expect("it is taken out only here")
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close();
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What a plugin may call.
struct RuntimeService {
    nri: Weak<Shared>,
    known: Option<Known>,
    /// Who waits for the registration; taken by the first one.
    registered: Mutex<Option<oneshot::Sender<(String, String)>>>,
    name: OnceLock<String>,
}

impl Service for RuntimeService {
    fn serve(self: Arc<Self>, method: String, payload: Bytes) -> BoxFuture<'static, Result<Bytes, Status>> {
        Box::pin(async move {
            match method.as_str() {
                "RegisterPlugin" => self.register(payload),
                "UpdateContainers" => self.update(payload).await,
                method => Err(connection::unknown(method)),
            }
        })
    }
}

impl RuntimeService {
    fn register(&self, payload: Bytes) -> Result<Bytes, Status> {
        let request: RegisterPluginRequest = decode(payload)?;
        let (index, base) = match &self.known {
            // Its file's name is its name.
            Some(known) => (known.index.clone(), known.base.clone()),
            None => {
                check_name(&request.plugin_name)
                    .and_then(|()| check_index(&request.plugin_idx))
                    .map_err(invalid)?;
                (request.plugin_idx, request.plugin_name)
            }
        };
        let waiting = self.registered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let waiting = waiting.ok_or_else(|| invalid("it is registered already".to_owned()))?;
        self.name.get_or_init(|| format!("{index}-{base}"));
        tracing::debug!(plugin = base, nri_version = request.nri_version, "an NRI plugin registers");
        waiting.send((index, base)).map_err(|_| invalid("it comes too late".to_owned()))?;
        Ok(Empty {}.encode_to_vec().into())
    }

    async fn update(&self, payload: Bytes) -> Result<Bytes, Status> {
        let request: UpdateContainersRequest = decode(payload)?;
        let name = self.name.get().ok_or_else(|| invalid("it has to register first".to_owned()))?;
        let gone = || Status::new(UNKNOWN, "the runtime ends");
        let answer = self.nri.upgrade().ok_or_else(gone)?.unsolicited(name, request).await;
        Ok(answer.map_err(|why| Status::new(UNKNOWN, why))?.encode_to_vec().into())
    }
}

fn decode<M: prost::Message + Default>(payload: Bytes) -> Result<M, Status> {
    M::decode(payload).map_err(|error| invalid(error.to_string()))
}

fn invalid(why: String) -> Status {
    Status::new(INVALID_ARGUMENT, why)
}

/// What a plugin may be called: letters, digits and a few marks, for it stands in file names, logs and errors.
///
/// # Errors
/// What is wrong with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    match !name.is_empty() && name.len() <= 128 && name.chars().all(fits) {
        true => Ok(()),
        false => Err(format!("{name:?} is no name of a plugin: letters, digits, -, _, . and +")),
    }
}

/// What stands in front of its name: two digits.
///
/// # Errors
/// What is wrong with them.
pub fn check_index(index: &str) -> Result<(), String> {
    match index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(()),
        false => Err(format!("{index:?} is no index of a plugin: two digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices_are_what_other_runtimes_take() {
        for name in ["a", "Topology-Aware_1.2+x"] {
            check_name(name).unwrap();
        }
        for name in ["", "a b", "a/b", "ä", "a\n"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_index("07").unwrap();
        for index in ["7", "007", "x1", "-1", ""] {
            assert!(check_index(index).is_err(), "{index:?}");
        }
    }
}
