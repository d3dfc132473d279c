//! What the new process does with itself until it is the container's program.
//!
//! Everything here runs after the fork, in a copy of the supervisor with one thread, so allocating is fine and an
//! error is just returned: [`conclude`] reports it on the gate and ends the process.

mod credentials;
mod devices;
mod hooks;
mod host;
mod mounts;
mod program;
mod rootfs;
mod scheduling;
mod terminal;
mod user;

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::{ExecPlan, LaunchPlan};
use rustix::fs::Mode;
use rustix::process::DumpableBehavior;
use rustix::thread::ThreadNameSpaceType;

use crate::container::{Console, Stdio};
use crate::error::{AtStep, StepError};
use crate::gate::Reporter;
use crate::user_namespace::become_root;
use crate::{plan, sys};
use program::Program;
use rootfs::Root;
use user::UserNamespace;

/// The status of a process that never became the container's program; nobody should see it, the gate tells more.
const FAILED: i32 = 255;
/// The shell's status for a program that could not be run.
const NOT_EXECUTED: i32 = 127;

/// The life of a container's first process. Returns the status to exit with.
pub(crate) fn first_process(
    plan: BorrowedFd<'_>,
    rootfs: BorrowedFd<'_>,
    user_namespace: Option<BorrowedFd<'_>>,
    console: Console,
    reporter: Reporter,
) -> i32 {
    conclude(reporter, |reporter| {
        let ([plan, rootfs], user) = settle(console, [plan, rootfs], user_namespace, reporter)?;
        let plan: LaunchPlan = plan::read(plan.as_fd()).step("read the plan")?;
        let process = plan.process.as_ref().ok_or_else(no_process)?;
        let mut warnings = Vec::new();
        let mut program = Program::prepare(process, &mut warnings)?;

        host::write_sysctls(&plan.sysctls)?;
        host::adjust_oom_score(process.oom_score_adj, &mut warnings)?;
        host::leave_session_keyring(&mut warnings)?;

        rootfs::set_propagation(plan.root_propagation)?;
        let null = devices::host_null()?;
        // The sources are cloned while the tree is still connected to the host's as the plan wants it.
        let user = UserNamespace::new(plan.user_namespace, user)?;
        let sources = mounts::clone_sources(&plan.mounts, user.as_ref())?;
        if let Some(user) = &user {
            user.own_what_is_made()?;
        }
        // Path lookups of this process begin below what is mounted on `/`: hooks still find the host's files.
        let root = Root::attach(rootfs, plan.hooks.as_ref().map_or("/", |hooks| &hooks.root_path))?;
        mounts::mount_all(&root, &plan.mounts, sources, user.as_ref())?;
        if plan.populate_dev {
            devices::populate(&root, &plan.devices, user.as_ref())?;
        }
        let terminal = if process.terminal { Some(terminal::open(root.as_fd(), process)?) } else { None };
        if let Some(terminal) = &terminal {
            terminal.bind_console(&root)?;
        }
        mounts::make_readonly(&root, &plan.readonly_paths)?;
        mounts::mask(&root, &plan.masked_paths, null.as_fd())?;
        if !process.cwd.is_empty() {
            root.ensure_directory(&process.cwd)
                .step_with(|| format!("make working directory {}", process.cwd))?;
        }
        if plan.root_readonly {
            root.make_readonly()?;
        }
        // Late, so that what the mounts cost is not the container's; before the pivot, which takes the paths away.
        host::enter_cgroups(&plan.cgroup_tasks)?;
        host::use_all_processors()?;
        if plan.new_cgroup_namespace {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).step("new cgroup namespace")?;
        }
        if let Some(hooks) = &plan.hooks {
            hooks::before_pivot(hooks, reporter)?;
        }
        // Whatever this process runs next gets them, and the hooks before are the host's programs.
        host::set_security_labels(process)?;
        root.pivot(plan.root_propagation)?;

        let master = terminal.map(terminal::Terminal::take_over).transpose()?;
        program.own_stdio()?;
        program.set_limits()?;
        scheduling::apply(process, &mut warnings)?;
        if let Some(user) = user {
            user.enter()?;
            if let Some(master) = &master {
                terminal::open_again(master.as_fd())?;
            }
        }
        reporter.ready(master.as_ref().map(AsFd::as_fd), warnings).step("report readiness")?;
        drop(master);
        if !reporter.wait().step("wait to be started")? {
            // Nobody is left who could open the gate or hear about it.
            sys::exit_now(FAILED);
        }
        let hooks = plan.hooks.as_ref();
        Err(program.execute(|| hooks.map_or(Ok(()), hooks::before_program)))
    })
}

/// The life of a further process of a running container. Returns the status to exit with.
pub(crate) fn further_process(
    plan: BorrowedFd<'_>,
    container: BorrowedFd<'_>,
    console: Console,
    reporter: Reporter,
) -> i32 {
    conclude(reporter, |reporter| {
        let ([plan, container], _) = settle(console, [plan, container], None, reporter)?;
        let plan: ExecPlan = plan::read(plan.as_fd()).step("read the plan")?;
        let process = plan.process.as_ref().ok_or_else(no_process)?;
        let mut warnings = Vec::new();
        let mut program = Program::prepare(process, &mut warnings)?;

        host::adjust_oom_score(process.oom_score_adj, &mut warnings)?;
        host::leave_session_keyring(&mut warnings)?;
        host::set_security_labels(process)?;
        host::enter_cgroups(&plan.cgroup_tasks)?;
        host::use_all_processors()?;
        // The pid namespace is ours already: we were born in it.
        let namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        rustix::thread::move_into_thread_name_spaces(container.as_fd(), namespaces)
            .step("enter the container's namespaces")?;

        let terminal = if process.terminal {
            let root = rootfs::open_root()?;
            Some(terminal::open(root.as_fd(), process)?)
        } else {
            None
        };
        let master = terminal.map(terminal::Terminal::take_over).transpose()?;
        program.own_stdio()?;
        program.set_limits()?;
        scheduling::apply(process, &mut warnings)?;
        if plan.user_namespace {
            let step = "enter the container's user namespace";
            rustix::thread::move_into_thread_name_spaces(container.as_fd(), ThreadNameSpaceType::USER)
                .step(step)?;
            become_root().step(step)?;
        }
        drop(container);
        reporter.ready(master.as_ref().map(AsFd::as_fd), warnings).step("report readiness")?;
        drop(master);
        Err(program.execute(|| Ok(())))
    })
}

/// The life of a program of the host's in a container's cgroup. Returns the status to exit with.
pub(crate) fn program_of_host(
    arguments: &[CString],
    environment: &[&CStr],
    stdio: Stdio,
    cgroup_tasks: &[String],
    new_cgroup_namespace: bool,
) -> i32 {
    let run = || -> Result<Infallible, StepError> {
        sys::reset_signals();
        rustix::process::setsid().step("new session")?;
        host::enter_cgroups(cgroup_tasks)?;
        if new_cgroup_namespace {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).step("new cgroup namespace")?;
        }
        take_stdio(stdio)?;
        sys::close_on_exec_from(3).step("close descriptors on exec")?;
        nix::unistd::execve(&arguments[0], arguments, environment).step("execute it")
    };
    let Err(error) = run();
    // Into the container's log, for want of anything better.
    eprintln!("{error}");
    NOT_EXECUTED
}

fn conclude(reporter: Reporter, life: impl FnOnce(&mut Reporter) -> Result<Infallible, StepError>) -> i32 {
    let mut reporter = reporter;
    let Err(error) = life(&mut reporter);
    // An error here leaves the end of file, from which the supervisor concludes that the process is gone.
    let _ = reporter.failed(error);
    FAILED
}

fn no_process() -> StepError {
    StepError::refused("read the plan", "it has no process")
}

/// A session of our own, and none of the supervisor's descriptors but those handed over, which come back owned and
/// above the standard three.
fn settle<const N: usize>(
    console: Console,
    handed_over: [BorrowedFd<'_>; N],
    another: Option<BorrowedFd<'_>>,
    reporter: &mut Reporter,
) -> Result<([OwnedFd; N], Option<OwnedFd>), StepError> {
    sys::reset_signals();
    rustix::process::setsid().step("new session")?;
    // Until exec this is a copy of the supervisor's memory: nobody in the container may look into it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("not dumpable")?;
    // Modes in the plan are meant as they stand.
    rustix::process::umask(Mode::empty());

    reporter.socket = raise(reporter.socket.as_fd())?;
    let mut keep = vec![0, 1, 2, reporter.socket.as_raw_fd()];
    let mut raised = Vec::with_capacity(N);
    for fd in handed_over {
        let fd = raise(fd)?;
        keep.push(fd.as_raw_fd());
        raised.push(fd);
    }
    let another = another.map(raise).transpose()?;
    keep.extend(another.as_ref().map(AsRawFd::as_raw_fd));
    if let Console::Pipes(stdio) = console {
        take_stdio(stdio)?;
    }
    sys::close_all_except(&mut keep).step("close descriptors")?;
    Ok((raised.try_into().expect("as many as were handed over"), another))
}

fn take_stdio(Stdio { stdin, stdout, stderr }: Stdio) -> Result<(), StepError> {
    // Raised first, so that none of them is overwritten before it has been copied.
    let [stdin, stdout, stderr] = [raise(stdin.as_fd())?, raise(stdout.as_fd())?, raise(stderr.as_fd())?];
    rustix::stdio::dup2_stdin(stdin).step("standard input")?;
    rustix::stdio::dup2_stdout(stdout).step("standard output")?;
    rustix::stdio::dup2_stderr(stderr).step("standard error")
}

/// A copy of a descriptor above the standard three, close-on-exec.
fn raise(fd: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).step("copy a descriptor")
}
