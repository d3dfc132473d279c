//! Limits as the kernel has them, and what happens at their edge.

use anyhow::{Context, ensure};
use berth_tests::{
    cri::{pod_linux, resources, script, security, sleeper},
    host, on_node,
};
use k8s_cri::v1::{
    ContainerConfig, ContainerState, HugepageLimit, LinuxContainerResources, UpdateContainerResourcesRequest,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const MIB: i64 = 1 << 20;

fn half_a_cpu_and_64_mib() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 64 * MIB,
        ..LinuxContainerResources::default()
    }
}

#[test]
fn open_files_are_limited_as_the_daemon_was_told_not_as_it_limits_itself() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    // Inherited by the daemon. Enough for the tests beside this one.
    setrlimit(Resource::RLIMIT_NOFILE, 4096, hard).expect("setrlimit");
    on_node(async move |node| {
        let limits = |pid: i32| -> anyhow::Result<String> {
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
            let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
            Ok(line.context("no limit")?.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        };
        ensure!(limits(node.pid()?)? == format!("{hard} {hard}"));
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        ensure!(limits(container.pid()?)? == format!("4096 {hard}"));
        let exec = container.exec(&["sh", "-c", "ulimit -Sn; ulimit -Hn"]).await?;
        ensure!(exec.stdout == format!("4096\n{hard}\n"), "{exec:?}");
        Ok(())
    });
}

#[test]
fn cpu_memory_pids_and_cpuset_reach_the_kernel_and_the_status() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        *resources(&mut config) = LinuxContainerResources {
            oom_score_adj: 900,
            cpuset_cpus: "0".to_owned(),
            cpuset_mems: "0".to_owned(),
            ..half_a_cpu_and_64_mib()
        };
        let asked = resources(&mut config).clone();
        let container = pod.run(config).await?;
        let pid = container.pid()?;
        let value = |controller: &str, v1: &str, v2: &str| host::cgroup_value(pid, controller, v1, v2);
        ensure!(value("memory", "memory.limit_in_bytes", "memory.max")? == (64 * MIB).to_string());
        if host::has_controller("cpuset")? {
            ensure!(value("cpuset", "cpuset.cpus", "cpuset.cpus")? == "0");
        }
        if host::cgroup_version() == 1 {
            ensure!(value("cpu", "cpu.cfs_quota_us", "")? == "50000");
            ensure!(value("cpu", "cpu.cfs_period_us", "")? == "100000");
            ensure!(value("cpu", "cpu.shares", "")? == "512");
        } else {
            ensure!(value("cpu", "", "cpu.max")? == "50000 100000");
            let weight: u32 = value("cpu", "", "cpu.weight")?.parse()?;
            ensure!((15..=80).contains(&weight), "{weight}");
            ensure!(value("memory", "", "memory.swap.max")? == "0");
        }
        ensure!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim() == "900");
        // kubelet computes milliCPU back from the shares, so these must be the ones it gave.
        let reported = container.status().await?.resources.and_then(|resources| resources.linux);
        let reported = reported.unwrap_or_default();
        ensure!(reported.cpu_shares == asked.cpu_shares && reported.cpu_quota == asked.cpu_quota);
        ensure!(reported.memory_limit_in_bytes == asked.memory_limit_in_bytes, "{reported:?}");
        Ok(())
    });
}

#[test]
fn zero_means_unlimited() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let limit = host::cgroup_value(container.pid()?, "memory", "memory.limit_in_bytes", "memory.max")?;
        ensure!(limit == "max" || limit.parse::<u64>()? > 1 << 50, "{limit}");
        Ok(())
    });
}

#[test]
fn hugepage_limits_of_sizes_the_host_lacks_do_no_harm() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        resources(&mut config).hugepage_limits = ["2MB", "1GB", "64KB"]
            .map(|size| HugepageLimit { page_size: size.to_owned(), limit: 0 })
            .to_vec();
        pod.run(config).await?;
        Ok(())
    });
}

#[test]
fn the_unified_keys_win_on_version_2() {
    on_node(async |node| {
        if host::cgroup_version() == 1 {
            // kubelet sends no such keys there.
            return Ok(());
        }
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        let wanted = resources(&mut config);
        wanted.memory_limit_in_bytes = 64 * MIB;
        wanted.unified.insert("memory.high".to_owned(), (32 * MIB).to_string());
        wanted.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        let container = pod.run(config).await?;
        let pid = container.pid()?;
        ensure!(host::cgroup_value(pid, "memory", "", "memory.high")? == (32 * MIB).to_string());
        ensure!(host::cgroup_value(pid, "memory", "", "memory.oom.group")? == "1");
        Ok(())
    });
}

#[test]
fn a_threaded_cgroup_that_a_container_made_goes_with_it() {
    on_node(async |node| {
        if host::cgroup_version() == 1 {
            // There is no such thing.
            return Ok(());
        }
        let mut config = node.pod("web");
        pod_linux(&mut config).security_context.get_or_insert_default().privileged = true;
        let pod = node.run_pod(config).await?;
        let mut config = sleeper("main");
        security(&mut config).privileged = true;
        let container = pod.run(config).await?;
        let own = "cd /sys/fs/cgroup$(sed s/^0::// /proc/1/cgroup)";
        container.sh(&format!("{own}; mkdir threads && echo threaded > threads/cgroup.type")).await?;
        let listed = container.exec(&["sh", "-c", &format!("{own}; cat threads/cgroup.procs")]).await?;
        ensure!(listed.code != 0, "the kernel lists them after all: {listed:?}");
        container.stop(0).await?;
        container.remove().await?;
        pod.remove().await
    });
}

fn limited(mut config: ContainerConfig, memory: i64) -> ContainerConfig {
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = memory;
    limits.memory_swap_limit_in_bytes = memory;
    config
}

#[test]
fn a_container_that_runs_out_of_memory_is_oom_killed() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        // The one killed is a child; its parent ends with what the child left.
        let hungry = "dd if=/dev/zero of=/dev/null bs=40M count=1 2>/dev/null; exit $?";
        let status = pod.run(limited(script("main", hungry), 15 * MIB)).await?.wait_exited().await?;
        ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
        ensure!(status.reason == "OOMKilled" && status.exit_code == 137, "{status:?}");
        Ok(())
    });
}

#[test]
fn an_exit_without_a_kill_is_not_called_one() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let status = pod.run(limited(script("main", "exit 137"), 15 * MIB)).await?.wait_exited().await?;
        ensure!(status.reason == "Error" && status.exit_code == 137, "{status:?}");
        Ok(())
    });
}

#[test]
fn a_container_with_four_mebibytes_starts() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let status = pod.run(limited(script("main", "exit 0"), 4 * MIB)).await?.wait_exited().await?;
        ensure!(status.exit_code == 0 && status.reason == "Completed", "{status:?}");
        Ok(())
    });
}

#[test]
fn exec_counts_against_the_containers_limits() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(limited(sleeper("main"), 15 * MIB)).await?;
        let done = container.exec(&["dd", "if=/dev/zero", "of=/dev/null", "bs=40M", "count=1"]).await?;
        ensure!(done.code == 137, "{done:?}");
        ensure!(container.sh("echo alive").await? == "alive\n");
        Ok(())
    });
}

#[test]
fn limits_change_while_the_container_runs_and_zero_leaves_them() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        *resources(&mut config) = half_a_cpu_and_64_mib();
        let container = pod.run(config).await?;
        let pid = container.pid()?;
        let update = async |limits: LinuxContainerResources| {
            let request = UpdateContainerResourcesRequest {
                container_id: container.id.clone(),
                linux: Some(limits),
                ..UpdateContainerResourcesRequest::default()
            };
            node.runtime().update_container_resources(request).await
        };
        // Up and down: on version 1 memory and swap have to be written in the right order.
        for mib in [128, 32, 64] {
            update(LinuxContainerResources {
                memory_limit_in_bytes: mib * MIB,
                memory_swap_limit_in_bytes: mib * MIB,
                ..LinuxContainerResources::default()
            })
            .await?;
            let limit = host::cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max")?;
            ensure!(limit == (mib * MIB).to_string(), "{limit}");
        }
        // kubelet's cpu manager sends the CPUs and nothing else.
        if host::has_controller("cpuset")? {
            update(LinuxContainerResources {
                cpuset_cpus: "0".to_owned(),
                ..LinuxContainerResources::default()
            })
            .await?;
            ensure!(host::cgroup_value(pid, "cpuset", "cpuset.cpus", "cpuset.cpus")? == "0");
        }
        let reported = container.status().await?.resources.and_then(|resources| resources.linux);
        let reported = reported.unwrap_or_default();
        ensure!(reported.memory_limit_in_bytes == 64 * MIB && reported.cpu_shares == 512, "{reported:?}");
        node.kill9().await?;
        node.start().await?;
        let kept = container.status().await?.resources.and_then(|resources| resources.linux);
        ensure!(kept.is_some_and(|kept| kept.memory_limit_in_bytes == 64 * MIB), "forgotten");

        container.stop(0).await?;
        let late =
            update(LinuxContainerResources { cpu_shares: 2, ..LinuxContainerResources::default() }).await;
        ensure!(late.is_err_and(|status| status.code() == tonic::Code::FailedPrecondition));
        Ok(())
    });
}
