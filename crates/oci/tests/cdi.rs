//! Spec files of CDI as vendors write them, what becomes of a container's spec, and which files are refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use berth_oci::cdi::{DeviceName, Registry, SpecFile};
use oci_spec::runtime::Spec;
use serde_json::json;

/// As NVIDIA's generator writes it, shortened.
const GPU: &str = r#"
cdiVersion: 0.7.0
kind: vendor.com/gpu
containerEdits:
  env: [VENDOR_VISIBLE_DEVICES=void]
  deviceNodes:
    - {path: /dev/vendorctl, type: c, major: 195, minor: 255, permissions: rw}
  hooks:
    - hookName: createContainer
      path: /usr/bin/vendor-hook
      args: [vendor-hook, update-ldcache, --folder, /usr/lib]
      env: [DEBUG=false]
      timeout: 5
  mounts:
    - {hostPath: /usr/lib/libvendor.so.1, containerPath: /usr/lib/libvendor.so.1, options: [ro, nosuid, nodev, bind]}
  additionalGids: [0, 44]
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [{path: /dev/vendor0, type: c, major: 195, fileMode: 432, uid: 7, gid: 8}]
  - name: "1"
    containerEdits:
      env: [PATH=/vendor/bin, INDEX=1]
      deviceNodes: [{path: /dev/vendor1, hostPath: /dev/host1, type: b, major: 8, minor: 1}]
      mounts: [{hostPath: tmpfs, containerPath: /run/vendor/x, type: tmpfs}, {hostPath: /run/vendor, containerPath: /run/vendor}]
      intelRdt: {closID: gold, l3CacheSchema: "L3:0=f"}
"#;

fn file(path: &str, priority: usize, text: &str) -> SpecFile {
    SpecFile { path: path.into(), priority, text: Ok(text.to_owned()) }
}

fn names(list: &[&str]) -> Vec<DeviceName> {
    list.iter().map(|name| name.parse().unwrap()).collect()
}

fn container() -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "process": { "cwd": "/", "user": { "uid": 1000, "gid": 1001, "additionalGids": [1001] },
                     "env": ["PATH=/bin", "HOME=/"] },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" },
                   { "destination": "/run/vendor", "type": "bind", "source": "/old" }],
        "linux": { "devices": [{ "path": "/dev/vendor0", "type": "c", "major": 1, "minor": 3 }],
                   "resources": { "devices": [{ "allow": false, "access": "rwm" }] } }
    }))
    .unwrap()
}

/// Why the only file is refused.
fn fault(text: &str) -> String {
    let registry = Registry::new([file("/etc/cdi/x.yaml", 0, text)]);
    let error = registry.resolve(&names(&["vendor.com/gpu=a"])).unwrap_err().to_string();
    assert!(error.starts_with("CDI device vendor.com/gpu=a is in no spec file"), "{error}");
    error
}

/// A file of this version with these keys, and a device with these edits.
fn with(version: &str, keys: &str, edits: &str) -> String {
    format!(
        r#"{{ "cdiVersion": "{version}", "kind": "vendor.com/gpu", {keys}
             "devices": [{{ "name": "a", "containerEdits": {{ {edits} }} }}] }}"#
    )
}

#[test]
fn golden_two_devices_of_one_file() {
    let registry = Registry::new([file("/etc/cdi/vendor.yaml", 0, GPU)]);
    let mut spec = container();
    registry.resolve(&names(&["vendor.com/gpu=1", "vendor.com/gpu=0"])).unwrap().apply(&mut spec).unwrap();
    insta::assert_json_snapshot!(spec);
}

#[test]
fn json_and_yaml_are_read_alike() {
    let text = with("0.5.0", "", r#""env": ["A=b"]"#);
    let edits = |path| {
        let registry = Registry::new([file(path, 0, &text)]);
        registry.resolve(&names(&["vendor.com/gpu=a"])).unwrap()
    };
    assert_eq!(edits("/etc/cdi/a.json"), edits("/etc/cdi/a.yaml"));
}

#[test]
fn later_folders_win_and_two_files_of_one_folder_are_a_conflict() {
    let env = |value: &str| with("0.3.0", "", &format!(r#""env": ["A={value}"]"#));
    let wanted = names(&["vendor.com/gpu=a"]);
    let low = || file("/etc/cdi/a.json", 0, &env("low"));
    let high = |name: &str| file(&format!("/run/cdi/{name}"), 1, &env("high"));
    for files in [[low(), high("a.json")], [high("a.json"), low()]] {
        assert_eq!(Registry::new(files).resolve(&wanted).unwrap().env, ["A=high"]);
    }
    let error =
        Registry::new([low(), high("a.json"), high("b.json")]).resolve(&wanted).unwrap_err().to_string();
    assert!(error.contains("/run/cdi/a.json and in /run/cdi/b.json") && !error.contains("/etc"), "{error}");
}

#[test]
fn an_unknown_device_is_answered_with_what_there_is() {
    let registry = Registry::new([
        file("/etc/cdi/vendor.yaml", 0, GPU),
        file("/etc/cdi/broken.yaml", 0, "cdiVersion: ["),
        SpecFile { path: PathBuf::from("/etc/cdi/dark.json"), priority: 0, text: Err("EACCES".into()) },
    ]);
    let error = registry.resolve(&names(&["vendor.com/gpu=0", "vendor.com/gpu=2"])).unwrap_err().to_string();
    for part in
        ["vendor.com/gpu=2", "there is 0, 1", "/etc/cdi/broken.yaml was passed over", "dark.json", "EACCES"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_node_that_nobody_knows_is_refused() {
    let text = with("0.5.0", "", r#""deviceNodes": [{ "path": "/dev/x", "hostPath": "/dev/y" }]"#);
    let registry = Registry::new([file("/etc/cdi/a.json", 0, &text)]);
    let edits = registry.resolve(&names(&["vendor.com/gpu=a"])).unwrap();
    assert!(edits.device_nodes[0].is_incomplete());
    assert_eq!(edits.device_nodes[0].source(), PathBuf::from("/dev/y"));
    assert!(edits.apply(&mut container()).is_err());
}

#[test]
fn each_version_has_its_fields() {
    let env = r#""env": ["A=b"]"#;
    for (version, keys, edits, feature) in [
        (
            "0.3.0",
            "",
            r#""mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "bind"}]"#,
            "mounts.type",
        ),
        ("0.4.0", "", r#""deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]"#, "deviceNodes.hostPath"),
        ("0.5.0", r#""annotations": {"a": "b"},"#, env, "annotations"),
        ("0.6.0", "", r#""additionalGids": [5]"#, "additionalGids"),
        ("0.6.0", r#""containerEdits": {"intelRdt": {"closID": "x"}},"#, env, "intelRdt"),
        ("1.0.0", "", r#""netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}]"#, "netDevices"),
        ("1.0.0", "", r#""intelRdt": {"enableMonitoring": true}"#, "intelRdt.enableMonitoring"),
    ] {
        let error = fault(&with(version, keys, edits));
        assert!(error.contains(&format!("{feature} needs cdiVersion")), "{error}");
        let registry = Registry::new([file("/etc/cdi/x.json", 0, &with("1.1.0", keys, edits))]);
        registry.resolve(&names(&["vendor.com/gpu=a"])).unwrap();
    }
    assert!(fault(&with("2.0.0", "", env)).contains("cdiVersion \"2.0.0\" is not known"));
}

#[test]
fn what_the_specification_does_not_have_is_refused() {
    for (edits, part) in [
        ("", "no containerEdits"),
        (r#""env": ["A"]"#, "is not NAME=value"),
        (r#""surprise": 1"#, "surprise"),
        (r#""deviceNodes": [{"path": "dev/a"}]"#, "dev/a"),
        (r#""deviceNodes": [{"path": "/dev/a", "permissions": "rx"}]"#, "\"rx\""),
        (r#""deviceNodes": [{"path": "/dev/a", "type": "x"}]"#, "not YAML"),
        (r#""hooks": [{"hookName": "atTeatime", "path": "/x"}]"#, "atTeatime"),
        (r#""hooks": [{"hookName": "poststop", "path": "x"}]"#, "not an absolute path"),
        (r#""hooks": [{"hookName": "poststop", "path": "/x", "timeout": 0}]"#, "timeout"),
        (r#""mounts": [{"hostPath": "/a", "containerPath": "/a/../b"}]"#, "/a/../b"),
        (r#""intelRdt": {"closID": "../x"}"#, "closID"),
    ] {
        let error = fault(&with("1.1.0", "", edits));
        assert!(error.contains(part), "{edits}: {error}");
    }
    let twice = r#"{"cdiVersion": "0.3.0", "kind": "vendor.com/gpu", "devices": [
        {"name": "b", "containerEdits": {"env": ["A=b"]}}, {"name": "b", "containerEdits": {"env": ["A=b"]}}]}"#;
    assert!(fault(twice).contains("\"b\" stands twice"));
    assert!(fault(r#"{"cdiVersion": "0.3.0", "kind": "gpu", "devices": []}"#).contains("has no \"/\""));
}
