//! The configuration: all of a file's faults at once, each with its line; flags win; what is printed means the same.

use std::path::{Path, PathBuf};

use berthd::args::Flags;
use berthd::config::{Config, ConfigError, Fault, LogFormat, Origin, RuntimeHandler};

const BINARY: &str = "/usr/lib/berth/berthd";

fn parse(text: &str, flags: &Flags) -> Result<Config, Vec<Fault>> {
    Config::parse(text, flags, Path::new(BINARY))
}

fn places(faults: &[Fault]) -> Vec<(Origin, &str)> {
    faults.iter().map(|fault| (fault.origin.clone(), fault.key.as_str())).collect()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parse("", &Flags::default()).unwrap();
    assert_eq!(config.root, Path::new("/var/lib/berth"));
    assert_eq!(config.socket, Path::new("/run/berth/berth.sock"));
    assert_eq!(config.supervisor, Path::new("/usr/lib/berth/berth-pod"), "beside berthd's own binary");
    assert_eq!(config.default_runtime_handler, "berth");
    assert_eq!(config.runtime_handlers["berth"], RuntimeHandler::Native);
    assert_eq!(config.cdi_spec_dirs, ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from));
    assert_eq!(config.network.cni_bin_dirs, ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from));
}

#[test]
fn every_fault_is_reported_at_once_with_its_line_and_key() {
    let file = r#"root = "var/lib/berth"
stat = "/run/berth"
log_level = "inof"
cgroup_driver = "systemd"
default_runtime_handler = "crun"

[network]
mtu = "1500"
bridge = "a-name-that-is-too-long"
ipv4_subnet = "10.0.0.1/16"
cni_bin_dirs = ["/opt/cni/bin", 7]

[images]
progress_timeout = "5 minutes"
max_paralel_downloads = 3

[runtime_handlers.runc]
[runtime_handlers.Both]
native = true
path = "/usr/bin/crun"

[limits]
max_rpcs = 0
"#;
    let flags = Flags { listen: Some("tcp://0.0.0.0:80".into()), ..Flags::default() };
    let faults = parse(file, &flags).unwrap_err();
    let line = Origin::Line;
    assert_eq!(
        places(&faults),
        [
            (line(1), "root"),
            (line(2), "stat"),
            (line(3), "log_level"),
            (line(4), "cgroup_driver"),
            (line(5), "default_runtime_handler"),
            (line(8), "network.mtu"),
            (line(9), "network.bridge"),
            (line(10), "network.ipv4_subnet"),
            (line(11), "network.cni_bin_dirs"),
            (line(14), "images.progress_timeout"),
            (line(15), "images.max_paralel_downloads"),
            (line(17), "runtime_handlers.runc"),
            (line(18), "runtime_handlers.Both"),
            (line(18), "runtime_handlers.Both"),
            (line(23), "limits.max_rpcs"),
            (Origin::Flag("--listen"), ""),
        ],
        "{faults:#?}"
    );
    assert!(faults[1].problem.contains("unknown key") && faults[1].problem.contains("state"));
    assert!(faults[3].problem.contains("cgroupfs"), "says what to write instead");
}

#[test]
fn broken_toml_is_reported_with_its_line_along_with_other_faults() {
    let faults = parse("root = \"/var/lib/berth\nnonsense = 1\n", &Flags::default()).unwrap_err();
    assert!(faults.iter().any(|fault| fault.origin == Origin::Line(1) && fault.problem.contains("not TOML")));
    assert!(faults.iter().any(|fault| fault.key == "nonsense"), "{faults:#?}");
}

#[test]
fn a_section_of_the_wrong_type_is_a_fault_and_not_a_default() {
    let faults = parse("network = 5\nruntime_handlers.x = \"y\"\n", &Flags::default()).unwrap_err();
    assert_eq!(places(&faults), [(Origin::Line(1), "network"), (Origin::Line(2), "runtime_handlers.x")]);
}

#[test]
fn a_plugin_is_named_without_its_number_and_inherits_what_its_table_leaves_out() {
    let file = "[nri]\non_failure = \"open\"\n[nri.plugins.10-a]\n[nri.plugins.\"a b\"]\n";
    let faults = parse(file, &Flags::default()).unwrap_err();
    assert_eq!(
        places(&faults),
        [(Origin::Line(3), "nri.plugins.10-a"), (Origin::Line(4), "nri.plugins.a b")]
    );
    assert!(faults[0].problem.contains("\"a\""), "{}", faults[0].problem);
    let config = parse("[nri]\non_failure = \"open\"\n[nri.plugins.a]\n", &Flags::default()).unwrap();
    assert_eq!(config.nri.plugins.plugins["a"].on_failure, config.nri.plugins.on_failure);
}

#[test]
fn flags_win_over_the_file() {
    let file =
        "root = \"/file/root\"\nstate = \"/file/state\"\nlog_level = \"warn\"\nlisten = \"/file/sock\"\n";
    let flags = Flags {
        root: Some("/flag/root".into()),
        listen: Some("unix:///flag/sock".into()),
        log_level: Some("debug".into()),
        ..Flags::default()
    };
    let config = parse(file, &flags).unwrap();
    assert_eq!(config.root, Path::new("/flag/root"));
    assert_eq!(config.state, Path::new("/file/state"), "a key without flag stays");
    assert_eq!(config.socket, Path::new("/flag/sock"));
    assert_eq!(config.log.level, "debug");
}

#[test]
fn root_and_state_must_differ() {
    let flags = Flags { state: Some("/same".into()), root: Some("/same/".into()), ..Flags::default() };
    let faults = parse("", &flags).unwrap_err();
    assert_eq!(faults[0].origin, Origin::Flag("--state"));
}

#[test]
fn the_socket_follows_state_and_is_checked_for_the_kernels_limit() {
    let state = format!("/{}", "s".repeat(100));
    let faults = parse("", &Flags { state: Some(state.into()), ..Flags::default() }).unwrap_err();
    assert_eq!(places(&faults), [(Origin::Default, "listen")]);
}

#[test]
fn what_is_printed_means_the_same_when_read_again() {
    let file = r#"
root = "/a \"quoted\" root"
log_format = "json"
default_runtime_handler = "crun"
[runtime_handlers.crun]
path = "/usr/bin/crun"
[network]
ipv6_subnet = ""
mtu = 9000
[images]
progress_timeout = "1500ms"
[nri]
enabled = true
[nri.plugins."topology+aware.x"]
required = true
except_namespaces = ["kube-system"]
"#;
    let config = parse(file, &Flags::default()).unwrap();
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.network.ipv6_subnet, None);
    assert!(config.nri.plugins.plugins["topology+aware.x"].required);
    let printed = config.to_toml();
    assert_eq!(parse(&printed, &Flags::default()).unwrap(), config, "{printed}");
}

#[test]
fn a_named_file_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let flags = Flags { config: Some(folder.path().join("none.toml")), ..Flags::default() };
    let error = Config::load(&flags, Path::new(BINARY)).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}
