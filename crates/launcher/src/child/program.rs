//! The last steps: limits, credentials, seccomp, execve.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;

use berth_cri::berth::v1::{ProcessPlan, Rlimit};
use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::credentials;
use crate::error::{AtStep, StepError};
use crate::sys::{self, FilterInstruction};

/// Where a program without a slash in its name is looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that the last steps need, made while the process may still allocate and open as it likes.
#[derive(Debug)]
pub(super) struct Program<'a> {
    process: &'a ProcessPlan,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    limits: Vec<(Limit, libc::rlimit64)>,
    filter: Option<(Vec<FilterInstruction>, u32)>,
}

type Limit = nix::sys::resource::Resource;

impl<'a> Program<'a> {
    /// Checks and converts what the plan says; limits above the host's are lowered with a warning.
    pub(super) fn prepare(
        process: &'a ProcessPlan,
        warnings: &mut Vec<String>,
    ) -> Result<Program<'a>, StepError> {
        let strings = |what: &str, from: &[Vec<u8>]| {
            from.iter()
                .map(|bytes| CString::new(bytes.clone()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| StepError::refused("read the plan", format!("a NUL in the {what}")))
        };
        let arguments = strings("arguments", &process.args)?;
        if arguments.is_empty() {
            return Err(StepError::refused("read the plan", "the process has no arguments"));
        }
        Ok(Program {
            process,
            arguments,
            environment: strings("environment", &process.env)?,
            limits: limits(&process.rlimits, warnings)?,
            filter: filter(process)?,
        })
    }

    /// Sets the limits. Raising one is for the host's root, so this comes before a user namespace is entered.
    pub(super) fn set_limits(&self) -> Result<(), StepError> {
        for (resource, limit) in &self.limits {
            nix::sys::resource::setrlimit(*resource, limit.rlim_cur, limit.rlim_max)
                .step_with(|| format!("set limit {resource:?}"))?;
        }
        Ok(())
    }

    /// Gives the standard three to the program's user, who may want to open them again by /dev/stdout.
    pub(super) fn own_stdio(&mut self) -> Result<(), StepError> {
        let uid = self.process.stdio_uid;
        for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
            let stat = rustix::fs::fstat(fd).step("look at the standard descriptors")?;
            let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == makedev(1, 3);
            if stat.st_uid == uid || is_null {
                continue;
            }
            match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>) {
                // A file on a read-only filesystem or of a kind without an owner keeps the one it has.
                Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
                Err(error) => return Err(StepError::new("give the standard descriptors away", error)),
            }
        }
        Ok(())
    }

    /// Becomes the program, after `last` has been done as the program's user and as confined as it. Returns only when
    /// something failed.
    pub(super) fn execute(self, last: impl FnOnce() -> Result<(), StepError>) -> StepError {
        match self.confine().and_then(|path| last().map(|()| path)) {
            Err(error) => error,
            Ok(path) => {
                let Err(error) = nix::unistd::execve(&path, &self.arguments, &self.environment);
                exec_error(&self.arguments[0], error.into())
            }
        }
    }

    /// All but the execve itself; returns the path for that.
    fn confine(&self) -> Result<CString, StepError> {
        let process = self.process;
        // Loading a filter takes no_new_privs or CAP_SYS_ADMIN. Where it is the latter, the process keeps it up to
        // its very last call: without no_new_privs, execve computes the new sets from the inheritable, bounding and
        // ambient ones alone (capabilities(7)), so the program never sees it.
        let extra = if self.filter.is_some() && !process.no_new_privileges {
            CapabilitySet::SYS_ADMIN
        } else {
            CapabilitySet::empty()
        };
        // The directory may be open to root only (as on some NFS), or to the user only.
        let entered = enter_directory(process);
        credentials::assume(process, extra)?;
        if entered.is_err() {
            enter_directory(process)?;
        }
        let path = find_program(&self.arguments[0], &self.environment)?;
        sys::close_on_exec_from(3).step("close descriptors on exec")?;
        rustix::process::umask(Mode::from_raw_mode(process.umask));
        if process.no_new_privileges {
            rustix::thread::set_no_new_privs(true).step("no_new_privs")?;
        }
        if let Some((instructions, flags)) = &self.filter {
            sys::seccomp_load(instructions, *flags).step("load the seccomp filter")?;
        }
        Ok(path)
    }
}

/// The limits as they can be set here.
fn limits(wanted: &[Rlimit], warnings: &mut Vec<String>) -> Result<Vec<(Limit, libc::rlimit64)>, StepError> {
    let may_raise = rustix::thread::capabilities(None)
        .step("read own capabilities")?
        .effective
        .contains(CapabilitySet::SYS_RESOURCE);
    let mut limits = Vec::with_capacity(wanted.len());
    for limit in wanted {
        let step = || format!("limit {}", limit.resource);
        let resource = resource(limit.resource)
            .ok_or_else(|| StepError::refused(step(), "the kernel has no such limit"))?;
        let (_, ceiling) = nix::sys::resource::getrlimit(resource).step_with(step)?;
        let mut hard = limit.hard;
        if hard > ceiling && !may_raise {
            warnings.push(format!(
                "{resource:?} {hard} lowered to {ceiling}: this host does not let berth raise it"
            ));
            hard = ceiling;
        }
        limits.push((resource, libc::rlimit64 { rlim_cur: limit.soft.min(hard), rlim_max: hard }));
    }
    Ok(limits)
}

/// nix has the numbers as an enum.
fn resource(number: u32) -> Option<Limit> {
    use nix::sys::resource::Resource as R;
    let all = [
        R::RLIMIT_CPU,
        R::RLIMIT_FSIZE,
        R::RLIMIT_DATA,
        R::RLIMIT_STACK,
        R::RLIMIT_CORE,
        R::RLIMIT_RSS,
        R::RLIMIT_NPROC,
        R::RLIMIT_NOFILE,
        R::RLIMIT_MEMLOCK,
        R::RLIMIT_AS,
        R::RLIMIT_LOCKS,
        R::RLIMIT_SIGPENDING,
        R::RLIMIT_MSGQUEUE,
        R::RLIMIT_NICE,
        R::RLIMIT_RTPRIO,
        R::RLIMIT_RTTIME,
    ];
    all.into_iter().find(|resource| *resource as u32 == number)
}

fn filter(process: &ProcessPlan) -> Result<Option<(Vec<FilterInstruction>, u32)>, StepError> {
    let Some(seccomp) = &process.seccomp else { return Ok(None) };
    let (chunks, rest) = seccomp.program.as_chunks::<8>();
    if !rest.is_empty() || chunks.is_empty() {
        return Err(StepError::refused("read the plan", "the seccomp program is not whole instructions"));
    }
    let instructions = chunks
        .iter()
        .map(|&[code0, code1, jump_true, jump_false, v0, v1, v2, v3]| FilterInstruction {
            code: u16::from_ne_bytes([code0, code1]),
            jump_true,
            jump_false,
            value: u32::from_ne_bytes([v0, v1, v2, v3]),
        })
        .collect();
    Ok(Some((instructions, seccomp.flags)))
}

fn enter_directory(process: &ProcessPlan) -> Result<(), StepError> {
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    let step = || format!("enter working directory {cwd}");
    rustix::process::chdir(cwd).step_with(step)?;
    // A directory outside the root has no name here: "(unreachable)/…".
    let here = rustix::process::getcwd(Vec::new()).step_with(step)?;
    if here.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(StepError::refused(step(), "it is outside the container's root"))
    }
}

/// The program's path as execve wants it: itself with a slash in it, else the first match on the plan's PATH.
fn find_program(name: &CString, environment: &[CString]) -> Result<CString, StepError> {
    let fail = |error: io::Error| exec_error(name, error);
    if name.as_bytes().contains(&b'/') {
        executable(name).map_err(|errno| fail(errno.into()))?;
        return Ok(name.clone());
    }
    let path =
        environment.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    // An empty entry would mean the working directory; as in today's Go, that has to be said with a dot.
    for folder in path.split(|byte| *byte == b':').filter(|folder| !folder.is_empty()) {
        let candidate = [folder, name.as_bytes()].join(&b'/');
        let candidate = CString::new(candidate).expect("both parts come from C strings");
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    let errno = if denied { Errno::ACCESS } else { Errno::NOENT };
    let mut error = fail(errno.into());
    if !denied && !name.is_empty() {
        error.message = "executable file not found in $PATH".to_owned();
    }
    Err(error)
}

/// Whether the user that this process is now could execute `path`.
fn executable(path: &CString) -> Result<(), Errno> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn exec_error(name: &CString, error: io::Error) -> StepError {
    let shown = OsStr::from_bytes(name.as_bytes()).display().to_string();
    StepError::new(format!("exec {shown:?}"), error).in_exec()
}
