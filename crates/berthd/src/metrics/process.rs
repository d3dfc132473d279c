//! The daemon's own process, under the names that Prometheus' client libraries agree on.

use std::fmt;
use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::gauge;

/// The process at one moment; what cannot be read is left out.
#[derive(Debug)]
pub(super) struct Process {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    open_files: Option<u64>,
    threads: Option<u64>,
}

impl Process {
    pub(super) fn measure() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let count = |folder: &str| fs::read_dir(folder).ok().map(|entries| entries.count() as u64);
        Self {
            cpu_seconds: usage
                .map(|usage| (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6),
            resident_bytes: resident_bytes(),
            open_files: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }
}

/// proc_pid_statm(5): the second number, in pages.
fn resident_bytes() -> Option<u64> {
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(seconds) = &self.cpu_seconds {
            let help = "Processor time that the daemon has used, in seconds";
            let mut cpu =
                encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            cpu.encode_counter::<NoLabelSet, _, f64>(seconds, None)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Memory that the daemon has resident, in bytes",
                self.resident_bytes,
            ),
            ("process_open_fds", "Files that the daemon has open", self.open_files),
            ("process_threads", "Threads of the daemon", self.threads),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            gauge(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}
