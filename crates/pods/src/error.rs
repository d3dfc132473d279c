//! What can go wrong with a request about a pod.

use std::io;
use std::path::PathBuf;

use berth_manifest::Faults;
use berth_sandbox_manager::Error as ManagerError;
use berth_store::StoreError;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifests, with everything that is wrong in them.
    #[error("{0}")]
    Faults(#[from] Faults),
    /// There was nothing to run in what was given.
    #[error("there is no {0} in the input")]
    Nothing(&'static str),
    /// A request that cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// No such pod. `others`: the names there are.
    #[error("there is no pod {namespace}/{name}{}", listed(others))]
    NotFound {
        /// Of the one that was asked for.
        namespace: String,
        /// As well.
        name: String,
        /// Namespace and name of those there are.
        others: Vec<String>,
    },
    /// No such container in the pod.
    #[error("pod {pod} has no container {container:?}{}", listed(others))]
    NoContainer {
        /// Namespace and name.
        pod: String,
        /// What was asked for.
        container: String,
        /// Those it has.
        others: Vec<String>,
    },
    /// The name is taken by another manifest's pod.
    #[error(
        "pod {0} is there, from another manifest: remove it first (berth rm {1}), or give this one another name"
    )]
    Exists(String, String),
    /// A pod or container is not in the state that the request needs.
    #[error("{what} {state}: cannot {ask} it")]
    WrongState {
        /// "pod default/web", "container web of pod default/web".
        what: String,
        /// "has ended", "does not run (CrashLoopBackOff)".
        state: String,
        /// What was asked.
        ask: &'static str,
    },
    /// What a pod left could not be removed.
    #[error("cannot remove {}", path.display())]
    Leftover {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A volume could not be removed.
    #[error("cannot remove the volumes of pod {pod}")]
    Volumes {
        /// Namespace and name.
        pod: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A container's log.
    #[error("cannot read the log in {}", path.display())]
    Log {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no uid.
    #[error("cannot read {path}")]
    NoUid {
        /// Where from.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The sandbox manager's answer.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The records.
    #[error("cannot write the pod's record")]
    Store(#[from] StoreError),
    /// The pod's task ended in the middle: the daemon stops.
    #[error("pod {0} is not looked after any more: the daemon is ending")]
    Ending(String),
}

fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; there are: {}", names.join(", ")),
    }
}
