//! An OCI runtime spec becomes a running process: berth's own runtime core.
//!
//! Two halves. The daemon *compiles*: [`compile`] turns a spec into a plan in which every name, option and default
//! has become the number that the kernel takes. The pod's supervisor *launches*: [`container`] makes a process that
//! reads the plan by itself and puts it into effect. The supervisor only forks; the plan, the mounts and everything
//! that may block or need memory are the child's.
//!
//! ```text
//!  daemon                      supervisor (one thread)             the container's process
//!  ------                      -----------------------             -----------------------
//!  cgroup::Cgroups::create
//!  compile::compile ──plan──►  container::create ──clone3──►       child: mounts, devices, cgroup, pivot
//!                              Gate::read  ◄──Ready / Failed──     waits at the gate
//!                              Gate::open  ──────────────────►     credentials, seccomp, execve
//!                              Gate::read  ◄──end of file──────    (the gate closes on exec)
//! ```
//!
//! [`user_namespace`] makes the user namespace of a pod, for those who hold it. [`cgroup`] makes, limits, reads, empties and removes cgroups, v1 and v2. [`mount_table`] reads the
//! kernel's list of mounts.
//!
//! What this crate never does: keep a table of containers, wait for a process, decide when one is stopped, read an
//! image, make a network or pid-1 for a pod, or parse text inside the supervisor.

pub mod cgroup;
mod child;
#[cfg(feature = "compile")]
pub mod compile;
pub mod container;
mod error;
mod gate;
pub mod hook;
pub mod mount_table;
pub mod plan;
pub mod run;
pub mod sys;
pub mod user_namespace;

pub use error::{LaunchError, StepError};
