//! Writing limits.

use std::io;

use super::resources::{DEFAULT_DEVICES, DeviceKind, DeviceRule, Resources};
use super::{Cgroup, CgroupError, Version, Warning, device_filter, is_gone, read_if_there, write};

/// cpu.shares' own bounds, and cpu.weight's.
const SHARES: (u64, u64) = (2, 262_144);
const WEIGHT: (u64, u64) = (1, 10_000);
const DEFAULT_PERIOD: u64 = 100_000;

impl Cgroup {
    /// Writes the limits that `resources` sets. Also for a cgroup in use (UpdateContainerResources).
    ///
    /// # Returns
    /// What this host cannot do and was left out.
    ///
    /// # Errors
    /// [`CgroupError::Write`] with `EINVAL` for a value out of range, `EBUSY` for a limit below what is in use.
    pub fn apply(&self, resources: &Resources) -> Result<Vec<Warning>, CgroupError> {
        let mut writer = Writer { cgroup: self, warnings: Vec::new() };
        match self.version {
            Version::V1 => writer.v1(resources)?,
            Version::V2 => writer.v2(resources)?,
        }
        Ok(writer.warnings)
    }
}

struct Writer<'a> {
    cgroup: &'a Cgroup,
    warnings: Vec<Warning>,
}

impl Writer<'_> {
    fn v1(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        self.set("cpu", "cpu.shares", resources.cpu_shares.map(|shares| shares.clamp(SHARES.0, SHARES.1)))?;
        self.cpu_bandwidth_v1(resources)?;
        self.set("cpu", "cpu.cfs_burst_us", resources.cpu_burst)?;
        self.set("cpu", "cpu.idle", resources.cpu_idle)?;
        self.set("cpuset", "cpuset.cpus", text(&resources.cpuset_cpus))?;
        self.set("cpuset", "cpuset.mems", text(&resources.cpuset_mems))?;
        self.memory_v1(resources)?;
        self.set("memory", "memory.soft_limit_in_bytes", resources.memory_reservation)?;
        self.set("memory", "memory.swappiness", resources.memory_swappiness)?;
        self.set("memory", "memory.oom_control", resources.memory_disable_oom_killer.map(u8::from))?;
        self.set("pids", "pids.max", resources.pids_limit.map(or_max))?;
        self.set("blkio", self.blkio_weight_file(), resources.block_io_weight)?;
        for hugepage in &resources.hugepage_limits {
            let file = format!("hugetlb.{}.limit_in_bytes", hugepage.page_size);
            self.set("hugetlb", &file, Some(hugepage.limit))?;
        }
        for key in resources.unified.keys() {
            self.warn(format!("{key} left out: it is a file of cgroup v2, and this host has v1"));
        }
        self.devices_v1(&resources.devices)
    }

    fn v2(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        self.set("cpu", "cpu.weight", resources.cpu_shares.map(weight))?;
        if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
            let quota = or_max(resources.cpu_quota.filter(|quota| *quota != 0).unwrap_or(-1));
            let period = resources.cpu_period.filter(|period| *period != 0).unwrap_or(DEFAULT_PERIOD);
            self.set("cpu", "cpu.max", Some(format!("{quota} {period}")))?;
        }
        self.set("cpu", "cpu.max.burst", resources.cpu_burst)?;
        self.set("cpu", "cpu.idle", resources.cpu_idle)?;
        self.set("cpuset", "cpuset.cpus", text(&resources.cpuset_cpus))?;
        self.set("cpuset", "cpuset.mems", text(&resources.cpuset_mems))?;
        let limit = resources.memory_limit.filter(|limit| *limit != 0);
        self.set("memory", "memory.max", limit.map(or_max))?;
        self.set("memory", "memory.low", resources.memory_reservation.map(or_max))?;
        if let Some(both) = resources.memory_swap.filter(|both| *both != 0) {
            // v2 limits swap by itself, the spec limits both together.
            let swap = match limit {
                _ if both < 0 => "max".to_owned(),
                Some(limit) if limit >= 0 => both.saturating_sub(limit).max(0).to_string(),
                _ => "max".to_owned(),
            };
            self.set("memory", "memory.swap.max", Some(swap))?;
        }
        if resources.memory_swappiness.is_some() || resources.memory_disable_oom_killer == Some(true) {
            self.warn("swappiness and the OOM killer's switch left out: cgroup v2 has neither".to_owned());
        }
        self.set("pids", "pids.max", resources.pids_limit.map(or_max))?;
        self.set("io", "io.weight", resources.block_io_weight.map(|weight| io_weight(weight).to_string()))?;
        for hugepage in &resources.hugepage_limits {
            let limit = or_max(hugepage.limit);
            self.set("hugetlb", &format!("hugetlb.{}.max", hugepage.page_size), Some(&limit))?;
            // Reserved but not faulted pages count apart since Linux 5.7; the limit is meant for both.
            let reserved = format!("hugetlb.{}.rsvd.max", hugepage.page_size);
            if self.cgroup.dirs().any(|folder| folder.join(&reserved).exists()) {
                self.set("hugetlb", &reserved, Some(&limit))?;
            }
        }
        for (file, value) in &resources.unified {
            if file.contains('/') {
                return Err(CgroupError::BadPath(file.clone()));
            }
            let controller = file.split('.').next().unwrap_or(file).to_owned();
            self.set(&controller, file, Some(value))?;
        }
        self.devices_v2(&resources.devices)
    }

    /// Writes one file, or warns when the host does not have it.
    fn set(&mut self, controller: &str, file: &str, value: Option<impl ToString>) -> Result<(), CgroupError> {
        let Some(value) = value else { return Ok(()) };
        let value = value.to_string();
        let Some(folder) = self.cgroup.place_of(controller) else {
            self.warn(format!("{file}={value} left out: this host has no {controller} controller"));
            return Ok(());
        };
        match write(&folder.join(file), &value) {
            Err(CgroupError::Write { source, .. }) if is_gone(&source) && folder.exists() => {
                self.warn(format!("{file}={value} left out: this host's kernel has no such limit"));
                Ok(())
            }
            answer => answer,
        }
    }

    fn warn(&mut self, text: String) {
        self.warnings.push(Warning(text));
    }

    /// Quota and period are two files, of which each write must be valid with the other's present value.
    fn cpu_bandwidth_v1(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        let quota = resources.cpu_quota.filter(|quota| *quota != 0);
        let period = resources.cpu_period.filter(|period| *period != 0);
        let first = self.set("cpu", "cpu.cfs_period_us", period);
        self.set("cpu", "cpu.cfs_quota_us", quota)?;
        match first {
            Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
                self.set("cpu", "cpu.cfs_period_us", period)
            }
            answer => answer,
        }
    }

    /// The kernel holds limit <= limit of both at every moment, so which goes first depends on the direction.
    fn memory_v1(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        let limit = resources.memory_limit.filter(|limit| *limit != 0);
        let both = resources.memory_swap.filter(|both| *both != 0);
        let (one, two) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let both = match (both, self.cgroup.place_of("memory")) {
            (Some(value), Some(folder)) if !folder.join(two).exists() => {
                self.warn(format!("{two}={value} left out: this host's kernel does not count swap"));
                None
            }
            (both, _) => both,
        };
        let raise_both_first = match (both, self.cgroup.place_of("memory")) {
            (Some(both), Some(folder)) => {
                let current =
                    read_if_there(&folder.join(two))?.and_then(|text| text.trim().parse::<i64>().ok());
                both < 0 || current.is_none_or(|current| current < both)
            }
            _ => false,
        };
        if raise_both_first {
            self.set("memory", two, both)?;
        }
        self.set("memory", one, limit)?;
        if !raise_both_first {
            self.set("memory", two, both)?;
        }
        Ok(())
    }

    /// The file's name depends on the I/O scheduler the kernel was built with.
    fn blkio_weight_file(&self) -> &'static str {
        let bfq = "blkio.bfq.weight";
        let has_bfq = self.cgroup.place_of("blkio").is_some_and(|folder| folder.join(bfq).exists());
        if has_bfq { bfq } else { "blkio.weight" }
    }

    fn devices_v1(&mut self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        if rules.is_empty() {
            return Ok(());
        }
        let Some(folder) = self.cgroup.place_of("devices") else {
            self.warn("device rules left out: this host has no devices controller".to_owned());
            return Ok(());
        };
        let (allow, deny) = (folder.join("devices.allow"), folder.join("devices.deny"));
        for rule in effective(rules) {
            write(if rule.allow { &allow } else { &deny }, &rule_text(&rule))?;
        }
        Ok(())
    }

    fn devices_v2(&mut self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        let rules = effective(rules);
        let Some(folder) = self.cgroup.dirs().next() else { return Ok(()) };
        if rules.is_empty() || rules.last().is_some_and(|rule| rule.allow && rule.is_everything()) {
            return Ok(());
        }
        device_filter::attach(folder, &rules)
            .map_err(|source| CgroupError::DeviceFilter { path: folder.to_owned(), source })
    }
}

/// The rules with what every container may use added; nothing is added where all is allowed anyway, which is also
/// the state of a new cgroup.
fn effective(rules: &[DeviceRule]) -> Vec<DeviceRule> {
    let mut rules = rules.to_vec();
    if !rules.is_empty() && !rules.last().is_some_and(|rule| rule.allow && rule.is_everything()) {
        rules.extend(DEFAULT_DEVICES);
    }
    rules
}

/// As devices.allow wants it: "c 1:3 rwm", "a *:* rwm".
fn rule_text(rule: &DeviceRule) -> String {
    let kind = match rule.kind {
        DeviceKind::All => 'a',
        DeviceKind::Block => 'b',
        DeviceKind::Character => 'c',
    };
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let mut text = format!("{kind} {}:{} ", number(rule.major), number(rule.minor));
    let access = rule.access;
    for (letter, given) in [('r', access.read), ('w', access.write), ('m', access.mknod)] {
        if given {
            text.push(letter);
        }
    }
    text
}

/// The kernel's word for "no limit" in files that know it.
fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn text(value: &Option<String>) -> Option<&String> {
    value.as_ref().filter(|value| !value.is_empty())
}

/// v1's shares on v2's scale, keeping both defaults (1024 and 100) and both ends: the curve that runc and crun use
/// since 2025, log10(weight) = (l² + 125·l) / 612 − 7/34 with l = log2(shares).
fn weight(shares: u64) -> u64 {
    if shares == 0 {
        return 100;
    }
    let shares = shares.clamp(SHARES.0, SHARES.1);
    if shares == SHARES.1 {
        return WEIGHT.1;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(WEIGHT.0, WEIGHT.1)
}

/// 10..1000 on v1's scale is 1..10000 on v2's.
fn io_weight(weight: u16) -> u64 {
    let weight = u64::from(weight).clamp(10, 1000);
    1 + (weight - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_default_and_ends_as_weight() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(0), 100);
        assert!((1..18).all(|power| weight(1 << power) < weight(1 << (power + 1))));
    }

    #[test]
    fn rules_read_as_the_kernel_wants_them() {
        assert_eq!(rule_text(&DeviceRule::everything(false)), "a *:* rwm");
        assert_eq!(rule_text(&DEFAULT_DEVICES[2]), "c 1:3 rwm");
        assert_eq!(rule_text(&DEFAULT_DEVICES[9]), "c 136:* rwm");
        assert_eq!(rule_text(&DEFAULT_DEVICES[1]), "b *:* m");
    }

    #[test]
    fn allowing_everything_adds_no_rules() {
        let all = [DeviceRule::everything(true)];
        assert_eq!(effective(&all), all);
        assert_eq!(effective(&[]), []);
        assert_eq!(effective(&[DeviceRule::everything(false)]).len(), 1 + DEFAULT_DEVICES.len());
    }
}
