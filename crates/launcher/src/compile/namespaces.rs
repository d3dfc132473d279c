//! Which namespaces the process makes itself, and which it is born into.

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::CompileError;
use crate::plan::PidMode;

#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) pid: PidMode,
    pub(super) new_cgroup: bool,
    /// The pod's is entered.
    pub(super) user: bool,
}

pub(super) fn read(linux: &Linux) -> Result<Namespaces, CompileError> {
    let mut read = Namespaces { pid: PidMode::Host, new_cgroup: false, user: false };
    let mut mount = false;
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        let has_path = namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        match (kind, has_path) {
            (LinuxNamespaceType::Mount, false) => mount = true,
            (LinuxNamespaceType::Cgroup, false) => read.new_cgroup = true,
            (LinuxNamespaceType::Pid, false) => read.pid = PidMode::New,
            (LinuxNamespaceType::Pid, true) => read.pid = PidMode::Join,
            // The pod's: the supervisor holds it.
            (LinuxNamespaceType::User, true) => read.user = true,
            // The pod's: the supervisor is in them already.
            (LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts, true) => {}
            (kind, has_path) => {
                let which = if has_path { "with a path" } else { "without a path" };
                return Err(CompileError::unsupported(format!("linux.namespaces: {kind:?} {which}")));
            }
        }
    }
    if mount {
        Ok(read)
    } else {
        Err(CompileError::unsupported("linux.namespaces: a container in the host's mount namespace"))
    }
}
