//! The launcher against a real kernel: what a container's process sees, is and may do.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod common;
#[path = "launch/confinement.rs"]
mod confinement;
#[path = "launch/failures.rs"]
mod failures;
#[path = "launch/filesystem.rs"]
mod filesystem;
#[path = "launch/processes.rs"]
mod processes;
#[path = "launch/resources.rs"]
mod resources;
#[path = "launch/users.rs"]
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    let all = [
        processes::TESTS,
        confinement::TESTS,
        filesystem::TESTS,
        failures::TESTS,
        resources::TESTS,
        users::TESTS,
    ];
    common::run(&all.concat())
}
