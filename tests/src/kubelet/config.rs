//! What a kubelet is started with.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Options;
use crate::Node;

/// Starts the kubelet in a mount namespace where it finds folders of its own in the places that it will not be told, and
/// kernel settings as it wants them, since those of the machine are not its to change. All mounts but the root folder's
/// flow one way: the machine's are seen here, these are not seen there.
pub(super) const ENTER: &str = r#"
set -eu
own=$1
shift
for path in / /proc /var/lib /var/log; do
    mount --make-slave "$(findmnt --noheadings --output TARGET --target "$path")"
done
for path in lib log; do
    mkdir -p "$own/var/$path"
    mount --bind "$own/var/$path" "/var/$path"
done
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    name=${setting%=*}
    mkdir -p "$own/sysctl/${name%/*}"
    echo "${setting#*=}" >"$own/sysctl/$name"
    mount --bind "$own/sysctl/$name" "/proc/sys/$name"
done
# kubelet will know it, and user-mode Linux does not say: the processor's speed.
if ! grep -q MHz /proc/cpuinfo; then
    sed 's/^processor.*/&\ncpu MHz: 1000.0/' /proc/cpuinfo >"$own/cpuinfo"
    mount --bind "$own/cpuinfo" /proc/cpuinfo
fi
exec "$@"
"#;

/// The node's name for kubelet: it ends the names of pods from files and is in the certificate.
pub(super) const NAME: &str = "node";

/// A `KubeletConfiguration` for a node without an API server, with periods as short as kubelet takes them.
pub(super) fn file(node: &Node, dir: &Path, port: u16, options: &Options) -> Value {
    let all = |names: &[&str], value: Value| -> Map<String, Value> {
        names.iter().map(|name| ((*name).to_owned(), value.clone())).collect()
    };
    // Nothing is to be evicted or collected because the machine is short of something.
    let signals = [
        "memory.available",
        "nodefs.available",
        "nodefs.inodesFree",
        "imagefs.available",
        "imagefs.inodesFree",
    ];
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": port,
        "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
        "staticPodPath": dir.join("manifests"),
        "podLogsDir": dir.join("logs"),
        "volumePluginDir": dir.join("volume-plugins"),
        "fileCheckFrequency": "1s",
        "syncFrequency": "1s",
        "registerNode": false,
        "featureGates": all(&options.feature_gates, json!(true)),
        "cgroupRoot": cgroup(node),
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        // To lower it takes a capability that root in a container may lack.
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        "evictionHard": all(&signals, json!("0%")),
        "imageGCHighThresholdPercent": 100,
        "containerLogMaxSize": "16Ki",
        "containerLogMaxFiles": 20,
        "containerLogMonitorInterval": "3s",
    })
}

/// Where its pods' cgroups are, in every hierarchy.
pub(super) fn cgroup(node: &Node) -> String {
    format!("{}/kubelet", node.cgroup_root())
}
