//! Kernel settings under `/proc/sys/net`, of the calling thread's network namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {} to {value}", path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: String,
    #[source]
    source: io::Error,
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    path_of("ipv6/conf/all").exists()
}

/// Writes `value` unless it is there already: on a host with a read-only `/proc/sys` the right values are enough.
pub(crate) fn ensure(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = path_of(name);
    let failed = |source| SysctlError { path: path.clone(), value: value.to_owned(), source };
    if fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(failed)
}

/// Lets the host route packets between its interfaces.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), SysctlError> {
    ensure("ipv4/ip_forward", "1")?;
    if ipv6 && !is(&path_of("ipv6/conf/all/forwarding"), "1") {
        keep_listening_to_routers()?;
        ensure("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A forwarding host ignores router advertisements where `accept_ra` is 1, and with them would lose its own IPv6
/// address and default route. 2 means: listen although forwarding.
fn keep_listening_to_routers() -> Result<(), SysctlError> {
    let conf = path_of("ipv6/conf");
    let failed = |source| SysctlError { path: conf.clone(), value: "accept_ra=2".to_owned(), source };
    for entry in fs::read_dir(&conf).map_err(failed)? {
        let interface = entry.map_err(failed)?.file_name();
        let Some(interface) = interface.to_str().filter(|name| !matches!(*name, "all" | "default" | "lo"))
        else {
            continue;
        };
        let name = format!("ipv6/conf/{interface}/accept_ra");
        if is(&path_of(&name), "1") {
            ensure(&name, "2")?;
        }
    }
    Ok(())
}

fn is(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}
