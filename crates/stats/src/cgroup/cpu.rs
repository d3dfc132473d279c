//! `cpuacct.usage`, `cpuacct.stat` and `cpu.stat` on v1, `cpu.stat` on v2.

use std::path::Path;

use super::{Psi, psi};
use crate::{
    file::{self, Folder},
    parse::fill,
};

/// The unit of `cpuacct.stat`: USER_HZ, which is 100 on every architecture that Linux still gets new machines of.
const TICK_NANOS: u64 = 10_000_000;

/// CPU time since the cgroup was made, in nanoseconds, all cores together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    pub usage_nanos: Option<u64>,
    pub user_nanos: Option<u64>,
    pub system_nanos: Option<u64>,
    /// Enforcement periods that have passed; none counted without a quota.
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled_nanos: Option<u64>,
    pub psi: Option<Psi>,
}

impl Cpu {
    /// `None` rather than a set of nothing.
    fn any(self) -> Option<Cpu> {
        (self != Cpu::default()).then_some(self)
    }
}

pub(super) fn time_v1(cpuacct: &Path) -> Option<Cpu> {
    let usage = file::number(&cpuacct.join("cpuacct.usage"))?;
    Some(Cpu { usage_nanos: Some(usage), ..Cpu::default() })
}

pub(super) fn read_v1(cpu: Option<&Path>, cpuacct: Option<&Path>) -> Option<Cpu> {
    let mut stats = Cpu::default();
    if let Some(folder) = cpuacct.and_then(Folder::open) {
        stats.usage_nanos = folder.number("cpuacct.usage");
        folder.text("cpuacct.stat").inspect(|text| parse_cpuacct(&mut stats, text));
    }
    if let Some(folder) = cpu.and_then(Folder::open) {
        folder.text("cpu.stat").inspect(|text| parse_v1(&mut stats, text));
    }
    stats.any()
}

pub(super) fn read_v2(folder: &Folder) -> Option<Cpu> {
    let mut stats = Cpu::default();
    folder.text("cpu.stat").inspect(|text| parse_v2(&mut stats, text));
    stats.psi = psi::read(folder, "cpu.pressure");
    stats.any()
}

fn parse_cpuacct(stats: &mut Cpu, text: &str) {
    fill(text, [("user", &mut stats.user_nanos), ("system", &mut stats.system_nanos)]);
    for ticks in [&mut stats.user_nanos, &mut stats.system_nanos] {
        *ticks = ticks.map(|ticks| ticks.saturating_mul(TICK_NANOS));
    }
}

fn parse_v1(stats: &mut Cpu, text: &str) {
    let slots = [
        ("nr_periods", &mut stats.periods),
        ("nr_throttled", &mut stats.throttled_periods),
        ("throttled_time", &mut stats.throttled_nanos),
    ];
    fill(text, slots);
}

fn parse_v2(stats: &mut Cpu, text: &str) {
    let slots = [
        ("usage_usec", &mut stats.usage_nanos),
        ("user_usec", &mut stats.user_nanos),
        ("system_usec", &mut stats.system_nanos),
        ("nr_periods", &mut stats.periods),
        ("nr_throttled", &mut stats.throttled_periods),
        ("throttled_usec", &mut stats.throttled_nanos),
    ];
    fill(text, slots);
    for micros in
        [&mut stats.usage_nanos, &mut stats.user_nanos, &mut stats.system_nanos, &mut stats.throttled_nanos]
    {
        *micros = micros.map(|micros| micros.saturating_mul(1000));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn v1_files_of_linux_6_18() {
        let mut stats = Cpu::default();
        parse_cpuacct(&mut stats, "user 1234\nsystem 56\n");
        parse_v1(
            &mut stats,
            "nr_periods 40\nnr_throttled 7\nthrottled_time 123456789\nnr_bursts 0\nburst_time 0\n",
        );
        assert_eq!(stats.user_nanos, Some(12_340_000_000));
        assert_eq!(stats.system_nanos, Some(560_000_000));
        assert_eq!(stats.periods, Some(40));
        assert_eq!(stats.throttled_periods, Some(7));
        assert_eq!(stats.throttled_nanos, Some(123_456_789));
    }

    #[test]
    fn v2_file_of_linux_6_8_has_microseconds() {
        let mut stats = Cpu::default();
        let text = "usage_usec 5402871\nuser_usec 4087135\nsystem_usec 1315736\ncore_sched.force_idle_usec 0\n\
                    nr_periods 118\nnr_throttled 11\nthrottled_usec 345678\nnr_bursts 0\nburst_usec 0\n";
        parse_v2(&mut stats, text);
        assert_eq!(stats.usage_nanos, Some(5_402_871_000));
        assert_eq!(stats.user_nanos, Some(4_087_135_000));
        assert_eq!(stats.system_nanos, Some(1_315_736_000));
        assert_eq!(
            (stats.periods, stats.throttled_periods, stats.throttled_nanos),
            (Some(118), Some(11), Some(345_678_000))
        );
    }

    #[test]
    fn v2_without_the_cpu_controller_still_counts_time() {
        let mut stats = Cpu::default();
        parse_v2(&mut stats, "usage_usec 7\nuser_usec 3\nsystem_usec 4\n");
        assert_eq!((stats.usage_nanos, stats.periods), (Some(7000), None));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(([a-z_]{1,12}|nr_periods|usage_usec|user) ?-?[0-9]{0,22}\n?){0,8}|\\PC*") {
            let mut stats = Cpu::default();
            parse_cpuacct(&mut stats, &text);
            parse_v1(&mut stats, &text);
            parse_v2(&mut stats, &text);
        }
    }
}
