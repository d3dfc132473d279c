//! The files that containerd reads. What is not here has its default.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use berth_tests::node::BUSYBOX;

/// Writes `config.toml`, the registry folder and the CNI network below `dir`.
pub(super) fn write(dir: &Path, tools: &Path, registry: SocketAddr, sandbox_image: &str) -> Result<()> {
    let (busybox_host, _) = BUSYBOX.split_once('/').expect("the reference names a registry");
    for host in [busybox_host, &registry.to_string()] {
        let text = format!("server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n");
        put(&dir.join("certs.d").join(host).join("hosts.toml"), &text)?;
    }
    put(&dir.join("cni/10-bench.conflist"), &network(dir))?;
    put(&dir.join("config.toml"), &daemon(dir, tools, sandbox_image))
}

/// A bridge with masquerading and host ports, which is what berth's built-in network offers; IPv4 only, because the
/// plugin waits a second or two for every IPv6 address to settle.
fn network(dir: &Path) -> String {
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "bench",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "ipam": {{
        "type": "host-local",
        "dataDir": "{dir}/ipam",
        "ranges": [[{{ "subnet": "10.88.0.0/16" }}]],
        "routes": [{{ "dst": "0.0.0.0/0" }}]
      }}
    }},
    {{ "type": "portmap", "capabilities": {{ "portMappings": true }} }}
  ]
}}
"#,
        dir = dir.display()
    )
}

fn daemon(dir: &Path, tools: &Path, sandbox_image: &str) -> String {
    format!(
        r#"version = 4
root = '{dir}/root'
state = '{dir}/state'
imports = []

[plugins.'io.containerd.server.v1.grpc']
address = '{dir}/containerd.sock'

[plugins.'io.containerd.server.v1.ttrpc']
address = '{dir}/containerd.sock.ttrpc'

[plugins.'io.containerd.shim.v1.manager']
socket_dir = '{dir}/shims'

[plugins.'io.containerd.internal.v1.opt']
path = '{dir}/opt'

[plugins.'io.containerd.nri.v1.nri']
disable = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{sandbox_image}'

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '{dir}/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
netns_mounts_under_state_dir = true
# Some machines do not let even root lower a score; berth leaves it out by itself there.
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{tools}']
conf_dir = '{dir}/cni'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '{tools}/containerd-shim-runc-v2'
sandboxer = 'podsandbox'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{tools}/runc'
Root = '{dir}/runc'
"#,
        dir = dir.display(),
        tools = tools.display(),
    )
}

fn put(path: &Path, text: &str) -> Result<()> {
    let parent = path.parent().expect("every path here has a parent");
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
