//! The daemon's configuration: file, flags and defaults become one checked [`Config`], or the list of all that is
//! wrong with them. Nothing behind it parses a setting again.
//!
//! `section` reads TOML with places, `check` knows the keys, `values` what a single value may be, `show` prints the
//! configuration in force.

mod check;
mod faults;
mod section;
mod show;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_nri::NriConfig;
use ipnet::{Ipv4Net, Ipv6Net};

pub use self::faults::{ConfigFaults, Fault, Origin};
pub use self::values::MESSAGE_BYTES;
use crate::args::Flags;

/// Checked; nothing downstream parses again. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `root`: folder for what survives a reboot. Default `/var/lib/berth`.
    pub root: PathBuf,
    /// `state`: folder for what does not. Default `/run/berth`.
    pub state: PathBuf,
    /// `listen`: the socket to serve CRI on, `unix://PATH`. Default `STATE/berth.sock`.
    pub socket: PathBuf,
    /// `log_level`, `log_format`: see [`Log`].
    pub log: Log,
    /// `registry_config_dir`: a folder per registry host with a `hosts.toml` (mirrors, CAs) in containerd's format.
    /// Default `/etc/berth/certs.d`; may be absent.
    pub registry_config_dir: PathBuf,
    /// `cdi_spec_dirs`: folders with CDI spec files, which describe devices; a later one wins. Read whenever a container
    /// asks for a device. Default `/etc/cdi`, `/var/run/cdi`.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// `criu_path`: the criu binary, for checkpoints; it need not be there. Default `/usr/sbin/criu`.
    pub criu_path: PathBuf,
    /// `manifest_dir`: a folder of Pod manifests, which run as long as they are there. Watched. Default
    /// `/etc/berth/manifests`; may be absent.
    pub manifest_dir: PathBuf,
    /// `seccomp_profile_dir`: where the `localhostProfile` of a manifest lies. Default is kubelet's,
    /// `/var/lib/kubelet/seccomp`; may be absent.
    pub seccomp_profile_dir: PathBuf,
    /// `cgroup_root`: cgroup, below each hierarchy's root, of pods whose caller names no parent. Default `/berth`.
    pub cgroup_root: String,
    /// `cgroup_driver`: who makes cgroups, told to kubelet. Default (and only) `cgroupfs`.
    pub cgroup_driver: CgroupDriver,
    /// `supervisor`: the `berth-pod` binary. Default: beside berthd's own.
    pub supervisor: PathBuf,
    /// `default_runtime_handler`: the one for pods that name none. Default `berth`, the native launcher.
    pub default_runtime_handler: String,
    /// `[runtime_handlers.NAME]`: ways to launch a container, by the name that a RuntimeClass gives. `berth` is there
    /// unless the file defines it otherwise.
    pub runtime_handlers: BTreeMap<String, RuntimeHandler>,
    pub network: Network,
    pub streaming: Streaming,
    pub metrics: Metrics,
    pub images: Images,
    pub limits: Limits,
    pub nri: Nri,
}

/// What is logged, and how. To stderr always: the service manager keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `log_level`: a level, or levels by module as in `info,berth_image=debug`. Default `info`.
    pub level: String,
    /// `log_format`. Default `text`.
    pub format: LogFormat,
}

/// `log_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line, for collectors.
    Json,
}

/// `cgroup_driver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// berth makes and removes cgroups itself.
    Cgroupfs,
}

/// `[runtime_handlers.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeHandler {
    /// `native = true`: berth's own launcher.
    Native,
    /// `path = "…"`: an OCI runtime binary (runc, crun, youki, runsc).
    External { path: PathBuf },
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `cni_conf_dir`: when a conflist lies here, CNI makes pods' networks, otherwise the built-in bridge does.
    /// Watched. Default `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// `cni_bin_dirs`: where CNI plugins are looked for, in this order. Default `/opt/cni/bin`, `/usr/lib/cni`.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// `bridge`: name of the built-in bridge's interface, 1 to 15 characters. Default `berth0`.
    pub bridge: String,
    /// `ipv4_subnet`: the built-in bridge's, /8 to /29. Default 10.83.0.0/16.
    pub ipv4_subnet: Ipv4Net,
    /// `ipv6_subnet`: the built-in bridge's, /48 to /120; the empty string for pods without IPv6. Default
    /// fd5b:8e41:6c2a::/64.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// `mtu`: bytes, of the built-in bridge and its pods. Default 0: that of the default route's interface.
    pub mtu: Option<NonZeroU32>,
}

/// `[streaming]`: the server that exec, attach and port-forward send their clients to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// `address`: where it listens. Default `127.0.0.1:0`: kubelet proxies from this node, any free port will do.
    pub address: SocketAddr,
    /// `tls_certificate`, `tls_key`: PEM files, to serve https; both or none. Default none.
    pub tls: Option<StreamingTls>,
}

/// Files that TLS takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingTls {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[metrics]`: what Prometheus reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// `address`: where `/metrics` and `/metrics/pods` are served. Default, the empty string: nowhere. It asks nobody who
    /// they are.
    pub address: Option<SocketAddr>,
}

/// `[images]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// `max_parallel_downloads`: layers of one pull that are fetched and unpacked at the same time. Default 6.
    pub max_parallel_downloads: NonZeroUsize,
    /// `progress_timeout`: a pull that receives nothing for so long fails. Default `5m`.
    pub progress_timeout: Duration,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `max_rpcs`: calls worked on at the same time; more are refused with RESOURCE_EXHAUSTED, except Version and
    /// Status. Default 512: a node of 250 pods with one sync and one exec probe each in flight.
    pub max_rpcs: NonZeroUsize,
    /// `exec_output_bytes`: what ExecSync keeps of each of stdout and stderr; the rest is dropped. Default, and most,
    /// 16777216 (kubelet takes no larger message).
    pub exec_output_bytes: NonZeroUsize,
    /// `runtime_timeout`: for each run of an external OCI runtime's binary. Default `30s`.
    pub runtime_timeout: Duration,
}

/// `[nri]`: plugins that watch containers and change what they become (Node Resource Interface).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nri {
    /// `enabled`: whether plugins are started and may connect. Default false: a plugin may change any container.
    pub enabled: bool,
    /// `socket`: where plugins connect. Default `/var/run/nri/nri.sock`, where plugins look for it.
    pub socket: PathBuf,
    /// `plugin_dir`, default `/opt/nri/plugins`; `plugin_config_dir`, default `/etc/nri/conf.d`; `registration_timeout`,
    /// default `5s`; `request_timeout`, default `2s`; `on_failure`, default `closed`; and `[nri.plugins.NAME]` for what
    /// is different for one plugin, by its name without the number: `on_failure`; `required`, default false;
    /// `except_namespaces`, default none.
    pub plugins: NriConfig,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
}

impl Config {
    /// Reads the file that the flags name, or the default one if it exists, and lets the flags win.
    ///
    /// `binary` is berthd's own path: the supervisor is looked for beside it.
    ///
    /// # Errors
    /// A file that was named and cannot be read, or every fault of file and flags at once.
    pub fn load(flags: &Flags, binary: &Path) -> Result<Self, ConfigError> {
        let (path, must_exist) = flags.config_file();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(&text, flags, binary)
            .map_err(|faults| ConfigError::Faults(ConfigFaults { file: path.to_owned(), faults }))
    }

    /// The configuration that a file's text and the flags make together.
    ///
    /// # Errors
    /// Every fault, in the order of the lines, those of flags last.
    pub fn parse(text: &str, flags: &Flags, binary: &Path) -> Result<Self, Vec<Fault>> {
        check::check(text, flags, binary)
    }
}
