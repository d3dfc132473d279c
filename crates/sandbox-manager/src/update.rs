//! New limits for a container that lives.

use std::collections::BTreeMap;

use berth_cri::runtime::v1::{HugepageLimit, LinuxContainerResources};
use berth_launcher::cgroup::Resources;
use berth_nri::LinuxResources;
use oci_spec::runtime::LinuxResources as OciResources;

use crate::{
    Container, Error, Sandbox,
    host::{Host, blocking},
    plugins::{Plugins, to_cri},
};

/// New limits, and whose wish they are.
#[derive(Debug)]
pub(crate) enum Limits {
    /// The caller's: plugins have a say.
    Asked(LinuxContainerResources),
    /// Theirs: nobody else is asked.
    OfPlugins(Box<LinuxResources>),
}

/// Changes the limits of a container; what of it CRI has words for is the answer.
pub(crate) async fn run(
    host: &Host,
    sandbox: &Sandbox,
    plugins: Plugins<'_>,
    container: &Container,
    limits: Limits,
) -> Result<LinuxContainerResources, Error> {
    let invalid = |field: &'static str| move |why: String| Error::Invalid { field, why };
    let of_plugins = |limits: &LinuxResources| {
        let limits = berth_nri::oci::limits(limits, host.facts.swap);
        limits.map_err(|err| invalid("update")(err.to_string()))
    };
    let mut warnings = Vec::new();
    let (mut asked, mut limits) = match limits {
        Limits::OfPlugins(wanted) => {
            apply(host, sandbox, container, &of_plugins(&wanted)?, warnings).await?;
            return Ok(to_cri(&wanted));
        }
        Limits::Asked(asked) => {
            let limits = berth_oci::limits(&asked, &host.facts, &mut warnings)
                .map_err(|err| invalid("linux")(err.to_string()))?;
            (asked, limits)
        }
    };
    let before = berth_nri::oci::seen(&limits);
    let after = plugins.update(container, before.clone()).await?;
    if after != before {
        limits = of_plugins(&after)?;
        asked = merged(&asked, &to_cri(&after));
    }
    apply(host, sandbox, container, &limits, warnings).await?;
    plugins.updated(container).await;
    Ok(asked)
}

/// Writes the limits that are set into the container's cgroup. Lowering a memory limit makes the kernel reclaim first, so
/// this can take a while.
async fn apply(
    host: &Host,
    sandbox: &Sandbox,
    container: &Container,
    limits: &OciResources,
    warnings: Vec<String>,
) -> Result<(), Error> {
    let label = container.id.label();
    let limits = Resources::from_spec(limits).map_err(Error::step(&label, "read its new limits"))?;
    let path = container.cgroup_path(&sandbox.cgroup_parent);
    let cgroup = host.cgroups.at(&path).map_err(Error::step(&label, "find its cgroup"))?;
    let applied = blocking(move || cgroup.apply(&limits)).await;
    let left_out = applied.map_err(Error::step(&label, "change its cgroup's limits"))?;
    for warning in warnings.into_iter().chain(left_out.into_iter().map(|warning| warning.0)) {
        tracing::warn!(container = %container.id.short(), "{warning}");
    }
    Ok(())
}

/// The limits in force after `asked` was applied over `old`: zero and empty leave what was.
pub(crate) fn merged(
    old: &LinuxContainerResources,
    asked: &LinuxContainerResources,
) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &str, new: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
    let mut unified = old.unified.clone();
    unified.extend(asked.unified.clone());
    let mut pages: BTreeMap<String, u64> = BTreeMap::new();
    for limit in old.hugepage_limits.iter().chain(&asked.hugepage_limits) {
        pages.insert(limit.page_size.clone(), limit.limit);
    }
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, asked.cpu_period),
        cpu_quota: number(old.cpu_quota, asked.cpu_quota),
        cpu_shares: number(old.cpu_shares, asked.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, asked.memory_limit_in_bytes),
        // Of a process that runs the score stays as it is.
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(&old.cpuset_cpus, &asked.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &asked.cpuset_mems),
        hugepage_limits: pages
            .into_iter()
            .map(|(page_size, limit)| HugepageLimit { page_size, limit })
            .collect(),
        unified,
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, asked.memory_swap_limit_in_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_cpus_leaves_everything_else() {
        let old = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 26,
            unified: BTreeMap::from([("memory.swap.max".to_owned(), "0".to_owned())]),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit: 0 }],
            ..Default::default()
        };
        let asked = LinuxContainerResources { cpuset_cpus: "1".to_owned(), ..Default::default() };
        let merged = merged(&old, &asked);
        assert_eq!(merged, LinuxContainerResources { cpuset_cpus: "1".to_owned(), ..old });
    }
}
