//! Probes and hooks: what is asked of a container, or told to it, while it runs.

use std::time::Duration;

use serde_json::Value;

use crate::container::Port;
use crate::fields::Fields;
use crate::names;

/// A container's three probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Until it succeeds, the other two do not begin.
    pub startup: Option<Probe>,
    /// Restarts the container when it fails.
    pub liveness: Option<Probe>,
    /// Whether the container is ready.
    pub readiness: Option<Probe>,
}

/// One probe, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub action: ProbeAction,
    /// After the container's start.
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    /// In a row.
    pub success_threshold: u32,
    /// In a row.
    pub failure_threshold: u32,
    /// Between SIGTERM and SIGKILL when it fails; None: the pod's.
    pub grace_period: Option<Duration>,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    /// Run in the container; success is exit code 0.
    Exec(Vec<String>),
    /// Success is a status from 200 to 399.
    HttpGet(HttpGet),
    /// Success is a connection.
    TcpSocket { host: String, port: PortRef },
    /// The standard health service; success is SERVING.
    Grpc { port: u16, service: String },
}

/// An HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// Empty: the pod's own address.
    pub host: String,
    pub port: PortRef,
    /// With a query, where there is one.
    pub path: String,
    /// Certificates are not checked.
    pub https: bool,
    pub headers: Vec<(String, String)>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    Number(u16),
    /// One of the container's own.
    Name(String),
}

/// What is told to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Right after its start.
    pub post_start: Option<Hook>,
    /// Before its end is asked for.
    pub pre_stop: Option<Hook>,
    /// In place of the image's; a signal's name such as `SIGUSR1`.
    pub stop_signal: Option<String>,
}

/// What a hook does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    Exec(Vec<String>),
    HttpGet(HttpGet),
    Sleep(Duration),
}

impl Probes {
    /// Reads `startupProbe`, `livenessProbe` and `readinessProbe`.
    pub(crate) fn read(fields: &mut Fields<'_>, ports: &[Port]) -> Probes {
        Probes {
            startup: Probe::read(fields, "startupProbe", ports),
            liveness: Probe::read(fields, "livenessProbe", ports),
            readiness: Probe::read(fields, "readinessProbe", ports),
        }
    }
}

impl Probe {
    fn read(fields: &mut Fields<'_>, key: &'static str, ports: &[Port]) -> Option<Probe> {
        fields.object(key, |fields| {
            let action = ProbeAction::read(fields, ports);
            let seconds = |given: Option<Duration>, default| given.unwrap_or(Duration::from_secs(default));
            let initial_delay = seconds(fields.seconds("initialDelaySeconds", 0), 0);
            let period = seconds(fields.seconds("periodSeconds", 1), 10);
            let timeout = seconds(fields.seconds("timeoutSeconds", 1), 1);
            let success_threshold = count(fields, "successThreshold", 1);
            if success_threshold != 1 && key != "readinessProbe" {
                fields.fault("successThreshold", "must be 1 for this kind of probe");
            }
            let failure_threshold = count(fields, "failureThreshold", 3);
            let grace_period = fields.seconds("terminationGracePeriodSeconds", 1);
            if grace_period.is_some() && key == "readinessProbe" {
                fields.fault("terminationGracePeriodSeconds", "a readiness probe ends nothing");
            }
            Some(Probe {
                action: action?,
                initial_delay,
                period,
                timeout,
                success_threshold,
                failure_threshold,
                grace_period,
            })
        })?
    }
}

fn count(fields: &mut Fields<'_>, key: &'static str, default: u32) -> u32 {
    let given = fields.integer(key, 1..=i64::from(i32::MAX));
    given.and_then(|given| u32::try_from(given).ok()).unwrap_or(default)
}

impl ProbeAction {
    fn read(fields: &mut Fields<'_>, ports: &[Port]) -> Option<ProbeAction> {
        match fields.exactly_one(&["exec", "httpGet", "tcpSocket", "grpc"], "something to do")? {
            "exec" => exec(fields).map(Self::Exec),
            "httpGet" => HttpGet::read(fields, ports).map(Self::HttpGet),
            "tcpSocket" => fields.object("tcpSocket", |fields| {
                let host = fields.string("host").unwrap_or_default();
                Some(Self::TcpSocket { host, port: port(fields, ports)? })
            })?,
            _ => fields.object("grpc", |fields| {
                let service = fields.string("service").unwrap_or_default();
                fields.demand("port");
                let port = u16::try_from(fields.integer("port", 1..=65535)?).ok()?;
                Some(Self::Grpc { port, service })
            })?,
        }
    }
}

impl HttpGet {
    fn read(fields: &mut Fields<'_>, ports: &[Port]) -> Option<HttpGet> {
        fields.object("httpGet", |fields| {
            let host = fields.string("host").unwrap_or_default();
            let path = fields.string("path").filter(|path| !path.is_empty());
            let path = path.unwrap_or_else(|| "/".to_owned());
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            let https = fields.word("scheme", &[("HTTP", false), ("HTTPS", true)]).unwrap_or(false);
            let headers = fields.objects("httpHeaders", |fields| {
                (fields.required("name"), fields.string("value").unwrap_or_default())
            });
            Some(HttpGet { host, port: port(fields, ports)?, path, https, headers })
        })?
    }
}

fn exec(fields: &mut Fields<'_>) -> Option<Vec<String>> {
    fields.object("exec", |fields| {
        let command = fields.strings("command");
        if command.is_empty() {
            fields.fault("command", "must not be empty");
        }
        command
    })
}

/// A number or the name of one of the container's ports.
fn port(fields: &mut Fields<'_>, ports: &[Port]) -> Option<PortRef> {
    fields.demand("port");
    match fields.any("port")? {
        Value::Number(number) => {
            let number = number.as_u64().and_then(|number| u16::try_from(number).ok());
            if number.is_none_or(|number| number == 0) {
                fields.fault("port", "must be from 1 to 65535");
                return None;
            }
            number.map(PortRef::Number)
        }
        Value::String(name) => {
            if let Err(problem) = names::port(name) {
                fields.fault("port", problem);
                return None;
            }
            if !ports.iter().any(|port| port.name.as_ref() == Some(name)) {
                fields.fault("port", format!("the container has no port of the name {name:?}"));
                return None;
            }
            Some(PortRef::Name(name.clone()))
        }
        _ => {
            fields.fault("port", "must be a number or the name of a port");
            None
        }
    }
}

impl Lifecycle {
    /// Reads the hooks; `type` is the container's own affair.
    pub(crate) fn read(fields: &mut Fields<'_>, ports: &[Port]) -> Lifecycle {
        Lifecycle {
            post_start: Hook::read(fields, "postStart", ports),
            pre_stop: Hook::read(fields, "preStop", ports),
            stop_signal: fields.checked("stopSignal", |name| match crate::cri::signal(name) {
                Some(_) => Ok(name.to_owned()),
                None => Err(format!("{name:?} is no signal: SIGTERM, SIGUSR1, …")),
            }),
        }
    }
}

impl Hook {
    fn read(fields: &mut Fields<'_>, key: &'static str, ports: &[Port]) -> Option<Hook> {
        fields.object(key, |fields| {
            fields.refuse(&["tcpSocket"], "was never possible in a hook: use exec or httpGet");
            match fields.exactly_one(&["exec", "httpGet", "sleep"], "something to do")? {
                "exec" => exec(fields).map(Self::Exec),
                "httpGet" => HttpGet::read(fields, ports).map(Self::HttpGet),
                _ => fields.object("sleep", |fields| {
                    fields.demand("seconds");
                    fields.seconds("seconds", 0).map(Self::Sleep)
                })?,
            }
        })?
    }
}
