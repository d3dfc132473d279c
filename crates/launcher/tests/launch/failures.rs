//! An error anywhere is told with its step and errno, and nothing is left.

use std::os::unix::fs::PermissionsExt;

use berth_launcher::compile::{CompileError, compile};
use serde_json::{Value, json};

use crate::common::*;

pub const TESTS: &[Test] = &[
    ("a_missing_program_is_an_error_of_exec", a_missing_program_is_an_error_of_exec),
    (
        "a_program_that_is_not_executable_is_an_error_of_exec",
        a_program_that_is_not_executable_is_an_error_of_exec,
    ),
    ("a_missing_source_is_named", a_missing_source_is_named),
    ("a_bad_file_system_option_is_explained", a_bad_file_system_option_is_explained),
    ("a_killed_setup_is_a_failure", a_killed_setup_is_a_failure),
    ("what_is_not_supported_is_refused_by_name", what_is_not_supported_is_refused_by_name),
];

fn a_missing_program_is_an_error_of_exec() {
    for (name, message) in
        [("nope", "executable file not found in $PATH"), ("/bin/nope", "No such file or directory")]
    {
        let mut spec = spec("");
        spec["process"]["args"] = json!([name]);
        let error = exec_failure(&spec);
        assert!(error.exec);
        assert_eq!(error.errno, libc::ENOENT);
        assert_eq!(error.step, format!("exec {name:?}"));
        assert!(error.message.contains(message), "{error}");
    }
}

fn a_program_that_is_not_executable_is_an_error_of_exec() {
    for (name, mode, errno) in
        [("/plain", 0o644, libc::EACCES), ("/garbage", 0o755, libc::ENOEXEC), ("/bin", 0o755, libc::EISDIR)]
    {
        let root = busybox_root();
        let path = root.path().join(&name[1..]);
        if !path.exists() {
            std::fs::write(&path, "no program").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let mut spec = spec("");
        spec["process"]["args"] = json!([name]);
        let mut container = Container::create_in(root, &spec, None);
        container.process.ready().unwrap();
        container.process.launched.gate.open().unwrap();
        let error = container.process.executed().unwrap_err();
        assert!(error.exec, "{error}");
        assert_eq!(error.errno, errno, "{error}");
    }
}

fn a_missing_source_is_named() {
    let mut spec = spec("");
    let mount = json!({ "destination": "/data", "source": "/no/such/volume", "options": ["rbind"] });
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let error = setup_failure(&spec);
    assert_eq!((error.errno, error.exec), (libc::ENOENT, false));
    assert_eq!(error.step, "mount /data: source /no/such/volume");
}

fn a_bad_file_system_option_is_explained() {
    let mut spec = spec("");
    let mount =
        json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=lots"] });
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let error = setup_failure(&spec);
    assert_eq!((error.step.as_str(), error.errno), ("mount /data", libc::EINVAL));
    assert!(error.message.contains("size"), "{error}");
}

fn a_killed_setup_is_a_failure() {
    let mut container = Container::ready(&spec("true"));
    rustix::process::pidfd_send_signal(&container.process.launched.pidfd, rustix::process::Signal::KILL)
        .unwrap();
    let error = container.process.executed().unwrap_err();
    assert_eq!(error.step, "waiting to be started");
    assert_eq!(container.process.wait(), 128 + 9);
}

fn what_is_not_supported_is_refused_by_name() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 6] = [
        ("User without a path", |spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        }),
        ("Network without a path", |spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "network" }));
        }),
        ("linux.uidMappings", |spec| {
            spec["linux"]["uidMappings"] = json!([{ "hostID": 1, "containerID": 0, "size": 1 }]);
            spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"].clone();
        }),
        ("idmapped", |spec| {
            spec["mounts"][0]["uidMappings"] = json!([{ "hostID": 1, "containerID": 0, "size": 1 }]);
            spec["mounts"][0]["gidMappings"] = spec["mounts"][0]["uidMappings"].clone();
        }),
        ("tmpcopyup", |spec| spec["mounts"][1]["options"] = json!(["tmpcopyup"])),
        ("linux.personality", |spec| spec["linux"]["personality"] = json!({ "domain": "LINUX32" })),
    ];
    let cgroup = OwnCgroup::new();
    for (name, change) in cases {
        let mut spec = spec("");
        change(&mut spec);
        let error = compile(&parse(&spec), input(&cgroup.0)).unwrap_err();
        assert!(matches!(error, CompileError::Unsupported { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}
