//! Plugins that lie in a folder: started with the daemon, kept running, ended with it.
//!
//! They are given a connected socket instead of a path, and their name and number by their file's name.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::oneshot,
    time::timeout,
};

use crate::{
    plugin::{Known, Plugin, check_index, check_name},
    shared::{Shared, cause},
    sys,
};

/// The descriptor that a plugin finds its connection under.
const SOCKET: i32 = 3;
/// Above what a process is started with, so that its number is never the one it is copied to.
const FIRST_FREE: i32 = 10;
/// How long to wait before an ended plugin is started again: first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// One that ran so long begins with the first pause again.
const STEADY: Duration = Duration::from_mins(1);
/// From the end of its connection to SIGTERM, and from there to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

/// A program of the folder.
#[derive(Clone, Debug)]
struct Installed {
    program: PathBuf,
    index: String,
    base: String,
}

/// Starts all of them, and returns when each is synchronised or has failed for the first time.
pub(crate) async fn start(nri: &Arc<Shared>) {
    let found = match find(&nri.config.plugin_dir) {
        Ok(found) => found,
        Err(error) => {
            let folder = nri.config.plugin_dir.display();
            return tracing::error!(%folder, %error, "cannot look for NRI plugins; none is started");
        }
    };
    let begun = found.into_iter().map(|plugin| {
        let (settled, waiting) = oneshot::channel();
        nri.tasks.spawn(keep(Arc::clone(nri), plugin, settled));
        waiting
    });
    // Who has gone before saying so has settled as well.
    join_all(begun.collect::<Vec<_>>()).await;
}

/// The programs in a folder in the order of their numbers; what is not named like one is left alone, and said.
fn find(folder: &Path) -> io::Result<Vec<Installed>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let program = entry?.path();
        let is_program =
            fs::metadata(&program).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        if !is_program {
            continue;
        }
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.split_once('-') {
            Some((index, base)) if check_index(index).is_ok() && check_name(base).is_ok() => {
                found.push(Installed { index: index.to_owned(), base: base.to_owned(), program });
            }
            _ => tracing::warn!(program = %program.display(), "not named NN-NAME, so no NRI plugin"),
        }
    }
    found.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(found)
}

/// Runs a plugin, again and again, until the daemon ends.
async fn keep(nri: Arc<Shared>, plugin: Installed, settled: oneshot::Sender<()>) {
    let name = format!("{}-{}", plugin.index, plugin.base);
    let mut settled = Some(settled);
    let mut pause = PAUSE;
    loop {
        let began = Instant::now();
        let why = run(&nri, &plugin, &mut settled).await;
        if nri.stopping.is_cancelled() {
            return;
        }
        drop(settled.take());
        nri.plugins.miss(&name, &why);
        if began.elapsed() > STEADY {
            pause = PAUSE;
        }
        tracing::error!(plugin = name, why, again_after = ?pause, "an installed NRI plugin does not run");
        tokio::select! {
            // Nothing to lose in either.
            () = tokio::time::sleep(pause) => {}
            () = nri.stopping.cancelled() => return,
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// One run, and why it ended. No process is left after it.
async fn run(nri: &Arc<Shared>, plugin: &Installed, settled: &mut Option<oneshot::Sender<()>>) -> String {
    let config = match config(&nri.config.plugin_config_dir, plugin) {
        Ok(config) => config,
        Err((path, error)) => return format!("cannot read {}: {error}", path.display()),
    };
    let (mut child, stream) = match launch(plugin) {
        Ok(launched) => launched,
        Err(error) => return format!("cannot start {}: {error}", plugin.program.display()),
    };
    let known = Known { index: plugin.index.clone(), base: plugin.base.clone(), config, pid: child.id() };
    let why = match Plugin::register(nri, stream, Some(known)).await {
        Ok(registered) => {
            let registered = Arc::new(registered);
            let served = nri.serve(&registered, || drop(settled.take()));
            served.await.unwrap_or_else(|error| describe(&error))
        }
        Err(error) => describe(&error),
    };
    end(&mut child).await;
    why
}

fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Its own file's content, or that of all plugins of this name; empty when there is neither.
fn config(folder: &Path, plugin: &Installed) -> Result<String, (PathBuf, io::Error)> {
    let Installed { index, base, .. } = plugin;
    for name in [format!("{index}-{base}.conf"), format!("{base}.conf")] {
        let path = folder.join(name);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read.map_err(|error| (path, error)),
        }
    }
    Ok(String::new())
}

fn launch(plugin: &Installed) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let theirs = rustix::io::fcntl_dupfd_cloexec(OwnedFd::from(theirs), FIRST_FREE)?;
    let mut command = Command::new(&plugin.program);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &plugin.base)
        .env("NRI_PLUGIN_IDX", &plugin.index)
        .env("NRI_PLUGIN_SOCKET", SOCKET.to_string())
        .stdin(Stdio::null())
        // Its log is on stderr, as ours is.
        .stdout(Stdio::null())
        .kill_on_drop(true);
    sys::give(&mut command, theirs, SOCKET);
    Ok((command.spawn()?, UnixStream::from_std(ours)?))
}

/// Its connection is closed: a plugin ends by itself then, or is made to.
async fn end(child: &mut Child) {
    if timeout(GRACE, child.wait()).await.is_ok() {
        return;
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It has not been waited for, so the number is still its own.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if timeout(GRACE, child.wait()).await.is_ok() {
        return;
    }
    if let Err(error) = child.start_kill() {
        tracing::error!(error = cause(&error), "cannot kill an NRI plugin");
    }
    // One that the kernel holds is reaped by the runtime, whenever that is.
    if timeout(GRACE, child.wait()).await.is_err() {
        tracing::error!(pid = child.id(), "an NRI plugin does not die: it is stuck in the kernel");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_their_names_and_configured_by_the_more_exact_one() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("20-second", 0o755);
        put("10-first-of-all", 0o700);
        put("README-x", 0o755);
        put("30-notes", 0o644);
        let found = find(folder.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|plugin| (plugin.index.as_str(), plugin.base.as_str())).collect();
        assert_eq!(names, [("10", "first-of-all"), ("20", "second")]);
        assert_eq!(config(folder.path(), &found[0]).unwrap(), "");
        put("first-of-all.conf", 0o600);
        assert_eq!(config(folder.path(), &found[0]).unwrap(), "first-of-all.conf");
        put("10-first-of-all.conf", 0o600);
        assert_eq!(config(folder.path(), &found[0]).unwrap(), "10-first-of-all.conf");
        assert!(find(&folder.path().join("absent")).unwrap().is_empty());
    }
}
