//! Which keys there are, and what they mean together.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_nri::{NriConfig, OnFailure, PluginPolicy};
use toml::de::DeTable;

use super::faults::{Fault, Faults, Origin};
use super::section::{Given, Section};
use super::{
    CgroupDriver, Config, Images, Limits, Log, LogFormat, Metrics, Network, Nri, RuntimeHandler, Streaming,
    StreamingTls, values,
};
use crate::args::Flags;

/// The handler that is there without being configured.
const NATIVE_HANDLER: &str = "berth";

pub(super) fn check(text: &str, flags: &Flags, binary: &Path) -> Result<Config, Vec<Fault>> {
    let mut faults = Faults::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let origin = faults.origin(error.span().unwrap_or_default());
        faults.add(&origin, "", format!("not TOML: {}", error.message()));
    }

    let mut section = Section::root(table.get_ref(), &faults);
    let config = top(&mut section, flags, binary, &mut faults);
    section.finish(&mut faults);

    let faults = faults.into_vec();
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

/// What is faulty has been noted and stands as its default here: the caller drops the result then.
fn top(section: &mut Section<'_>, flags: &Flags, binary: &Path, faults: &mut Faults<'_>) -> Config {
    let root = path(section, "root", faults);
    let root = flagged("--root", flags.root.clone(), values::absolute, faults).or(root);
    let state = path(section, "state", faults);
    let state = flagged("--state", flags.state.clone(), values::absolute, faults).or(state);
    let (root_origin, root) = root.unwrap_or((Origin::Default, "/var/lib/berth".into()));
    let (state_origin, state) = state.unwrap_or((Origin::Default, "/run/berth".into()));
    if root == state {
        // What does not survive a reboot may be swept; root must not be swept with it.
        let (origin, key) =
            if state_origin == Origin::Default { (root_origin, "root") } else { (state_origin, "state") };
        faults.add(&origin, key, format!("root and state are both {}", root.display()));
    }

    let listen = section.string("listen", faults).and_then(|given| given.check(faults, values::socket));
    let listen_flag = flagged("--listen", flags.listen.clone(), values::socket, faults);
    let socket = listen_flag.map(|(_, path)| path).or(listen).unwrap_or_else(|| {
        let path = state.join("berth.sock");
        if let Err(problem) = values::socket_length(&path) {
            faults.add(&Origin::Default, "listen", problem);
        }
        path
    });

    let (default_runtime_handler, runtime_handlers) = handlers(section, faults);
    Config {
        root,
        state,
        socket,
        log: log(section, flags, faults),
        registry_config_dir: path_or(section, "registry_config_dir", "/etc/berth/certs.d", faults),
        cdi_spec_dirs: paths_or(section, "cdi_spec_dirs", ["/etc/cdi", "/var/run/cdi"], faults),
        criu_path: path_or(section, "criu_path", "/usr/sbin/criu", faults),
        manifest_dir: path_or(section, "manifest_dir", "/etc/berth/manifests", faults),
        seccomp_profile_dir: path_or(section, "seccomp_profile_dir", "/var/lib/kubelet/seccomp", faults),
        cgroup_root: section
            .string("cgroup_root", faults)
            .and_then(|given| given.check(faults, values::cgroup_path))
            .unwrap_or_else(|| "/berth".to_owned()),
        cgroup_driver: section
            .string("cgroup_driver", faults)
            .and_then(|given| given.check(faults, cgroup_driver))
            .unwrap_or(CgroupDriver::Cgroupfs),
        supervisor: path(section, "supervisor", faults)
            .map_or_else(|| binary.with_file_name("berth-pod"), |(_, path)| path),
        default_runtime_handler,
        runtime_handlers,
        network: network(section.table("network", faults), faults),
        streaming: streaming(section.table("streaming", faults), faults),
        metrics: metrics(section.table("metrics", faults), faults),
        images: images(section.table("images", faults), faults),
        limits: limits(section.table("limits", faults), faults),
        nri: nri(section.table("nri", faults), faults),
    }
}

fn log(section: &mut Section<'_>, flags: &Flags, faults: &mut Faults<'_>) -> Log {
    let level = section.string("log_level", faults).and_then(|given| given.check(faults, values::log_level));
    let level_flag = flagged("--log-level", flags.log_level.clone(), values::log_level, faults);
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = section
        .string("log_format", faults)
        .and_then(|given| given.check(faults, |text| values::one_of(&text, &formats)));
    Log {
        level: level_flag.map(|(_, level)| level).or(level).unwrap_or_else(|| "info".to_owned()),
        format: format.unwrap_or(LogFormat::Text),
    }
}

fn cgroup_driver(text: String) -> Result<CgroupDriver, String> {
    if text == "systemd" {
        return Err("\"systemd\" is not supported: berth makes cgroups itself. Write \"cgroupfs\"; kubelet learns it \
                    from the runtime (RuntimeConfig) and needs no change"
            .to_owned());
    }
    values::one_of(&text, &[("cgroupfs", CgroupDriver::Cgroupfs)])
}

fn handlers(
    section: &mut Section<'_>,
    faults: &mut Faults<'_>,
) -> (String, BTreeMap<String, RuntimeHandler>) {
    let mut handlers = BTreeMap::from([(NATIVE_HANDLER.to_owned(), RuntimeHandler::Native)]);
    for (name, table) in section.table("runtime_handlers", faults).named_tables(faults) {
        let handler = handler(&name, table, faults);
        let checked = name.check(faults, |name| values::handler_name(&name).map(|()| name));
        handlers.extend(checked.zip(handler));
    }
    let names: Vec<_> = handlers.keys().cloned().collect();
    let default = section.string("default_runtime_handler", faults).and_then(|given| {
        given.check(faults, |name| {
            let known = names.contains(&name).then_some(name.clone());
            known.ok_or_else(|| format!("no handler {name:?}; there is {}", names.join(", ")))
        })
    });
    (default.unwrap_or_else(|| NATIVE_HANDLER.to_owned()), handlers)
}

fn handler(
    name: &Given<String>,
    mut section: Section<'_>,
    faults: &mut Faults<'_>,
) -> Option<RuntimeHandler> {
    let native = section.boolean("native", faults);
    let path = path(&mut section, "path", faults);
    section.finish(faults);
    match (native.is_some_and(|given| given.value), path) {
        (true, None) => Some(RuntimeHandler::Native),
        (false, Some((_, path))) => Some(RuntimeHandler::External { path }),
        (true, Some(_)) => {
            faults.add(&name.origin, &name.key, "has both `native = true` and `path`: choose one");
            None
        }
        (false, None) => {
            faults.add(&name.origin, &name.key, "needs `native = true` or `path` of an OCI runtime binary");
            None
        }
    }
}

fn network(mut section: Section<'_>, faults: &mut Faults<'_>) -> Network {
    let network = Network {
        cni_conf_dir: path_or(&mut section, "cni_conf_dir", "/etc/cni/net.d", faults),
        cni_bin_dirs: paths_or(&mut section, "cni_bin_dirs", ["/opt/cni/bin", "/usr/lib/cni"], faults),
        bridge: section
            .string("bridge", faults)
            .and_then(|given| given.check(faults, values::interface))
            .unwrap_or_else(|| "berth0".to_owned()),
        ipv4_subnet: section
            .string("ipv4_subnet", faults)
            .and_then(|given| given.check(faults, values::ipv4_subnet))
            .unwrap_or(values::IPV4_SUBNET),
        ipv6_subnet: section
            .string("ipv6_subnet", faults)
            .and_then(|given| given.check(faults, values::ipv6_subnet))
            .unwrap_or(Some(values::IPV6_SUBNET)),
        mtu: section.integer("mtu", faults).and_then(|given| given.check(faults, values::mtu)).flatten(),
    };
    section.finish(faults);
    network
}

fn streaming(mut section: Section<'_>, faults: &mut Faults<'_>) -> Streaming {
    let address = section
        .string("address", faults)
        .and_then(|given| given.check(faults, values::socket_address))
        .unwrap_or(values::STREAMING_ADDRESS);
    let certificate = optional_path(&mut section, "tls_certificate", faults);
    let key = optional_path(&mut section, "tls_key", faults);
    let tls = match (certificate, key) {
        (Some((_, certificate)), Some((_, key))) => Some(StreamingTls { certificate, key }),
        (None, None) => None,
        (Some((origin, _)), None) => {
            faults.add(&origin, "streaming.tls_certificate", "needs tls_key as well");
            None
        }
        (None, Some((origin, _))) => {
            faults.add(&origin, "streaming.tls_key", "needs tls_certificate as well");
            None
        }
    };
    section.finish(faults);
    Streaming { address, tls }
}

fn metrics(mut section: Section<'_>, faults: &mut Faults<'_>) -> Metrics {
    let address = section.string("address", faults).filter(|given| !given.value.is_empty());
    let address = address.and_then(|given| given.check(faults, values::socket_address));
    section.finish(faults);
    Metrics { address }
}

fn images(mut section: Section<'_>, faults: &mut Faults<'_>) -> Images {
    let images = Images {
        max_parallel_downloads: count_or(&mut section, "max_parallel_downloads", 6, 64, faults),
        progress_timeout: duration_or(&mut section, "progress_timeout", Duration::from_mins(5), faults),
    };
    section.finish(faults);
    images
}

fn limits(mut section: Section<'_>, faults: &mut Faults<'_>) -> Limits {
    let most = values::MESSAGE_BYTES;
    let limits = Limits {
        max_rpcs: count_or(&mut section, "max_rpcs", 512, 65_536, faults),
        exec_output_bytes: count_or(&mut section, "exec_output_bytes", most, most, faults),
        runtime_timeout: duration_or(&mut section, "runtime_timeout", Duration::from_secs(30), faults),
    };
    section.finish(faults);
    limits
}

fn nri(mut section: Section<'_>, faults: &mut Faults<'_>) -> Nri {
    let on_failure = on_failure(&mut section, faults).unwrap_or(OnFailure::Closed);
    let mut plugins = BTreeMap::new();
    for (name, mut table) in section.table("plugins", faults).named_tables(faults) {
        let policy = PluginPolicy {
            on_failure: self::on_failure(&mut table, faults).unwrap_or(on_failure),
            required: table.boolean("required", faults).is_some_and(|given| given.value),
            except_namespaces: table
                .strings("except_namespaces", faults)
                .map(|given| given.value)
                .unwrap_or_default(),
        };
        table.finish(faults);
        plugins.extend(name.check(faults, values::nri_plugin).map(|name| (name, policy)));
    }
    let nri = Nri {
        enabled: section.boolean("enabled", faults).is_some_and(|given| given.value),
        socket: section
            .string("socket", faults)
            .and_then(|given| given.check(faults, values::socket))
            .unwrap_or_else(|| "/var/run/nri/nri.sock".into()),
        plugins: NriConfig {
            plugin_dir: path_or(&mut section, "plugin_dir", "/opt/nri/plugins", faults),
            plugin_config_dir: path_or(&mut section, "plugin_config_dir", "/etc/nri/conf.d", faults),
            registration_timeout: duration_or(
                &mut section,
                "registration_timeout",
                Duration::from_secs(5),
                faults,
            ),
            request_timeout: duration_or(&mut section, "request_timeout", Duration::from_secs(2), faults),
            on_failure,
            plugins,
        },
    };
    section.finish(faults);
    nri
}

fn on_failure(section: &mut Section<'_>, faults: &mut Faults<'_>) -> Option<OnFailure> {
    let choices = [("closed", OnFailure::Closed), ("open", OnFailure::Open)];
    let given = section.string("on_failure", faults)?;
    given.check(faults, |text| values::one_of(&text, &choices))
}

fn path(section: &mut Section<'_>, key: &'static str, faults: &mut Faults<'_>) -> Option<(Origin, PathBuf)> {
    let given = section.string(key, faults)?;
    let origin = given.origin.clone();
    given.check(faults, values::absolute).map(|path| (origin, path))
}

/// As [`path`]; the empty string is none.
fn optional_path(
    section: &mut Section<'_>,
    key: &'static str,
    faults: &mut Faults<'_>,
) -> Option<(Origin, PathBuf)> {
    let given = section.string(key, faults)?;
    if given.value.is_empty() {
        return None;
    }
    let origin = given.origin.clone();
    given.check(faults, values::absolute).map(|path| (origin, path))
}

fn path_or(section: &mut Section<'_>, key: &'static str, default: &str, faults: &mut Faults<'_>) -> PathBuf {
    path(section, key, faults).map_or_else(|| default.into(), |(_, path)| path)
}

fn paths_or(
    section: &mut Section<'_>,
    key: &'static str,
    default: [&str; 2],
    faults: &mut Faults<'_>,
) -> Vec<PathBuf> {
    section
        .strings(key, faults)
        .and_then(|given| {
            given.check(faults, |dirs| dirs.into_iter().map(values::absolute).collect::<Result<Vec<_>, _>>())
        })
        .unwrap_or_else(|| default.map(PathBuf::from).into())
}

fn count_or(
    section: &mut Section<'_>,
    key: &'static str,
    default: usize,
    most: usize,
    faults: &mut Faults<'_>,
) -> NonZeroUsize {
    section
        .integer(key, faults)
        .and_then(|given| given.check(faults, |number| values::count(number, most)))
        .unwrap_or(NonZeroUsize::new(default).expect("defaults are not zero"))
}

fn duration_or(
    section: &mut Section<'_>,
    key: &'static str,
    default: Duration,
    faults: &mut Faults<'_>,
) -> Duration {
    let given = section.string(key, faults);
    given.and_then(|given| given.check(faults, values::duration)).unwrap_or(default)
}

fn flagged<T, U>(
    flag: &'static str,
    value: Option<T>,
    check: impl FnOnce(T) -> Result<U, String>,
    faults: &mut Faults<'_>,
) -> Option<(Origin, U)> {
    let value = Given::flag(flag, value?).check(faults, check)?;
    Some((Origin::Flag(flag), value))
}
