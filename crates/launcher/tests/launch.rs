//! The launcher against a real kernel: what a container's process sees and is.

mod common;

use std::process::ExitCode;

use common::*;

fn main() -> ExitCode {
    run(&[("a_container_runs_and_its_exit_is_seen", a_container_runs_and_its_exit_is_seen)])
}

fn a_container_runs_and_its_exit_is_seen() {
    let (output, status) = run_container(&spec(
        "echo $$ $GREETING; pwd; cat /proc/self/cgroup; ls -l /dev /sys/fs/cgroup; cat /proc/self/mountinfo; exit 7",
    ));
    println!("{output}");
    assert!(output.starts_with("1 hello there\n/\n"), "{output}");
    assert_eq!(status, 7);
}
