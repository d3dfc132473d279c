//! Stopping, killing and removing cgroups.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{Cgroup, CgroupError, Version, is_gone, read_if_there, write};

/// How long processes may take to die of SIGKILL: longer than a core dump or a slow disk, shorter than a caller's
/// own deadline.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at a v1 cgroup whose last process is past its exit but not yet out of the kernel's list.
const SETTLE: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Stops every process in it until [`Cgroup::thaw`], and returns when they stand still. Does nothing on a host
    /// without the means.
    ///
    /// # Errors
    /// [`CgroupError::Write`]; [`CgroupError::NotFrozen`] when a process does not come to rest within ten seconds
    /// (one that waits for a disk): freezing then goes on until it is thawed.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)?;
        let Some(folder) = self.place_of("freezer") else { return Ok(()) };
        let deadline = Instant::now() + KILL_DEADLINE;
        let (file, done) = match self.version {
            Version::V1 => ("freezer.state", "FROZEN"),
            Version::V2 => ("cgroup.events", "frozen 1"),
        };
        let path = folder.join(file);
        // v2 wakes who polls the file; v1 looks at the processes when the file is read, and wakes nobody.
        let events =
            fs::File::open(&path).map_err(|source| CgroupError::Read { path: path.clone(), source })?;
        while read_if_there(&path)?.is_some_and(|text| !text.lines().any(|line| line == done)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::NotFrozen { path: folder.to_owned() });
            }
            match self.version {
                Version::V1 => thread::sleep(SETTLE.min(left)),
                Version::V2 => wait_for_change(&events, left),
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`CgroupError::Write`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    /// As [`Cgroup::thaw`], with what somebody in it has frozen below: on v1 a signal waits for that as well.
    fn thaw_all(&self) -> Result<(), CgroupError> {
        self.thaw()?;
        let Some(folder) = self.place_of("freezer").filter(|_| self.version == Version::V1) else {
            return Ok(());
        };
        for below in tree(folder)? {
            match write(&below.join("freezer.state"), "THAWED") {
                Err(CgroupError::Write { source, .. }) if is_gone(&source) => {}
                answer => answer?,
            }
        }
        Ok(())
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let (file, value) = match (self.version, frozen) {
            (Version::V1, true) => ("freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED"),
            (Version::V2, true) => ("cgroup.freeze", "1"),
            (Version::V2, false) => ("cgroup.freeze", "0"),
        };
        let Some(folder) = self.place_of("freezer") else { return Ok(()) };
        match write(&folder.join(file), value) {
            Err(CgroupError::Write { source, .. }) if is_gone(&source) => Ok(()),
            answer => answer,
        }
    }

    /// Sends SIGKILL to every process in it and below, and returns when they are dead.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`] after ten seconds.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::NotEmpty { path: self.name(), pids });
            }
            self.kill_once(deadline)?;
        }
    }

    fn kill_once(&self, deadline: Instant) -> Result<(), CgroupError> {
        if self.version == Version::V2
            && let Some(folder) = self.dirs().next()
        {
            // One write reaches all of them, forks in progress included (Linux 5.14).
            let dying = open_all(&self.pids()?);
            match write(&folder.join("cgroup.kill"), "1") {
                Ok(()) => return self.await_death(&dying, deadline),
                Err(CgroupError::Write { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
        }
        // While frozen nobody forks and nobody's number is given to another; SIGKILL then waits for the thaw on v1.
        self.set_frozen(true)?;
        let pids = self.pids();
        let dying = pids.as_deref().map(open_all).unwrap_or_default();
        let mut refused = None;
        for pidfd in &dying {
            match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => refused = Some(error),
            }
        }
        // Whatever went wrong: nothing stays frozen.
        self.thaw_all()?;
        pids?;
        if let Some(error) = refused {
            return Err(CgroupError::Kill { path: self.name(), source: error.into() });
        }
        self.await_death(&dying, deadline)
    }

    fn await_death(&self, dying: &[OwnedFd], deadline: Instant) -> Result<(), CgroupError> {
        for pidfd in dying {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("ten seconds fit");
            let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(CgroupError::Kill { path: self.name(), source: error.into() }),
            }
        }
        if !dying.is_empty() {
            return Ok(());
        }
        // Processes are listed of which none can be opened: they are past their exit.
        self.settle(deadline);
        Ok(())
    }

    /// Kills what is in it and removes it with everything below, in all hierarchies. Nothing to do is no fault.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`], [`CgroupError::Remove`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.kill_all()?;
        let deadline = Instant::now() + KILL_DEADLINE;
        for folder in self.dirs() {
            for path in tree(folder)?.into_iter().rev() {
                self.remove_folder(path, deadline)?;
            }
        }
        Ok(())
    }

    fn remove_folder(&self, path: PathBuf, deadline: Instant) -> Result<(), CgroupError> {
        loop {
            match fs::remove_dir(&path) {
                Ok(()) => return Ok(()),
                Err(error) if is_gone(&error) => return Ok(()),
                // A process counts until the scheduler has let go of it, a moment after its pidfd says that it ended.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    self.kill_all()?;
                    self.settle(deadline);
                }
                Err(source) => return Err(CgroupError::Remove { path, source }),
            }
        }
    }

    /// Waits until the kernel has let go of processes that are dead already.
    fn settle(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.version == Version::V2
            && let Some(folder) = self.dirs().next()
            && let Ok(events) = fs::File::open(folder.join("cgroup.events"))
            && let Ok(Some(text)) = read_if_there(&folder.join("cgroup.events"))
            && text.contains("populated 1")
        {
            wait_for_change(&events, left);
        } else {
            // v1 tells nobody when a cgroup becomes empty. This is the gap between exit_notify and the last
            // context switch, microseconds unless the machine is overloaded.
            thread::sleep(SETTLE.min(left));
        }
    }

    fn name(&self) -> PathBuf {
        self.dirs().next().map(Path::to_owned).unwrap_or_default()
    }
}

/// Until the kernel reports a change of a cgroup v2 events file; whatever comes of it, the caller looks again.
fn wait_for_change(events: &fs::File, patience: Duration) {
    let patience = Timespec::try_from(patience).expect("ten seconds fit");
    let _ = rustix::event::poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&patience));
}

/// A folder and all below it, each before its children. Empty when it is gone.
pub(super) fn tree(folder: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(source) => return Err(CgroupError::Read { path, source }),
        };
        for entry in entries {
            let is_folder = |entry: &fs::DirEntry| entry.file_type().map(|kind| kind.is_dir());
            match entry.and_then(|entry| Ok((is_folder(&entry)?, entry.path()))) {
                Ok((true, child)) => open.push(child),
                Ok((false, _)) => {}
                Err(error) if is_gone(&error) => break,
                Err(source) => return Err(CgroupError::Read { path, source }),
            }
        }
        found.push(path);
    }
    Ok(found)
}

/// Those of the processes that are still there.
fn open_all(pids: &[i32]) -> Vec<OwnedFd> {
    pids.iter()
        .filter_map(|pid| Pid::from_raw(*pid))
        .filter_map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect()
}
