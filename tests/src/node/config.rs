//! The files a node's daemon reads.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Options, slot::Slot};
use crate::{image::critest, registry::Registry};

/// Registries that references name and that the loopback registry stands for, beside those of critest.
const STOOD_FOR: [&str; 1] = ["docker.io"];

/// Debian's crun, made to work on a machine with cgroups of both versions.
const CRUN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/crun-v1");

/// Writes `berth.toml`, the registry folder and the CNI folder.
pub(super) fn write(
    dir: &Path,
    slot: &Slot,
    registry: &Registry,
    binaries: &Path,
    options: &Options,
) -> Result<()> {
    let certs = dir.join("certs.d");
    let own = registry.address().to_string();
    for host in STOOD_FOR.into_iter().chain(critest::HOSTS).chain([own.as_str()]) {
        let text = format!("server = \"http://{own}\"\n");
        put(&certs.join(host).join("hosts.toml"), &text)?;
    }
    let ipv4 = format!("{}0/{}", slot.ipv4_beginning(), options.ipv4_prefix);
    let ipv6 = format!("{}/64", slot.ipv6_beginning());
    let cni = dir.join("cni");
    fs::create_dir_all(&cni)?;
    if let Some(conflist) = &options.cni_conflist {
        let text = conflist
            .replace("@BRIDGE@", &slot.bridge())
            .replace("@DIR@", &dir.display().to_string())
            .replace("@SUBNET4@", &ipv4)
            .replace("@SUBNET6@", &ipv6);
        put(&cni.join("10-test.conflist"), &text)?;
    }
    let text = format!(
        r#"root = "{dir}/root"
state = "{dir}/state"
listen = "unix://{dir}/berth.sock"
log_level = "{log_level}"
cgroup_root = "{cgroup_root}"
manifest_dir = "{dir}/manifests"
seccomp_profile_dir = "{dir}/seccomp"
registry_config_dir = "{dir}/certs.d"
supervisor = "{binaries}/berth-pod"
{extra}
[network]
bridge = "{bridge}"
ipv4_subnet = "{ipv4}"
ipv6_subnet = "{ipv6}"
cni_conf_dir = "{dir}/cni"
cni_bin_dirs = ["{dir}/cni-bin", "/usr/lib/cni"]

[runtime_handlers.runc]
path = "/usr/sbin/runc"

[runtime_handlers.crun]
path = "{CRUN}"
"#,
        dir = dir.display(),
        binaries = binaries.display(),
        cgroup_root = slot.cgroup_root(),
        bridge = slot.bridge(),
        log_level = options.log_level,
        extra = options
            .extra_config
            .replace("@DIR@", &dir.display().to_string())
            .replace("@PORT@", &slot.service_port().to_string()),
    );
    put(&dir.join("berth.toml"), &text)?;
    let crictl = format!(
        "runtime-endpoint: unix://{dir}/berth.sock\nimage-endpoint: unix://{dir}/berth.sock\ntimeout: 60\n",
        dir = dir.display()
    );
    put(&dir.join("crictl.yaml"), &crictl)
}

fn put(path: &Path, text: &str) -> Result<()> {
    let parent = path.parent().expect("every path here has a parent");
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
