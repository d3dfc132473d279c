//! External OCI runtimes (runc, crun, ...), by the command line they all have.
//!
//! Each run is a child that the loop watches; its end, or its deadline, is an event. What a runtime complains about
//! is read from its `--log` file, since its stdout and stderr at `create` are already the container's.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::{Criu, Failure};
use berth_launcher::cgroup::Cgroup;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use super::container::Asked;
use super::note::say;
use super::poller::Key;
use super::process::{Ended, Process};

/// What is read of a runtime's log: its last words.
const MESSAGE: u64 = 4096;

/// glibc's flag for posix_spawn that makes the child the leader of a session; nix does not name it.
const SPAWN_SETSID: i32 = 0x80;

/// The environment of a runtime: it looks for `newuidmap`, `criu` and the like in PATH, and needs nothing else.
pub(super) const ENVIRONMENT: [&std::ffi::CStr; 1] =
    [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];

/// The runtime that one container was made with.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    pub(super) path: String,
    pub(super) root: String,
    pub(super) bundle: String,
    pub(super) timeout: Duration,
    pub(super) container_id: String,
}

/// What a run is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Create {
        asked: Asked,
    },
    /// Create has failed: the runtime takes back what it made.
    Undo {
        asked: Asked,
        failure: Failure,
    },
    Start,
    Delete,
    /// CRIU writes the container down.
    Checkpoint {
        asked: Asked,
    },
    Exec {
        asked: Asked,
        exec_id: String,
        cgroup: Cgroup,
        killed: bool,
    },
}

/// A runtime's binary at work.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) container: Key,
    pub(super) purpose: Purpose,
    pub(super) process: Process,
    pub(super) deadline: Instant,
    pub(super) expired: bool,
    files: Files,
    console: Option<OwnedFd>,
    name: String,
    /// What of its log says why it failed.
    words: fn(&str) -> String,
}

/// The files of one run, removed with it.
#[derive(Debug)]
pub(super) struct Files {
    log: PathBuf,
    /// Somebody else's, who wants to keep it.
    keep_log: bool,
    pid: PathBuf,
    console: PathBuf,
}

impl Files {
    /// They lie in the pod's own folder: the console's socket would not fit `sun_path` any deeper.
    pub(super) fn new(pod_dir: &Path, key: Key) -> Self {
        let file = |end: &str| pod_dir.join(format!("run-{key}.{end}"));
        Self { log: file("log"), keep_log: false, pid: file("pid"), console: file("tty") }
    }

    /// As [`Files::new`], with the log somewhere else.
    pub(super) fn with_log(pod_dir: &Path, key: Key, log: &str) -> Self {
        let mut files = Self::new(pod_dir, key);
        files.log = log.into();
        files.keep_log = true;
        files
    }

    pub(super) fn pid_path(&self) -> &[u8] {
        bytes(&self.pid)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let log = Some(&self.log).filter(|_| !self.keep_log);
        for path in [&self.pid, &self.console].into_iter().chain(log) {
            // Which of them exist is the runtime's doing; the pod's folder goes as a whole in the end.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// How a run is started, beside its arguments.
#[derive(Debug)]
pub(super) struct Wiring<'a> {
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Becomes descriptor 3.
    pub(super) process_json: Option<BorrowedFd<'a>>,
    pub(super) tty: bool,
}

impl Runtime {
    /// Starts `create`, `start`, `delete` or `exec`, as `purpose` says.
    pub(super) fn run(
        &self,
        container: Key,
        purpose: Purpose,
        files: Files,
        wiring: &Wiring<'_>,
    ) -> io::Result<Run> {
        let console = if wiring.tty { Some(listen(&files.console)?) } else { None };
        let verb = match purpose {
            Purpose::Create { .. } => "create",
            Purpose::Undo { .. } | Purpose::Delete => "delete",
            Purpose::Start => "start",
            Purpose::Exec { .. } => "exec",
            Purpose::Checkpoint { .. } => "checkpoint",
        };
        let mut args: Vec<&[u8]> = vec![self.path.as_bytes(), b"--root", self.root.as_bytes()];
        args.extend([b"--log", bytes(&files.log), b"--log-format", b"json", verb.as_bytes()]);
        match purpose {
            Purpose::Create { .. } => args.extend([&b"--bundle"[..], self.bundle.as_bytes()]),
            Purpose::Undo { .. } | Purpose::Delete => args.push(b"--force"),
            Purpose::Start | Purpose::Checkpoint { .. } => {}
            Purpose::Exec { .. } => args.extend([&b"--detach"[..], b"--process", b"/proc/self/fd/3"]),
        }
        if matches!(purpose, Purpose::Create { .. } | Purpose::Exec { .. }) {
            args.extend([&b"--pid-file"[..], bytes(&files.pid)]);
            if console.is_some() {
                args.extend([&b"--console-socket"[..], bytes(&files.console)]);
            }
        }
        args.push(self.container_id.as_bytes());
        let args = args.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let process = spawn(&args, wiring)?;
        let name = format!("{} {verb}", self.path);
        let deadline = Instant::now() + self.timeout;
        let words = last_message;
        Ok(Run { container, purpose, process, deadline, expired: false, files, console, name, words })
    }
}

impl Run {
    /// A run of CRIU.
    pub(super) fn of_criu(
        container: Key,
        purpose: Purpose,
        process: Process,
        timeout: Duration,
        files: Files,
        criu: &Criu,
    ) -> Self {
        let name = format!("{} {}", criu.path, criu.args.first().map_or("", String::as_str));
        let (deadline, words) = (Instant::now() + timeout, super::criu::errors);
        Self { container, purpose, process, deadline, expired: false, files, console: None, name, words }
    }

    /// The runtime says it worked: the process that it made, now a child of ours.
    pub(super) fn made(&self) -> io::Result<Process> {
        let text = std::fs::read_to_string(&self.files.pid)?;
        let pid = text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Process::adopt(pid)
    }

    /// The terminal's master, which the runtime has sent before it ended.
    pub(super) fn terminal(&self) -> io::Result<Option<OwnedFd>> {
        let Some(listener) = &self.console else { return Ok(None) };
        let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        rustix::net::recvmsg(&connection, &mut [io::IoSliceMut::new(&mut name)], &mut control, flags)?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        master.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no terminal was sent"))
    }

    /// Why a run that ended as `ended` did not work.
    pub(super) fn failure(&self, ended: Ended, stderr: &str) -> Failure {
        let log = tail(&self.files.log).map(|text| (self.words)(&text)).unwrap_or_default();
        let said = if log.is_empty() { stderr } else { &log };
        let message = match ended {
            _ if self.expired => format!("killed, since it had not ended in time; it said: {said:?}"),
            _ if !said.is_empty() => said.to_owned(),
            Ended { signal: 0, code } => format!("it ended with status {code} and said nothing"),
            Ended { signal, .. } => format!("it was killed by signal {signal}"),
        };
        let kind = if is_exec_error(&message) { Kind::Exec } else { Kind::Launch };
        Failure { kind: kind.into(), step: self.name.clone(), errno: 0, message }
    }
}

fn bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// Starts a program in a session of its own, with default signals and only the descriptors of `wiring`.
pub(super) fn spawn(args: &[CString], wiring: &Wiring<'_>) -> io::Result<Process> {
    let mut actions = PosixSpawnFileActions::init()?;
    // Copies above the numbers that they are to get: no dup2 then overwrites the source of a later one.
    let mut sources = Vec::new();
    for (target, source) in (0..).zip(wiring.stdio.iter().chain(&wiring.process_json)) {
        let copy = rustix::io::fcntl_dupfd_cloexec(source, 16)?;
        actions.add_dup2(copy.as_raw_fd(), target)?;
        sources.push(copy);
    }
    let mut attributes = PosixSpawnAttr::init()?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    attributes.set_flags(flags | PosixSpawnFlags::from_bits_retain(SPAWN_SETSID))?;
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    let pid = posix_spawn(args[0].as_c_str(), &actions, &attributes, args, &ENVIRONMENT)?;
    // That the supervisor is to be killed last must not pass to what the runtime makes; crun takes 0 for "not set".
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0") {
        say!("cannot reset oom_score_adj of a runtime: {error}");
    }
    Process::adopt(pid.as_raw())
}

/// The last part of a file.
fn tail(path: &Path) -> io::Result<String> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let len = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
    let mut bytes = vec![0; MESSAGE as usize];
    let read = rustix::io::pread(&file, &mut bytes[..], len.saturating_sub(MESSAGE))?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

/// The text of the last message in a log: the value of `msg` where a line is JSON, otherwise the line.
fn last_message(log: &str) -> String {
    let Some(line) = log.lines().rev().find(|line| !line.trim().is_empty()) else { return String::new() };
    let after_key = line.split_once("\"msg\"").map(|(_, rest)| rest.trim_start());
    let value = after_key.and_then(|rest| rest.strip_prefix(':')).map(str::trim_start);
    let Some(text) = value.and_then(|value| value.strip_prefix('"')) else { return line.trim().to_owned() };
    let mut message = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => match letters.next() {
                Some('n') => message.push('\n'),
                Some('t') => message.push('\t'),
                Some('u') => {
                    let code: String = letters.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                    message.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                Some(other) => message.push(other),
                None => break,
            },
            letter => message.push(letter),
        }
    }
    message
}

/// Runtimes look for the container's program at `create` already, and say in words that it could not be executed.
fn is_exec_error(message: &str) -> bool {
    // runc: `exec: "/nope": stat /nope: no such file or directory`, `executable file not found in $PATH`,
    // `exec /x: exec format error`; crun: `executable file `/nope` not found`, `open executable: Permission denied`.
    ["exec: \"", "executable", "exec format error", "exec user process"]
        .iter()
        .any(|words| message.contains(words))
}

/// Which end of stdin, stdout and stderr a process without any gets.
pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_last_message_of_a_log_is_found_in_both_formats() {
        let json = concat!(
            r#"{"level":"warning","msg":"first","time":"x"}"#,
            "\n",
            r#"{"level":"error","msg":"exec: \"\/nope\": a\nb A","time":"x"}"#,
            "\n"
        );
        assert_eq!(last_message(json), "exec: \"/nope\": a\nb A");
        assert_eq!(last_message("2026 one\nsomething failed\n\n"), "something failed");
        assert_eq!(last_message(""), "");
    }

    #[test]
    fn a_spawned_program_has_default_signals_and_only_its_descriptors() {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = null().unwrap();
        // Whoever started the tests may have left something open.
        berth_launcher::sys::close_on_exec_from(3).unwrap();
        let script = c"grep SigBlk /proc/self/status; grep -c -E 'SigIgn:.0000000(0|1)(0|8)0000000' /proc/self/status; \
                       ls /proc/self/fd | wc -l; ps -o sid= $$ | grep -c $$";
        let args = [c"/bin/sh".into(), c"-c".into(), script.into()];
        let stdio = [null.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let process = spawn(&args, &Wiring { stdio, process_json: None, tty: false }).unwrap();
        drop(theirs);
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(ours), &mut text).unwrap();
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            ["SigBlk:", "0000000000000000", "1", "4", "1"],
            "no signal is blocked; ignored are at most the two that libc keeps; the fourth file is what ls reads"
        );
        let ended = &mut [rustix::event::PollFd::new(&process.pidfd, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(ended, None).unwrap(), 1);
        assert_eq!(process.reap().unwrap(), Some(Ended { code: 0, signal: 0 }));
    }
}
