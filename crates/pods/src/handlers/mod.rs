//! Probes and hooks: what is asked of a container, or told to it, while it runs. Every one is a connection or a command
//! of its own, and ends with its time.

mod grpc;
mod http;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use berth_manifest::{Hook, Port, PortRef, Probe, ProbeAction};
use berth_sandbox_manager::{Error, SandboxManager};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use crate::work::text;

/// Whom it is about.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) container_id: String,
    /// The pod's: of one in the node's network the node's. None: the node has but its loopback.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) ports: Vec<Port>,
}

/// Hooks have no time of their own; one that is not cut by its container's end ends after this.
const LONGEST_HOOK: Duration = Duration::from_secs(24 * 3600);

/// How much of a command's output an error quotes.
const QUOTED: usize = 512;

impl Target {
    fn ip(&self) -> IpAddr {
        self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn port(&self, port: &PortRef) -> Result<u16, String> {
        match port {
            PortRef::Number(number) => Ok(*number),
            PortRef::Name(name) => {
                let named = self.ports.iter().find(|port| port.name.as_ref() == Some(name));
                named.map(|port| port.container_port).ok_or_else(|| format!("it has no port {name:?}"))
            }
        }
    }
}

/// Why a probe has no good answer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unwell {
    /// The container's answer is a bad one, or there is none.
    Failed(String),
    /// The container was not asked, which is no fault of its own.
    NotAsked(String),
}

/// Runs a probe once.
///
/// # Errors
/// [`Unwell`].
pub(crate) async fn probe(manager: &SandboxManager, target: &Target, probe: &Probe) -> Result<(), Unwell> {
    let limit = probe.timeout;
    let asked = async {
        let answer = match &probe.action {
            ProbeAction::Exec(command) => return exec(manager, target, command, limit).await,
            ProbeAction::HttpGet(get) => {
                let port = target.port(&get.port).map_err(Unwell::NotAsked)?;
                http::get(target, get, port).await.and_then(http::judge)
            }
            ProbeAction::TcpSocket { host, port } => {
                let port = target.port(port).map_err(Unwell::NotAsked)?;
                connect(target, host, port).await.map(drop)
            }
            ProbeAction::Grpc { port, service } => grpc::check(target.ip(), *port, service).await,
        };
        answer.map_err(Unwell::Failed)
    };
    within(limit, asked).await.unwrap_or_else(|why| Err(Unwell::Failed(why)))
}

/// Runs a hook to its end.
///
/// # Errors
/// Why it failed, for people.
pub(crate) async fn hook(manager: &SandboxManager, target: &Target, hook: &Hook) -> Result<(), String> {
    match hook {
        Hook::Exec(command) => {
            let ran = exec(manager, target, command, LONGEST_HOOK).await;
            ran.map_err(|(Unwell::Failed(why) | Unwell::NotAsked(why))| why)
        }
        Hook::HttpGet(get) => {
            // Any answer will do, as in kubelet: it was told.
            let told = async { http::get(target, get, target.port(&get.port)?).await.map(drop) };
            within(LONGEST_HOOK, told).await?
        }
        Hook::Sleep(time) => {
            sleep(*time).await;
            Ok(())
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    // A command is ended, and said to be, by its own limit; this one is for what has none.
    let done = timeout(limit + Duration::from_millis(500), work).await;
    done.map_err(|_| format!("no answer within {limit:?}"))
}

async fn exec(
    manager: &SandboxManager,
    target: &Target,
    command: &[String],
    limit: Duration,
) -> Result<(), Unwell> {
    match manager.exec_sync(&target.container_id, command, Some(limit)).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let mut said = [output.stdout, output.stderr].concat();
            said.truncate(QUOTED);
            let said = String::from_utf8_lossy(&said);
            let (command, code) = (command.join(" "), output.exit_code);
            Err(Unwell::Failed(format!("{command} ended with {code}: {}", said.trim())))
        }
        Err(Error::ExecTimeout { after, .. }) => {
            Err(Unwell::Failed(format!("{} took longer than {after:?} and was killed", command.join(" "))))
        }
        Err(error) => Err(Unwell::NotAsked(text(error))),
    }
}

/// A connection to a host that the manifest names, or to the pod.
async fn connect(target: &Target, host: &str, port: u16) -> Result<TcpStream, String> {
    if host.is_empty() {
        let ip = target.ip();
        return TcpStream::connect((ip, port)).await.map_err(|error| format!("{ip} port {port}: {error}"));
    }
    let found = lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let addresses: Vec<_> = found.collect();
    TcpStream::connect(&*addresses).await.map_err(|error| format!("{host} port {port}: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn target(ports: Vec<Port>) -> Target {
        Target { container_id: String::new(), ip: None, ports }
    }

    #[tokio::test]
    async fn a_connection_is_all_that_tcp_asks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        connect(&target(Vec::new()), "", port).await.unwrap();
        connect(&target(Vec::new()), "localhost", port).await.unwrap();
        drop(listener);
        let refused = connect(&target(Vec::new()), "", port).await.unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let web = Port {
            name: Some("web".to_owned()),
            container_port: 8080,
            host_port: None,
            host_ip: String::new(),
            protocol: berth_manifest::Protocol::Tcp,
        };
        let target = target(vec![web]);
        assert_eq!(target.port(&PortRef::Name("web".to_owned())), Ok(8080));
        assert_eq!(target.port(&PortRef::Number(1)), Ok(1));
        assert!(target.port(&PortRef::Name("api".to_owned())).is_err());
    }
}
