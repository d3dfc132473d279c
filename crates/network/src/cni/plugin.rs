//! Running one CNI plugin: the only programs that this crate starts.

use std::{
    borrow::Cow,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time,
};

/// What a plugin is asked to do (CNI spec, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
    Status,
    Gc,
    Version,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// Plugins that talk to an API server may take long; those that answer a question may not.
    fn timeout(self) -> Duration {
        match self {
            Self::Add | Self::Check | Self::Del | Self::Gc => Duration::from_secs(60),
            Self::Status | Self::Version => Duration::from_secs(10),
        }
    }
}

/// How long one that was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(1);

/// Bytes of a plugin's output that are read; results are a few kilobytes.
const MOST_OUTPUT: u64 = 1 << 20;
/// Bytes of a plugin's output that an error repeats.
const MOST_REPEATED: usize = 2048;

/// A plugin could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No such file in any plugin directory.
    #[error("CNI plugin {plugin} is not in {}", list(.directories))]
    Missing {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// It could not be started, fed or awaited.
    #[error("CNI plugin {} cannot be run", path.display())]
    Run {
        /// The binary.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It took too long; its process group was killed.
    #[error("CNI plugin {plugin} did not finish {verb} within {} s", after.as_secs())]
    TimedOut {
        /// Its type.
        plugin: String,
        /// The command.
        verb: &'static str,
        /// The limit.
        after: Duration,
    },
    /// It reported an error as the specification says (section 5).
    #[error("CNI plugin {plugin} refused {verb}: {message}{} (code {code})", prefixed(.details))]
    Refused {
        /// Its type.
        plugin: String,
        /// The command.
        verb: &'static str,
        /// Below 100 the specification's, else the plugin's own.
        code: u64,
        /// `msg`.
        message: String,
        /// `details`, and what it wrote to standard error.
        details: String,
    },
    /// It failed without saying how.
    #[error("CNI plugin {plugin} failed at {verb} ({status}){}", prefixed(.output))]
    Failed {
        /// Its type.
        plugin: String,
        /// The command.
        verb: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        output: String,
    },
    /// It succeeded with an answer that is no JSON.
    #[error("CNI plugin {plugin} answered {verb} with something that is not JSON{}", prefixed(.output))]
    Answer {
        /// Its type.
        plugin: String,
        /// The command.
        verb: &'static str,
        /// What it wrote.
        output: String,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
}

fn list(directories: &[PathBuf]) -> String {
    directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn prefixed(text: &str) -> Cow<'_, str> {
    if text.is_empty() { Cow::Borrowed("") } else { Cow::Owned(format!(": {text}")) }
}

/// Where plugins are.
#[derive(Clone, Debug)]
pub(crate) struct Plugins {
    pub(crate) directories: Vec<PathBuf>,
}

impl Plugins {
    pub(crate) fn find(&self, plugin: &str) -> Result<PathBuf, PluginError> {
        self.directories
            .iter()
            .map(|directory| directory.join(plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| PluginError::Missing {
                plugin: plugin.to_owned(),
                directories: self.directories.clone(),
            })
    }

    /// Runs a plugin in a process group of its own, with the daemon's environment and these variables. Gives what it
    /// answered, `Null` for nothing.
    pub(crate) async fn run(
        &self,
        plugin: &str,
        verb: Verb,
        variables: &[(&'static str, OsString)],
        input: Map<String, Value>,
    ) -> Result<Value, PluginError> {
        let path = self.find(plugin)?;
        let mut command = Command::new(&path);
        command
            .env("CNI_COMMAND", verb.word())
            .env("CNI_PATH", self.search_path())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ended =
            execute(command, &path, Value::Object(input).to_string().into_bytes(), verb.timeout()).await;
        let ended = ended.map_err(|source| PluginError::Run { path, source })?;
        let Some(Ended { status, stdout, stderr }) = ended else {
            return Err(PluginError::TimedOut {
                plugin: plugin.to_owned(),
                verb: verb.word(),
                after: verb.timeout(),
            });
        };
        tracing::debug!(plugin, verb = verb.word(), %status, stderr = readable(&stderr), "CNI plugin ended");
        interpret(plugin, verb, status, &stdout, &stderr)
    }

    fn search_path(&self) -> OsString {
        let mut joined = OsString::new();
        for directory in &self.directories {
            if !joined.is_empty() {
                joined.push(":");
            }
            joined.push(directory);
        }
        joined
    }
}

struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// `None` when the time was up.
async fn execute(
    mut command: Command,
    path: &Path,
    input: Vec<u8>,
    timeout: Duration,
) -> io::Result<Option<Ended>> {
    let mut child = command.spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let feed = async {
            if let Some(mut stdin) = stdin
                && let Err(err) = stdin.write_all(&input).await
            {
                // A plugin need not read what it does not want; its exit status tells the rest.
                tracing::debug!(plugin = %path.display(), error = %err, "CNI plugin did not read its input");
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, read(stdout), read(stderr));
        io::Result::Ok((stdout?, stderr?))
    };
    // Only then is it reaped: until then its number, and with it the group's, cannot belong to anyone else.
    let talked = time::timeout(timeout, async { io::Result::Ok((talk.await?, child.wait().await?)) }).await;
    match talked {
        Ok(Ok(((stdout, stderr), status))) => Ok(Some(Ended { status, stdout, stderr })),
        Ok(Err(err)) => Err(err),
        Err(_) => {
            if let Some(group) = child.id().and_then(|pid| i32::try_from(pid).ok())
                && let Err(errno) = killpg(Pid::from_raw(group), Signal::SIGKILL)
            {
                tracing::warn!(plugin = %path.display(), error = %errno, "cannot kill a CNI plugin");
            }
            // It dies at once, unless the kernel holds it; whose end that is, is reaped by the runtime.
            match time::timeout(DEATH, child.wait()).await {
                Ok(ended) => drop(ended?),
                Err(_) => {
                    tracing::warn!(plugin = %path.display(), pid = child.id(), "a CNI plugin does not die: it is stuck in the kernel");
                }
            }
            Ok(None)
        }
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn interpret(
    plugin: &str,
    verb: Verb,
    status: ExitStatus,
    stdout: &[u8],
    stderr: &[u8],
) -> Result<Value, PluginError> {
    let (plugin, verb) = (plugin.to_owned(), verb.word());
    let parsed: Result<Value, serde_json::Error> = match stdout.trim_ascii() {
        [] => Ok(Value::Null),
        text => serde_json::from_slice(text),
    };
    if status.success() {
        let output = readable(stdout);
        return parsed.map_err(|source| PluginError::Answer { plugin, verb, output, source });
    }
    if let Ok(Value::Object(error)) = &parsed
        && let Some(code) = error.get("code").and_then(Value::as_u64)
    {
        let text = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let details = join(&text("details"), &readable(stderr));
        return Err(PluginError::Refused { plugin, verb, code, message: text("msg"), details });
    }
    Err(PluginError::Failed { plugin, verb, status, output: join(&readable(stdout), &readable(stderr)) })
}

fn join(one: &str, other: &str) -> String {
    [one, other].iter().filter(|text| !text.is_empty()).copied().collect::<Vec<_>>().join("; ")
}

/// The end of a text says most.
fn readable(bytes: &[u8]) -> String {
    let bytes = bytes.trim_ascii();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MOST_REPEATED)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;

    fn plugin(script: &str) -> (tempfile::TempDir, Plugins) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fake");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let directories = vec![dir.path().to_owned()];
        (dir, Plugins { directories })
    }

    async fn run(script: &str) -> Result<Value, PluginError> {
        let (_dir, plugins) = plugin(script);
        plugins.run("fake", Verb::Add, &[("CNI_IFNAME", "eth0".into())], Map::new()).await
    }

    #[tokio::test]
    async fn the_answer_is_what_it_prints() {
        let answer =
            run(r#"echo "{\"command\": \"$CNI_COMMAND\", \"ifname\": \"$CNI_IFNAME\"}""#).await.unwrap();
        assert_eq!(answer, serde_json::json!({"command": "ADD", "ifname": "eth0"}));
        assert_eq!(run("cat > /dev/null").await.unwrap(), Value::Null);
    }

    #[tokio::test]
    async fn errors_carry_code_message_and_standard_error() {
        let err = run(r#"echo noise >&2; echo '{"code": 11, "msg": "busy", "details": "later"}'; exit 1"#)
            .await
            .unwrap_err();
        assert_eq!(err.to_string(), "CNI plugin fake refused ADD: busy: later; noise (code 11)");
        let err = run("echo why >&2; exit 3").await.unwrap_err();
        assert_eq!(err.to_string(), "CNI plugin fake failed at ADD (exit status: 3): why");
        assert!(matches!(run("echo nonsense").await, Err(PluginError::Answer { .. })));
        let (_dir, plugins) = plugin("true");
        let err = plugins.run("absent", Verb::Del, &[], Map::new()).await.unwrap_err();
        assert!(matches!(err, PluginError::Missing { .. }));
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_its_children() {
        let (dir, _) = plugin("sleep 100 & echo $! > $0.pid; wait");
        let path = dir.path().join("fake");
        let mut command = Command::new(&path);
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begin = Instant::now();
        let ended = execute(command, &path, Vec::new(), Duration::from_millis(300)).await.unwrap();
        assert!(ended.is_none() && begin.elapsed() < Duration::from_secs(10));
        let child = fs::read_to_string(dir.path().join("fake.pid")).unwrap();
        // It is gone, or about to be: the kill was sent, and a dying process takes a moment.
        let pid = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let patience = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
            assert_eq!(
                rustix::event::poll(&mut poll, Some(&patience)).unwrap(),
                1,
                "the plugin's child lives"
            );
        }
    }
}
