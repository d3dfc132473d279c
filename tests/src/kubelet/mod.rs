//! A real kubelet on a node, without an API server: its pods are files in a folder, what it knows is asked over HTTPS.

mod config;
mod streams;

use std::{
    fs::{self, OpenOptions},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Url;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::Value;
use tokio::process::{Child, Command};

pub use self::streams::Ran;
use crate::{Node, PATIENCE, host, remove_cgroup, tools, wait_until};

/// How long a kubelet may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);

/// How a kubelet differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Gates to turn on that are off by default.
    pub feature_gates: Vec<&'static str>,
}

/// A running kubelet; killed when dropped.
#[derive(Debug)]
pub struct Kubelet<'n> {
    node: &'n Node,
    binary: PathBuf,
    dir: PathBuf,
    address: SocketAddr,
    process: Child,
    tls: Arc<ClientConfig>,
    http: reqwest::Client,
}

impl<'n> Kubelet<'n> {
    /// Starts one against the node's daemon and waits until it answers.
    pub async fn start(node: &'n Node, options: &Options) -> Result<Kubelet<'n>> {
        let binary = tools::kubernetes()?.join("kubelet");
        let dir = node.dir().join("kubelet");
        let port = u16::try_from(node.host_ports().end - 1)?;
        for folder in ["manifests", "root", "pki"] {
            fs::create_dir_all(dir.join(folder)).context("making a folder for kubelet")?;
        }
        for hierarchy in host::cgroup_hierarchies()?.values() {
            make_cgroup(hierarchy, &config::cgroup(node))?;
        }
        let root = dir.join("root");
        let none = None::<&str>;
        mount(Some(&root), &root, none, MsFlags::MS_BIND, none)
            .context("making a mount of kubelet's root")?;
        mount(none, &root, none, MsFlags::MS_SHARED, none).context("sharing kubelet's root")?;

        let file = dir.join("config.json");
        fs::write(&file, config::file(node, &dir, port, options).to_string())
            .context("writing kubelet's configuration")?;
        let process = spawn(&binary, &dir, &file)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let certificate = dir.join("pki/kubelet.crt");
        let tls = wait_until("kubelet's certificate", PATIENCE, async || trusting(&certificate))
            .await
            .with_context(|| log_tail(&dir))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .resolve(config::NAME, address)
            .no_proxy()
            .build()?;
        let kubelet = Kubelet { node, binary, dir, address, process, tls: Arc::new(tls), http };
        wait_until("kubelet to answer", PATIENCE, async || kubelet.get("healthz").await)
            .await
            .with_context(|| kubelet.log_tail())?;
        Ok(kubelet)
    }

    /// Writes or replaces the file of a pod.
    pub fn put(&self, name: &str, pod: &Value) -> Result<()> {
        // By rename: kubelet reads the folder whenever it likes.
        let beside = self.dir.join("manifest");
        fs::write(&beside, pod.to_string())?;
        fs::rename(&beside, self.manifest(name)).context("putting a pod's file into its place")
    }

    /// Takes the file of a pod away.
    pub fn take(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).context("removing a pod's file")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{name}.json"))
    }

    /// GET from kubelet itself; the body of a successful answer.
    pub async fn get(&self, path: &str) -> Result<String> {
        body(self.http.get(self.url(path)).timeout(PATIENCE)).await
    }

    /// The same, whose answer comes bit by bit for as long as it takes.
    pub async fn follow(&self, path: &str) -> Result<String> {
        body(self.http.get(self.url(path))).await
    }

    /// GET from somewhere else.
    pub async fn fetch(&self, url: &str) -> Result<String> {
        body(self.http.get(url).timeout(PATIENCE)).await
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}:{}/{path}", config::NAME, self.address.port())
    }

    /// A pod as kubelet would tell the API server of it.
    pub async fn pod(&self, name: &str) -> Result<Value> {
        let all: Value = serde_json::from_str(&self.get("pods").await?)?;
        let full = pod_name(name);
        let mut pods = all["items"].as_array().into_iter().flatten();
        let found = pods.find(|pod| pod["metadata"]["name"] == *full);
        found.cloned().with_context(|| format!("kubelet has no pod {full}"))
    }

    /// The path of a container's log as kubelet serves it; `query` as in `previous=true`.
    pub fn logs(pod: &str, container: &str, query: &str) -> String {
        format!("containerLogs/default/{}/{container}?{query}", pod_name(pod))
    }

    /// Runs a command without streams (ExecSync); kubelet takes words only.
    pub async fn run(&self, pod: &str, container: &str, command: &str) -> Result<String> {
        let url = self.url(&format!("run/default/{}/{container}", pod_name(pod)));
        let url = Url::parse_with_params(&url, [("cmd", command)])?;
        body(self.http.post(url).timeout(PATIENCE)).await
    }

    /// What it has mounted for its pods.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        let root = self.dir.join("root");
        let points = host::mounts("self")?.into_iter().map(|mount| mount.mount_point);
        Ok(points.filter(|point| point.starts_with(&root) && *point != root).collect())
    }

    /// The cgroups of its pods in a hierarchy.
    pub fn pod_cgroups(&self, hierarchy: &Path) -> Vec<PathBuf> {
        let pods = hierarchy.join(config::cgroup(self.node).trim_start_matches('/')).join("kubepods");
        ["", "burstable", "besteffort"]
            .iter()
            .filter_map(|class| fs::read_dir(pods.join(class)).ok())
            .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"pod")))
            .collect()
    }

    /// The newest part of its log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.dir)
    }

    /// SIGTERM and a new one. Pods stay.
    pub async fn restart(&mut self) -> Result<()> {
        self.terminate().await?;
        self.process = spawn(&self.binary, &self.dir, &self.dir.join("config.json"))?;
        wait_until("the new kubelet to answer", PATIENCE, async || self.get("healthz").await).await?;
        Ok(())
    }

    /// Ends it, once its pods are gone, and removes what it made. Fails if any of it is still in use.
    pub async fn stop(mut self) -> Result<()> {
        self.terminate().await?;
        let left = self.mounts()?;
        ensure!(left.is_empty(), "kubelet left mounts: {left:?}");
        umount2(&self.dir.join("root"), MntFlags::empty()).context("unmounting kubelet's root")?;
        for hierarchy in host::cgroup_hierarchies()?.values() {
            remove_cgroup(&hierarchy.join(config::cgroup(self.node).trim_start_matches('/')))?;
        }
        Ok(())
    }

    async fn terminate(&mut self) -> Result<()> {
        let Some(id) = self.process.id() else { bail!("kubelet has ended:\n{}", self.log_tail()) };
        kill(Pid::from_raw(id.try_into()?), Signal::SIGTERM)?;
        tokio::time::timeout(DRAIN, self.process.wait()).await.context("kubelet did not end")??;
        Ok(())
    }
}

async fn body(request: reqwest::RequestBuilder) -> Result<String> {
    let answer = request.send().await?;
    let status = answer.status();
    let body = answer.text().await?;
    ensure!(status.is_success(), "{status}: {body}");
    Ok(body)
}

/// The name of a pod from a file, which tells the node.
fn pod_name(name: &str) -> String {
    format!("{name}-{}", config::NAME)
}

fn spawn(binary: &Path, dir: &Path, config: &Path) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(dir.join("kubelet.log"))?;
    Command::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", config::ENTER, "sh"])
        .arg(dir)
        .arg(binary)
        .arg("--config")
        .arg(config)
        .arg("--root-dir")
        .arg(dir.join("root"))
        .arg("--cert-dir")
        .arg(dir.join("pki"))
        .args(["--hostname-override", config::NAME, "--v=2"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("starting kubelet")
}

/// Makes a cgroup that has every controller and can hold processes.
fn make_cgroup(hierarchy: &Path, path: &str) -> Result<()> {
    let mut folder = hierarchy.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let parent = folder.clone();
        folder.push(part);
        // Version 2 gives a cgroup the controllers that its parent's list names.
        if let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) {
            for controller in controllers.split_whitespace() {
                fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))
                    .with_context(|| format!("enabling {controller} below {}", parent.display()))?;
            }
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        // Version 1's lists begin empty, and then no process may enter.
        for list in ["cpuset.cpus", "cpuset.mems"].map(|list| folder.join(list)) {
            if host::cgroup_version() == 1 && fs::read_to_string(&list).is_ok_and(|set| set.trim().is_empty())
            {
                let name = list.file_name().context("a list's name")?;
                fs::write(&list, fs::read(parent.join(name))?)?;
            }
        }
    }
    Ok(())
}

/// Trusts the certificate that a kubelet made for itself, and no other.
fn trusting(certificate: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(certificate)? {
        roots.add(certificate?)?;
    }
    ensure!(!roots.is_empty(), "there is no certificate in {}", certificate.display());
    Ok(ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn log_tail(dir: &Path) -> String {
    let log = fs::read(dir.join("kubelet.log")).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(40_000)..];
    format!("--- kubelet's log ---\n{}--- end of kubelet's log ---", String::from_utf8_lossy(tail))
}
