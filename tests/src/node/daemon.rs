//! The daemon's process.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// How long a daemon may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(15);

/// Enters the marker cgroup and becomes the daemon. With a third argument, that file is first laid over the kernel's
/// boot id, in a mount namespace that still hears of the host's mounts but tells it of none of its own.
const ENTER: &str = r#"
echo $$ > "$1/cgroup.procs" || exit 125
boot_id=$2
shift 2
if [ -n "$boot_id" ]; then
    exec unshare --mount --propagation slave sh -c \
        'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"' "$boot_id" "$@"
fi
exec "$@"
"#;

/// How a daemon is started.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) binary: PathBuf,
    pub(super) dir: PathBuf,
    /// A cgroup in which nothing but this daemon and what it starts is, so that all of it can be found again.
    pub(super) marker: PathBuf,
    /// A file with another boot id than the kernel's.
    pub(super) boot_id: Option<PathBuf>,
}

impl Launch {
    /// The daemon with these further arguments; its output goes to the node's log.
    pub(super) fn spawn(&self, arguments: &[&str]) -> Result<Daemon> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("berthd.log"))
            .context("opening the daemon's log")?;
        let boot_id = self.boot_id.as_deref().unwrap_or(Path::new(""));
        let child = Command::new("sh")
            .args(["-c", ENTER, "sh"])
            .arg(&self.marker)
            .arg(boot_id)
            .arg(&self.binary)
            .arg("--config")
            .arg(self.dir.join("berth.toml"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting the daemon")?;
        Ok(Daemon { child })
    }
}

/// A started daemon; killed when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    pub(super) fn pid(&self) -> Result<i32> {
        let pid = self.child.id().context("the daemon has ended")?;
        Ok(i32::try_from(pid)?)
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGTERM; it must end with status 0 in good time.
    pub(super) async fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), Signal::SIGTERM)?;
        let status = timeout(DRAIN, self.child.wait())
            .await
            .with_context(|| format!("the daemon was still there {DRAIN:?} after SIGTERM"))??;
        ensure!(status.success(), "the daemon ended with {status} after SIGTERM");
        Ok(())
    }

    /// SIGKILL.
    pub(super) async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        let status = self.child.wait().await?;
        ensure!(status.signal() == Some(9), "the daemon had ended by itself: {status}");
        Ok(())
    }
}

/// The last part of the log; all of it can be megabytes at level debug.
pub(super) fn log_tail(dir: &Path) -> String {
    let log = fs::read(dir.join("berthd.log")).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(40_000)..];
    String::from_utf8_lossy(tail).into_owned()
}
