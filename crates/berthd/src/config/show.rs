//! The configuration in force as a file that, given back, means the same: `berthd config`.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use berth_nri::OnFailure;
use toml::Value;

use super::{
    CgroupDriver, Config, Images, Limits, LogFormat, Metrics, Network, Nri, RuntimeHandler, Streaming,
    StreamingTls,
};

impl Config {
    /// TOML with every key, each under a line about what it does.
    pub fn to_toml(&self) -> String {
        let mut page = Page(String::new());
        self.top(&mut page);
        self.handlers(&mut page);
        self.network.write(&mut page);
        self.streaming.write(&mut page);
        self.metrics.write(&mut page);
        self.images.write(&mut page);
        self.limits.write(&mut page);
        self.nri.write(&mut page);
        page.0
    }

    fn top(&self, page: &mut Page) {
        page.key("Folder for what survives a reboot: images and records.", "root", path(&self.root));
        page.key(
            "Folder for what does not: supervisors' sockets and exit statuses.",
            "state",
            path(&self.state),
        );
        let listen = format!("unix://{}", self.socket.display());
        page.key("The socket to serve CRI on: unix://PATH.", "listen", listen);
        page.key(
            "error, warn, info, debug or trace; or by module: info,berth_image=debug.",
            "log_level",
            &*self.log.level,
        );
        page.key(
            "text for people, json for collectors; on stderr.",
            "log_format",
            match self.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
        );
        page.key(
            "A folder per registry host with a hosts.toml (mirrors, CAs), in containerd's format. May be absent.",
            "registry_config_dir",
            path(&self.registry_config_dir),
        );
        page.key(
            "Folders with CDI spec files, which describe devices; a later one wins.",
            "cdi_spec_dirs",
            paths(&self.cdi_spec_dirs),
        );
        page.key(
            "The criu binary, for checkpoints; it need not be there.",
            "criu_path",
            path(&self.criu_path),
        );
        page.key(
            "A folder of Pod manifests, which run as long as they are there. Watched; may be absent.",
            "manifest_dir",
            path(&self.manifest_dir),
        );
        page.key(
            "Where the localhostProfile of a manifest lies; kubelet's default. May be absent.",
            "seccomp_profile_dir",
            path(&self.seccomp_profile_dir),
        );
        page.key(
            "Cgroup of pods whose caller names no parent, below each hierarchy's root.",
            "cgroup_root",
            &*self.cgroup_root,
        );
        page.key(
            "Who makes cgroups; kubelet is told. Only cgroupfs.",
            "cgroup_driver",
            match self.cgroup_driver {
                CgroupDriver::Cgroupfs => "cgroupfs",
            },
        );
        page.key(
            "The berth-pod binary; without this key, the one beside berthd.",
            "supervisor",
            path(&self.supervisor),
        );
        page.key(
            "The handler of pods that name none.",
            "default_runtime_handler",
            &*self.default_runtime_handler,
        );
    }

    fn handlers(&self, page: &mut Page) {
        for (name, handler) in &self.runtime_handlers {
            page.section(&format!("runtime_handlers.{name}"));
            match handler {
                RuntimeHandler::Native => page.key("berth's own launcher.", "native", true),
                RuntimeHandler::External { path: binary } => {
                    page.key("An OCI runtime binary.", "path", path(binary))
                }
            }
        }
    }
}

impl Network {
    fn write(&self, page: &mut Page) {
        page.section("network");
        page.key(
            "When a conflist lies here, CNI makes pods' networks; otherwise the built-in bridge does. Watched.",
            "cni_conf_dir",
            path(&self.cni_conf_dir),
        );
        let dirs = paths(&self.cni_bin_dirs);
        page.key("Where CNI plugins are looked for, in this order.", "cni_bin_dirs", dirs);
        page.key("The built-in bridge's interface.", "bridge", &*self.bridge);
        page.key(
            "The built-in bridge's IPv4 subnet, /8 to /29.",
            "ipv4_subnet",
            self.ipv4_subnet.to_string(),
        );
        let ipv6 = self.ipv6_subnet.map(|net| net.to_string()).unwrap_or_default();
        page.key("Its IPv6 subnet, /48 to /120; empty for pods without IPv6.", "ipv6_subnet", ipv6);
        let mtu = self.mtu.map_or(0, |mtu| i64::from(mtu.get()));
        page.key(
            "Bytes, of the bridge and its pods; 0 for that of the default route's interface.",
            "mtu",
            mtu,
        );
    }
}

impl Streaming {
    fn write(&self, page: &mut Page) {
        page.section("streaming");
        page.key(
            "Where clients of exec, attach and port-forward are sent; port 0 is any free one.",
            "address",
            self.address.to_string(),
        );
        let file = |file: fn(&StreamingTls) -> &PathBuf| self.tls.as_ref().map(|tls| path(file(tls)));
        page.key(
            "PEM file of its certificate and chain, to serve https; empty for http.",
            "tls_certificate",
            file(|tls| &tls.certificate).unwrap_or_default(),
        );
        page.key("PEM file of its key.", "tls_key", file(|tls| &tls.key).unwrap_or_default());
    }
}

impl Metrics {
    fn write(&self, page: &mut Page) {
        page.section("metrics");
        page.key(
            "Where Prometheus finds /metrics and /metrics/pods, such as 127.0.0.1:9476; empty for nowhere.",
            "address",
            self.address.map(|address| address.to_string()).unwrap_or_default(),
        );
    }
}

impl Images {
    fn write(&self, page: &mut Page) {
        page.section("images");
        page.key(
            "Layers of one pull that are fetched and unpacked at the same time.",
            "max_parallel_downloads",
            number(self.max_parallel_downloads.get()),
        );
        page.key(
            "A pull that receives nothing for so long fails.",
            "progress_timeout",
            duration(self.progress_timeout),
        );
    }
}

impl Limits {
    fn write(&self, page: &mut Page) {
        page.section("limits");
        page.key(
            "Calls worked on at the same time; more are refused with RESOURCE_EXHAUSTED, except Version and Status.",
            "max_rpcs",
            number(self.max_rpcs.get()),
        );
        page.key(
            "Bytes that ExecSync keeps of each of stdout and stderr; the rest is dropped. At most 16777216.",
            "exec_output_bytes",
            number(self.exec_output_bytes.get()),
        );
        page.key(
            "For each run of an external OCI runtime's binary.",
            "runtime_timeout",
            duration(self.runtime_timeout),
        );
    }
}

impl Nri {
    fn write(&self, page: &mut Page) {
        page.section("nri");
        page.key(
            "Whether NRI plugins are started and may connect; one may change any container.",
            "enabled",
            self.enabled,
        );
        page.key("Where plugins connect.", "socket", path(&self.socket));
        page.key(
            "Programs named NN-NAME here are started with the daemon. May be absent.",
            "plugin_dir",
            path(&self.plugins.plugin_dir),
        );
        page.key(
            "Their configuration, NN-NAME.conf or NAME.conf. May be absent.",
            "plugin_config_dir",
            path(&self.plugins.plugin_config_dir),
        );
        page.key(
            "From a plugin's connection to its registration.",
            "registration_timeout",
            duration(self.plugins.registration_timeout),
        );
        page.key(
            "For each call of a plugin; one that takes longer is disconnected.",
            "request_timeout",
            duration(self.plugins.request_timeout),
        );
        page.key(
            "When a plugin hangs or dies over a request: closed fails it, open goes on without the plugin.",
            "on_failure",
            failure(self.plugins.on_failure),
        );
        for (name, policy) in &self.plugins.plugins {
            page.section(&format!("nri.plugins.{}", toml_key(name)));
            page.key("As above, for this one.", "on_failure", failure(policy.on_failure));
            page.key(
                "No pod and no container is made while it is not connected.",
                "required",
                policy.required,
            );
            let namespaces: Vec<_> = policy.except_namespaces.iter().map(String::as_str).collect();
            page.key("But those of these Kubernetes namespaces are.", "except_namespaces", namespaces);
        }
    }
}

fn failure(policy: OnFailure) -> &'static str {
    match policy {
        OnFailure::Closed => "closed",
        OnFailure::Open => "open",
    }
}

/// A plugin's name may hold dots and pluses, which a key must not without quotes.
fn toml_key(name: &str) -> String {
    let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { name.to_owned() } else { format!("{name:?}") }
}

/// The file being written.
struct Page(String);

impl Page {
    fn section(&mut self, name: &str) {
        self.line(format_args!("\n[{name}]"));
    }

    fn key(&mut self, about: &str, key: &str, value: impl Into<Value>) {
        self.line(format_args!("# {about}\n{key} = {}", value.into()));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String takes everything");
    }
}

/// TOML is Unicode, and so were the file and the flags that the path came from.
fn path(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn paths(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|one| path(one)).collect()
}

fn number(number: usize) -> i64 {
    i64::try_from(number).expect("limits are far below i64::MAX")
}

fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match (millis % 3_600_000, millis % 60_000, millis % 1_000) {
        (0, _, _) => format!("{}h", millis / 3_600_000),
        (_, 0, _) => format!("{}m", millis / 60_000),
        (_, _, 0) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}
