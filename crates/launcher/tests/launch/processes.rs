//! Namespaces, descriptors, terminals, exec.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use berth_launcher::compile::{compile, compile_exec};
use berth_launcher::container::{self, Console, PidEntry, Progress};
use berth_launcher::plan::{PidMode, read_header};
use serde_json::json;

use crate::common::*;

pub const TESTS: &[Test] = &[
    ("a_container_runs_as_pid_1_and_its_exit_is_seen", a_container_runs_as_pid_1_and_its_exit_is_seen),
    ("nothing_runs_before_the_gate_opens", nothing_runs_before_the_gate_opens),
    ("a_process_whose_gate_is_dropped_ends", a_process_whose_gate_is_dropped_ends),
    ("only_the_standard_descriptors_pass", only_the_standard_descriptors_pass),
    ("exec_enters_the_container", exec_enters_the_container),
    ("exec_into_an_ended_container_is_refused", exec_into_an_ended_container_is_refused),
    ("a_container_can_share_the_hosts_pids", a_container_can_share_the_hosts_pids),
    ("a_container_can_join_anothers_pids", a_container_can_join_anothers_pids),
    ("a_terminal_belongs_to_the_container", a_terminal_belongs_to_the_container),
    ("exec_gets_a_terminal_of_its_own", exec_gets_a_terminal_of_its_own),
    ("signals_start_at_their_defaults", signals_start_at_their_defaults),
    ("the_parents_memory_does_not_grow_with_the_plan", the_parents_memory_does_not_grow_with_the_plan),
];

fn a_container_runs_as_pid_1_and_its_exit_is_seen() {
    let (output, status) = run_container(&spec("echo $$ $GREETING; pwd; exit 7"));
    assert_eq!(output, "1 hello there\n/\n");
    assert_eq!(status, 7);
}

fn nothing_runs_before_the_gate_opens() {
    let mut container = Container::ready(&spec("touch /ran"));
    assert!(container.process.launched.gate.read().unwrap().is_none());
    assert!(!container.root.path().join("ran").exists());
    assert_eq!(container.process.finish().1, 0);
    assert!(container.root.path().join("ran").exists());
    assert!(container.process.launched.gate.open().is_err(), "a gate opens once");
}

fn a_process_whose_gate_is_dropped_ends() {
    let container = Container::ready(&spec("touch /ran"));
    let Container { process, cgroup, root, .. } = container;
    let pidfd = process.launched.pidfd.try_clone().unwrap();
    let (gate, other) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    drop((gate, other));
    // The supervisor's death closes the gate.
    let gate = process.launched.gate.as_fd().try_clone_to_owned().unwrap();
    rustix::net::shutdown(&gate, rustix::net::Shutdown::Both).unwrap();
    readable(pidfd.as_fd(), PATIENCE);
    drop((process, cgroup));
    assert!(!root.path().join("ran").exists());
}

fn only_the_standard_descriptors_pass() {
    let extra = std::fs::File::open("/").unwrap();
    // Not close-on-exec, as a careless library would leave one.
    rustix::io::fcntl_setfd(&extra, rustix::io::FdFlags::empty()).unwrap();
    let container = Container::started(&spec("ls -1 /proc/self/fd; sleep 100"));
    let mut exec = container.exec("ls -1 /proc/self/fd");
    exec.ready().unwrap();
    // 3 is the one that ls reads the folder with.
    assert_eq!(exec.result().0, "0\n1\n2\n3\n");
    let mut container = Container::ready(&spec("ls -1 /proc/self/fd"));
    assert_eq!(container.process.finish().0, "0\n1\n2\n3\n");
    drop(extra);
}

fn exec_enters_the_container() {
    let container = Container::started(&spec("sleep 1000"));
    let mut exec = container.exec("for n in mnt pid cgroup net ipc uts; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done; cat /proc/self/cgroup /proc/1/cgroup; ls /bin/busybox");
    exec.ready().unwrap();
    exec.executed().unwrap();
    let (output, status) = exec.result();
    assert_eq!(status, 0);
    let lines: Vec<_> = output.lines().collect();
    for pair in lines[..12].chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
    let cgroups = &lines[12..lines.len() - 1];
    assert_eq!(cgroups[..cgroups.len() / 2], cgroups[cgroups.len() / 2..], "{output}");
    assert_eq!(lines.last(), Some(&"/bin/busybox"));
}

fn exec_into_an_ended_container_is_refused() {
    let mut container = Container::ready(&spec("true"));
    container.process.finish();
    let process = container.spec.process().clone().unwrap();
    let compiled = compile_exec(&process, &container.spec, input(&container.cgroup.0)).unwrap();
    let plan = memfd(&compiled.plan);
    let (stdio, _streams) = streams();
    let error =
        container::exec(plan.as_fd(), container.process.launched.pidfd.as_fd(), Console::Pipes(stdio))
            .unwrap_err();
    assert!(matches!(error, berth_launcher::LaunchError::PidNamespace(_)), "{error:?}");
}

fn a_container_can_share_the_hosts_pids() {
    let mut spec = spec("echo $$; cat /proc/self/stat");
    spec["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "cgroup" }]);
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    let compiled = compile(&parse(&spec), input(&cgroup.0)).unwrap();
    let header = read_header(memfd(&compiled.plan).as_fd()).unwrap();
    assert_eq!(header.pid_mode(), PidMode::Host);
    let mut process = launch(&compiled, root.path(), PidEntry::Host);
    process.ready().unwrap();
    let pid = process.launched.pid;
    assert!(process.finish().0.starts_with(&format!("{pid}\n")));
}

fn a_container_can_join_anothers_pids() {
    let first = Container::started(&spec("sleep 1000"));
    let mut spec = spec("cat /proc/1/cmdline; echo; echo $$");
    spec["linux"]["namespaces"] =
        json!([{ "type": "mount" }, { "type": "cgroup" }, { "type": "pid", "path": "/proc/self/ns/pid" }]);
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    let compiled = compile(&parse(&spec), input(&cgroup.0)).unwrap();
    assert_eq!(read_header(memfd(&compiled.plan).as_fd()).unwrap().pid_mode(), PidMode::Join);
    let namespace = std::fs::File::open(format!("/proc/{}/ns/pid", first.process.launched.pid)).unwrap();
    let mut process = launch(&compiled, root.path(), PidEntry::Join(namespace.as_fd()));
    process.ready().unwrap();
    let output = process.finish().0;
    assert!(
        output.starts_with("sleep\u{0}1000") || output.starts_with("sh\u{0}-c\u{0}sleep 1000"),
        "{output:?}"
    );
    assert!(!output.ends_with("\n1\n"), "{output:?}");
    // And the test's own children are where they were.
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(std::fs::read_link("/proc/self/ns/pid_for_children").unwrap(), own);
}

fn a_terminal_belongs_to_the_container() {
    let mut spec = spec("tty; stty size; ls -l /dev/console; id -u; echo written > /dev/console; cat");
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({ "height": 33, "width": 111 });
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    let compiled = compile(&parse(&spec), input(&cgroup.0)).unwrap();
    let mut launched = launch_on(Console::Tty, None, &compiled, root.path(), PidEntry::New);
    let Progress::Ready { console: Some(master), .. } = next(&mut launched.gate) else {
        panic!("no console")
    };
    launched.gate.open().unwrap();
    let mut master = std::fs::File::from(master);
    let seen = read_until(&mut master, "written\r\n");
    assert!(seen.starts_with("/dev/pts/0\r\n33 111\r\n"), "{seen:?}");
    assert!(seen.contains("\r\n1000\r\n"), "{seen:?}");
    assert!(seen.contains(" 136,   0 "), "{seen:?}");
    master.write_all(b"typed\n\x04").unwrap();
    let echoed = read_until(&mut master, "typed\r\ntyped\r\n");
    assert!(echoed.ends_with("typed\r\ntyped\r\n"));
    readable(launched.pidfd.as_fd(), PATIENCE);
    reap(&launched.pidfd);
}

fn exec_gets_a_terminal_of_its_own() {
    let container = Container::started(&spec("sleep 1000"));
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(vec!["sh".into(), "-c".into(), "tty; test -t 2 && echo yes".into()]));
    process.set_terminal(Some(true));
    let compiled = compile_exec(&process, &container.spec, input(&container.cgroup.0)).unwrap();
    let plan = memfd(&compiled.plan);
    let mut launched =
        container::exec(plan.as_fd(), container.process.launched.pidfd.as_fd(), Console::Tty).unwrap();
    let Progress::Ready { console: Some(master), .. } = next(&mut launched.gate) else {
        panic!("no console")
    };
    assert_eq!(read_until(&mut master.into(), "yes\r\n"), "/dev/pts/0\r\nyes\r\n");
    assert!(matches!(next(&mut launched.gate), Progress::Executed));
    reap(&launched.pidfd);
}

fn signals_start_at_their_defaults() {
    // Rust programs ignore SIGPIPE; a container's must not.
    let mut spec = spec("");
    // Not in a shell, which has signals of its own to ignore.
    spec["process"]["args"] = json!(["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]);
    let (output, _) = run_container(&spec);
    assert_eq!(output, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n");
}

fn the_parents_memory_does_not_grow_with_the_plan() {
    let mut spec = spec("env | wc -c");
    let long = "x".repeat(100_000);
    let env: Vec<String> = (0..15).map(|number| format!("V{number}={long}")).collect();
    spec["process"]["env"] = json!(env);
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    let plan = {
        let compiled = compile(&parse(&spec), input(&cgroup.0)).unwrap();
        memfd(&compiled.plan)
    };
    let rootfs = detached(root.path());
    let (stdio, mut streams) = streams();
    let before = heap();
    let mut launched =
        container::create(plan.as_fd(), rootfs.as_fd(), None, Console::Pipes(stdio), PidEntry::New).unwrap();
    assert!(matches!(next(&mut launched.gate), Progress::Ready { .. }));
    launched.gate.open().unwrap();
    let grown = heap() - before;
    assert!(grown < 64, "{grown} kB more");
    assert_eq!(streams.output().trim().parse::<usize>().unwrap() / 100_000, 15);
    reap(&launched.pidfd);
}

/// Anonymous memory of this process, in kB.
fn heap() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

pub fn read_until(master: &mut std::fs::File, end: &str) -> String {
    let mut seen = String::new();
    while !seen.ends_with(end) {
        readable(master.as_fd(), PATIENCE);
        let mut buffer = [0; 256];
        match master.read(&mut buffer) {
            Ok(length) => seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap()),
            Err(error) => panic!("{error}: {seen:?}"),
        }
    }
    seen
}
