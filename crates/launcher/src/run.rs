//! A program of the host's, run to its end: what it reads given, what it says kept, its time limited.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long one that was killed may take to be gone.
const DEATH: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The end of a program's output, which says most, in an error.
const KEPT: usize = 2048;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("it cannot be run")]
    Start(#[source] io::Error),
    #[error("it cannot be waited for")]
    Wait(#[source] io::Error),
    /// It was killed, and everything in its process group with it.
    #[error("it did not end within {after:?}{}", said(.output))]
    TimedOut { after: Duration, output: String },
    #[error("{}{}", how(*.status), said(.output))]
    Failed { status: ExitStatus, output: String },
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, signal) => format!("it was killed by signal {}", signal.unwrap_or(0)),
    }
}

/// Runs `command` in a process group of its own, with `input` to read, and waits for it. What it writes to its two outputs
/// is one text, whose end is in the error.
///
/// Blocks: neither for an async worker nor for the supervisor.
///
/// # Errors
/// [`RunError`] unless it ended with status 0.
pub fn run(mut command: Command, input: &[u8], after: Duration) -> Result<(), RunError> {
    let deadline = Instant::now() + after;
    let (mut reader, writer) = io::pipe().map_err(RunError::Start)?;
    let second = writer.try_clone().map_err(RunError::Start)?;
    let input = file_of(input).map_err(RunError::Start)?;
    let mut child = command
        .stdin(input)
        .stdout(writer)
        .stderr(second)
        .process_group(0)
        .spawn()
        .map_err(RunError::Start)?;
    // Our copies of the pipe's writing end: without them its end is the program's.
    drop(command);
    let mut output = Vec::new();
    let ended = wait(&mut child, &mut reader, &mut output, deadline);
    if !matches!(ended, Ok(Some(_))) {
        kill(child);
    }
    let text = || String::from_utf8_lossy(output.trim_ascii()).into_owned();
    match ended.map_err(RunError::Wait)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(RunError::Failed { status, output: text() }),
        None => Err(RunError::TimedOut { after, output: text() }),
    }
}

/// What a pipe holds, pipe(7), and what is read of it at once.
const PIPE: usize = 64 * 1024;
const PIECE: usize = 4096;

/// A file in memory: unlike a pipe it takes everything at once, whether or not it is read.
fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?..];
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// Waits for the program's end, not for that of its output: something that it leaves behind may hold that open. `None` at
/// the deadline.
fn wait(
    child: &mut Child,
    reader: &mut io::PipeReader,
    output: &mut Vec<u8>,
    deadline: Instant,
) -> io::Result<Option<ExitStatus>> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(reader, PollFlags::IN)];
        // A pipe whose end has been read would be ready for ever.
        let watched = if open { &mut polled[..] } else { &mut polled[..1] };
        rustix::io::retry_on_intr(|| rustix::event::poll(watched, Some(&timeout)))?;
        let (ended, readable) = (!polled[0].revents().is_empty(), open && !polled[1].revents().is_empty());
        if ended {
            // Whatever it wrote before its end is in the pipe, and no more than that is asked for: something that it leaves
            // behind may write on.
            for _ in 0..PIPE / PIECE {
                let more = &mut [PollFd::new(reader, PollFlags::IN)];
                let now = Timespec::default();
                let count = rustix::io::retry_on_intr(|| rustix::event::poll(more, Some(&now)))?;
                if !open || count == 0 {
                    break;
                }
                open = keep(reader, output)?;
            }
            return child.wait().map(Some);
        }
        if readable {
            open = keep(reader, output)?;
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// Reads once what there is, and keeps the end; `false` at the end of the output.
fn keep(reader: &mut io::PipeReader, output: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; PIECE];
    let count = reader.read(&mut buffer)?;
    output.extend_from_slice(&buffer[..count]);
    output.drain(..output.len().saturating_sub(KEPT));
    Ok(count > 0)
}

/// Ends the program and its process group. It has not been waited for, so the numbers are still its own.
fn kill(mut child: Child) {
    let pid = Pid::from_child(&child);
    // ESRCH: it has ended by itself.
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    // It dies at once, unless the kernel holds it. Nobody waits for that but a thread of its own, for the zombie's sake.
    let dead = rustix::process::pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|pidfd| {
        let polled = &mut [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(polled, Some(&DEATH))).is_ok_and(|count| count > 0)
    });
    if dead {
        let _ = child.wait();
    } else {
        let _ = std::thread::Builder::new().name("reap".to_owned()).spawn(move || child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, after: Duration) -> Result<(), RunError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, input.as_bytes(), after)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_reads_its_input_and_says_why_it_failed() {
        shell("test \"$(cat)\" = hello", "hello", LONG).unwrap();
        let error = shell("echo out; echo why >&2; exit 3", "", LONG).unwrap_err();
        assert_eq!(error.to_string(), "it ended with status 3: out\nwhy");
        let error = shell("yes long | head -c 100000; echo end; kill -9 $$", "", LONG).unwrap_err();
        assert!(
            error.to_string().starts_with("it was killed by signal 9: ")
                && error.to_string().ends_with("end")
        );
        assert!(error.to_string().len() < 2 * KEPT);
        assert!(matches!(run(Command::new("/no/such/program"), b"", LONG), Err(RunError::Start(_))));
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_its_children() {
        let begin = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 100 & echo $! > {}; echo begun; wait", pid.display());
        let error = shell(&script, "", Duration::from_millis(500)).unwrap_err();
        assert!(matches!(&error, RunError::TimedOut { output, .. } if output == "begun"), "{error}");
        assert!(begin.elapsed() < LONG);
        let stat = format!("/proc/{}/stat", std::fs::read_to_string(pid).unwrap().trim());
        // Gone, or a zombie that its new parent has not come to yet.
        while std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
            assert!(begin.elapsed() < LONG, "its child lives");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_flood_of_output_holds_nobody_up() {
        assert!(matches!(shell("yes", "", Duration::from_millis(300)), Err(RunError::TimedOut { .. })));
        shell("setsid yes & exit 0", "", Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn what_it_leaves_in_the_background_is_not_waited_for() {
        let begin = Instant::now();
        shell("sleep 5 & exit 0", "", LONG).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(4));
    }
}
